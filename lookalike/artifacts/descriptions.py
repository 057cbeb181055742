"""The network files: what `model` writes, and what extraction and queries read.

A folder of five. `architecture.json` is Keras's description of the backbone up to the cut, `model.weights.h5` its
weights. `network.xml` and `network.bin` are the same network for OpenVINO, from pixels to embedding in float32: uint8
(B, H, W, 3) -> float32 (B, D), normalisation and pooling included, so that a query needs no TensorFlow. `model.json` is
a `Network`.
"""

from contextlib import suppress
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct, json, to_builtins

from lookalike.base.errors import LookalikeError
from lookalike.base.files import write_json

ARCHITECTURE_FILE = "architecture.json"
WEIGHTS_FILE = "model.weights.h5"
OPENVINO_FILE = "network.xml"
OPENVINO_WEIGHTS_FILE = "network.bin"
DESCRIPTION_FILE = "model.json"
EMBEDDING_FILE = "embedding.json"


class Network(Struct, frozen=True, forbid_unknown_fields=True):
    """What the other files hold."""

    backbone: str  # its name in keras.applications or, of a vision transformer, in KerasHub
    weights: str  # random, imagenet, preset or file; finetuned
    layer: str  # its output is pooled
    pooling: str  # avg, max or gem; of a vision transformer also cls or head
    dim: Annotated[int, Meta(ge=1)]  # D
    parameters: int
    fingerprint: str  # SHA-256 over architecture, weights, pooling and mirror: whatever runs it, it is the same network
    mirror: bool = False  # whether the embedding is the mean of those of the image and of its mirror image


class Embedding(Struct, frozen=True, forbid_unknown_fields=True):
    """How a collection's vectors came about, as far as a query must come about likewise.

    Runtime and precision are left out: they move an embedding too little to matter to a search.
    """

    network: Network
    image_size: Annotated[int, Meta(ge=1, le=1024)]  # pixels
    fit: str  # how a rectangle became a square

    def save(self, folder: Path) -> None:
        """Write it beside the vectors."""
        write_json(folder / EMBEDDING_FILE, to_builtins(self))


def load_embedding(folder: Path) -> Embedding:
    """Read it from a folder of features or of an index."""
    path = folder / EMBEDDING_FILE
    try:
        return parse_embedding(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LookalikeError(f"{path} does not exist; make it: dvc repro index (or fetch it: dvc pull)") from None
    except ValueError:
        raise LookalikeError(f"{path} does not describe an embedding; make it anew: dvc repro --force index") from None


def parse_embedding(text: str) -> Embedding:
    """Read an Embedding from JSON, every key and type as declared. Raises ValueError for any other."""
    return json.decode(text, type=Embedding)


def check_same_network(wanted: Embedding, folder: Path) -> None:
    """Raise LookalikeError unless the network files in `folder` are the network that made an embedding."""
    here = describe(folder)
    if here.fingerprint != wanted.network.fingerprint:
        raise LookalikeError(
            f"the index was made by {wanted.network.backbone} {wanted.network.fingerprint[:12]}, but {folder} holds "
            f"{here.backbone} {here.fingerprint[:12]}, whose embeddings cannot be compared with it; make both from the "
            "same params.yaml: dvc repro index"
        )


def beside(index: Path) -> Path:
    """The folder beside an index that holds the network which made it: `model`, or that of a fine-tuned one."""
    usual = index.with_name("model")
    with suppress(LookalikeError):  # whoever opens the index says better what is wrong with it
        wanted = load_embedding(index).network.fingerprint
        for folder in (usual, *sorted(path.parent for path in index.parent.glob(f"*/{DESCRIPTION_FILE}"))):
            with suppress(LookalikeError):
                if describe(folder).fingerprint == wanted:
                    return folder
    return usual


def describe(folder: Path) -> Network:
    """Read what network a folder holds."""
    path = folder / DESCRIPTION_FILE
    try:
        return json.decode(path.read_bytes(), type=Network)
    except FileNotFoundError:
        raise LookalikeError(f"{path} does not exist; make it: dvc repro model") from None
    except ValueError:
        raise LookalikeError(f"{path} does not describe a network; make it anew: dvc repro --force model") from None


TOKENIZER_FILE, TEXT_FILE, TEXT_WEIGHTS_FILE = "tokenizer.json", "text.xml", "text.bin"


FILES = (TOKENIZER_FILE, TEXT_FILE, TEXT_WEIGHTS_FILE)


def present(folder: Path) -> bool:
    """Whether a folder of network files has them."""
    return (folder / TEXT_FILE).is_file()
