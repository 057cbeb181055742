"""Vision transformers: random weights, so shape, determinism and agreement are tested, and no quality."""

import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from lookalike.artifacts import descriptions
from lookalike.base.errors import LookalikeError
from lookalike.networks import backbones
from lookalike.networks.keras_setup import usable
from lookalike.networks.vit_presets import TOWERS, Tower
from lookalike.runtimes import openvino, tensorflow

pytestmark = pytest.mark.slow  # TensorFlow builds networks

pytest.importorskip("keras_hub", reason="KerasHub is not installed: pip install -r requirements/vit.txt")
pytestmark = pytest.mark.slow  # TensorFlow
NONE = Path("data/none")
TINY = [name for name in TOWERS if name.endswith("_tiny")]
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
OWN = {"vit_tiny": "cls", "dinov2_tiny": "cls", "clip_tiny": "head", "siglip_tiny": "head"}
WAYS = [*OWN.items(), ("vit_tiny", "gem")]


def write(folder: Path, backbone: str, pooling: str, layer: str = "") -> Path:
    folder.mkdir()
    backbones.save(backbones.create(backbone, "random", NONE, layer, 0, pooling), backbone, "random", pooling, folder)
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Network folders of seed 0, each made once."""
    return cache(lambda backbone, pooling: write(tmp_path_factory.mktemp("m") / "model", backbone, pooling))


@pytest.mark.parametrize(("backbone", "pooling"), WAYS)
def test_keras_and_openvino_agree_whatever_the_batch(written, backbone: str, pooling: str) -> None:
    folder = written(backbone, pooling)
    described = descriptions.describe(folder)
    assert (described.pooling, described.dim) == (pooling, 32 if backbone == "clip_tiny" else 64)
    rows = tensorflow.load(folder, 64, 5, "float32")(PIXELS)
    assert (rows.shape, rows.dtype) == ((5, described.dim), np.float32)
    assert np.abs(rows - rows[0]).max() > 1e-3  # it looks at the picture
    embed = openvino.load(folder, 64, 5, "float32")
    assert np.abs(embed(PIXELS) - rows).max() < 1e-5 * np.abs(rows).max()
    others = PIXELS[[3, 0, 0, 0, 0]]
    assert np.array_equal(embed(others)[0], embed(PIXELS)[3])


def test_the_seed_decides_the_weights_bit_for_bit(written, tmp_path: Path) -> None:
    for backbone, pooling in OWN.items():
        one, again, other = (
            backbones.create(backbone, "random", NONE, "", seed, pooling).get_weights() for seed in (0, 0, 1)
        )
        assert all(map(np.array_equal, one, again)), backbone
        assert not all(map(np.array_equal, one, other)), backbone
    folder, again = written("clip_tiny", "head"), write(tmp_path / "m", "clip_tiny", "head")
    for file in sorted(path.name for path in folder.iterdir()):
        assert (folder / file).read_bytes() == (again / file).read_bytes(), file


def test_the_network_is_kerashubs_with_the_familys_normalisation(written) -> None:
    """Against KerasHub called as its documentation says; OpenAI's mean and deviation written out."""
    from keras_hub.models import CLIPBackbone

    from lookalike.networks import vit
    from lookalike.networks.keras_setup import keras

    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    plain = vit.build("clip_tiny")
    assert isinstance(plain, CLIPBackbone)
    mean, deviation = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    images = ((PIXELS / 255 - mean) / deviation).astype(np.float32)
    expected = np.asarray(plain.get_vision_embeddings(images))
    rows = tensorflow.load(written("clip_tiny", "head"), 64, 5, "float32")(PIXELS)
    assert np.abs(rows - expected).max() < 1e-5


def test_patch_tokens_are_pooled_without_class_and_register_tokens(written) -> None:
    """64 patches of 8 pixels stand behind one class token and four registers: by hand from all 69 tokens."""
    from lookalike.networks.keras_setup import keras

    model = backbones.create("dinov2_tiny", "random", NONE, "", 0, "avg")
    mean, deviation = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    tokens = np.asarray(model(keras.ops.convert_to_tensor(((PIXELS / 255 - mean) / deviation).astype(np.float32))))
    assert tokens.shape == (5, 1 + 4 + 64, 64)
    for pooling, rows in {"cls": tokens[:, 0], "avg": tokens[:, 5:].mean(axis=1)}.items():
        embed = openvino.load(written("dinov2_tiny", pooling), 64, 5, "float32")
        assert np.abs(embed(PIXELS) - rows).max() < 1e-5, pooling


def test_positions_matter(written) -> None:
    """A picture with two patches swapped is another: no tower forgets where a patch was."""
    swapped = PIXELS.copy()
    swapped[:, :8, :8], swapped[:, -8:, -8:] = PIXELS[:, -8:, -8:], PIXELS[:, :8, :8]
    for backbone, pooling in OWN.items():
        embed = openvino.load(written(backbone, pooling), 64, 5, "float32")
        assert np.abs(embed(swapped) - embed(PIXELS)).max() > 1e-5, backbone


def test_weights_from_a_file_are_both_towers(tmp_path: Path) -> None:
    """A preset's model.weights.h5 holds the whole network, texts included; no other network's fits."""
    from lookalike.networks import vit
    from lookalike.networks.keras_setup import keras

    keras.utils.set_random_seed(7)
    file = tmp_path / "model.weights.h5"
    vit.build("clip_tiny").save_weights(file)
    loaded = backbones.create("clip_tiny", "file", file, "", 0, "head")
    drawn = backbones.create("clip_tiny", "random", NONE, "", 7, "head")
    assert all(np.array_equal(a, b) for a, b in zip(loaded.get_weights(), drawn.get_weights(), strict=True))
    for other in ("siglip_tiny", "vit_tiny"):
        with pytest.raises(LookalikeError, match=f"does not fit {other}"):
            backbones.create(other, "file", file, "", 0)
    backbones.create("vit_tiny", "random", NONE, "", 0).save_weights(file)
    for other in ("clip_tiny", "dinov2_tiny"):
        with pytest.raises(LookalikeError, match=f"does not fit {other}"):
            backbones.create(other, "file", file, "", 0)


def test_a_tower_is_cut_behind_a_block(written, tmp_path: Path) -> None:
    folder = write(tmp_path / "m", "clip_tiny", "cls", "encoder_block_0")
    cut = descriptions.describe(folder)
    assert (cut.layer, cut.dim) == ("encoder_block_0", 64)
    assert cut.parameters < descriptions.describe(written("clip_tiny", "head")).parameters
    rows = openvino.load(folder, 64, 5, "float32")(PIXELS)
    assert np.abs(tensorflow.load(folder, 64, 5, "float32")(PIXELS) - rows).max() < 1e-5 * np.abs(rows).max()


def test_lower_precision_is_close(written) -> None:
    folder = written("vit_tiny", "gem")
    lower = "bfloat16" if usable("bfloat16") else "float32"
    full, low = (tensorflow.load(folder, 64, 5, precision)(PIXELS) for precision in ("float32", lower))
    assert low.dtype == np.float32 and np.array_equal(full, low) == (lower == "float32")
    cosines = (full * low).sum(axis=1) / np.linalg.norm(full, axis=1) / np.linalg.norm(low, axis=1)
    assert cosines.min() > 0.99


def parameters(tower: Tower) -> int:
    """Of a network as its preset keeps it: both towers, and DINOv2's positions twice, as trained and interpolated."""
    patches = ((tower.trained_size or tower.image_size) // tower.patch) ** 2
    own = tower.layers * block(tower.dim, tower.mlp) + 3 * tower.patch**2 * tower.dim
    if tower.family == "vit":  # bias of the patches, class token, positions, last normalisation
        return own + tower.dim * (1 + 1 + patches + 1 + 2)
    if tower.family == "dinov2":  # likewise; mask token, registers, two scales a block
        return own + tower.dim * (1 + 1 + 2 * (patches + 1) + 2 + 1 + tower.registers + 2 * tower.layers)
    text = tower.text
    own += text.layers * block(text.dim, text.mlp) + text.dim * (text.vocabulary + text.length + 2)
    if tower.family == "clip":  # class token, positions and their numbers, two normalisations; projections, temperature
        own += tower.dim * (1 + patches + 1 + 4) + patches + 1
        return own + (tower.dim + text.dim) * tower.projection + 1
    own += tower.dim * (1 + patches + 2) + patches + text.length + text.dim * (text.dim + 1) + 2
    return (
        own + tower.dim + block(tower.dim, tower.mlp) - 2 * tower.dim
    )  # the head: a probe, and one normalisation less


def block(dim: int, mlp: int) -> int:
    """Four projections, two dense layers, two normalisations."""
    return 4 * (dim * dim + dim) + (dim * mlp + mlp) + (mlp * dim + dim) + 2 * 2 * dim


def test_every_tower_has_the_parameters_that_kerashub_states() -> None:
    """A wrong number in our table would read no preset's file."""
    from keras_hub import models

    from lookalike.networks import vit

    kinds = (models.ViTBackbone, models.DINOV2Backbone, models.CLIPBackbone, models.SigLIPBackbone)
    stated = {name: preset["metadata"]["params"] for kind in kinds for name, preset in kind.presets.items()}
    for name in set(TOWERS) - set(TINY):
        assert parameters(TOWERS[name]) == stated[name], name
    for name in TINY:
        built = vit.build(name).count_params()
        positions = 144 + 1 - (64 + 1) if name == "dinov2_tiny" else 0  # those interpolated to 64 pixels are fewer
        assert built == parameters(TOWERS[name]) - positions * TOWERS[name].dim, name


def test_mistakes_are_named(written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def create(backbone: str, weights: str = "random", layer: str = "", pooling: str = "avg") -> None:
        backbones.create(backbone, weights, NONE, layer, 0, pooling)

    with pytest.raises(LookalikeError, match=r"did you mean dinov2_small\? Known: .*VGG16.*siglip_base"):
        create("dinov2_smal")
    with pytest.raises(
        LookalikeError, match=r"model\.pooling is 'cls', which siglip_tiny does not have; .*avg, max, gem, head"
    ):
        create("siglip_tiny", pooling="cls")
    with pytest.raises(
        LookalikeError, match=r"model\.pooling is 'head', which vit_tiny does not have; .*cls, avg, max, gem"
    ):
        create("vit_tiny", pooling="head")
    with pytest.raises(LookalikeError, match=r"model\.pooling is 'cls', which ResNet50 does not have; .*avg, max, gem"):
        create("ResNet50", pooling="cls")
    with pytest.raises(LookalikeError, match=r"vit_tiny is downloaded with model\.weights=preset"):
        create("vit_tiny", "imagenet")
    with pytest.raises(LookalikeError, match=r"ResNet50 is downloaded with model\.weights=imagenet"):
        create("ResNet50", "preset")
    with pytest.raises(LookalikeError, match=r"no trained weights of vit_tiny; .*vit_base_patch16_224_imagenet"):
        create("vit_tiny", "preset")
    with pytest.raises(LookalikeError, match=r"'encoder_blok_1', but clip_tiny .*did you mean encoder_block_1"):
        create("clip_tiny", layer="encoder_blok_1")
    with pytest.raises(LookalikeError, match=r"pooling head needs the last layer"):
        create("clip_tiny", layer="encoder_block_0", pooling="head")
    with pytest.raises(LookalikeError, match=r"data/none is not a weights file; .*vit_tiny"):
        create("vit_tiny", "file")
    # A closed port in place of the internet, whatever this machine can reach; and an empty cache.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "kaggle"))
    with pytest.raises(LookalikeError, match=r"dinov2_small could not be fetched: .*model\.weights=file"):
        create("dinov2_small", "preset")
    folder = written("vit_tiny", "cls")
    for runtime in (tensorflow, openvino):
        with pytest.raises(LookalikeError, match=r"vit_tiny accepts only images of 64 pixels a side, .* is 224; set"):
            runtime.load(folder, 224, 1, "float32")
    # What a machine without the extra sees; a query through OpenVINO does not miss it.
    for name in [name for name in sys.modules if name.split(".")[0] == "keras_hub"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    for attempt in (lambda: create("vit_tiny"), lambda: tensorflow.load(folder, 64, 1, "float32")):
        with pytest.raises(LookalikeError, match=r"KerasHub, .*: pip install -r requirements/vit\.txt"):
            attempt()
    assert openvino.load(folder, 64, 5, "float32")(PIXELS).shape == (5, 64)


def test_the_architecture_is_readable(written) -> None:
    folder = written("dinov2_tiny", "cls")
    names = [
        layer["name"] for layer in json.loads((folder / descriptions.ARCHITECTURE_FILE).read_text())["config"]["layers"]
    ]
    assert names == ["images", "embeddings", "encoder", "layernorm"]
