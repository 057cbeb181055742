"""Fixtures of all tests, and the order that their files come in."""

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import Phase, settings

pytest.register_assert_rewrite("tests.helpers")  # before they are imported: a failed assert tells its values

from tests.helpers.logged import logged  # noqa: E402
from tests.helpers.pictures import picture  # noqa: E402
from tests.helpers.project import Project, copy_project  # noqa: E402

if TYPE_CHECKING:
    from tests.helpers.small_collection import Built


settings.register_profile("shared", deadline=None)  # on a busy machine a slow example is no failure
settings.register_profile(  # make mutants: the same examples each time, and one that fails need not be made smaller
    "mutants", deadline=None, max_examples=12, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate]
)
settings.load_profile("shared")


# Files of tests that take longest, the slowest first: begun last, one would keep a single core busy at the end.
LONG = (
    "proof/test_effects", "proof/test_faults", "extraction/test_extractor", "extraction/test_extract_stage",
    "extraction/test_cache", "extraction/test_batch_size", "runtimes/test_quantization", "cli/test_calibration",
    "pipeline/test_pipeline", "pipeline/test_run_cache", "pipeline/test_production", "finetuning/test_finetune",
    "finetuning/test_training_images", "finetuning/test_losses", "finetuning/test_checkpoint", "images/test_hostile",
    "proof/test_fuzz", "ui/test_page", "ui/test_browser", "networks/test_vit", "networks/test_backbones",
    "cli/test_changing", "cli/test_searching", "pipeline/test_remotes", "benchmarks/test_backbones",
    "repository/test_graph", "api/test_problems", "api/test_searching", "api/test_upload", "api/test_changes",
    "api/test_threads", "api/test_who_may_ask", "api/test_document", "api/test_load", "api/test_start",
    "index/test_choosing", "index/test_kinds", "collection/test_live_index", "collection/test_changes",
    "collection/test_processes", "collection/test_journal", "collection/test_fold", "pipeline/test_notebook",
    "repository/test_workflows", "collection/test_search_by_words", "index/test_tags", "evaluation/test_tag_fusion",
)  # fmt: skip


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long files first. For mutants, laws after examples: what kills most of them takes milliseconds."""
    if config.getoption("--hypothesis-profile") == "mutants":
        items.sort(key=lambda item: hasattr(getattr(item, "obj", None), "hypothesis"))
    else:
        order = {f"tests/{name}.py": number for number, name in enumerate(LONG)}
        items.sort(key=lambda item: order.get(item.nodeid.partition("::")[0], len(LONG)))


@pytest.fixture(autouse=True)
def _prints_no_log() -> Iterator[None]:
    """A script or command that ran in this process goes on printing the log; the next test has a quiet one."""
    yield
    library = logging.getLogger("lookalike")
    library.handlers.clear()
    library.setLevel(logging.NOTSET)


@pytest.fixture
def told() -> Iterator[list[str]]:
    """What the library logs during the test."""
    with logged() as messages:
        yield messages


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """The project without outputs, its default settings in place."""
    return copy_project(tmp_path / "project")


@pytest.fixture
def photos(tmp_path: Path) -> Callable[..., Path]:
    """A writer of folders of pictures: cat=3, dog=2 makes two classes, **{"": 4} a flat folder."""

    def write(**counts: int) -> Path:
        folder = tmp_path / "photos"
        seed = 0
        for name, count in counts.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                picture(seed).save(folder / name / f"{number}.png")
                seed += 1
        return folder

    return write


@pytest.fixture(scope="session")
def small_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `built` copies."""
    from tests.helpers import small_collection  # not above: it imports the whole command

    return small_collection.build(tmp_path_factory.mktemp("small") / "data").folder


@pytest.fixture
def built(small_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Built":
    """24 pictures in three colours, in a project of its own that is the working folder."""
    from tests.helpers.small_collection import Built

    shutil.copytree(small_template, tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOOKALIKE_CACHE", str(tmp_path / "cache"))
    return Built(tmp_path / "data")
