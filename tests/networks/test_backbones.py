"""Networks by name: cut, pooled, saved, loaded, and run. Random weights; the arithmetic is what is tested."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lookalike.artifacts import descriptions
from lookalike.base import machine
from lookalike.base.errors import LookalikeError
from lookalike.networks import backbones
from lookalike.networks.keras_setup import usable
from lookalike.runtimes import registry, tensorflow
from tests.helpers.project import ROOT

pytestmark = pytest.mark.slow  # TensorFlow builds networks

NONE = Path("data/none")
CUT = "block_6_expand_relu"  # of MobileNetV2: a third of its layers
PIXELS = np.random.default_rng(0).integers(0, 256, (7, 64, 64, 3), dtype=np.uint8)


def network(folder: Path, backbone: str = "MobileNetV2", layer: str = "", pooling: str = "avg", seed: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    backbones.save(backbones.create(backbone, "random", NONE, layer, seed), backbone, "random", pooling, folder)
    return folder


def embeddings(folder: Path, batch_size: int = 4, precision: str = "float32") -> np.ndarray:
    embedder = tensorflow.load(folder, 64, batch_size, precision)
    blocks = [PIXELS[start : start + batch_size] for start in range(0, len(PIXELS), batch_size)]
    black = np.zeros((batch_size, 64, 64, 3), np.uint8)
    return np.concatenate([embedder(np.concatenate([block, black])[:batch_size])[: len(block)] for block in blocks])


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return network(tmp_path_factory.mktemp("network") / "resnet", "ResNet50", seed=3)


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return network(tmp_path_factory.mktemp("network") / "mobilenet")


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return network(tmp_path_factory.mktemp("network") / "cut", layer=CUT)


def test_keras_is_imported_without_what_it_would_take_along() -> None:
    """A third of the time; whoever needs these packages afterwards has them."""
    script = (
        "import sys, lookalike.networks.keras_setup;"
        "print({'sklearn', 'matplotlib', 'pandas', 'IPython'} & set(sys.modules));"
        "import matplotlib, pandas"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "set()\n"


def test_what_is_logged_on_import_is_shown_where_importing_fails(capfd: pytest.CaptureFixture[str]) -> None:
    from lookalike.networks.keras_setup import _native_stderr_hidden

    def logs(error: type[BaseException] | None) -> None:
        with _native_stderr_hidden():
            os.write(2, b"by C++\n")
            if error:
                raise error("libcudart.so.12")

    logs(None)
    assert capfd.readouterr().err == ""
    for error in (ImportError, KeyboardInterrupt):
        with pytest.raises(error, match=r"libcudart\.so\.12"):
            logs(error)
        assert capfd.readouterr().err == "by C++\n"
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "afterwards\n"


def test_the_promised_backbones_are_there() -> None:
    promised = {"ResNet50", "ResNet101", "ResNet152", "ResNet50V2", "EfficientNetV2S", "ConvNeXtTiny", "MobileNetV2",
                "MobileNetV3Small", "MobileNetV3Large", "DenseNet121", "VGG16", "Xception"}  # fmt: skip
    assert promised <= set(backbones.names())


def test_the_network_is_the_backbone_with_its_preprocessing(resnet: Path) -> None:
    """Against plain Keras, as a notebook would write it."""
    from lookalike.networks.keras_setup import keras

    keras.backend.clear_session()
    keras.utils.set_random_seed(3)
    plain = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(64, 64, 3), pooling="avg")
    expected = plain.predict(keras.applications.resnet50.preprocess_input(PIXELS.astype(np.float32)), verbose=0)
    assert np.allclose(embeddings(resnet), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_the_saved_network_is_the_one_that_was_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EfficientNetB0 to B7 have a layer more when Keras gives them ImageNet weights; saving must not lose it.

    The download alone is replaced: by weights of this very network, drawn here. The layer is one of the first.
    """
    from lookalike.networks.keras_setup import keras

    drawn = tmp_path / "drawn.weights.h5"
    backbones.create("EfficientNetB0", "random", NONE, "", 1).save_weights(drawn)
    monkeypatch.setattr("keras.src.applications.efficientnet.file_utils.get_file", lambda *_a, **_k: str(drawn))
    built = backbones.create("EfficientNetB0", "imagenet", NONE, "block2b_add", 0)
    assert sum(isinstance(layer, keras.layers.Rescaling) for layer in built.layers) == 2
    folder = tmp_path / "m"
    folder.mkdir()
    backbones.save(built, "EfficientNetB0", "imagenet", "avg", folder)
    expected = built.predict(PIXELS.astype(np.float32), verbose=0).mean(axis=(1, 2))
    assert np.allclose(embeddings(folder), expected, rtol=1e-3, atol=1e-5)


def test_poolings_are_ordered(tmp_path: Path, cut: Path) -> None:
    """The generalised mean lies between mean and maximum, for each channel of non-negative activations."""
    others = [network(tmp_path / pooling, layer=CUT, pooling=pooling) for pooling in ("gem", "max")]
    mean, gem, most = map(embeddings, (cut, *others))
    assert (mean <= gem * (1 + 1e-4) + 1e-5).all()
    assert (gem <= most * (1 + 1e-4) + 1e-5).all()
    assert (mean < most).any()


def test_a_cut_network_is_smaller_and_described(cut: Path, mobilenet: Path) -> None:
    described = descriptions.describe(cut)
    assert (described.layer, described.dim) == (CUT, 192)
    assert described.parameters < descriptions.describe(mobilenet).parameters
    assert embeddings(cut).shape == (7, 192)


def test_the_seed_decides_the_weights_bit_for_bit(tmp_path: Path, cut: Path) -> None:
    again, other = (network(tmp_path / name, layer=CUT, seed=seed) for name, seed in (("b", 0), ("c", 1)))
    files = [(folder / descriptions.WEIGHTS_FILE).read_bytes() for folder in (cut, again, other)]
    assert files[0] == files[1] != files[2]


def test_lower_precision_is_close_and_still_float32_outside(resnet: Path) -> None:
    full = embeddings(resnet)
    for precision in ("float16", "bfloat16"):
        if not usable(precision):
            with pytest.raises(LookalikeError, match=f"cannot compute in {precision} on this processor .*to float32"):
                embeddings(resnet, precision=precision)
            continue
        low = embeddings(resnet, precision=precision)
        assert low.dtype == np.float32
        assert not np.array_equal(full, low)
        cosines = (full * low).sum(axis=1) / np.linalg.norm(full, axis=1) / np.linalg.norm(low, axis=1)
        assert cosines.min() > 0.99, precision


def test_weights_from_a_file(tmp_path: Path) -> None:
    whole = backbones.create("MobileNetV2", "random", NONE, "", 5)
    file = tmp_path / "own.weights.h5"
    whole.save_weights(file)
    loaded = backbones.create("MobileNetV2", "file", file, "", 0)
    assert all(np.array_equal(a, b) for a, b in zip(whole.get_weights(), loaded.get_weights(), strict=True))


def test_mistakes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LookalikeError, match=r"model\.backbone is 'ResNet5O'; did you mean ResNet50\? Known: .*VGG16"):
        backbones.create("ResNet5O", "random", NONE, "", 0)
    with pytest.raises(LookalikeError, match=r"model\.layer is 'blok_1', but VGG16 has no such layer; .*block1_conv1"):
        backbones.create("VGG16", "random", NONE, "blok_1", 0)
    with pytest.raises(LookalikeError, match=r"data/none is not a weights file"):
        backbones.create("VGG16", "file", NONE, "", 0)
    broken = tmp_path / "x.weights.h5"
    broken.write_bytes(b"no HDF5")
    with pytest.raises(LookalikeError, match=r"does not fit VGG16"):
        backbones.create("VGG16", "file", broken, "", 0)
    backbones.create("VGG16", "random", NONE, "", 0).save_weights(broken)
    for other in ("VGG19", "ResNet50"):  # more layers than the file has; other layers
        with pytest.raises(LookalikeError, match=f"does not fit {other}"):
            backbones.create(other, "file", broken, "", 0)
    with pytest.raises(LookalikeError, match=r"InceptionV3 at preprocess\.image_size 32: .*choose a larger size"):
        tensorflow.load(network(tmp_path / "m", "InceptionV3", "mixed3"), 32, 1, "float32")
    with pytest.raises(LookalikeError, match=r"EfficientNetB0 with an extra layer for its own ImageNet weights"):
        backbones.create("EfficientNetB0", "file", broken, "", 0)
    with pytest.raises(LookalikeError, match=r"model\.json does not exist; make it: dvc repro model"):
        descriptions.describe(tmp_path)
    # A closed port in place of the internet, whatever this machine can reach; and an empty weights cache.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with pytest.raises(LookalikeError, match=r"weights of MobileNet could not be fetched: .*model\.weights=file"):
        backbones.create("MobileNet", "imagenet", NONE, "", 0)


def test_a_layer_that_gives_no_map_is_named() -> None:
    """As the squeezes in EfficientNet's blocks do."""
    from lookalike.networks.keras_setup import keras

    pixels = keras.Input((8, 8, 3))
    squeezed = keras.layers.GlobalAveragePooling2D(name="squeeze")(pixels)
    whole = keras.Model(pixels, keras.layers.Reshape((1, 1, 3), name="back")(squeezed))
    with pytest.raises(LookalikeError, match=r"model\.layer 'squeeze' gives \(None, 3\), not a feature map .*another"):
        backbones.cut(whole, "EfficientNetB0", "squeeze", "avg")
    assert backbones.cut(whole, "EfficientNetB0", "back", "avg").output.shape == (None, 1, 1, 3)


def test_a_batch_that_does_not_fit_into_memory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from lookalike.networks.keras_setup import tf

    def too_large(_pixels: Any, training: bool) -> Any:
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")  # of itself after ten seconds

    monkeypatch.setattr(backbones, "load", lambda *_: too_large)
    embedder = tensorflow.load(NONE, 64, 4, "float32")
    message = r"a batch of 4 images of 64 pixels does not fit into the memory of .*; set a smaller extract\.batch_size"
    with pytest.raises(registry.OutOfMemory, match=message):
        embedder(PIXELS[:4])


def test_a_gpu_that_tensorflow_does_not_see_is_said(
    monkeypatch: pytest.MonkeyPatch, told: list[str], tmp_path: Path
) -> None:
    """Without its libraries it never will; with them it may another time, and its bits would be others."""
    monkeypatch.setattr(machine, "gpu_names", lambda: ["NVIDIA H100"])
    monkeypatch.setattr("lookalike.networks.keras_setup.tf.config.list_physical_devices", lambda _: [])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    on_the_cpu = r"model\.json does not exist"  # it went on, to a network that is not there
    monkeypatch.setattr(tensorflow, "_cuda", list)
    with pytest.raises(LookalikeError, match=on_the_cpu):
        tensorflow.load(tmp_path, 64, 4, "float32")
    assert told == ["NVIDIA H100 is not used; for TensorFlow to use it: pip install -r requirements/gpu.txt"]
    told.clear()
    monkeypatch.setattr(tensorflow, "_cuda", lambda: ["nvidia-cudnn-cu12 9.1"])
    advice = r"does not see NVIDIA H100, though .*nvidia-smi.*requirements/gpu\.txt.*CUDA_VISIBLE_DEVICES=-1"
    with pytest.raises(LookalikeError, match=advice):
        tensorflow.load(tmp_path, 64, 4, "float32")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    with pytest.raises(LookalikeError, match=on_the_cpu):
        tensorflow.load(tmp_path, 64, 4, "float32")
    assert told == []


def test_an_architecture_that_was_cut_off_is_named(tmp_path: Path) -> None:
    model = backbones.create("MobileNetV2", "random", Path("data/none"), "block_1_expand_relu", 0)
    backbones.save(model, "MobileNetV2", "random", "avg", tmp_path)
    content = (tmp_path / "architecture.json").read_bytes()
    (tmp_path / "architecture.json").write_bytes(content[: len(content) // 2])
    with pytest.raises(LookalikeError, match=r"architecture.json does not describe a network; .*dvc repro --force"):
        backbones.load(tmp_path, 32, "float32")
