"""What is written appears whole, and what a killed run left goes with the next one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from lookalike import files

KILLED = """
import os, signal, sys
from pathlib import Path
from lookalike import files
target = Path(sys.argv[2])
with {"new_folder": files.new_folder, "new_file": files.new_file,
      "new_files": lambda path: files.new_files(path, "test")}[sys.argv[1]](target) as partial:
    (partial if sys.argv[1] == "new_file" else partial / "a").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def listed(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("way", ["new_folder", "new_file", "new_files"])
def test_killed_runs_leave_one_partial_that_the_next_run_takes_away(tmp_path: Path, way: str) -> None:
    target = tmp_path / "out"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", KILLED, way, target], env=environment, check=False)
        assert done.returncode == -signal.SIGKILL
        left = [path for path in tmp_path.iterdir() if path.name != "out"]
        assert len(left) == 1 and left[0].name.endswith(files.PARTIAL), left
        assert not target.exists() or not listed(target)
    if way == "new_file":
        with files.new_file(target) as partial:
            partial.write_text("whole")
        assert listed(tmp_path) == ["out"] and target.read_text() == "whole"
        return
    manager = files.new_folder(target) if way == "new_folder" else files.new_files(target, "test")
    with manager as partial:
        assert listed(partial) == []
        (partial / "b").write_text("whole")
    assert listed(tmp_path) == ["out", "out/b"]
