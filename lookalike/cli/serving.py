"""The collection as others get it: `info`, `bundle`, `serve` and `ui`."""

import json
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from msgspec import to_builtins

from lookalike.base.errors import LookalikeError
from lookalike.cli.common import EXIT, FOLDER, app, images_option, open_pictures, opens_a_collection, tell

READ_AGAIN = 100_000_000  # pictures.MAX_PIXELS, by which what was added is read later; its import would slow --help


@app.command(epilog=EXIT)
@opens_a_collection
def info(**where: Path) -> None:
    """Say what the collection is, as JSON: images, classes, images with tags, index, network, changes."""
    from lookalike.index import files

    gallery = open_pictures(where).gallery
    state, design = gallery.state, files.load_plan(where["index"]).design
    click.echo(json.dumps({
        "images": len(state),
        "classes": len(state.labels()),
        "tagged": gallery.tagged(),
        "added": int(state.present[len(state.present) - len(state.added):].sum()),
        "removed": int((~state.present[: len(state.present) - len(state.added)]).sum()),
        "index": design.stated(),
        "fingerprint": gallery.fingerprint,
        "embedding": to_builtins(gallery.embedding),
    }, indent=2))  # fmt: skip


@app.command(epilog=EXIT)
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--without-changes",
    is_flag=True,
    help="Leave out what was added and removed since the index was built; else that is an error.",
)
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
    from lookalike.base.script import progress_bar
    from lookalike.collection import bundle as bundles
    from lookalike.collection import thumbnails

    source = bundles.Source(where["index"], where["model"], images or thumbnails.beside(where["index"]), metrics, plots)
    with ExitStack() as stack:
        written = bundles.write(
            out, open_pictures(where), source, without_changes=without_changes,
            progress=lambda total: stack.enter_context(progress_bar("bundle", total, "image")).update,
        )  # fmt: skip
    click.echo(json.dumps(asdict(written), indent=2))
    tell(f"open it: lookalike ui --index {out / 'index'} --model {out / 'model'}")


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
@click.option(
    "--max-pixels", type=click.IntRange(1, READ_AGAIN), default=50_000_000, show_default=True, help="Of a picture."
)
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
        raise LookalikeError(f"{error.name} is not installed: pip install -r requirements/serve.txt") from None
    from lookalike.collection.thumbnails import beside

    settings["images"] = images or beside(settings["index"])
    token = server.token(token_file)
    chosen = known.Settings(token=token, origins=cors, hosts=server.hosts(host, allow_host, token), **settings)
    server.run(chosen, host, port, tell, log=log)


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
