"""What benchmarks share: options that name features or a served collection, and a table for a report."""

import argparse
from pathlib import Path

import pandas as pd

from lookalike.artifacts.arrays import Collection, Images, check_same_images, load_collection, load_images


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that shows the script's header as its help and knows where features, images and settings lie."""
    result = _parser(description)
    add_places(result)
    return result


def serving_parser(description: str | None, seconds: str) -> argparse.ArgumentParser:
    """A parser that shows the script's header as its help and knows what a server serves and how long a load lasts.

    seconds  help of that option.
    """
    result = _parser(description)
    for name in ("index", "model", "changes"):
        result.add_argument(f"--{name}", type=Path, default=Path("data") / name)
    result.add_argument("--images", type=Path, default=Path("data/raw"))
    result.add_argument("--seconds", type=float, default=60, help=f"{seconds} (default: %(default)s)")
    return result


def _parser(description: str | None) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_places(command: argparse.ArgumentParser) -> None:
    """Let it say where features, images and settings lie."""
    command.add_argument("--features", type=Path, default=Path("data/features"))
    command.add_argument("--processed", type=Path, default=Path("data/processed"))
    command.add_argument("--params", type=Path, default=Path("params.yaml"))


def load(args: argparse.Namespace) -> tuple[Collection, Images]:
    """Open features, and the images that they are of."""
    collection, images = load_collection(args.features), load_images(args.processed)
    check_same_images(images, collection)
    return collection, images


def markdown(table: pd.DataFrame) -> str:
    """The table in Markdown."""
    lines = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    lines += ["| " + " | ".join(str(value) for value in row) + " |" for row in table.itertuples(index=False)]
    return "\n".join(lines)
