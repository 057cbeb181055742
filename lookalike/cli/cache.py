"""List and prune what Lookalike keeps in the user's cache folder: embeddings, quantised networks, trainings, downloads.

    python -m lookalike.cli.cache                               what is kept, and how large it is
    python -m lookalike.cli.cache prune --unused-for 30         delete what no run has used for 30 days
    python -m lookalike.cli.cache prune --keep-gb 5             delete the longest unused until 5 GB are left
    python -m lookalike.cli.cache prune --unused-for 0          delete all of it

The folder is $LOOKALIKE_CACHE if that is set. Nothing in it is the only copy of anything: what is deleted is computed,
or fetched, again when it is wanted.
"""

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lookalike.base import script, user_cache
from lookalike.base.files import remove
from lookalike.extraction import cache

KINDS = ("embeddings", "networks", "frozen", "trainings", "batch_sizes", "companies", "downloads", "verified")
DAY = 86_400  # seconds


@dataclass(frozen=True)
class Item:
    """An entry of the cache."""

    path: Path
    kind: str
    what: str
    bytes: int
    used: float  # seconds since 1970


def items() -> list[Item]:
    """List all entries, the latest used first."""
    found = []
    for kind in KINDS:
        for path in sorted(user_cache.folder(kind).glob("*")):
            if path.name.endswith((".lock", "-journal")):  # part of another
                continue
            with suppress(FileNotFoundError):  # a run may just have replaced it
                found.append(_item(kind, path))
    return sorted(found, key=lambda item: (-item.used, item.path.name))


def _item(kind: str, path: Path) -> Item:
    statuses = [file.stat() for file in (path, *path.rglob("*"))]
    what = cache.describe(path) if kind == "embeddings" else path.name
    used = max(status.st_mtime for status in statuses)
    return Item(path, kind, what, sum(status.st_size for status in statuses), used)


def outdated(kept: list[Item], unused_for: float | None, keep_gb: float | None, now: float) -> list[Item]:
    """List the entries to delete: unused for so many days, and the longest unused beyond `keep_gb`.

    Batch sizes and companies take no room, and what was embedded with them is found by them: they go by days alone.
    """
    going = [item for item in kept if unused_for is not None and now - item.used >= unused_for * DAY]
    if keep_gb is not None:
        total = 0.0
        for item in (item for item in kept if item not in going and item.kind not in ("batch_sizes", "companies")):
            total += item.bytes / 1e9
            if total > keep_gb:
                going.append(item)
    return going


def main() -> None:
    """Read the arguments, then list or delete."""
    parser = script.door("cache", __doc__)
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("list", help="what is kept, the latest used first (the default)")
    prune = commands.add_parser("prune", help="delete what is no longer used")
    prune.add_argument("--unused-for", type=float, metavar="DAYS", help="what no run has used for so many days")
    prune.add_argument("--keep-gb", type=float, metavar="GB", help="the longest unused, until so much is left")
    args = parser.parse_args()
    for name in ("unused_for", "keep_gb") if args.command == "prune" else ():
        if (getattr(args, name) or 0) < 0:
            parser.error(f"--{name.replace('_', '-')} is {getattr(args, name):g}; choose 0 or more")
    kept = items()
    if args.command == "prune":
        if args.unused_for is None and args.keep_gb is None:
            parser.error("prune needs --unused-for DAYS, --keep-gb GB, or both")
        kept = outdated(kept, args.unused_for, args.keep_gb, time.time())
        for item in kept:
            remove(item.path)
            remove(item.path.with_name(item.path.name + "-journal"))  # left by a kill
    for item in kept:
        day = time.strftime("%Y-%m-%d", time.localtime(item.used))
        print(f"{item.bytes / 1e6:10.1f} MB  {day}  {item.kind:10}  {item.what}")
    verb = "deleted" if args.command == "prune" else "kept"
    print(f"{sum(item.bytes for item in kept) / 1e6:10.1f} MB  {verb} in {user_cache.root()}")


if __name__ == "__main__":
    script.run("cache", main)
