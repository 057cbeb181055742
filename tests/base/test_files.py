"""What is written appears whole, and what a killed run left goes with the next one."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lookalike.base import files
from tests.helpers.namespaces import unshared
from tests.helpers.platforms import POSIX
from tests.helpers.project import ROOT

KILLED = """
import os, signal, sys
from pathlib import Path
from lookalike.base import files
target = Path(sys.argv[2])
with {"new_folder": files.new_folder, "new_file": files.new_file,
      "new_files": lambda path: files.new_files(path, "test")}[sys.argv[1]](target) as partial:
    (partial if sys.argv[1] == "new_file" else partial / "a").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def listed(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["new_folder", "new_file", "new_files"])
@POSIX
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


WRITERS = """
import sys
from pathlib import Path
import numpy as np
from lookalike.base import files, script
from lookalike.index import build as indexes

FLAT = indexes.Design(kind="flat", storage="float32")
def vectors(path): indexes.build(np.eye(64, dtype=np.float32), FLAT).save(path)
def few_vectors(path):  # so few that they reach the disk only when the file is closed
    (path.parent / "rest").write_bytes(bytes(8192))
    indexes.build(np.eye(10, dtype=np.float32), FLAT).save(path)
def array(path): np.save(path, np.ones((64, 64)))
def text(path): path.write_text("x" * 20_000)
def weights(path):
    from lookalike.networks import backbones
    model = backbones.create("MobileNetV2", "random", Path("data/none"), "block_1_expand_relu", 0)
    backbones.save(model, "MobileNetV2", "random", "avg", path.parent)
def network(path):
    from lookalike.networks import openvino_setup as ov
    node = ov.ov.opset13.constant(np.ones((64, 64), np.float32))
    parameter = ov.ov.opset13.parameter([64, 64], np.float32)
    ov.save(ov.ov.Model([ov.ov.opset13.add(parameter, node)], [parameter]), path.with_suffix(".xml"))

def main():
    target = Path(sys.argv[2])
    with files.new_folder(target) as folder:
        with (target.parent / "ballast").open("wb", buffering=0) as file:
            file.truncate(file.write(bytes(8 << 20)) - 8192)  # it wrote as much as there was room for
        globals()[sys.argv[1]](folder / "a.npy")
script.run("index", main)
"""


@pytest.mark.parametrize(
    "way", ["vectors", "few_vectors", "array", "text", pytest.param("weights", marks=pytest.mark.slow), "network"]
)
def test_a_full_disk_is_told_in_one_line_and_takes_nothing_away(tmp_path: Path, way: str) -> None:
    """Whatever library writes; each has its own way to say it."""
    script = tmp_path / "write.py"
    script.write_text(WRITERS)
    disk = tmp_path / "disk"
    disk.mkdir()
    done = unshared(
        f"mount -t tmpfs -o size=1m none {disk} && mkdir {disk}/out && echo old > {disk}/out/old &&"
        f"PYTHONPATH={ROOT} {sys.executable} {script} {way} {disk}/out; echo $? $(ls {disk}) $(ls {disk}/out)"
    )
    assert done.stdout.split() == ["1", "ballast", "out", "old"], done.stderr
    assert re.fullmatch(r"index: error: .*(No space|cannot be written).*make room, and run again.*\n", done.stderr)
    assert f"{disk}/out" in done.stderr
