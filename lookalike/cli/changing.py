"""Commands that change the collection: `add`, `remove` and `fold`."""

from collections import Counter
from pathlib import Path

import click

from lookalike.base.errors import LookalikeError
from lookalike.cli.common import EXIT, Unreadable, app, contents, open_pictures, opens_a_collection, tell


@app.command(epilog=EXIT)
@click.argument("pictures", nargs=-1, required=True)
@click.option("--label", default="", help="Their class; none by default.")
@click.option("--as", "path", help="The path of one picture in the collection; by default LABEL/NAME.")
@click.option("--replace", is_flag=True, help="Take the place of images of the same path.")
@opens_a_collection
def add(pictures: tuple[str, ...], label: str, path: str | None, replace: bool, **where: Path) -> None:
    r"""Add PICTURES, files or folders, to what is searched, at once and without a rebuild.

    They are kept in data/changes; an interrupted command goes on where it was when it is repeated. `lookalike fold`
    writes them into your folder of images. A picture that cannot be read is reported, and the others are added; the
    exit status is 1 then. Only the first frame of an animation is used.

    \b
    lookalike add new.jpg --label cat
    lookalike add better.jpg --as cat/old.jpg --label cat --replace
    """
    from lookalike.base.script import progress_bar
    from lookalike.collection.names import check_name

    opened = open_pictures(where, decodes=True)
    files = list(contents(pictures))
    if path is not None and len(files) != 1:
        raise LookalikeError(f"--as names one path, but there are {len(files)} pictures")
    if path is None and any(sign in label for sign in "/\\"):
        raise LookalikeError(f"label {label!r} has a slash, so LABEL/NAME would be another path; name it with --as")
    names = [f"{label}/{Path(name).name}".removeprefix("/") if path is None else path for name, _ in files]
    for name in names:
        check_name(name, label)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise LookalikeError(f"two of the pictures would be {twice[0]}; add them one by one, with --as")
    known, added, unreadable = 0, [], Unreadable()
    with progress_bar("add", len(files), "image", delay=1) as bar:  # seconds; a few pictures need no bar
        for (name, read), target in zip(files, names, strict=True):
            with unreadable.named(name):
                if opened.add(target, label, read(), replace=replace):
                    added.append(target)
                else:
                    known += 1
            bar.update()
    if known:
        tell(f"{known} of {len(files)} had been added before, the same pictures; they stay as they are")
    if added:
        tell(f"added {added[0]}" if len(added) == 1 else f"{len(added)} images added")
    unreadable.end()


@app.command(epilog=EXIT)
@click.argument("paths", nargs=-1, required=True)
@opens_a_collection
def remove(paths: tuple[str, ...], **where: Path) -> None:
    r"""Take images out of what is searched, by their PATHS in the collection; all, or none if one is unknown.

    \b
    lookalike remove cat/old.jpg
    """
    open_pictures(where).gallery.remove(list(paths))
    tell(f"removed {paths[0]}" if len(paths) == 1 else f"{len(paths)} images removed")


@app.command(epilog=EXIT)
@click.option(
    "--params",
    type=click.Path(path_type=Path),
    default=Path("params.yaml"),
    show_default=True,
    help="Settings; section download names the folder.",
)
@opens_a_collection
def fold(params: Path, **where: Path) -> None:
    """Write added and replaced images into your folder of images, and take removed ones out of it.

    Then `dvc repro` rebuilds the index from the folder. Originals that are replaced or removed are moved to
    data/changes/originals. Lines of removed images are taken out of index.tags.file.
    """
    from lookalike.base.params import UNUSED, load
    from lookalike.collection import fold as folding
    from lookalike.datasets import registry
    from lookalike.index import build

    settings, tags = load(params, "download", registry.Settings), load(params, "index", build.Settings).tags
    tags_file = None if tags.file == UNUSED else Path(tags.file)
    done = folding.fold(open_pictures(where).gallery, settings, tags_file)
    tell(f"{done.written} images written to {settings.folder}, {done.removed} taken out; rebuild the index: dvc repro")
