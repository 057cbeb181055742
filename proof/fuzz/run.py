"""Feed what opens other people's files with made-up bytes, guided by the code that they reach.

Each target runs in a process of its own until its time is over. A finding is an exception that is no refusal, more
than 5 s of one core for one input, or what ends the process: a crash, more than 1 GB, two minutes for one input. Prints
one JSON object a target; exits 1 if there is a finding, whose bytes lie in --folder. What reached new code is kept
there too, and the next run goes on.

    python proof/fuzz/run.py --seconds 60
    python proof/fuzz/run.py --seconds 300 decode index
    python proof/fuzz/run.py --input .fuzz/decode/findings/crash-0123 decode
"""

import argparse
import importlib.util
import json
import re
import subprocess
import sys
import time
import traceback
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # this checkout's library, whatever is installed

NAMES = ("decode", "archive", "labels-csv", "index", "manifest", "journal")
SECONDS, MEGABYTES, LONGEST = 5, 1000, 65_536  # of one core, for one input, more where cores are slower; and its bytes
HUNG = 120  # seconds of the clock, more where the machine is busy
INSTRUMENTED = ["lookalike", "PIL", "tarfile", "csv", "proof.fuzz.run.targets"]


def main() -> int:
    """Read the arguments, and run each target in a child."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="target", help=f"{', '.join(NAMES)} (default: all)")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=ROOT / ".fuzz", help="for what is kept (default: .fuzz)")
    parser.add_argument("--input", type=Path, help="feed the target this file only, and show what it raises")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    unknown = set(args.targets) - set(NAMES)
    if unknown:
        sys.exit(f"fuzz: error: no target {', '.join(sorted(unknown))}; known: {', '.join(NAMES)}")
    if args.input:
        from proof.fuzz.targets import TARGETS

        for name in args.targets or NAMES:
            TARGETS[name].feed(args.input.read_bytes())
        return 0
    if importlib.util.find_spec("atheris") is None:
        sys.exit("fuzz: error: atheris is not installed; pip install --require-hashes -r requirements/proof.txt")
    if args.child:
        fuzz(args.targets[0], args.folder, args.seconds)
    reports = [run(name, args.folder / name, args.seconds) for name in args.targets or NAMES]
    return int(any(report["findings"] for report in reports))


def run(name: str, folder: Path, seconds: int) -> dict[str, object]:
    """Run one target in a child, which a crash may end; returns and prints what came of it."""
    findings = folder / "findings"
    findings.mkdir(parents=True, exist_ok=True)
    before, began = set(findings.iterdir()), time.monotonic()
    command = [sys.executable, __file__, "--child", name, "--folder", str(folder), "--seconds", str(seconds)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    (folder / "log.txt").write_text(done.stderr, encoding="utf-8")
    reached = re.findall(r"#(\d+)\s.*cov: (\d+) ft: (\d+)", done.stderr) or [("0", "0", "0")]
    executed = re.findall(r"number_of_executed_units:\s+(\d+)", done.stderr)
    report = {
        "target": name,
        "seconds": round(time.monotonic() - began),
        "executions": int(executed[-1] if executed else reached[-1][0]),
        "coverage": int(reached[-1][1]),
        "features": int(reached[-1][2]),
        "peak_mb": int((re.findall(r"peak_rss_mb:\s+(\d+)", done.stderr) or ["0"])[-1]),
        "slowest_s": int((re.findall(r"slowest_unit_time_sec:\s+(\d+)", done.stderr) or ["0"])[-1]),
        "findings": sorted(str(path) for path in set(findings.iterdir()) - before),
    }
    if done.returncode and not report["findings"]:
        sys.exit(f"fuzz: error: {name} did not run; see {folder / 'log.txt'}")
    print(json.dumps(report), flush=True)
    return report


def fuzz(name: str, folder: Path, seconds: int) -> None:
    """Feed one target for so long; ends the process."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        from PIL import Image

        from proof.fuzz.targets import TARGETS
        from proof.patience import patience

        Image.init()  # which imports the readers of every format, each otherwise at its first picture

    target, corpus, findings = TARGETS[name], folder / "corpus", folder / "findings"

    def feed(content: bytes) -> None:
        began = time.process_time()
        try:
            target.feed(content)
        except Exception as error:  # noted, one for each place that raises it, and on it goes
            place = traceback.extract_tb(error.__traceback__)[-1]
            note(f"{type(error).__name__}-{Path(place.filename).stem}-{place.lineno}", content)
        if time.process_time() - began > patience(SECONDS, time.process_time):
            note(f"slow-{sha256(content).hexdigest()[:16]}", content)

    def note(what: str, content: bytes) -> None:
        if not (findings / what).exists():
            (findings / what).write_bytes(content)
            traceback.print_exc()

    corpus.mkdir(exist_ok=True)
    for seed in target.seeds():
        (corpus / f"seed-{sha256(seed).hexdigest()[:16]}").write_bytes(seed)
    atheris.Setup(
        [sys.argv[0], str(corpus), f"-max_total_time={seconds}", f"-timeout={patience(HUNG):.0f}",
         f"-rss_limit_mb={MEGABYTES}", f"-max_len={LONGEST}", f"-artifact_prefix={findings}/", "-print_final_stats=1",
         "-seed=1"],
        feed,
    )  # fmt: skip
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
