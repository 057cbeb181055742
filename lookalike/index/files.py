"""Reading and writing of an index's folder: `index.faiss`, its description, the projection, paths and labels."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import convert, to_builtins

from lookalike.artifacts.arrays import save_strings
from lookalike.base.errors import LookalikeError
from lookalike.base.files import write_json
from lookalike.index.base import Design, Index
from lookalike.index.build import DESCRIPTION_FILE, INDEX_FILE, Plan, Settings
from lookalike.index.candidates import KINDS
from lookalike.index.tuning import Tuned
from lookalike.refinement.faiss_setup import faiss
from lookalike.refinement.refinement import Refinement


def save(
    tuned: Tuned, why: str, refinement: Refinement, settings: Settings, paths: np.ndarray, labels: np.ndarray,
    folder: Path,
) -> None:  # fmt: skip
    """Write an index, its refinement and its description into an empty folder."""
    index = tuned.index
    index.save(folder / INDEX_FILE)
    refinement.save(folder)
    save_strings(folder / "image_paths.npy", paths.tolist())
    save_strings(folder / "labels.npy", labels.tolist())
    plan = Plan(design=index.design, refine=settings.refine, threads=settings.threads, seed=settings.seed)
    description: dict[str, Any] = {
        "plan": to_builtins(plan),
        "why": why,
        "recall@10": round(tuned.recall, 6),
        "distances_a_query": round(tuned.distances),
        "metric": "cosine: inner product of unit vectors",
        "n": len(index),
        "dim": index.dim,
        "faiss": faiss.__version__,
    }
    write_json(folder / DESCRIPTION_FILE, description)


def open_file(folder: Path, *, mapped: bool = True) -> Index:
    """Open the index that `save` wrote. Verify the folder first: FAISS trusts the files it reads.

    mapped  map the file, so that a search reads only the parts it touches; otherwise read all of it.
    """
    return read(folder / INDEX_FILE, load_plan(folder).design, mapped=mapped)


def read(path: Path, design: Design, *, mapped: bool = True) -> Index:
    """Read the FAISS file of an index with this design; see `open_file`."""
    try:
        return KINDS[design.kind](design, faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mapped else 0))
    except (RuntimeError, MemoryError) as error:  # missing, truncated, or not an index
        reason = " ".join(str(error).split())[-200:]
        raise LookalikeError(
            f"{path} cannot be read ({reason}); make it anew: dvc repro --force index (or fetch it: dvc pull)"
        ) from None


def load_plan(folder: Path) -> Plan:
    """Read the plan that an index was built from."""
    path = folder / DESCRIPTION_FILE
    try:
        return convert(json.loads(path.read_text(encoding="utf-8"))["plan"], Plan)
    except FileNotFoundError:
        raise LookalikeError(f"{path} does not exist; make it: dvc repro index (or fetch it: dvc pull)") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise LookalikeError(f"{path} does not describe an index; make it anew: dvc repro --force index") from None
