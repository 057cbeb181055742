"""Outputs of the frozen layers for every view of every image, computed once and kept on disk.

There is one file per network, cut, collection and view settings in the user's cache folder: float32 (V, N, ...),
memory-mapped. A killed run continues after the last batch recorded as done. The queries' outputs are computed too, so
that another split uses the same file; a training reads only the rows of its own images.
"""

import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from filelock import FileLock

from lookalike.artifacts.arrays import ArrayWriter, Images
from lookalike.base import user_cache
from lookalike.base.files import new_folder, write_json
from lookalike.base.script import progress_bar
from lookalike.finetuning.augmentation import view
from lookalike.finetuning.cut import Cut
from lookalike.finetuning.settings import Settings
from lookalike.networks import backbones
from lookalike.networks.keras_setup import keras, tf
from lookalike.networks.openvino_setup import convert, ov
from lookalike.runtimes import openvino
from lookalike.runtimes import tensorflow as runtime
from lookalike.runtimes.code_digest import code_digest

BATCH = 32  # images per batch
NOTE_EVERY = 16  # batches between records of progress; a kill loses as many
OUTPUTS_FILE = "outputs.npy"
DONE_FILE = "done.json"
CODE = (
    "finetuning/frozen_outputs.py",
    "finetuning/augmentation.py",
    "networks/backbones.py",
    "networks/keras_setup.py",
)
VIEW_SETTINGS = ("views", "flip", "shift", "zoom", "rotate", "light", "seed")

# uint8 (BATCH, S, S, 3) -> float32 (BATCH, ...)
Front = Callable[[np.ndarray], np.ndarray]


def key(images: Images, cut: Cut, settings: Settings) -> str:
    """Return a digest of everything that decides the outputs' bits."""
    drawn = {name: getattr(settings, name) for name in VIEW_SETTINGS} if settings.views > 1 else {"views": 1}
    machine = [  # decides the last bits
        runtime.version("float32", cut.network.backbone),
        runtime.device(),
        openvino.version("float32", cut.network.backbone),
    ]
    digest = hashlib.sha256(json.dumps([cut.network.fingerprint, cut.layer, drawn, *machine]).encode())
    digest.update(code_digest(CODE).encode())
    digest.update("".join(images.sha256.tolist()).encode())
    for start in range(0, len(images.pixels), BATCH):
        digest.update(np.ascontiguousarray(images.pixels[start : start + BATCH]).data)
    return digest.hexdigest()


def front(cut: Cut) -> Front:
    """Return the frozen layers as a function, with pixel normalisation, and with pooling if `cut.last`."""
    features = backbones.load_features(cut.folder, "float32")
    inputs = keras.Input((cut.image_size, cut.image_size, 3), dtype="uint8")
    kept = keras.Model(features.input, features.get_layer(cut.layer).output)
    output = kept(backbones.preprocess(inputs, cut.network.backbone), training=False)
    model = keras.Model(
        inputs, backbones.pool(output, cut.network.pooling, cut.network.backbone) if cut.last else output
    )
    if tf.config.list_physical_devices("GPU"):
        compiled = tf.function(lambda pixels: model(pixels, training=False), autograph=False)
        return lambda pixels: np.asarray(compiled(tf.constant(pixels)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The structure of `inputs`")  # the converter passes a tuple
        converted = convert(model)
    converted.reshape([BATCH, cut.image_size, cut.image_size, 3])
    request = (
        ov.Core()
        .compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1})
        .create_infer_request()
    )  # OpenVINO: twice as fast as TensorFlow on a CPU

    def run(pixels: np.ndarray) -> np.ndarray:
        request.infer([pixels], share_inputs=True)
        return np.array(request.get_output_tensor().data)

    return run


def outputs(images: Images, cut: Cut, settings: Settings, name: str) -> np.ndarray:
    """Return the outputs, float32 (V, N, *cut.shape), read-only, computed unless cached; `name` comes from `key`."""
    folder = user_cache.folder("frozen") / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / DONE_FILE).exists():
            with new_folder(folder) as partial:
                _create(partial, (settings.views, len(images.pixels), *cut.shape))
        _fill(folder, images, cut, settings)
    user_cache.touch(folder)
    result: np.ndarray = np.load(folder / OUTPUTS_FILE, mmap_mode="r", allow_pickle=False)
    return result


def _create(folder: Path, shape: tuple[int, ...]) -> None:
    with ArrayWriter(folder / OUTPUTS_FILE, shape, np.float32):
        pass  # all zeros, with disk space reserved
    write_json(folder / DONE_FILE, {"batches": 0})


def _fill(folder: Path, images: Images, cut: Cut, settings: Settings) -> None:
    count, side = images.pixels.shape[:2]
    per_view = -(-count // BATCH)
    total = settings.views * per_view
    done = int(json.loads((folder / DONE_FILE).read_text(encoding="utf-8"))["batches"])
    if done >= total:
        return
    run = front(cut)
    array = np.lib.format.open_memmap(folder / OUTPUTS_FILE, "r+")
    with progress_bar("finetune: frozen layers", total * BATCH, "view", initial=done * BATCH) as bar:
        for number in range(done, total):
            which, start = number // per_view, number % per_view * BATCH
            rows = range(start, min(start + BATCH, count))
            batch = np.zeros((BATCH, side, side, 3), np.uint8)  # always full: another shape may give other last bits
            for place, row in enumerate(rows):
                batch[place] = view(images.pixels[row], str(images.sha256[row]), which, settings)
            array[which, rows.start : rows.stop] = run(batch)[: len(rows)]
            bar.update(BATCH)
            if (number + 1) % NOTE_EVERY == 0 or number + 1 == total:
                array.flush()
                write_json(folder / DONE_FILE, {"batches": number + 1})
