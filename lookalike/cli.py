"""The command `lookalike`: search a collection by picture, change it, and see what it is."""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from lookalike.errors import LookalikeError

Command = TypeVar("Command", bound=Callable[..., Any])
FOLDER = click.Path(path_type=Path)
EXIT = "Exit status: 0 done, 1 an error that the message explains, 2 a mistake in the command line."


def tell(message: str) -> None:
    """Tell the user one thing worth knowing, on stderr."""
    click.echo(f"lookalike: {message}", err=True)


def with_examples(text: str | None) -> str:
    """Help in which lines after backslash b stay as they are: Click means the character, a raw docstring has two."""
    return (text or "").replace("\\b", "\b")


def opens_a_collection(command: Command) -> Command:
    """Add the options that say where the collection lies, and turn what a user can mend into one line."""

    @wraps(command)
    def run(**options: Any) -> None:
        try:
            command(**options)
        except BrokenPipeError:
            raise  # whoever read our output has had enough; click ends quietly
        except (LookalikeError, OSError) as error:
            sys.exit(f"lookalike: error: {error}")

    run.__doc__ = with_examples(command.__doc__)
    decorated: Any = run
    for option in (
        click.option("--changes", type=FOLDER, help="Where changes are kept.  [default: changes, beside the index]",
                     callback=lambda context, _, path: path or context.params["index"].with_name("changes")),
        click.option("--index", type=FOLDER, default=Path("data/index"), show_default=True, is_eager=True,
                     help="What the stage index wrote."),
        click.option("--model", type=FOLDER, default=Path("data/model"), show_default=True,
                     help="What the stage model wrote."),
    ):  # fmt: skip
        decorated = option(decorated)
    return cast(Command, decorated)


def images_option(command: Command) -> Command:
    """Add the option that says where the pictures of the images lie."""
    return click.option(
        "--images", type=FOLDER, help="The pictures, to show them: what the stage download wrote. "
        "[default: thumbnails or raw, beside the index]",
    )(command)  # fmt: skip


def search_options(command: Command) -> Command:
    """Add the options that every search has."""
    for option in (
        click.option("--json/--table", "as_json", default=None, help="One JSON object a hit, or a table; by default a "
                     "table on a terminal, else JSON."),
        images_option,
        click.option("--grid", type=click.Path(path_type=Path, dir_okay=False), metavar="PNG",
                     help="Also draw the hits, a row a picture, into this file."),
        click.option("--label", help="Find images of this class only."),
        click.option("--min-similarity", type=click.FloatRange(-1, 1), default=-1.0, show_default=True,
                     help="The least cosine of a hit."),
        click.option("-k", type=int, default=10, show_default=True, help="Hits of each picture."),
    ):  # fmt: skip
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT)
def app() -> None:
    r"""Find the images of a collection that look alike, and change what is searched.

    \b
    lookalike search photo.jpg
    lookalike similar 3/digit_0003.png -k 5
    lookalike add new.jpg --label cat
    lookalike ui
    """


app.help = with_examples(app.help)


@app.command(epilog=EXIT)
@click.argument("pictures", nargs=-1, required=True)
@search_options
@opens_a_collection
def search(
    pictures: tuple[str, ...], k: int, min_similarity: float, label: str | None, as_json: bool | None,
    grid: Path | None, images: Path | None, **where: Path,
) -> None:  # fmt: skip
    r"""Find the images most similar to each of PICTURES: files, folders of them, or - for standard input.

    \b
    lookalike search photo.jpg
    lookalike search photo.jpg other.png -k 20 --min-similarity 0.5
    lookalike search photos/ --label cat --json > hits.jsonl
    lookalike search photo.jpg --grid hits.png
    curl -s https://example.org/photo.jpg | lookalike search -
    """
    opened = open_pictures(where)
    files, found = list(contents(pictures)), []
    for name, read in files:
        with named(name):
            content = read()
            hits = opened.search(content, k, min_similarity, label)
        show(name, hits, as_json, several=len(files) > 1)
        if grid:
            from lookalike.grid import found_with

            found.append(found_with(Path(name).name, content, hits))
    if grid:
        from lookalike.grid import draw

        draw(found, open_thumbnails(opened, images, where), len(opened.gallery.state), grid)


@app.command(epilog=EXIT)
@click.argument("path")
@search_options
@opens_a_collection
def similar(
    path: str, k: int, min_similarity: float, label: str | None, as_json: bool | None,
    grid: Path | None, images: Path | None, **where: Path,
) -> None:  # fmt: skip
    r"""Find the images most similar to one of the collection, given by its path there. Needs no network.

    \b
    lookalike similar 3/digit_0003.png
    lookalike similar 3/digit_0003.png -k 5 --grid hits.png
    """
    opened = open_pictures(where)
    hits = opened.gallery.similar(path, k, min_similarity, label)
    show(path, hits, as_json, several=False)
    if grid:
        from lookalike.grid import draw, found_from

        thumbnails = open_thumbnails(opened, images, where)
        draw([found_from(path, opened.gallery, thumbnails, hits)], thumbnails, len(opened.gallery.state) - 1, grid)


@app.command(epilog=EXIT)
@click.argument("pictures", nargs=-1, required=True)
@click.option("--label", default="", help="Their class; none by default.")
@click.option("--as", "path", help="The path of one picture in the collection; by default LABEL/NAME.")
@click.option("--replace", is_flag=True, help="Take the place of images of the same path.")
@opens_a_collection
def add(pictures: tuple[str, ...], label: str, path: str | None, replace: bool, **where: Path) -> None:
    r"""Add PICTURES, files or folders, to what is searched, at once and without a rebuild.

    They are kept in data/changes. `lookalike fold` writes them into your folder of images.

    \b
    lookalike add new.jpg --label cat
    lookalike add better.jpg --as cat/old.jpg --label cat --replace
    """
    from lookalike.datasets import Settings
    from lookalike.folding import check_path
    from lookalike.progress import progress_bar

    opened, anywhere = open_pictures(where), Settings.model_construct(dataset="caltech101")
    files = list(contents(pictures))
    if path is not None and len(files) != 1:
        raise LookalikeError(f"--as names one path, but there are {len(files)} pictures")
    if path is None and any(sign in label for sign in "/\\"):
        raise LookalikeError(f"label {label!r} has a slash, so LABEL/NAME would be another path; name it with --as")
    names = [f"{label}/{Path(name).name}".removeprefix("/") if path is None else path for name, _ in files]
    for name in names:
        check_path(name, label, anywhere)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise LookalikeError(f"two of the pictures would be {twice[0]}; add them one by one, with --as")
    with progress_bar("add", len(files), "image", delay=1) as bar:  # seconds; a few pictures need no bar
        for (name, read), target in zip(files, names, strict=True):
            with named(name):
                opened.add(target, label, read(), replace=replace)
            bar.update()


@app.command(epilog=EXIT)
@click.argument("paths", nargs=-1, required=True)
@opens_a_collection
def remove(paths: tuple[str, ...], **where: Path) -> None:
    r"""Take images out of what is searched, by their PATHS in the collection; all, or none if one is unknown.

    \b
    lookalike remove cat/old.jpg
    """
    open_pictures(where).gallery.remove(list(paths))


@app.command(epilog=EXIT)
@click.option("--params", type=click.Path(path_type=Path), default=Path("params.yaml"), show_default=True,
              help="Settings; section download names the folder.")  # fmt: skip
@opens_a_collection
def fold(params: Path, **where: Path) -> None:
    """Write added and replaced images into your folder of images, and take removed ones out of it.

    Then `dvc repro` rebuilds the index from the folder. Originals that are replaced or removed are moved to
    data/changes/originals.
    """
    from lookalike import datasets, folding
    from lookalike.params import load

    settings = load(params, "download", datasets.Settings)
    done = folding.fold(open_pictures(where).gallery, settings)
    tell(f"{done.written} images written to {settings.folder}, {done.removed} taken out; rebuild the index: dvc repro")


@app.command(epilog=EXIT)
@opens_a_collection
def info(**where: Path) -> None:
    """Say what the collection is, as JSON: images, classes, index, network, changes."""
    from lookalike import indexes

    gallery = open_pictures(where).gallery
    state, design = gallery.state, indexes.load_plan(where["index"]).design
    click.echo(json.dumps({
        "images": len(state),
        "classes": len(state.labels()),
        "added": int(state.present[len(state.present) - len(state.added):].sum()),
        "removed": int((~state.present[: len(state.present) - len(state.added)]).sum()),
        "index": design.model_dump(exclude_defaults=True),
        "fingerprint": gallery.fingerprint,
        "embedding": asdict(gallery.embedding),
    }, indent=2))  # fmt: skip


@app.command(epilog=EXIT)
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen; by default this machine only.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 for any that is free.")
@images_option
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="Holds the token that every request but /health must "
    "bear; by default the environment's LOOKALIKE_TOKEN, if set.",
)
@click.option(
    "--cors", multiple=True, metavar="ORIGIN", help="A web page's origin, from which a browser may ask; again for more."
)
@click.option(
    "--allow-host",
    multiple=True,
    metavar="NAME",
    help="A name that requests may be addressed to; again for "
    "more. By default any, but without a token on this machine only its own.",
)
@click.option("--max-bytes", type=click.IntRange(1), default=20_000_000, show_default=True, help="Of an upload.")
@click.option("--max-pixels", type=click.IntRange(1), default=50_000_000, show_default=True, help="Of a picture.")
@click.option(
    "--queue",
    type=click.IntRange(1),
    default=128,
    show_default=True,
    help="Searches and additions at one time; one more is answered 503.",
)
@click.option(
    "--batch", type=click.IntRange(1, 64), default=16, show_default=True, help="Pictures embedded at one time, at most."
)
@click.option("--log/--no-log", default=True, show_default=True, help="A line of JSON on stderr for each answer.")
@opens_a_collection
def serve(
    host: str,
    port: int,
    token_file: Path | None,
    cors: tuple[str, ...],
    allow_host: tuple[str, ...],
    log: bool,
    images: Path | None,
    **settings: Any,
) -> None:
    r"""Answer searches over HTTP. What it answers: docs/api.md.

    \b
    lookalike serve
    LOOKALIKE_TOKEN=$(openssl rand -hex 16) lookalike serve --host 0.0.0.0 --port 80
    """
    try:
        from lookalike.api import server
        from lookalike.api import settings as known
    except ModuleNotFoundError as error:
        raise LookalikeError(f"{error.name} is not installed: pip install -r requirements-serve.txt") from None
    from lookalike.thumbnails import beside

    settings["images"] = images or beside(settings["index"])
    token = server.token(token_file)
    chosen = known.Settings(token=token, origins=cors, hosts=server.hosts(host, allow_host, token), **settings)
    server.run(chosen, host, port, tell, log=log)


@app.command(epilog=EXIT)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--without-changes", is_flag=True, help="Leave out what was added and removed since the index was built.")
@images_option
@click.option("--metrics", type=FOLDER, default=Path("metrics"), show_default=True,
              help="What the stage evaluate measured; copied where it is there.")  # fmt: skip
@click.option("--plots", type=FOLDER, default=Path("plots"), show_default=True,
              help="What it drew; copied where it is there.")  # fmt: skip
@opens_a_collection
def bundle(out: Path, without_changes: bool, images: Path | None, metrics: Path, plots: Path, **where: Path) -> None:
    r"""Write index, network and thumbnails into the folder OUT, which is all that a search needs elsewhere.

    \b
    lookalike bundle served
    lookalike search photo.jpg --index served/index --model served/model
    lookalike ui --index served/index --model served/model
    """
    from lookalike import bundle as bundles
    from lookalike import thumbnails
    from lookalike.progress import progress_bar

    source = bundles.Source(where["index"], where["model"], images or thumbnails.beside(where["index"]), metrics, plots)
    with ExitStack() as stack:
        written = bundles.write(
            out, open_pictures(where), source, without_changes=without_changes,
            progress=lambda total: stack.enter_context(progress_bar("bundle", total, "image")).update,
        )  # fmt: skip
    click.echo(json.dumps(asdict(written), indent=2))
    tell(f"open it: lookalike ui --index {out / 'index'} --model {out / 'model'}")


@app.command(epilog=EXIT)
@click.option("--port", type=click.IntRange(1, 65535), default=8501, show_default=True, help="Where it listens.")
@click.option("--host", default="127.0.0.1", show_default=True,
              help="0.0.0.0 lets in everyone who reaches this machine; there is no password.")  # fmt: skip
@images_option
@click.option(
    "--metrics", type=FOLDER, help="What the stage evaluate measured.  [default: metrics, a bundle's or here]"
)
@click.option("--plots", type=FOLDER, help="What it drew.  [default: plots, a bundle's or here]")
@opens_a_collection
def ui(
    port: int, host: str, images: Path | None, metrics: Path | None, plots: Path | None, **where: Path
) -> None:  # fmt: skip
    r"""Search in a browser: upload, paste or photograph a picture, or start from one of the collection.

    \b
    lookalike ui
    lookalike ui --port 8600
    lookalike ui --index served/index --model served/model
    """
    from lookalike.ui.launch import run

    run(port, host, {"images": images, "metrics": metrics, "plots": plots, **where})


def open_pictures(where: dict[str, Path]) -> Any:
    """Open the collection that the options name."""
    from lookalike.pictures import Pictures  # --help need not wait for what it imports

    return Pictures(where["index"], where["model"], where["changes"], tell)


def open_thumbnails(opened: Any, images: Path | None, where: dict[str, Path]) -> Any:
    """Open the pictures of the images of a collection."""
    from lookalike import thumbnails

    return thumbnails.Thumbnails(opened.gallery, images or thumbnails.beside(where["index"]))


def contents(pictures: tuple[str, ...]) -> list[tuple[str, Callable[[], bytes]]]:
    """Name and reader of each picture: a file, every image in a folder, or standard input."""
    from lookalike.images import SUFFIXES

    found: list[tuple[str, Callable[[], bytes]]] = []
    for name in pictures:
        path = Path(name)
        if name == "-":
            found.append((name, sys.stdin.buffer.read))
        elif path.is_dir():
            inside = [
                each for each in sorted(path.rglob("*"))
                if each.suffix.lower() in SUFFIXES and each.is_file()
                and not any(part.startswith(".") for part in each.relative_to(path).parts)
            ]  # fmt: skip
            if not inside:
                raise LookalikeError(f"{path}: no image in it; looked for {' '.join(sorted(SUFFIXES))}")
            found += [(str(each), each.read_bytes) for each in inside]
        else:
            found.append((name, path.read_bytes))
    return found


@contextmanager
def named(picture: str) -> Iterator[None]:
    """Name the picture that cannot be decoded."""
    from lookalike.images import ImageError

    try:
        yield
    except ImageError as error:
        raise LookalikeError(f"{picture}: {error}") from None


def show(query: str, hits: list[Any], as_json: bool | None, *, several: bool) -> None:
    """Print hits: JSON objects, one a line, or a table."""
    if as_json or (as_json is None and not sys.stdout.isatty()):
        for hit in hits:
            click.echo(json.dumps({"query": query, **asdict(hit)}, ensure_ascii=False))
        return
    if several:
        click.echo(query)
    for hit in hits:
        click.echo(f"{hit.rank:4}  {hit.cosine:7.4f}  {hit.label:20}  {hit.path}")


if __name__ == "__main__":
    app(prog_name="lookalike")
