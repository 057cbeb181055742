"""Commands that search: `search` and `similar`."""

import json
import sys
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from lookalike.cli.common import (
    EXIT,
    Command,
    Unreadable,
    app,
    contents,
    images_option,
    open_pictures,
    open_thumbnails,
    opens_a_collection,
    tell,
)
from lookalike.collection.query import Query

if TYPE_CHECKING:  # --help need not wait for what it imports
    from lookalike.collection.hits import Hit


def _png(_: click.Context, __: click.Parameter, path: Path | None) -> Path | None:
    if path is not None and path.suffix.lower() != ".png":
        raise click.BadParameter(f"the figure is a PNG, so {path} would be misnamed; call it {path.stem}.png")
    return path


def search_options(command: Command) -> Command:
    """Add the options that every search has; the command gets those of the query as `query`."""

    @wraps(command)
    def run(
        k: int, min_similarity: float, label: str | None, text: str | None, text_weight: float | None, **others: Any
    ) -> None:
        command(query=Query(k, min_similarity, label, text, text_weight), **others)

    decorated: Any = run
    for option in (
        click.option(
            "--json/--table",
            "as_json",
            default=None,
            help="One JSON object a hit, or a table; by default a table on a terminal, else JSON.",
        ),
        images_option,
        click.option(
            "--grid",
            type=click.Path(path_type=Path, dir_okay=False),
            metavar="PNG",
            callback=_png,
            help="Also draw the hits, a row a picture, into this file, *.png.",
        ),
        click.option(
            "--text-weight",
            type=click.FloatRange(0, 1),
            help="Weight of words beside a picture: 0 the "
            "picture alone, 1 the words alone.  [default: index.tags.weight, or 0.5 where the network reads texts]",
        ),
        click.option(
            "--text",
            help="Words to compare with the images' tags, too; needs index.tags.file, or a network that reads texts.",
        ),
        click.option("--label", help="Find images of this class only."),
        click.option(
            "--min-similarity",
            type=click.FloatRange(-1, 1),
            default=-1.0,
            show_default=True,
            help="The least cosine of a hit.",
        ),
        click.option(
            "-k",
            type=int,
            default=10,
            show_default=True,
            help="Hits of each picture; where there are fewer images, all of them.",
        ),
    ):
        decorated = option(decorated)
    return cast(Command, decorated)


@app.command(epilog=EXIT)
@click.argument("pictures", nargs=-1)
@search_options
@opens_a_collection
def search(
    pictures: tuple[str, ...], query: Query, as_json: bool | None, grid: Path | None, images: Path | None, **where: Path
) -> None:
    r"""Find the images most similar to each of PICTURES: files, folders of them, or - for standard input.

    With --text also by their tags; without PICTURES by tags alone, which needs no network. Where there are no tags
    and the network is CLIP's, a text is compared with the images themselves: docs/embeddings.md.

    A picture that cannot be read is reported, and the others are searched with; the exit status is 1 then.
    Only the first frame of an animation is used. The cosine is of refined vectors: of a picture with itself, in the
    collection, it may be below 1.

    \b
    lookalike search photo.jpg
    lookalike search photo.jpg other.png -k 20 --min-similarity 0.5
    lookalike search photos/ --label cat --json > hits.jsonl
    lookalike search photo.jpg --grid hits.png
    lookalike search --text "red shoe"
    lookalike search photo.jpg --text "red shoe" --text-weight 0.5
    curl -s https://example.org/photo.jpg | lookalike search -
    """
    if not pictures and query.text is None:
        raise click.UsageError("Missing argument 'PICTURES...', or option '--text'.")
    opened = open_pictures(where, decodes=bool(pictures))
    files, found, unreadable = list(contents(pictures)), [], Unreadable()
    if query.text is not None and not files:
        hits = opened.search(None, query)
        show(query.text, hits, as_json, several=False)
        if grid:
            from lookalike.cli.grid import found_for

            found.append(found_for(query.text, hits))
    for name, read in files:
        with unreadable.named(name):
            content = read()
            hits = opened.search(content, query)
            show(name, hits, as_json, several=len(files) > 1)
            if grid:
                from lookalike.cli.grid import found_with

                found.append(found_with(Path(name).name, content, hits))
    if grid and found:
        from lookalike.cli.grid import draw

        draw(found, open_thumbnails(opened, images, where), len(opened.gallery.state), grid)
    unreadable.end()


@app.command(epilog=EXIT)
@click.argument("path")
@search_options
@opens_a_collection
def similar(
    path: str, query: Query, as_json: bool | None, grid: Path | None, images: Path | None, **where: Path
) -> None:
    r"""Find the images most similar to one of the collection, given by its path there. Needs no network.

    Where the index has tags, the image's own count too, or, instead of them, those of --text.

    \b
    lookalike similar 3/digit_0003.png
    lookalike similar 3/digit_0003.png -k 5 --grid hits.png
    """
    opened = open_pictures(where)
    hits = opened.gallery.similar(path, query)
    show(path, hits, as_json, several=False)
    if grid:
        from lookalike.cli.grid import draw, found_from

        thumbnails = open_thumbnails(opened, images, where)
        draw([found_from(path, opened.gallery, thumbnails, hits)], thumbnails, len(opened.gallery.state) - 1, grid)


def show(name: str, hits: list["Hit"], as_json: bool | None, *, several: bool) -> None:
    """Print the hits of a picture or words, given by name: JSON objects, one a line, or a table."""
    if not hits:
        tell(f"{name}: nothing that similar was found; lower --min-similarity, or ask for another --label")
    if as_json or (as_json is None and not sys.stdout.isatty()):
        for hit in hits:
            click.echo(json.dumps({"query": name, **hit.fields()}, ensure_ascii=False))
        return
    if several:
        click.echo(name)
    for hit in hits:
        click.echo(f"{hit.rank:4}  {hit.cosine:7.4f}  {hit.label:20}  {hit.path}")
