"""A corpus of hostile files, and a child process that opens each of them and says what became of it.

python tests/helpers/hostile.py FOLDER              writes the corpus, as files in FOLDER/pictures and FOLDER/archives
python tests/helpers/hostile.py FOLDER --open DOOR  opens each of them, as `preprocess`, an `upload` or `download` does
"""

import argparse
import io
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

TIMES = 60  # as long as an honest picture of the most pixels takes to decode: as much of a core, for one file
TRIES = 3  # before too many seconds are the file's fault, and not those who share the core's
MAX_PIXELS = 4_000_000  # of a picture that is accepted
MB = 1_000_000


@dataclass(frozen=True)
class Outcome:
    """What became of one file.

    what     taken, refused, defect (another exception, or an answer of the wrong shape), crash, or hang.
    said     the reason.
    seconds  of one core.
    mb       memory beyond what the process had before, at its most.
    """

    name: str
    what: str
    said: str
    seconds: float = 0
    mb: float = 0


def write(folder: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Write named files below a folder."""
    for name, content in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@cache
def honest() -> float:
    """Seconds of one core that an honest picture of the most pixels takes to decode here, now: a PNG of 6 MB."""
    import numpy as np
    from PIL import Image

    side = int(MAX_PIXELS**0.5)
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (125, 125, 3), dtype=np.uint8))
    coarse.resize((side, side), Image.Resampling.BICUBIC).save(file := io.BytesIO(), "PNG", compress_level=1)
    took = []
    for _ in range(3):
        began = time.process_time()
        Image.open(file).load()
        took.append(time.process_time() - began)
    return sorted(took)[1]


def opened(folder: Path, door: str, seconds: float = 0) -> Iterator[Outcome]:
    """Have a child open every file of a folder, in order; after one that kills it another goes on with the next.

    seconds  of one core, for one file; by default TIMES what an honest picture takes.
    """
    names = listed(folder)
    slow: Counter[str] = Counter()
    seconds = seconds or TIMES * honest()
    if "COVERAGE_PROCESS_CONFIG" in os.environ:  # which makes Python slow
        seconds *= 4
    while names:
        command = [sys.executable, __file__, str(folder), "--open", door, "--from", names[0], "--seconds", str(seconds)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
            assert child.stdout is not None
            for line in child.stdout:
                yield Outcome(**json.loads(line))
                names.pop(0)
            died = -child.wait()
        if died == 0:
            assert not names, names
        elif died < 0:
            raise AssertionError(f"{' '.join(command)} exited {-died}")
        elif names:
            slow[names[0]] += died == signal.SIGPROF
            if died != signal.SIGPROF or slow[names[0]] == TRIES:
                yield Outcome(names.pop(0), "hang" if died == signal.SIGPROF else "crash", signal.Signals(died).name)


def listed(folder: Path) -> list[str]:
    """Every file below a folder, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# --- in the child -----------------------------------------------------------------------------------------------------


def preprocess(path: Path) -> tuple[str, str]:
    """A file of a data set, as the stage decodes it."""
    import numpy as np

    from lookalike.images import decode

    decoded = decode.decode_file(path, 32, "pad", MAX_PIXELS)
    if decoded.pixels is None:
        return "refused", decoded.reason
    right = (decoded.pixels.shape, decoded.pixels.dtype) == ((32, 32, 3), np.uint8)
    return ("taken" if right else "defect"), f"{decoded.pixels.dtype} {decoded.pixels.shape}"


def upload(path: Path) -> tuple[str, str]:
    """A picture that a stranger sends."""
    from lookalike.api import guard, problems

    try:
        image = guard.decode(path.read_bytes(), MAX_PIXELS)
    except guard.RefusedError as error:
        refused = 400 <= problems.BY_NAME[error.kind].status < 500
        return ("refused" if refused else "defect"), f"{error.kind}: {error}"
    return ("taken" if image.mode == "RGB" and min(image.size) > 0 else "defect"), f"{image.mode} {image.size}"


def checksum(path: Path) -> str:
    """As params.yaml takes it."""
    return f"sha256:{sha256(path.read_bytes()).hexdigest()}"


def download(path: Path) -> tuple[str, str]:
    """An archive whose checksum is as the user says."""
    from lookalike.base.errors import LookalikeError
    from lookalike.datasets import registry

    settings = registry.Settings(dataset="caltech101", folder="data/none", labels="", url=path.absolute().as_uri(),
                                 checksum=checksum(path), exclude=[], limit_per_class=0)  # fmt: skip
    try:
        count = sum(bool(item.content) or 1 for item in registry.items(settings))
    except LookalikeError as error:
        return "refused", str(error).replace(str(path), path.name)
    return "taken", f"{count} images"


@cache
def section() -> dict[str, object]:
    """Section `download` of params.yaml."""
    import yaml

    return dict(yaml.safe_load((ROOT / "params.yaml").read_text())["download"])


def unpack(path: Path) -> tuple[str, str]:
    """Stage `download` as a whole, in a folder of its own: what it writes must be plain files below data/raw."""
    from lookalike.base.errors import LookalikeError

    main = runpy.run_path(str(ROOT / "stages" / "download.py"))["main"]
    with tempfile.TemporaryDirectory() as name:
        here = Path(name, "deep", "deeper")
        here.mkdir(parents=True)
        settings = section() | {"dataset": "caltech101", "url": path.absolute().as_uri(), "checksum": checksum(path)}
        (here / "params.yaml").write_text(json.dumps({"download": settings}))  # which is YAML too, and quickly read
        sys.argv = ["download.py", str(here / "raw"), "--params", str(here / "params.yaml")]
        try:
            main()
            what, said = "taken", ""
        except (LookalikeError, OSError) as error:  # which the stage says in a line
            what, said = "refused", str(error).replace(name, "")
        written = {each.relative_to(name).as_posix() for each in Path(name).rglob("*")}
        strays = [each for each in written if not each.startswith("deep/deeper/raw/")]
        plain = all(each.is_dir() or (each.is_file() and not each.is_symlink()) for each in Path(name).rglob("*"))
        allowed = {"deep", "deep/deeper", "deep/deeper/params.yaml"}
        allowed |= {"deep/deeper/raw", "deep/deeper/raw.json"} if what == "taken" else set()
        if set(strays) != allowed or not plain or Path("/evil.jpg").exists() or Path("/etc/image_0001.jpg").exists():
            return "defect", f"wrote {strays}"
    return what, said


def trial(path: Path) -> tuple[str, str]:
    """For a test of this very judge."""
    if path.name == "1-crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    while path.name == "2-hang":
        pass
    if path.name == "3-defect":
        raise ZeroDivisionError
    return "taken", ""


DOORS: dict[str, Callable[[Path], tuple[str, str]]] = {
    each.__name__: each for each in (preprocess, upload, download, unpack, trial)
}


def open_all(folder: Path, door: str, first: str, seconds: float) -> None:
    """Open files from `first` on, each within some seconds of one core, and print an Outcome a line."""
    import resource  # which only some systems have

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))  # so that a bomb takes this process and not the others
    for name in listed(folder):
        if name < first:
            continue
        before, began = memory("VmRSS"), time.process_time()
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
        signal.setitimer(signal.ITIMER_PROF, seconds)  # whose signal ends the process, also inside a C library
        try:
            what, said = DOORS[door](folder / name)
            if "MemoryError" in said or "\n" in said:
                what = "defect"
        except Exception as error:
            what, said = "defect", f"{type(error).__name__}: {error}"
        signal.setitimer(signal.ITIMER_PROF, 0)
        took, grown = time.process_time() - began, (memory("VmHWM") - before) / MB
        print(json.dumps(Outcome(name, what, said, round(took, 3), round(grown, 1)).__dict__), flush=True)


def memory(what: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{what}:"))
    return int(line.split()[1]) * 1024


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--open", choices=DOORS, dest="door", help="open what is there, instead of writing it")
    parser.add_argument("--from", default="", dest="first", metavar="NAME", help="with --open: begin with this file")
    parser.add_argument("--seconds", type=float, help=f"with --open: for one file (default: {TIMES} honest pictures)")
    parser.add_argument("--seed", type=int, default=0, help="of the damage that is drawn (default: %(default)s)")
    args = parser.parse_args()
    if args.door:
        open_all(args.folder, args.door, args.first, args.seconds or TIMES * honest())
        return
    from tests.helpers.hostile_archives import archives
    from tests.helpers.hostile_pictures import pictures

    write(args.folder / "pictures", pictures(args.seed))
    write(args.folder / "archives", archives(args.seed))


if __name__ == "__main__":
    main()
