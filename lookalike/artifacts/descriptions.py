"""The network files, written by `model` and read by extraction and queries.

There are five in a folder. `architecture.json` is Keras's description of the backbone up to the cut, and
`model.weights.h5` holds its weights. `network.xml` and `network.bin` are the same network for OpenVINO, so that a query
needs no TensorFlow: it maps pixels, uint8 (B, H, W, 3), to embeddings, float32 (B, D), including normalisation and
pooling. `model.json` is a `Network`.
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
    """Description of an embedding network."""

    backbone: str  # its name in keras.applications or, for a vision transformer, in KerasHub
    weights: str  # random, imagenet, preset, file or finetuned
    layer: str  # the layer whose output is pooled
    pooling: str  # avg, max or gem; for a vision transformer also cls or head
    dim: Annotated[int, Meta(ge=1)]  # D
    parameters: int  # number of weights
    fingerprint: str  # SHA-256 over architecture, weights, pooling and mirror; the same for every runtime
    mirror: bool = False  # whether the embedding is the mean of the image's and its mirror image's


class Embedding(Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of embedding that a query must share with the collection.

    Runtime and precision are left out because they change an embedding too little to matter to a search.
    """

    network: Network
    image_size: Annotated[int, Meta(ge=1, le=1024)]  # side of the square in pixels
    fit: str  # how a picture is made square: pad, stretch or crop

    def save(self, folder: Path) -> None:
        """Write embedding.json into a folder of features or of an index."""
        write_json(folder / EMBEDDING_FILE, to_builtins(self))


def load_embedding(folder: Path) -> Embedding:
    """Read embedding.json from a folder of features or of an index."""
    path = folder / EMBEDDING_FILE
    try:
        return parse_embedding(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LookalikeError(f"{path} does not exist; make it: dvc repro index (or fetch it: dvc pull)") from None
    except ValueError:
        raise LookalikeError(f"{path} does not describe an embedding; make it anew: dvc repro --force index") from None


def parse_embedding(text: str) -> Embedding:
    """Read an Embedding from JSON. Raises ValueError unless all keys and types are as declared."""
    return json.decode(text, type=Embedding)


def check_same_network(wanted: Embedding, folder: Path) -> None:
    """Raise LookalikeError unless `folder` holds the network that made an embedding."""
    here = describe(folder)
    if here.fingerprint != wanted.network.fingerprint:
        raise LookalikeError(
            f"the index was made by {wanted.network.backbone} {wanted.network.fingerprint[:12]}, but {folder} holds "
            f"{here.backbone} {here.fingerprint[:12]}, whose embeddings cannot be compared with it; rebuild both from "
            "the same params.yaml: dvc repro index"
        )


def beside(index: Path) -> Path:
    """Return the folder beside an index that holds the network which made it: `model`, or a fine-tuned one's folder."""
    usual = index.with_name("model")
    with suppress(LookalikeError):  # opening the index will give a better message
        wanted = load_embedding(index).network.fingerprint
        for folder in (usual, *sorted(path.parent for path in index.parent.glob(f"*/{DESCRIPTION_FILE}"))):
            with suppress(LookalikeError):
                if describe(folder).fingerprint == wanted:
                    return folder
    return usual


def describe(folder: Path) -> Network:
    """Read model.json, the description of the network in a folder."""
    path = folder / DESCRIPTION_FILE
    try:
        return json.decode(path.read_bytes(), type=Network)
    except FileNotFoundError:
        raise LookalikeError(f"{path} does not exist; make it: dvc repro model") from None
    except ValueError:
        raise LookalikeError(f"{path} does not describe a network; make it anew: dvc repro --force model") from None


TOKENIZER_FILE, TEXT_FILE, TEXT_WEIGHTS_FILE = "tokenizer.json", "text.xml", "text.bin"


FILES = (TOKENIZER_FILE, TEXT_FILE, TEXT_WEIGHTS_FILE)  # a text encoder's


def present(folder: Path) -> bool:
    """Return whether a folder of network files has a text encoder."""
    return (folder / TEXT_FILE).is_file()
