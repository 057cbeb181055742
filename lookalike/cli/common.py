"""Parts that the commands share: their group, the options that name a collection, and opening it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from lookalike.base.errors import LookalikeError
from lookalike.base.log import print_log

if TYPE_CHECKING:  # --help need not wait for what they import
    from lookalike.collection.picture_search import Pictures
    from lookalike.collection.thumbnails import Thumbnails

Command = TypeVar("Command", bound=Callable[..., Any])
FOLDER = click.Path(path_type=Path)
EXIT = "Exit status: 0 done, 1 an error that the message explains, 2 a mistake in the command line."


def tell(message: str) -> None:
    """Tell the user one thing worth knowing, on stderr."""
    click.echo(f"lookalike: {message}", err=True)


def with_examples(text: str | None) -> str:
    """Replace backslash and b by the character with which Click marks lines to keep; a raw docstring has the two."""
    return (text or "").replace("\\b", "\b")


def opens_a_collection(command: Command) -> Command:
    """Add the options that say where the collection lies, and print errors that a user can fix in one line."""

    @wraps(command)
    def run(**options: Any) -> None:
        try:
            command(**options)
        except BrokenPipeError:
            raise  # whoever read our output has had enough; click ends quietly
        except KeyboardInterrupt:
            tell("interrupted; what was done until then is kept")
            sys.exit(130)
        except OSError as error:
            reason = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
            sys.exit(f"lookalike: error: {reason}")
        except LookalikeError as error:
            sys.exit(f"lookalike: error: {error}")

    run.__doc__ = with_examples(command.__doc__)
    decorated: Any = run
    for option in (
        click.option(
            "--changes",
            type=FOLDER,
            help="Where changes are kept.  [default: changes, beside the index]",
            callback=lambda context, _, path: path or context.params["index"].with_name("changes"),
        ),
        click.option(
            "--index",
            type=FOLDER,
            default=Path("data/index"),
            show_default=True,
            is_eager=True,
            help="What the stage index wrote.",
        ),
        click.option(
            "--model",
            type=FOLDER,
            help="What the stage model wrote, or finetune.  [default: the one that made the index, beside it]",
            callback=lambda context, _, path: path or _network_beside(context.params["index"]),
        ),
    ):
        decorated = option(decorated)
    return cast(Command, decorated)


def _network_beside(index: Path) -> Path:
    from lookalike.artifacts.descriptions import beside  # --help need not wait for what it imports

    return beside(index)


def images_option(command: Command) -> Command:
    """Add the option that says where the pictures of the images lie."""
    return click.option(
        "--images",
        type=FOLDER,
        help="The pictures, to show them: what the stage download wrote. "
        "[default: thumbnails or raw, beside the index]",
    )(command)


def _say_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from importlib import metadata

        try:
            click.echo(f"lookalike {metadata.version('lookalike')}")
        except metadata.PackageNotFoundError:
            sys.exit("lookalike: error: it is not installed, so its version is not known: pip install --no-deps -e .")
        context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_say_version,
    help="Say which version this is, and exit.",
)
def app() -> None:
    r"""Find the images of a collection that look alike, and change what is searched.

    \b
    lookalike search photo.jpg
    lookalike similar 3/digit_0003.png -k 5
    lookalike add new.jpg --label cat
    lookalike ui
    """
    print_log("lookalike")


app.help = with_examples(app.help)


def open_pictures(where: dict[str, Path], *, decodes: bool = False) -> "Pictures":
    """Open the collection that the options name. `decodes` starts a decoder, whose imports go on beside ours."""
    if decodes:
        from lookalike.images import decoder

        decoder.shared().start()
    from lookalike.collection.picture_search import Pictures

    return Pictures(where["index"], where["model"], where["changes"])


def open_thumbnails(opened: "Pictures", images: Path | None, where: dict[str, Path]) -> "Thumbnails":
    """Open the pictures of the images of a collection."""
    from lookalike.collection import thumbnails

    return thumbnails.Thumbnails(opened.gallery, images or thumbnails.beside(where["index"]))


def contents(pictures: tuple[str, ...]) -> list[tuple[str, Callable[[], bytes]]]:
    """List name and reader of each picture: a file, every image in a folder, or standard input.

    A reader raises ImageError for a file that cannot be read.
    """
    from lookalike.images.decode import SUFFIXES

    found: list[tuple[str, Callable[[], bytes]]] = []
    for name in pictures:
        path = Path(name)
        if name == "-":
            found.append((name, sys.stdin.buffer.read))
        elif path.is_dir():
            inside = [
                each
                for each in sorted(path.rglob("*"))
                if each.suffix.lower() in SUFFIXES
                and each.is_file()
                and not any(part.startswith(".") for part in each.relative_to(path).parts)
            ]
            if not inside:
                raise LookalikeError(f"{path}: no image in it; looked for {' '.join(sorted(SUFFIXES))}")
            found += [(str(each), partial(_read, each)) for each in inside]
        else:
            found.append((name, partial(_read, path)))
    return found


def _read(path: Path) -> bytes:
    from lookalike.images.decode import ImageError

    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(error.strerror) from None


class Unreadable:
    """Pictures that cannot be read or decoded: each is reported at once, and work goes on with the others."""

    def __init__(self) -> None:
        self._count = 0

    @contextmanager
    def named(self, picture: str) -> Iterator[None]:
        """Work on one of the pictures."""
        from lookalike.images.decode import ImageError

        try:
            yield
        except ImageError as error:
            tell(f"error: {picture}: {error}")
            self._count += 1

    def end(self) -> None:
        """Exit with status 1 if there was one."""
        if self._count:
            sys.exit(1)
