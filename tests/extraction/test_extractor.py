"""Images to rows: every runtime and way through the cache, always the same bits."""

import errno
import hashlib
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lookalike.artifacts.descriptions import describe
from lookalike.base.errors import LookalikeError
from lookalike.extraction.cache import EmbeddingCache, Recipe
from lookalike.extraction.company import Composer, company_of
from lookalike.extraction.extractor import Extractor, embed
from lookalike.networks.keras_setup import usable
from lookalike.runtimes import registry
from tests.helpers.cache_rows import RECIPE
from tests.helpers.small_collection import Built
from tests.helpers.small_network import PIXELS, make, rows_of

pytestmark = pytest.mark.slow  # TensorFlow, DVC and kills


def agree(keras: np.ndarray, ov: np.ndarray, dim: int) -> None:
    """Rows of the same pictures by the two runtimes: they say the same, and look at the pictures."""
    assert keras.shape == ov.shape == (len(keras), dim) and keras.dtype == ov.dtype == np.float32
    cosines = (keras * ov).sum(axis=1) / np.linalg.norm(keras, axis=1) / np.linalg.norm(ov, axis=1)
    assert cosines.min() > 0.999999
    assert keras.std(axis=0).max() > 0


@pytest.mark.parametrize(
    ("backbone", "layer", "pooling", "mirror", "dim"),
    [
        ("ResNet50", "", "avg", False, 2048),
        ("ResNet50", "conv3_block1_out", "max", False, 512),
        ("MobileNetV2", "block_6_expand_relu", "avg", True, 192),
        ("EfficientNetV2B0", "block4b_add", "gem", False, 96),
        ("ConvNeXtTiny", "convnext_tiny_stage_2_block_0_identity", "avg", False, 384),
    ],
)
def test_a_row_does_not_depend_on_its_company(
    tmp_path: Path, cache_folder: Path, backbone: str, layer: str, pooling: str, mirror: bool, dim: int
) -> None:
    """What the cache rests on: an image's bits are the same, whatever was embedded before, and in which order.

    Where a runtime's rows depend on their place in a batch on this processor, extraction sees to it. The default
    network as a whole; of slow ones as many layers as have each operation, which int8 takes long to round.
    """
    folder = make(tmp_path / "m", backbone, layer, pooling, mirror=mirror)
    np.save(tmp_path / "calibration.npy", PIXELS[:5])
    ways = [("tensorflow", "float32"), ("openvino", "float32")]
    if layer:
        ways += [("openvino", "int8")]
        ways += [("tensorflow", "bfloat16")] * usable("bfloat16")
        ways += [("openvino", "bfloat16")] * ("bfloat16" in registry.openvino.usable())
    found = {}
    for runtime, precision in ways:
        extractor = Extractor(runtime, folder, 64, 8, precision, tmp_path / "calibration.npy")
        first = found[runtime, precision] = rows_of(extractor, PIXELS)
        for seed in range(2):
            shutil.rmtree(cache_folder / "embeddings")
            order = np.random.default_rng(seed).permutation(len(PIXELS))
            assert np.array_equal(rows_of(extractor, PIXELS[order[:7]]), first[order[:7]]), (runtime, precision)
            assert np.array_equal(rows_of(extractor, PIXELS[order]), first[order]), (runtime, precision)
    agree(found["tensorflow", "float32"], found["openvino", "float32"], dim)


def by_place(batch: np.ndarray) -> np.ndarray:
    """A network whose last bits depend on an image's place: float32 (B, 3)."""
    means = batch.mean(axis=(1, 2), dtype=np.float32)
    return means + np.float32(1e-4) * np.arange(len(batch), dtype=np.float32)[:, None]


def by_others(batch: np.ndarray) -> np.ndarray:
    """And one whose bits depend on the whole batch."""
    return batch.mean(axis=(1, 2), dtype=np.float32) + np.float32(1e-4) * batch.mean(dtype=np.float32)


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (lambda batch: batch.mean(axis=(1, 2), dtype=np.float32), "any"),
        (by_place, "own place"),
        (by_others, "alone"),
    ],
)
def test_company_is_measured_and_does_not_show(network, expected: str, cache_folder: Path) -> None:
    """Images come in any order, some of them before: the same rows, for every kind of network; measured once."""
    calls: list[int] = []

    def counted(batch: np.ndarray) -> np.ndarray:
        calls.append(int(batch.any(axis=(1, 2, 3)).sum()))
        return network(batch)

    def rows(pixels: np.ndarray, recipe: Recipe = RECIPE) -> np.ndarray:
        result = np.full((len(pixels), 3), np.nan, np.float32)
        with EmbeddingCache(recipe) as kept:
            embed(
                [pixels[:5], pixels[5:]], lambda: counted, 4, kept, result.__setitem__,
                company=lambda loaded: company_of(recipe, loaded),
            )  # fmt: skip
        return result

    whole = rows(PIXELS)
    assert np.isfinite(whole).all() and company_of(RECIPE, by_others) == expected  # remembered
    draw = np.random.default_rng(0)
    for _ in range(5):
        shutil.rmtree(cache_folder / "embeddings")
        order = draw.permutation(len(PIXELS))
        some = order[: draw.integers(1, 12)]
        assert np.array_equal(rows(PIXELS[some]), whole[some])
        calls.clear()
        assert np.array_equal(rows(PIXELS[order]), whole[order])
        assert sum(calls) == len(PIXELS) - len(some)  # each image once, and only those that are new
    shutil.rmtree(cache_folder / "companies")
    one = replace(RECIPE, batch_size=1)
    assert company_of(one, by_others) == "any" and not (cache_folder / "companies").exists()  # nothing to measure


def test_without_care_for_company_rows_would_differ() -> None:
    """The test above can fail: the same network, its images put where there is room."""
    found = []
    for order in (np.arange(20), np.arange(20)[::-1]):
        result = np.zeros((20, 3), np.float32)
        with EmbeddingCache(replace(RECIPE, code=str(order[0]))) as kept:
            embed([PIXELS[order]], lambda: by_place, 4, kept, result.__setitem__)
        found.append(result[np.argsort(order)])
    assert not np.array_equal(*found)


def test_places_are_mostly_filled() -> None:
    composer, taken, batches = Composer("own place", 32), 0, 0
    for number in range(20_000):
        composer.add(hashlib.sha256(str(number).encode()).digest())
        if composer.ready():
            batch = composer.take()
            assert len(set(batch.values())) == len(batch)
            taken, batches = taken + len(batch), batches + 1
    assert taken / batches > 0.9 * 32
    while left := composer.take():
        taken += len(left)
    assert taken == 20_000


@pytest.mark.parametrize(
    ("gpu", "libraries", "seen", "precision", "expected", "said"),
    [
        ([], [], False, "float32", "openvino", ""),
        (["NVIDIA H100"], [], False, "float32", "openvino", "H100 is not used; .*requirements/gpu.txt"),
        (["NVIDIA H100"], ["nvidia-cudnn-cu12 9"], True, "float32", "tensorflow", ""),
        (["NVIDIA H100"], ["nvidia-cudnn-cu12 9"], True, "int8", "openvino", ""),
        (["NVIDIA H100"], ["nvidia-cudnn-cu12 9"], False, "float32", "openvino", "H100 is not used: .*nvidia-smi"),
        ([], ["tensorflow-metal 1"], True, "float32", "tensorflow", ""),
    ],
)
def test_auto_is_a_gpu_where_a_runtime_sees_one(
    gpu, libraries, seen, precision, expected, said, monkeypatch, told
) -> None:
    monkeypatch.setattr("lookalike.base.machine.gpu_names", lambda: gpu)
    monkeypatch.setattr(registry.tensorflow, "_cuda", lambda: libraries)
    monkeypatch.setattr("lookalike.networks.keras_setup.tf.config.list_physical_devices", lambda _: ["GPU:0"] * seen)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert registry.chosen("auto", precision) == expected
    assert re.search(said, "\n".join(told))
    assert registry.chosen("tensorflow", precision) == "tensorflow"


@pytest.mark.parametrize(
    ("backbone", "layer", "pooling", "dim"),
    [
        ("MobileNetV2", "", "avg", 1280),
        ("ResNet50V2", "conv3_block2_out", "gem", 512),
        ("MobileNetV3Small", "expanded_conv_4_add", "avg", 40),
        ("MobileNetV3Large", "expanded_conv_4_add", "avg", 40),
        ("EfficientNetB0", "block4b_add", "avg", 80),
        ("DenseNet121", "conv3_block4_concat", "avg", 256),
        ("VGG16", "block3_pool", "avg", 256),
        ("Xception", "add_2", "avg", 728),
    ],
)
def test_openvino_runs_the_network_that_keras_runs(tmp_path: Path, backbone, layer, pooling, dim) -> None:
    """One of each kind, as many layers as have each operation; whole networks above."""
    folder = make(tmp_path / "m", backbone, layer, pooling)
    agree(*(registry.runtime(name).load(folder, 64, 4, "float32")(PIXELS[:4]) for name in registry.RUNTIMES), dim)


def test_with_its_mirror_image_an_embedding_is_the_mean_of_both(tmp_path: Path) -> None:
    """And the same for the mirror image; another network by its fingerprint, so that a search is not asked with it."""
    layer = "block_6_expand_relu"  # before random weights have made everything alike
    plain, mirrored = make(tmp_path / "p", layer=layer), make(tmp_path / "m", layer=layer, mirror=True)
    for name in registry.RUNTIMES:
        alone, both = (registry.runtime(name).load(folder, 64, 4, "float32") for folder in (plain, mirrored))
        pixels, other = PIXELS[:4], np.ascontiguousarray(PIXELS[:4, :, ::-1])
        expected = (np.array(alone(pixels)) + np.array(alone(other))) / 2
        assert np.abs(np.array(alone(pixels)) - expected).max() > 1e-3 * np.abs(expected).max()
        for asked in (pixels, other):
            assert np.abs(np.array(both(asked)) - expected).max() < 1e-5 * np.abs(expected).max(), name
    first, second = describe(plain), describe(mirrored)
    assert (first.mirror, second.mirror) == (False, True) and first.fingerprint != second.fingerprint


def test_the_network_of_one_size_is_converted_too(tmp_path: Path) -> None:
    folder = make(tmp_path / "m", "NASNetMobile", "normal_concat_3")
    for name in registry.RUNTIMES:
        with pytest.raises(LookalikeError, match=r"NASNetMobile accepts only images of 224 pixels a side, .* is 64"):
            registry.runtime(name).load(folder, 64, 1, "float32")
    assert registry.openvino.load(folder, 224, 1, "float32")(np.zeros((1, 224, 224, 3), np.uint8)).shape == (1, 264)


@pytest.mark.parametrize("runtime", registry.RUNTIMES)
def test_cold_resumed_and_cached_agree_bit_for_bit(small: Path, cache_folder: Path, runtime) -> None:
    """Whatever part of the images the cache knows, in whatever order they were asked, with twins among them."""
    draw = random.Random(0)
    pixels = PIXELS[[0, 1, 2, 3, 1, 4, 5, 0, *range(6, 20), 19, 19]]
    cold = rows_of(Extractor(runtime, small, 64, 4, "float32"), pixels)
    assert np.isfinite(cold).all()
    assert np.array_equal(cold[0], cold[7]) and not np.array_equal(cold[0], cold[1])
    for _ in range(5):
        shutil.rmtree(cache_folder)
        extractor = Extractor(runtime, small, 64, 4, "float32")
        order = draw.sample(range(len(pixels)), draw.randrange(len(pixels)))
        rows_of(extractor, pixels[order])
        assert np.array_equal(rows_of(extractor, pixels, block=draw.randrange(1, 9)), cold)
        assert np.array_equal(rows_of(extractor, pixels), cold)


def test_nothing_is_embedded_twice(small: Path) -> None:
    """The network is counted: adding images costs those images, and going back costs nothing."""
    runs: list[int] = []
    extractor = Extractor("openvino", small, 64, 4, "float32")

    def counted() -> Callable[[np.ndarray], np.ndarray]:
        network = extractor.network()
        return lambda batch: runs.append(int(batch.any(axis=(1, 2, 3)).sum())) or network(batch)

    def images_run(pixels: np.ndarray) -> int:
        runs.clear()
        with EmbeddingCache(extractor.recipe) as cache:
            embed([pixels], counted, 4, cache, lambda rows, block: None)
        return sum(runs)

    assert images_run(PIXELS[:10]) == 10
    assert images_run(PIXELS[:10]) == 0
    assert images_run(PIXELS) == 10
    assert images_run(PIXELS[[3, 3, 19, 5]]) == 0
    with EmbeddingCache(extractor.recipe) as cache:  # twins in other blocks, some batches on
        runs.clear()
        strangers = PIXELS // 2
        blocks = [strangers[:3], strangers[[0, 3, 4, 1, 5, 6, 7, 8, 0, 3]], strangers[[9, 2, 8, 10, 11, 12, 13, 9, 7]]]
        embed(blocks, counted, 4, cache, lambda rows, block: None)
        assert sum(runs) == 14
    twins = 255 - PIXELS[[0, 1, 0, 2, 3, *range(4, 20), 1, 0]]  # one in the same batch, one several batches on
    assert images_run(twins) == 20


def test_another_way_of_embedding_is_another_cache(tmp_path: Path, small: Path) -> None:
    other = make(tmp_path / "other", layer="block_6_expand_relu", seed=1)
    pooled = make(tmp_path / "pooled", layer="block_6_expand_relu", pooling="max")
    ways = [
        Extractor("openvino", small, 64, 4, "float32"), Extractor("tensorflow", small, 64, 4, "float32"),
        Extractor("openvino", small, 64, 4, "bfloat16"), Extractor("openvino", small, 64, 8, "float32"),
        Extractor("openvino", small, 96, 4, "float32"), Extractor("openvino", other, 64, 4, "float32"),
        Extractor("openvino", pooled, 64, 4, "float32"),
    ]  # fmt: skip
    assert len({way.recipe.fingerprint for way in ways}) == len(ways)
    assert Extractor("openvino", small, 64, 4, "float32").recipe == ways[0].recipe


def test_images_that_cannot_be_read_are_said_and_what_was_embedded_is_kept() -> None:
    """Of two batches the first is through when the second begins, and the third never comes."""

    def images() -> Iterator[np.ndarray]:
        yield PIXELS[:8]
        raise OSError(errno.EIO, os.strerror(errno.EIO), "images.npy")

    def network(batch: np.ndarray) -> np.ndarray:
        return batch.mean(axis=(1, 2), dtype=np.float32)

    written: list[int] = []
    with pytest.raises(OSError, match=r"Input/output error: 'images\.npy'"), EmbeddingCache(RECIPE) as kept:
        embed(images(), lambda: network, 4, kept, lambda rows, block: written.extend(rows.tolist()))
    assert written == [0, 1, 2, 3]
    with EmbeddingCache(RECIPE) as kept:
        assert len(kept.get([hashlib.sha256(image.data).digest() for image in PIXELS])) == 4


def test_int8_and_batch_size_where_nothing_can_be_kept(tmp_path: Path, cache_folder: Path, small: Path) -> None:
    np.save(tmp_path / "c.npy", PIXELS)
    cache_folder.write_text("a file")
    with pytest.raises(LookalikeError, match=r"networks: the int8 network cannot be kept there .* LOOKALIKE_CACHE"):
        rows_of(Extractor("openvino", small, 64, 4, "int8", tmp_path / "c.npy"), PIXELS)
    assert np.isfinite(rows_of(Extractor("openvino", small, 64, 0, "float32"), PIXELS)).all()


def test_what_picks_kernels_is_part_of_the_recipe(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [Extractor(name, small, 64, 4, "float32").recipe for name in registry.RUNTIMES]
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "1")
    assert [Extractor(name, small, 64, 4, "float32").recipe for name in registry.RUNTIMES] == before
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "AVX2")
    after = [Extractor(name, small, 64, 4, "float32").recipe for name in registry.RUNTIMES]
    assert all(one.fingerprint != other.fingerprint for one, other in zip(before, after, strict=True))


def test_a_precision_that_the_processor_lacks(small: Path) -> None:
    """float16 or bfloat16, whichever this processor has no instructions for; every known one lacks one of them."""
    lacking = [name for name in ("float16", "bfloat16") if name not in registry.openvino.usable()]
    if not lacking:
        pytest.skip("this processor has both")
    with pytest.raises(
        LookalikeError, match=rf"extract.precision is {lacking[0]}, for which this processor .*one of f"
    ):
        registry.openvino.load(small, 64, 1, lacking[0])


@pytest.mark.parametrize("broken", ["network.xml", "network.bin"])
def test_a_network_that_was_cut_off_is_named(built: Built, broken: str) -> None:
    path = built.folder / "model" / broken
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    message = r"data/model/network\.xml cannot be run at preprocess\.image_size 32: .*dvc repro --force model"
    with pytest.raises(LookalikeError, match=message) as caught:
        registry.openvino.load(built.folder / "model", 32, 1, "float32")
    assert "\n" not in str(caught.value)
