"""params.yaml as frozen objects, checked strictly: a typo stops the stage.

Each section's class is defined beside the code that uses it, in a stage or a package of the library, so that a new
setting re-runs only the stages that use it.
"""

import re
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from msgspec import Struct, ValidationError, convert

from lookalike.base.errors import LookalikeError, closest


class Section(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One section of params.yaml: every key required, no other key allowed, values of exactly these types."""


EXPONENT = re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)[eE][-+]?\d+$")
UNUSED = "data/none"  # placeholder for "no file" in params.yaml, because DVC needs a tracked path
SECTIONS = (
    "download",
    "preprocess",
    "model",
    "extract",
    "index",
    "finetune",
    "protocol",
    "evaluate",
    "benchmark",
)


AnySection = TypeVar("AnySection", bound=Section)


def load(path: Path, name: str, section: type[AnySection]) -> AnySection:
    """Read and check the section `name` of a params file.

    Raises LookalikeError, naming file, key, value and the allowed values, unless the section is complete and
    well-typed.
    """
    import yaml  # imported here because a search reads no settings

    class Loader(yaml.SafeLoader):
        """A loader with YAML 1.2 floats: DVC writes 0.00002 as 2e-05, which PyYAML reads as a string."""

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+.0123456789"))
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader)  # noqa: S506, Loader is a SafeLoader
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
        return checked(content[name], name, section)
    except LookalikeError as error:
        raise LookalikeError(f"{path}: {error}") from None


def checked(content: Any, name: str, section: type[AnySection]) -> AnySection:
    """Convert plain values to a section. Raises LookalikeError naming the key, its value and the allowed values."""
    try:
        return convert(content, section)
    except ValidationError as error:
        raise LookalikeError(_problem(name, section, content, error)) from None


def _problem(name: str, section: type[Section], content: Any, error: ValidationError) -> str:
    message, _, where = str(error).partition(" - at `$")
    path = re.findall(r"\.(\w+)|\[(\d+)\]", where)
    key, kind = name, section  # walk down to the value, such as index.hnsw.neighbors, and to its type
    for field, number in path:
        key += f".{field or number}"
        content = content[field or int(number)]
        kind = get_type_hints(kind, include_extras=True)[field] if field else get_args(_bare(kind))[0]
    unknown, missing = (re.search(rf"{word} field `(.*)`", message) for word in ("unknown", "required"))
    if unknown:
        return f"unknown key {key}.{unknown[1]}; {closest(unknown[1], list(_bare(kind).__struct_fields__))}"
    if missing:
        return f"key {key}.{missing[1]} is missing; every key of a section is required"
    if error.__cause__:  # raised by __post_init__, whose message names the key
        return f"{key}.{message}"
    if choices := _choices(kind):
        message = f"expected {', '.join(choices[:-1])} or {choices[-1]}"
    return f"{key} is {content!r}: {message.replace('`', '').replace('Expected', 'expected')}"


def _bare(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _choices(kind: Any) -> list[str]:
    """Return the values of a Literal, or of a union of Literals."""
    if get_origin(kind) is Literal:
        return [repr(value) for value in get_args(kind)]
    return [choice for part in get_args(kind) for choice in _choices(part)] if get_origin(kind) is UnionType else []
