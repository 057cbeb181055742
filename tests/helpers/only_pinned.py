"""Makes a Python process see only the packages that a requirements file pins, as if nothing else were installed."""

import os
import re
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.metadata import packages_distributions
from pathlib import Path
from types import ModuleType

PIN = re.compile(r"^([\w.-]+)==(\S+)(?: ; (.*?))?(?: \\)?$", re.MULTILINE)  # name, version, and where it is needed


def normal(name: str) -> str:
    """A distribution's name, as it is compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(requirements: Path) -> dict[str, str]:
    """The versions that a requirements file pins, by name; those that only Windows needs left out."""
    found = PIN.findall(requirements.read_text())
    return {normal(name): version for name, version, marker in found if "== 'win32'" not in marker}


class Only(MetaPathFinder):
    """Finds nothing itself, and lets nobody find what is not pinned."""

    def __init__(self, requirements: Path) -> None:
        """Take what is pinned."""
        allowed = set(pins(requirements))
        self._hidden = {top for top, names in packages_distributions().items() if not allowed & set(map(normal, names))}
        self._hidden -= {"lookalike"}

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        """Say that a hidden module is not there."""
        if name.partition(".")[0] in self._hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def hook(folder: Path, requirements: Path) -> dict[str, str]:
    """Write into a folder what hides the rest; returns the environment in which a process takes it up."""
    (folder / "sitecustomize.py").write_text(
        f"import sys; from pathlib import Path; sys.path.append({str(Path(__file__).parent)!r})\n"
        f"from only_pinned import Only; sys.meta_path.insert(0, Only(Path({str(requirements)!r})))\n"
    )
    return {"PYTHONPATH": f"{folder}{os.pathsep}{Path(__file__).resolve().parents[2]}"}
