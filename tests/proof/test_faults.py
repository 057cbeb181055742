"""A run that is killed, or whose disk fills, loses nothing: the moments are well chosen, and a few of them are tried.

All of them: python proof/faults/run.py.
"""

import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from lookalike.base import script
from lookalike.base.errors import LookalikeError
from lookalike.report import page
from proof.faults import kills
from proof.faults.kills import Event
from proof.faults.sandbox import Sandbox
from proof.patience import patience
from stages.preprocess import read_labels
from tests.helpers.namespaces import need_namespaces
from tests.helpers.project import ROOT

# What strace 6.1 writes; 12 is a second thread, whose call is cut in two by another line.
STRACE = """\
11 mkdir("data/index.partial", 0777)   = 0 (DELAYED)
11 write(2</dev/null>, ""..., 30)      = 30
11 write(5</s/work/data/index.partial/index.faiss>, ""..., 4096) = 4096 (DELAYED)
12 pwrite64(7</s/cache/embeddings/a.sqlite>, ""..., 512, 0 <unfinished ...>
11 write(6<pipe:[123]>, ""..., 1)      = 1
12 <... pwrite64 resumed>)             = 512 (DELAYED)
11 sendfile(6</s/work/data/index.partial/labels.npy>, 5</s/work/data/features/labels.npy>, NULL, 8388608) = 748
11 unlinkat(5</s/work/data/index>, "labels.npy", 0) = 0
11 unlink("data/index.json.partial")   = -1 ENOENT (No such file or directory)
11 rename("data/index.partial", "data/index") = 0
11 rename("/s/work/plots.evaluate.partial/map.csv", "/s/work/plots/map.csv") = 0
11 write(3</s/work/data/index.json.partial>, ""..., 200) = 200
11 rename("data/index.json.partial", "data/index.json") = 0
11 unlink("/tmp/elsewhere")            = 0
"""


def test_writing_is_read_from_strace() -> None:
    events = list(kills.events_of(STRACE.splitlines(), Sandbox(Path("/s")), "index"))
    assert events == [
        Event(11, "prepare", False), Event(11, "write index/index.faiss", True), Event(12, "keep embeddings", False),
        Event(11, "write index/labels.npy", True), Event(11, "remove the old data/index", False),
        Event(11, "put data/index in place", False), Event(11, "put plots in place", False),
        Event(11, "write index.json", True), Event(11, "put data/index.json in place", False),
    ]  # fmt: skip
    assert kills.first_byte(events) == 1


@pytest.mark.parametrize("sizes", [[1], [1, 1], [3, 1, 200, 40], [60, 2, 2, 2], [1] * 40, [30] * 30])
@pytest.mark.parametrize("count", [1, 2, 3, 10, 20, 25])
def test_moments_are_spread_over_the_phases_and_most_come_after_the_first_byte(sizes: list[int], count: int) -> None:
    events = [Event(1, "prepare", False)] * 7 + [
        Event(1, f"write {number}", True) for number, size in enumerate(sizes) for _ in range(size)
    ]
    chosen = kills.moments(events, count)
    assert len(chosen) == count
    held = Counter(event.phase for event in events)
    assert all(0 <= number < held[phase] for phase, number in chosen)
    assert sum(phase == "prepare" for phase, _ in chosen) <= count / 4
    late = Counter(phase for phase, _ in chosen if phase != "prepare")
    assert len(late) == min(len(sizes), late.total())  # each phase, or as many as there are kills
    if late.total() <= sum(sizes) and len(sizes) <= late.total():
        assert len(set(chosen)) == count  # no moment twice


@pytest.mark.parametrize("content", ["", "pa", "path,label\na.png", "path,label\na.png,x\nb.png,y,z\n", "path\na\n"])
def test_a_table_of_labels_that_was_cut_off_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "labels.csv").write_text("path,label\nb.png,\na.png,x\n")
    assert read_labels(tmp_path / "labels.csv") == [("a.png", "x"), ("b.png", "")]
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(LookalikeError, match=r"labels.csv is not a table of path and label; make it anew: dvc repro"):
        read_labels(tmp_path / "labels.csv")


def test_a_table_of_labels_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(LookalikeError, match=r"labels.csv does not exist; make it: dvc repro download"):
        read_labels(tmp_path / "labels.csv")


def test_an_interrupted_stage_ends_as_a_shell_expects_and_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        script.run("index", main)
    assert ended.value.code == 128 + signal.SIGINT
    assert capsys.readouterr() == ("", "")


def test_a_trace_that_was_cut_off_is_named(tmp_path: Path) -> None:
    (tmp_path / "raw.json").write_text('{"dataset": "dig')
    with pytest.raises(LookalikeError, match=r"raw.json is not the trace of a stage; make it anew: dvc repro"):
        page.write_evaluation(tmp_path, {}, {}, tmp_path)


def test_a_machine_without_strace_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LookalikeError, match=r"strace, .* is not to be had here: apt install strace"):
        kills.check_tools()


@pytest.mark.parametrize(("took", "expected"), [(0.1, 60), (0.2, 60), (0.8, 240)])
def test_a_limit_grows_with_the_time_that_the_machine_takes(took: float, expected: float) -> None:
    times = iter([7.0, 7.0 + took])
    assert patience(60, lambda: next(times)) == pytest.approx(expected)


@pytest.mark.slow
def test_a_few_faults_of_each_sort_are_mended(tmp_path: Path) -> None:
    need_namespaces()
    try:
        kills.check_tools()
    except LookalikeError as error:
        pytest.skip(str(error))
    faults = ["--fault", "kill", "--fault", "full-disk", "--fault", "read-only"]
    command = [sys.executable, ROOT / "proof/faults/run.py", *faults, "--kills", "4", "--stage", "index"]
    done = subprocess.run(
        [*command, "--json", tmp_path / "found.json", "--folder", tmp_path],
        capture_output=True, text=True, check=False, timeout=patience(3600),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    killed = found["kills"]["index"]
    assert (killed["kills"], killed["of_the_stage_alone"], killed["over_old_outputs"]) == (4, 2, 2)
    assert killed["after_first_output_byte"] >= 3
    assert killed["left_something_unfinished"] >= 1  # the kills do hit
    others = Counter(outcome["fault"] for outcome in found["others"])
    assert others == {"full-disk": 4, "read-only": 1}
    assert sum("make room, and run again" in outcome["said"] for outcome in found["others"]) >= 3
    assert "index: 4 kills" in done.stdout
