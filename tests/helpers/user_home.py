"""A user's project: photographs, the pipeline on them, and the command `lookalike`."""

import contextlib
import csv
import io
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from msgspec import convert

from lookalike import cli
from lookalike.collection.journal import Event, Journal
from lookalike.datasets import registry
from lookalike.datasets.folder import labels_of
from tests.helpers.pictures import picture
from tests.helpers.project import Project

PHOTOS = {"ant": 8, "bee": 8, "cat": 8, "": 1}
COUNT = sum(PHOTOS.values())


@dataclass(frozen=True)
class Done:
    """What a command did."""

    status: int
    out: str
    err: str

    @property
    def hits(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def paths(self) -> list[str]:
        return [hit["path"] for hit in self.hits]


@dataclass(frozen=True)
class Home:
    """A user's project, and beside it the folder of photographs it is made from, and new pictures."""

    project: Project

    @property
    def folder(self) -> Path:
        return self.project.folder

    @property
    def photos(self) -> Path:
        return self.folder.parent / "photos"

    def new(self, seed: int, name: str = "new.png") -> str:
        """A new picture beside the project, another one for each seed."""
        path = self.folder.parent / "new" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        picture(seed).save(path)
        return os.path.relpath(path, self.folder)

    def lookalike(self, *arguments: str, stdin: bytes = b"") -> Done:
        """Run the command in this process, which has imported everything; `shell` is the real thing."""
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.chdir(self.folder):
            patch.setenv("LOOKALIKE_CACHE", self.project.environment["LOOKALIKE_CACHE"])
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    cli.app(list(arguments), prog_name="lookalike")
                except SystemExit as exit:
                    if isinstance(exit.code, str):  # as Python does
                        err.write(exit.code + "\n")
                    status = exit.code if isinstance(exit.code, int) else 1
        return Done(status, out.getvalue(), err.getvalue())

    def do(self, *arguments: str, stdin: bytes = b"") -> Done:
        """Run the command, which must end well."""
        done = self.lookalike(*arguments, stdin=stdin)
        assert done.status == 0, done.err
        return done

    def shell(self, *arguments: str, check: bool = True) -> Done:
        done = self.project.run("python", "-m", "lookalike.cli", *arguments, check=check)
        return Done(done.returncode, done.stdout, done.stderr)

    def events(self) -> list[Event]:
        return Journal(self.folder / "data/changes").events()

    def settings(self) -> registry.Settings:
        content = yaml.safe_load((self.folder / "params.yaml").read_text())["download"]
        return convert(content | {"folder": str(self.photos)}, registry.Settings)

    def with_csv(self) -> Path:
        """Say the same labels by a CSV, with a third column, in another order."""
        rows = [
            {"note": f"n{path}", "path": path, "label": label} for path, label in labels_of(self.settings()).items()
        ]
        table = self.photos / "labels.csv"
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["note", "path", "label"])
            writer.writeheader()
            writer.writerows(reversed(rows))
        self.project.set(download__labels="labels.csv")
        return table


def contents_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
