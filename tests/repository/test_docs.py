"""What the documentation says is so."""

import contextlib
import io
import json
import re
import runpy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import yaml

from lookalike import cli
from tests.helpers.import_graph import ROOT
from tests.repository.test_graph import FLOORS

README = (ROOT / "README.md").read_text()
HEAD = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES = [*HEAD, *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_figures_of_the_readme_are_those_of_the_last_run() -> None:
    figures = json.loads((ROOT / "metrics/metrics.json").read_text())
    rows = re.findall(r"^\| ([\w@]+) \| (0\.\d{3}) \|", README, re.MULTILINE)
    assert len(rows) >= 4
    for name, value in rows:
        assert f"{figures[name]:.3f}" == value, name


def test_the_headline_of_the_readme_is_in_the_results() -> None:
    raw, refined = re.search(r"lifts mAP from (0\.\d+) .*?to \*\*(0\.\d+)\*\*", README, re.DOTALL).groups()
    table = (ROOT / "docs/results/caltech101.md").read_text().split("### MobileNetV2, ImageNet")[1]
    assert re.search(rf"^\| raw cosine \| 1280 \| {raw} ", table, re.MULTILINE)
    assert re.search(rf"^\| all \(params.yaml\) \| 128 \| {refined} ", table, re.MULTILINE)


def test_the_committed_figures_are_of_the_committed_settings() -> None:
    lock = yaml.safe_load((ROOT / "dvc.lock").read_text())["stages"]
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert set(lock) == set(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
    for stage in lock.values():
        for section, values in stage["params"]["params.yaml"].items():
            assert values == params[section]


def test_the_digits_are_found() -> None:
    figures = json.loads((ROOT / "metrics/metrics.json").read_text())
    features = json.loads((ROOT / "data/features.json").read_text())
    assert features["shape"] == [1797, 2048]
    assert figures["P@1"] >= 0.93


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
            assert not anchor or anchor in headings(page.parent / target if target else page), f"{target}#{anchor}"


def headings(page: Path) -> set[str]:
    """As GitHub names them in addresses."""
    found = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_settings_named_in_the_docs_exist(page) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    names = re.findall(rf"(?:-S |`)((?:{'|'.join(params)})\.[a-z_.]+)", page.read_text())
    for name in names:
        value = params
        for part in name.split("."):
            assert part in value, name
            value = value[part]


def test_every_stage_is_in_the_readme() -> None:
    for stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]:
        assert f"| `{stage}` |" in README


def help_of(run: Callable[[], object]) -> str:
    """What a command prints when it is asked for its help, in this process, which has imported most of it."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        run()
    return said.getvalue()


def test_commands_of_dvc_in_the_docs_exist() -> None:
    """Every `dvc ...` command and its flags, against DVC's own help."""
    from dvc.cli.parser import get_main_parser

    commands = set()
    for page in PAGES:
        for line in re.findall(r"^\s*(dvc .+)$", page.read_text(), re.MULTILINE):
            words = re.sub("'.*?'", "", line.split("#")[0]).split()
            commands.add(
                (tuple(word for word in words[1:3] if word.isalpha()), tuple(w for w in words if w[:1] == "-"))
            )
    assert commands
    for names, flags in commands:
        text = help_of(lambda: get_main_parser().parse_args([*names, "--help"]))  # noqa: B023
        assert text.startswith("usage: dvc ")
        for flag in flags:
            assert re.search(rf"{flag}\b", text), f"dvc {' '.join(names)} {flag}"


def documented(start: str) -> list[str]:
    """Every line of the documentation's blocks that begins so, each once, without its comment."""
    blocks = [block for page in PAGES for block in re.findall(r"^```console\n(.*?)^```", page.read_text(), re.M | re.S)]
    lines = [line.split("  #")[0].rstrip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return sorted({line for line in lines if line.startswith(start)})


@pytest.mark.parametrize("line", documented("lookalike "))
def test_the_command_of_the_docs_is_understood(line: str) -> None:
    _, *words = shlex.split(line)
    name, command, rest = cli.app.resolve_command(click.Context(cli.app), words)
    assert command.make_context(name, list(rest), resilient_parsing=False).params


@pytest.mark.slow
@pytest.mark.parametrize("line", documented("python "))
def test_the_script_of_the_docs_knows_its_options(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that measure take minutes; what their help says must be what the docs write."""
    words = shlex.split(line)
    door = words[1:3] if words[1] == "-m" else words[1:2]
    rest = words[1 + len(door) :]
    monkeypatch.setattr(sys, "argv", [door[-1], *rest[:1] * (rest[:1] != [] and rest[0].isalpha()), "--help"])
    monkeypatch.setattr(sys, "path", [str((ROOT / door[-1]).parent), *sys.path])
    monkeypatch.chdir(ROOT)
    run = runpy.run_module if door[0] == "-m" else runpy.run_path
    known = help_of(lambda: run(door[-1], run_name="__main__"))
    assert known.startswith("usage: ")
    for flag in (word.partition("=")[0] for word in rest if word.startswith("--")):
        assert re.search(rf"{flag}\b", known), flag


def test_the_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_every_page_is_listed_once() -> None:
    listed = re.findall(r"^\| \[[^]]+\]\(([^)]+\.md)\)", (ROOT / "docs/README.md").read_text(), re.MULTILINE)
    assert len(listed) == len(set(listed))
    files = {(ROOT / "docs" / name).resolve() for name in listed}
    assert files == set(PAGES) - {ROOT / "docs/README.md", ROOT / "CHANGELOG.md"}


def test_files_that_contributors_are_sent_to_exist() -> None:
    """And so do the functions and constants that are named with them."""
    text = (ROOT / "CONTRIBUTING.md").read_text() + (ROOT / "docs/glossary.md").read_text()
    places = r"(?:lookalike|stages|tests|docs|proof|benchmarks)/[\w./-]*"
    files = set(re.findall(rf"`({places})`", text))
    assert len(files) > 40
    for file in files:
        assert (ROOT / file).exists(), file
    for names, file in re.findall(rf"((?:`\w+`(?:, | and )?)+) in `({places}\.py)`", text):
        for name in re.findall(r"\w+", names.replace(" and ", " ")):
            assert re.search(rf"^(?:def |class )?{name}\b", (ROOT / file).read_text(), re.MULTILINE), f"{name}: {file}"


def test_contributors_are_told_the_floors() -> None:
    line = re.search(r"^4\. (.*?)^5\. ", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL)[1]
    assert tuple(re.findall(r"`(\w+)`", line)) == FLOORS


def test_pre_commit_runs_the_checks_of_make() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    checks = re.search(r"^define CHECKS\n(.*?)^endef", (ROOT / "Makefile").read_text(), re.MULTILINE | re.DOTALL)[1]
    expected = checks.replace("$(RUN) ", ".venv/bin/").splitlines()
    assert [hook["entry"] for hook in hooks] == [*expected, "make check"]


def test_what_dvc_pull_fetches_is_in_the_repository() -> None:
    """Every output that DVC caches lies in storage/, the default remote."""
    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    lock = yaml.safe_load((ROOT / "dvc.lock").read_text())["stages"]
    declared = [out for stage in graph.values() for kind in ("outs", "metrics", "plots") for out in stage.get(kind, [])]
    options = {name: given for out in declared if isinstance(out, dict) for name, given in out.items()}
    uncached = {name for name, given in options.items() if given.get("cache") is False}
    outs = [out for stage in lock.values() for out in stage["outs"] if out["path"] not in uncached]
    assert {"data/features", "data/index"} <= {out["path"] for out in outs}
    files = ROOT / "storage/files/md5"
    for out in outs:
        stored = files / out["md5"][:2] / out["md5"][2:]
        assert stored.is_file(), f"{out['path']}: run dvc push and commit storage/"
        if out["md5"].endswith(".dir"):
            for entry in json.loads(stored.read_text()):
                assert (files / entry["md5"][:2] / entry["md5"][2:]).is_file(), entry["relpath"]
