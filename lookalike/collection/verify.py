"""Opening what somebody else may have written: no file of an index is read before it is known to be what was built.

A changed index answers wrongly without a word, or takes all memory; once, a crafted one was a way into the process
(facebookresearch/faiss#5400). So an index is opened only with a digest of every file from outside its folder: the trace
`index.json` beside the folder, which `index` writes and Git keeps. A file that was found right is remembered, by path,
size, times and inode, in a folder of the user's, so that the next opening costs a `stat` each.
"""

import errno
import hashlib
import json
import stat
from contextlib import suppress
from pathlib import Path

from lookalike.base import user_cache
from lookalike.base.errors import LookalikeError
from lookalike.base.files import file_digest, write_json

Known = list[int | str]  # size, times of change of content and of anything in ns, inode, digest


REMEDY = "dvc repro --force index"


def verify(folder: Path, manifest: Path | None = None, remedy: str = REMEDY) -> str:
    """Compare every file that the manifest names with its digest; returns a fingerprint of them all.

    manifest  JSON with `files`, a list with one object of digests by name; by default the trace beside the folder,
              data/index.json.
    remedy    the command that makes folder and manifest anew.

    Raises LookalikeError for a manifest that is missing or has no digests, and a file that is missing, another, or not
    named by it.
    """
    manifest = manifest or trace_of(folder)
    files = _listed(folder, manifest, remedy)
    memory = user_cache.folder("verified") / f"{hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:32]}.json"
    known = _remembered(memory)
    seen: dict[str, Known] = {}
    fetch = " (or fetch the right one: dvc checkout, dvc pull)" if remedy == REMEDY else ""
    for name, digest in files.items():
        path = folder / name
        try:
            state = _state(path)
            if known.get(name) != [*state, digest]:
                found = file_digest(path)
                if found != digest or _state(path) != state:
                    raise LookalikeError(
                        f"{path} is not the file that {manifest} describes (SHA-256 {found[:12]}, expected "
                        f"{digest[:12]}), so it was not opened; make both anew: {remedy}{fetch}"
                    )
        except FileNotFoundError:
            raise LookalikeError(f"{path} does not exist; make it: {_make(remedy)}") from None
        except OSError as error:
            raise LookalikeError(f"{path} cannot be read ({error.strerror}); make it anew: {remedy}") from None
        seen[name] = [*state, digest]
    if seen != known:
        with suppress(OSError):  # where nothing can be kept, it is verified every time
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_json(memory, seen)
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def has_digests(folder: Path) -> bool:
    """Whether the trace beside a folder says what its files are."""
    try:
        return "files" in json.loads(trace_of(folder).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError, TypeError, RecursionError):
        return True  # `verify` says what is wrong with it


def trace_of(folder: Path) -> Path:
    """The trace beside a folder: data/index.json for data/index."""
    return folder.with_name(folder.name + ".json")


def written(folder: Path) -> Known:
    """Differs where the trace beside a folder was written anew; costs a `stat`."""
    try:
        return _state(trace_of(folder))
    except OSError:
        return []


def _state(path: Path) -> Known:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe would be read for ever
        raise OSError(errno.EINVAL, "not a regular file")
    # Whoever may write a file may set its st_mtime back, but not its st_ctime.
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _make(remedy: str) -> str:
    return "dvc repro index (or fetch it: dvc pull)" if remedy == REMEDY else remedy


def _listed(folder: Path, manifest: Path, remedy: str) -> dict[str, str]:
    if not folder.is_dir():
        raise LookalikeError(f"{folder} does not exist; make it: {_make(remedy)}")
    try:
        [files] = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        if not files or not all(isinstance(part, str) for item in files.items() for part in item):
            raise ValueError
    except FileNotFoundError:
        raise LookalikeError(
            f"{manifest} does not exist, so nothing says whether {folder} can be trusted, and it was not opened; get "
            f"it from Git, or make both: {remedy}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise LookalikeError(
            f"{manifest} has no digests of the files in {folder}, so it was not opened; make both anew: {remedy}"
        ) from None
    for name in files:
        if Path(name).name != name or not name.strip(".") or not name.isprintable():
            raise LookalikeError(
                f"{manifest} names {name!r}, which is no file in {folder}; get it from Git: git checkout {manifest}"
            )
    for path in sorted(folder.iterdir()):
        if path.name not in files and not path.name.startswith("."):  # a file manager's
            raise LookalikeError(
                f"{path} is not in {manifest}, so nothing was opened; delete it, or make both anew: {remedy}"
            )
    return dict(files)


def _remembered(memory: Path) -> dict[str, Known]:
    try:
        content = json.loads(memory.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}
