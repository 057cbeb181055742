"""params.yaml as frozen objects, strict: a typo stops the stage.

The class of a section stands beside the code that obeys it, in a stage or in a room of the library, so that a new
setting re-runs the stages it concerns and no others.
"""

import re
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from lookalike.errors import LookalikeError, closest


class Section(BaseModel):
    """One section of params.yaml: every key required, no other key allowed, values of exactly these types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)


EXPONENT = re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)[eE][-+]?\d+$")
UNUSED = "data/none"  # what params.yaml names where no file is wanted: DVC needs a tracked path
SECTIONS = (
    "download", "preprocess", "model", "extract", "index", "finetune", "protocol", "evaluate", "benchmark",
)  # fmt: skip


AnySection = TypeVar("AnySection", bound=Section)


def load(path: Path, name: str, section: type[AnySection]) -> AnySection:
    """Read and check the section `name` of a params file.

    Raises LookalikeError, naming file, key, value and what would be allowed, for anything but a complete,
    well-typed section.
    """
    import yaml  # a search, which reads no settings, need not wait for it

    class Loader(yaml.SafeLoader):
        """With YAML 1.2's floats: what DVC writes for 0.00002, 2e-05, is to PyYAML a word."""

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+.0123456789"))
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader)  # noqa: S506, it is a SafeLoader
    except FileNotFoundError:
        raise LookalikeError(f"{path} does not exist; run from the project's root or give --params") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise LookalikeError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise LookalikeError(f"{path} has no sections; restore it with: git checkout {path}")
    for other in content:
        if other not in SECTIONS:
            raise LookalikeError(f"{path}: unknown section {other!r}; {closest(str(other), list(SECTIONS))}")
    if name not in content:
        raise LookalikeError(f"{path}: section {name!r} is missing; restore it with: git checkout {path}")
    try:
        return section.model_validate(content[name])
    except ValidationError as error:
        raise LookalikeError(f"{path}: {_first_problem(name, section, error)}") from None


def _first_problem(name: str, section: type[Section], error: ValidationError) -> str:
    # A misspelt key is both unknown and missing; the first of these helps more.
    problem = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    key = ".".join([name, *(str(part) for part in problem["loc"])])
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key}; {closest(str(problem['loc'][-1]), _keys(section, problem['loc'][:-1]))}"
    if problem["type"] == "missing":
        return f"key {key} is missing; every key of a section is required"
    given: Any = problem["input"]
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key} is {given!r}: {message}"


def _keys(section: type[BaseModel], parents: tuple[int | str, ...]) -> list[str]:
    for part in parents:  # walk into nested sections, index.hnsw for one
        section = cast(type[BaseModel], section.model_fields[str(part)].annotation)
    return list(section.model_fields)
