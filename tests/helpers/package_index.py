"""Which files the package index has of a package: asked as pip asks, wherever pip is set to look."""

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

THREADS = 8


def files(packages: Iterable[str]) -> dict[str, set[str]]:
    """Names of the files of each package, or skip the test where no index can be reached."""
    with _pip() as (fetch, parse, link, addresses):

        def page(address: str, package: str) -> Any:
            return fetch(link(f"{address.rstrip('/')}/{package}/"))

        def of(package: str) -> set[str]:
            pages = filter(None, (page(address, package) for address in addresses))
            return {name for each in pages for name in listed(each)}

        def listed(found: Any) -> list[str]:
            if "json" in found.content_type:  # 141 packages: 9.4 s of a core by pip's reader, 2.3 s so
                return [file["filename"] for file in json.loads(found.content)["files"]]
            return [each.filename for each in parse(found)]

        names = sorted(packages)
        if not page(addresses[0], names[0]):
            pytest.skip("the package index that pip is set to cannot be reached")
        with ThreadPoolExecutor(THREADS) as pool:
            return dict(zip(names, pool.map(of, names), strict=True))


@contextmanager
def _pip() -> Iterator[Any]:
    """What pip reads an index with; it has no public interface for that."""
    try:
        from pip._internal.commands import create_command
        from pip._internal.index.collector import LinkCollector, parse_links
        from pip._internal.models.link import Link
    except ImportError as error:
        pytest.skip(f"this pip cannot be asked: {error}")
    command = create_command("download")
    options, _ = command.parse_args(["--retries=1", "--timeout=20"])
    addresses = [] if options.no_index else [options.index_url, *options.extra_index_urls]
    if not addresses:
        pytest.skip("pip is set to ask no index (no-index)")
    with command.main_context():
        session = command.get_default_session(options)
        yield LinkCollector.create(session, options).fetch_response, parse_links, Link, addresses
