"""Metrics of the server, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
METHODS = frozenset({"GET", "POST", "DELETE", "OPTIONS", "HEAD", "PUT", "PATCH"})


class Metrics:
    """Metrics of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "lookalike_requests", "Answers.", ["method", "route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "lookalike_request_seconds",
            "From a request's head to its answer's end.",
            ["method", "route"],
            registry=self._registry,
            buckets=SECONDS,
        )
        self._batches = Histogram(
            "lookalike_batch_size",
            "Pictures embedded at one time; the count is the network's calls.",
            registry=self._registry,
            buckets=(1, 2, 4, 8, 16, 32, 64),
        )
        self._embedding = Histogram(
            "lookalike_embed_seconds", "The network's time for a batch.", registry=self._registry, buckets=SECONDS
        )
        self.under_way = Gauge(
            "lookalike_queries_under_way", "Searches and additions received, not yet answered.", registry=self._registry
        )
        self.images = Gauge("lookalike_images", "Images in the collection.", registry=self._registry)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answer."""
        method = method if method in METHODS else "other"  # else a client could make any number of rows
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def embedded(self, size: int, seconds: float) -> None:
        """Count a batch."""
        self._batches.observe(size)
        self._embedding.observe(seconds)

    def text(self) -> bytes:
        """Write all metrics in Prometheus's text format."""
        return generate_latest(self._registry)
