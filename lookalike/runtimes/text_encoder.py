"""CLIP's text encoder, which embeds a text into the space of the images. It needs no Keras.

For CLIP with its head, `model` writes three more files if it has the tokenizer:

    tokenizer.json          maps a text to L token numbers, including start, end and padding
    text.xml, text.bin      the text encoder for OpenVINO: int32 (B, L) -> float32 (B, D)
"""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lookalike.artifacts.descriptions import TEXT_FILE, TOKENIZER_FILE
from lookalike.base.errors import LookalikeError

Reader = Callable[[str], np.ndarray]  # a text -> float32 (D,)


def load(folder: Path) -> Reader:
    """Load a text encoder as a thread-safe function. Raises LookalikeError if its files or libraries cannot be read."""
    from lookalike.networks.openvino_setup import ov

    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise LookalikeError(
            f"tokenizers, needed to search with texts, cannot be imported ({error}): "
            "pip install -r requirements/vit.txt"
        ) from None
    try:
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        compiled = ov.Core().compile_model(
            folder / TEXT_FILE, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}
        )
    except Exception as error:  # tokenizers raises bare Exceptions
        reason = " ".join(str(error).split())[:200]
        raise LookalikeError(f"{folder} cannot read texts: {reason}; make it anew: dvc repro --force model") from None
    request, turn = compiled.create_infer_request(), threading.Lock()

    def read(text: str) -> np.ndarray:
        ids = np.array([tokenizer.encode(text).ids], np.int32)  # (1, L)
        with turn:
            request.infer([ids])
            return np.array(request.get_output_tensor().data[0])

    return read
