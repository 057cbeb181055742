"""Compile every lock from the names in pyproject.toml, with uv: `make lock`.

Reads   pyproject.toml      dependencies, extras and groups, without versions
Writes  requirements.txt    what the pipeline needs: every version pinned, with its hashes
        requirements/*.txt  what an extra or a group needs, in the versions of requirements.txt

    python requirements/lock.py                             keep what is pinned, pin what is new
    python requirements/lock.py --upgrade                   the newest versions of all
    python requirements/lock.py --upgrade-package pillow    the newest version of one

Options are those of `uv pip compile`.
"""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAIN = "requirements.txt"
# One lock for all platforms and for every Python that the project promises.
COMPILE = ("pip", "compile", "--quiet", "--generate-hashes", "--universal", "--fork-strategy", "fewest",
           "--python-version", "3.11", "--custom-compile-command", "make lock")  # fmt: skip
# Tests need the extras too.
ALSO = {"dev": ("finetune", "s3", "serve", "vit")}
# Locks with which a lock shares its versions, so that all of them can be installed together.
SHARED = {
    "audit": (),  # installed in an environment of its own
    "proof": (MAIN, "requirements/dev.txt"),
    "container": (MAIN, "requirements/serve.txt"),
    "space": (MAIN, "requirements/serve.txt"),
}


def locks() -> dict[str, list[str]]:
    """The requirements that each lock is compiled from, by its path, in the order of compilation."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)
    names: dict[str, list[str]] = {**project["project"]["optional-dependencies"], **project["dependency-groups"]}
    found = {MAIN: project["project"]["dependencies"]}
    for lock, wanted in names.items():
        found[f"requirements/{lock}.txt"] = wanted + [name for other in ALSO.get(lock, ()) for name in names[other]]
    return found


def compile_locks(uv: str, options: list[str]) -> None:
    """Write every lock; what a lock pins already is kept where uv's options do not say otherwise."""
    for path, wanted in locks().items():
        shared = () if path == MAIN else SHARED.get(Path(path).stem, (MAIN,))
        constraints = [part for other in shared for part in ("--constraint", other)]
        command = [uv, *COMPILE, *constraints, *options, "--output-file", path, "-"]
        print(path, flush=True)
        subprocess.run(command, cwd=ROOT, input="\n".join(wanted), text=True, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    found = shutil.which("uv")
    if found is None:
        sys.exit("lock: error: uv is not installed; `make lock` installs the pinned one")
    try:
        compile_locks(found, sys.argv[1:])
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
