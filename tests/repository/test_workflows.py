"""The workflows for GitHub: what they run is in the Makefile, what they use is pinned, and they may do little."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.import_graph import ROOT
from tests.helpers.project import Project

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text()
each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def read(path: Path) -> dict[str, Any]:
    return yaml.load(path.read_text(), yaml.BaseLoader)  # to YAML 1.1 `on` is a boolean


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_there_is_one_for_each_promise() -> None:
    assert {"tests", "reproduce", "report", "audit"} == {path.stem for path in WORKFLOWS}


@each_workflow
def test_every_step_runs_a_documented_target(path: Path) -> None:
    """So everything that happens there can be run here, by the same command."""
    for step in steps(read(path)):
        if "run" in step:
            target = re.fullmatch(r"make (\w+)", step["run"])
            assert target, step["run"]
            assert re.search(rf"^{target[1]}:", MAKEFILE, re.MULTILINE), step["run"]
            assert re.search(rf"^# make {target[1]}\b", MAKEFILE, re.MULTILINE), f"{step['run']}: say what it does"


@each_workflow
def test_every_action_is_pinned_by_commit(path: Path) -> None:
    used = re.findall(r"uses: *(.*)", path.read_text())
    assert used
    for action in used:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action


def test_one_action_has_one_version() -> None:
    used = {action for path in WORKFLOWS for action in re.findall(r"uses: *(.*)", path.read_text())}
    assert len(used) == len({action.partition("@")[0] for action in used})


@each_workflow
def test_permissions_time_and_credentials_are_limited(path: Path) -> None:
    workflow = read(path)
    assert workflow["permissions"] == {}
    assert "cancel-in-progress" in workflow["concurrency"]
    assert "pull_request_target" not in workflow["on"]
    assert "workflow_run" not in workflow["on"]
    for job in workflow["jobs"].values():
        assert int(job["timeout-minutes"]) <= 60
        assert job["permissions"]["contents"] == "read"
        assert "secrets." not in str(job)
        if set(job["permissions"].values()) != {"read"}:  # it writes, so it must not run what the pull request says
            checkouts = [step for step in job["steps"] if "checkout" in step.get("uses", "")]
            assert [step["with"]["ref"] for step in checkouts] == ["${{ github.event.pull_request.base.sha }}"]
    for step in steps(workflow):
        if "actions/checkout" in step.get("uses", ""):
            assert step["with"]["persist-credentials"] == "false"
        assert "${{" not in step.get("run", "")  # what a stranger writes is no part of a script


def test_the_schemas_hold() -> None:
    command = shutil.which("check-jsonschema", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("check-jsonschema is not installed: pip install -r requirements/dev.txt")
    subprocess.run([command, "--builtin-schema", "vendor.github-workflows", *WORKFLOWS], check=True)
    dependabot = ROOT / ".github/dependabot.yml"
    subprocess.run([command, "--builtin-schema", "vendor.dependabot", dependabot], check=True)
    for update in yaml.safe_load(dependabot.read_text())["updates"]:
        for folder in update.get("directories", [update.get("directory")]):
            assert (ROOT / folder.strip("/")).is_dir()


@pytest.mark.slow
def test_zizmor_finds_nothing() -> None:
    command = shutil.which("zizmor", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("zizmor is not installed: pip install -r requirements/dev.txt")
    done = subprocess.run([command, "--offline", ROOT / ".github"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No findings to report" in done.stdout + done.stderr


# --- the report -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_report_shows_what_a_change_does(tmp_path: Path) -> None:
    pytest.importorskip("vl_convert", reason="vl-convert-python is not installed: pip install -r requirements/dev.txt")
    project = Project(tmp_path)
    wanted = ("dvc.*", "params.yaml", "metrics", "plots", ".dvc", ".dvcignore", "data")
    names = subprocess.run(["git", "ls-files", *wanted], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in names.split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    project.run("git", "init", "--quiet", "--initial-branch", "main")
    project.commit("before")

    summary = tmp_path.parent / f"{tmp_path.name}.md"
    project.environment["GITHUB_STEP_SUMMARY"] = str(summary)
    report = (sys.executable, str(ROOT / "proof/change.py"), "main", ".git/report")
    project.run(*report)
    same = (tmp_path / ".git/report/report.md").read_text()
    for said in ("No stage has", "No setting differs", "No figure differs", "No curve differs"):
        assert said in same

    project.set(index__target_recall=0.5)
    for name, old, new in (
        ("metrics/metrics.json", r'"mAP": [\d.]+', '"mAP": 0.5'),
        ("plots/recall_at_k.csv", r"1,0\.\d+", "1,0.5"),
        ("dvc.lock", r"(path: metrics/metrics.json\n\s+hash: md5\n\s+md5: )\w+", r"\g<1>" + "a" * 32),
        ("metrics/latency.json", r'"p50_ms": [\d.]+', '"p50_ms": 9'),  # a time, which differs at every run
        ("dvc.lock", r"(path: metrics/latency.json\n\s+hash: md5\n\s+md5: )\w+", r"\g<1>" + "b" * 32),
    ):
        text, count = re.subn(old, new, (tmp_path / name).read_text(), count=1)
        assert count == 1, name
        (tmp_path / name).write_text(text)
    project.run(*report)
    changed = (tmp_path / ".git/report/report.md").read_text()
    assert re.search(r"\| `evaluate` \| none +\| `metrics/metrics.json` \|", changed)
    assert re.search(r"params.yaml +\| index.target_recall +\| [\d.]+ +\| 0.5 ", changed)
    assert re.search(r"metrics.json +\| mAP +\| 0\.\d+ +\| 0.5 ", changed)
    assert re.findall(r"!\[(.*)\]\((.*)\)", changed) == [
        ("Share of all relevant images among the first k", "recall_at_k.png")
    ]
    assert (tmp_path / ".git/report/recall_at_k.png").read_bytes()[:4] == b"\x89PNG"
    assert "Not as committed" in changed
    assert "gave other `dvc.lock`, " in changed and "latency" not in changed
    project.run("git", "checkout", "--quiet", "dvc.lock", "metrics", "plots")
    lock = (tmp_path / "dvc.lock").read_text()
    timed = re.sub(r"(path: metrics/latency.json\n\s+hash: md5\n\s+md5: )\w+", r"\g<1>" + "b" * 32, lock)
    assert timed != lock
    (tmp_path / "dvc.lock").write_text(timed)
    project.run(*report)
    assert "Not as committed" not in (tmp_path / ".git/report/report.md").read_text()
    assert "| `evaluate` |" in summary.read_text()
    assert "![" not in summary.read_text()

    wrong = project.run(*report[:2], "nowhere", "x", check=False)
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("change: error: git rev-parse")
    assert wrong.stderr.count("\n") == 1
