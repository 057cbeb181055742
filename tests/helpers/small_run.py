"""Settings under which the graph runs in seconds, and what DVC re-runs when one changes."""

from tests.helpers.project import Project


def small(project: Project) -> None:
    """Settings under which the graph runs in seconds: 80 digits, 32 pixels, a small network."""
    project.set(download__limit_per_class=8, preprocess__image_size=32, model__backbone="MobileNet",
                model__layer="conv_pw_2_relu", index__refine__pca=16, index__refine__augment=4,
                index__refine__expand=3, benchmark__queries=5, benchmark__repeats=1, evaluate__k=[1, 5, 10],
                evaluate__resamples=100, evaluate__split_seeds=2, evaluate__examples=3)  # fmt: skip


RESEEDED = ({"model__seed": 1}, ["model", "extract", "index", "evaluate", "benchmark"])
# What changing one key makes DVC run again; tests/proof/test_effects.py compares docs/params.md with it.
BATCHES = {"extract__batch_size": 16}
RE_RUN = [
    ({"evaluate__k": [1, 3]}, ["evaluate"]),
    ({"benchmark__queries": 3}, ["benchmark"]),
    ({"protocol__seed": 1}, ["evaluate", "benchmark"]),
    ({"index__kind": "hnsw"}, ["index", "evaluate", "benchmark"]),
    ({"index__hnsw__neighbors": 8}, ["index"]),  # so few images are compared one by one: the same index
    (BATCHES, ["extract"]),  # the same features on most processors: what follows is not touched
    ({"extract__runtime": "tensorflow"}, ["extract", "index", "evaluate", "benchmark"]),
    RESEEDED,
    ({"preprocess__workers": 1}, ["preprocess"]),  # the same pixels
    ({"preprocess__image_size": 40}, ["preprocess", "extract", "index", "evaluate", "benchmark"]),
]
