"""Texts as CLIP's text tower sees them: words in, a vector beside those of the images out. No Keras.

Beside an image tower with its head, `model` writes three more files, where it has the tower's tokenizer:

    tokenizer.json          from a text to L numbers of tokens, start and end and padding included
    text.xml, text.bin      for OpenVINO: int32 (B, L) -> float32 (B, D)
"""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lookalike.artifacts.descriptions import TEXT_FILE, TOKENIZER_FILE
from lookalike.base.errors import LookalikeError

Reader = Callable[[str], np.ndarray]  # a text -> float32 (D,)


def load(folder: Path) -> Reader:
    """Load them as a function that threads may share. Raises LookalikeError where that cannot be."""
    from lookalike.networks.openvino_setup import ov

    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise LookalikeError(
            f"tokenizers, which a text is read with, cannot be imported ({error}): pip install -r requirements/vit.txt"
        ) from None
    try:
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        compiled = ov.Core().compile_model(
            folder / TEXT_FILE, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}
        )
    except Exception as error:  # tokenizers raises nothing more special
        reason = " ".join(str(error).split())[:200]
        raise LookalikeError(f"{folder} cannot read texts: {reason}; make it anew: dvc repro --force model") from None
    request, turn = compiled.create_infer_request(), threading.Lock()

    def read(text: str) -> np.ndarray:
        ids = np.array([tokenizer.encode(text).ids], np.int32)  # (1, L)
        with turn:
            request.infer([ids])
            return np.array(request.get_output_tensor().data[0])

    return read
