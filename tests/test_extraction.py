"""Images to rows: every runtime, every way through the cache, killed and gone on, and always the same bits."""

import errno
import hashlib
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cache_rows import RECIPE, keys_of, vectors
from conftest import LINUX, POSIX, Project, copy_project, killed_until_through
from namespaces import read_only, unshared
from small_collection import Built

from lookalike.artifacts.arrays import ArrayWriter
from lookalike.artifacts.descriptions import describe
from lookalike.base import user_cache
from lookalike.base.errors import LookalikeError
from lookalike.cli import cache, calibration
from lookalike.extraction import batch_size
from lookalike.extraction import cache as embedding_cache
from lookalike.extraction.cache import EmbeddingCache, Recipe
from lookalike.extraction.company import Composer, company_of
from lookalike.extraction.extractor import Extractor, embed
from lookalike.networks import backbones
from lookalike.networks.keras_setup import usable
from lookalike.runtimes import quantization, registry
from proof.patience import patience

pytestmark = pytest.mark.slow  # TensorFlow, DVC and kills

NONE = Path("data/none")
RNG = np.random.default_rng(0)
PIXELS = np.repeat(np.repeat(RNG.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8), 8, axis=1), 8, axis=2)  # 64 x 64
COUNT = 600  # digits that a stage embeds


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOOKALIKE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make(
    folder: Path, backbone: str = "MobileNetV2", layer: str = "", pooling: str = "avg", seed: int = 0,
    *, mirror: bool = False,
) -> Path:  # fmt: skip
    folder.mkdir()
    model = backbones.create(backbone, "random", NONE, layer, seed)
    backbones.save(model, backbone, "random", pooling, folder, mirror=mirror)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of 192 dimensions that runs in no time."""
    return make(tmp_path_factory.mktemp("network") / "m", layer="block_6_expand_relu")


def rows_of(extractor: Extractor, pixels: np.ndarray, block: int = 7) -> np.ndarray:
    result = np.full((len(pixels), extractor.recipe.dim), np.nan, np.float32)
    extractor.embed((pixels[start : start + block] for start in range(0, len(pixels), block)), result.__setitem__)
    return result


# --- the same bits -----------------------------------------------------------------------------------------------


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
        with EmbeddingCache(recipe, print) as kept:
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
        with EmbeddingCache(replace(RECIPE, code=str(order[0])), print) as kept:
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
    gpu, libraries, seen, precision, expected, said, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("lookalike.base.machine.gpu_names", lambda: gpu)
    monkeypatch.setattr(registry.tensorflow, "_cuda", lambda: libraries)
    monkeypatch.setattr("lookalike.networks.keras_setup.tf.config.list_physical_devices", lambda _: ["GPU:0"] * seen)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert registry.chosen("auto", precision) == expected
    assert re.search(said, capsys.readouterr().err)
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


def test_conversion_and_quantisation_give_the_same_bytes_again(tmp_path: Path, cache_folder: Path) -> None:
    one, two = (make(tmp_path / name, layer="block_6_expand_relu") for name in "ab")
    for name in ("network.xml", "network.bin", "model.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    np.save(tmp_path / "c.npy", PIXELS)
    first = quantization.quantized(one, 64, tmp_path / "c.npy")
    weights = first.with_suffix(".bin").read_bytes()
    assert quantization.quantized(two, 64, tmp_path / "c.npy") == first  # from the cache
    first.with_suffix(".bin").write_bytes(weights[:-1])  # damaged: made anew
    assert quantization.quantized(one, 64, tmp_path / "c.npy").with_suffix(".bin").read_bytes() == weights


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
        with EmbeddingCache(extractor.recipe, print) as cache:
            embed([pixels], counted, 4, cache, lambda rows, block: None)
        return sum(runs)

    assert images_run(PIXELS[:10]) == 10
    assert images_run(PIXELS[:10]) == 0
    assert images_run(PIXELS) == 10
    assert images_run(PIXELS[[3, 3, 19, 5]]) == 0
    with EmbeddingCache(extractor.recipe, print) as cache:  # twins in other blocks, some batches on
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
    with pytest.raises(OSError, match=r"Input/output error: 'images\.npy'"), EmbeddingCache(RECIPE, print) as kept:
        embed(images(), lambda: network, 4, kept, lambda rows, block: written.extend(rows.tolist()))
    assert written == [0, 1, 2, 3]
    with EmbeddingCache(RECIPE, print) as kept:
        assert len(kept.get([hashlib.sha256(image.data).digest() for image in PIXELS])) == 4


# --- the cache's file --------------------------------------------------------------------------------------------


def fill(count: int = 50) -> Path:
    with EmbeddingCache(RECIPE, print) as cache:
        for key, row in zip(keys_of(count), vectors(count), strict=True):
            cache.put(key, row)
    return cache.path


def found(told: list[str], count: int = 50) -> int:
    """How many of the rows are there; what is there must be right."""
    with EmbeddingCache(RECIPE, told.append) as cache:
        known = cache.get(keys_of(count))
    for key, row in zip(keys_of(count), vectors(count), strict=True):
        assert key not in known or np.array_equal(known[key], row)
    return len(known)


def test_what_is_put_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    fill()
    assert found([]) == 50
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("what", ["text", "empty", "truncated", "another program's", "random"])
def test_a_file_that_is_not_a_cache_is_set_aside(what: str) -> None:
    path = fill()
    content = path.read_bytes()
    if what == "another program's":
        path.unlink()
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE rows (pixels, embedding, checksum)")
        other.close()
    else:
        path.write_bytes({"text": b"hello", "empty": b"", "truncated": content[: len(content) // 2],
                          "random": RNG.bytes(len(content))}[what])  # fmt: skip
    left = path.read_bytes()
    told: list[str] = []
    assert found(told) == 0
    if what != "empty":
        assert len(told) == 1 and "set aside" in told[0]
        assert path.with_name(path.name + ".damaged").read_bytes() == left  # nothing is lost
    fill()
    assert found(told) == 50


def test_a_broken_file_that_cannot_be_set_aside_is_left_and_done_without() -> None:
    path = fill()
    path.write_bytes(b"hello")
    path.with_name(f"{path.name}.damaged").mkdir()
    told: list[str] = []
    with EmbeddingCache(RECIPE, told.append) as kept:
        kept.put(keys_of(1)[0], vectors(1)[0])
        kept.commit()
        assert kept.get(keys_of(1)) == {}
    assert len(told) == 1 and re.search(
        r"\.sqlite cannot be read \(file is not a database\) nor set aside \(.*Is a directory.*\); going on without",
        told[0],
    )
    assert path.read_bytes() == b"hello"


@pytest.mark.parametrize(("lock", "known"), [("IMMEDIATE", 50), ("EXCLUSIVE", 0)])
def test_a_file_that_another_program_holds_is_read_if_it_may_be(
    monkeypatch: pytest.MonkeyPatch, lock: str, known: int
) -> None:
    path, told = fill(), []
    monkeypatch.setattr(embedding_cache, "WAIT", 0.01)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(f"BEGIN {lock}")
        with EmbeddingCache(RECIPE, told.append) as kept:
            assert len(kept.get(keys_of(50))) == known
            kept.put(keys_of(51)[50], vectors(51)[50])
    assert len(told) == 1 and "nothing can be saved there (database is locked)" in told[0]
    assert "set LOOKALIKE_CACHE to a folder that is" in told[0]
    assert found([], 51) == 50  # as it was


def test_no_flipped_byte_gives_a_wrong_row() -> None:
    """Every 199th byte of the file is flipped in turn: rows are right or absent, and the cache can be used again."""
    path = fill()
    content = path.read_bytes()
    missing = 0
    for position in range(0, len(content), 199):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        missing += found([]) < 50
    assert missing > 0
    path.write_bytes(content)
    assert found([]) == 50


def test_a_row_of_another_length_is_absent() -> None:
    path = fill()
    with sqlite3.connect(path) as file:
        file.execute("UPDATE rows SET embedding = substr(embedding, 1, 8)")
    file.close()
    assert found([]) == 0


def test_two_processes_may_write_at_once(tmp_path: Path) -> None:
    script = tmp_path / "write.py"
    script.write_text(
        "import sys; sys.path[:0] = [sys.argv[1], sys.argv[2]]\n"
        "from cache_rows import RECIPE, keys_of, vectors\n"
        "from lookalike.extraction.cache import EmbeddingCache\n"
        "with EmbeddingCache(RECIPE, print) as cache:\n"
        "    for key, row in list(zip(keys_of(50), vectors(50)))[int(sys.argv[3])::2]:\n"
        "        cache.put(key, row); cache.commit()\n"
    )
    here = Path(__file__).parent
    writers = [subprocess.Popen([sys.executable, script, here, here.parent, str(n)]) for n in (0, 1)]
    assert [writer.wait(timeout=patience(120)) for writer in writers] == [0, 0]
    told: list[str] = []
    assert (found(told), told) == (50, [])


WRITE = """
import sys; sys.path[:0] = [{here!r}, {root!r}]
import numpy as np
from cache_rows import RECIPE
from lookalike.base import script
from lookalike.extraction.cache import EmbeddingCache, Recipe
def main():
    with EmbeddingCache(RECIPE, lambda text: print('told:', text)) as cache:
        for number in range(40_000):
            cache.put(number.to_bytes(32, 'big'), np.zeros(3, np.float32))
            if number % 500 == 0: cache.commit()
        print('to the end')
script.run('extract', main)
"""


@pytest.mark.parametrize("where", ["full", "read-only", "read-only and filled", "not a folder"])
def test_a_cache_that_cannot_be_written(tmp_path: Path, cache_folder: Path, where: str) -> None:
    script = tmp_path / "write.py"
    here = Path(__file__).parent
    script.write_text(WRITE.format(here=str(here), root=str(here.parent)))
    run = f"LOOKALIKE_CACHE={cache_folder} {sys.executable} {script}"
    if where == "not a folder":
        cache_folder.write_text("a file")
        done = subprocess.run(["sh", "-c", run], capture_output=True, text=True, check=False)
    elif where == "full":
        cache_folder.mkdir()
        done = unshared(f"mount -t tmpfs -o size=1m none {cache_folder} && {run}; status=$?; "
                        f"ls {cache_folder}/embeddings; exit $status")  # fmt: skip
        assert done.returncode == 1 and "to the end" not in done.stdout
        assert re.search(r"^extract: error: .*the disk is full\. The embeddings computed so far are kept", done.stderr)
        assert done.stderr.count("\n") == 1 and ".sqlite" in done.stdout
        return
    else:
        cache_folder.mkdir()
        if where == "read-only and filled":
            fill()
        done = unshared(f"{read_only(cache_folder)} && {run}")
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stdout.splitlines() if line.startswith("told:")]
    assert len(told) == 1 and "nothing can be saved there" in told[0] and "LOOKALIKE_CACHE" in told[0]
    assert "to the end" in done.stdout


def test_a_cache_that_is_pruned_while_it_is_written_goes_on_in_a_new_file() -> None:
    told: list[str] = []
    with EmbeddingCache(RECIPE, told.append) as cache:
        for number, (key, row) in enumerate(zip(keys_of(50), vectors(50), strict=True)):
            cache.put(key, row)
            cache.commit()
            if number == 20:
                cache.path.unlink()
    assert told == []
    assert found([]) == 29


def test_int8_and_batch_size_where_nothing_can_be_kept(tmp_path: Path, cache_folder: Path, small: Path) -> None:
    np.save(tmp_path / "c.npy", PIXELS)
    cache_folder.write_text("a file")
    with pytest.raises(LookalikeError, match=r"networks: the int8 network cannot be kept there .* LOOKALIKE_CACHE"):
        rows_of(Extractor("openvino", small, 64, 4, "int8", tmp_path / "c.npy"), PIXELS)
    assert np.isfinite(rows_of(Extractor("openvino", small, 64, 0, "float32"), PIXELS)).all()


def fake_network(folder: Path) -> Path:
    """Files that stand for a network where none is run."""
    folder.mkdir()
    for name in ("network.xml", "network.bin"):
        (folder / name).write_bytes(b"a network")
    np.save(folder / "c.npy", PIXELS[:2])
    return folder


def test_a_missing_nncf_is_named_and_nothing_is_kept(
    tmp_path: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fake_network(tmp_path / "m")
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(LookalikeError, match=r"NNCF cannot be imported \(.*\): pip install -r requirements\.txt"):
        quantization.quantized(folder, 64, folder / "c.npy")
    assert [path.suffix for path in (cache_folder / "networks").iterdir()] == [".lock"]


def test_of_two_runs_at_once_one_quantises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second asks while the first is at work, waits, and finds what that made."""
    folder, real = fake_network(tmp_path / "m"), quantization._whole
    made, results, asked = [], [], threading.Event()
    second = threading.Thread(target=lambda: results.append(quantization.quantized(folder, 64, folder / "c.npy")))

    def whole(target: Path) -> bool:
        result = real(target)
        if threading.current_thread() is second:
            asked.set()
        return result

    def quantize(_source: Path, _images: np.ndarray, target: Path) -> None:
        made.append(target)
        second.start()
        assert asked.wait(patience(60))
        target.write_bytes(b"eight bits")

    monkeypatch.setattr(quantization, "_whole", whole)
    monkeypatch.setattr(quantization, "_quantize", quantize)
    results.append(quantization.quantized(folder, 64, folder / "c.npy"))
    second.join(patience(60))
    assert len(made) == 1
    assert len(results) == 2 and results[0] == results[1] and results[0].read_bytes() == b"eight bits"


@pytest.mark.parametrize(
    ("room", "fastest", "best"), [(10**9, 10**9, 1024), (10**9, 100, 128), (40, 10**9, 32), (8, 10**9, 8)]
)
def test_the_batch_grows_while_that_pays_and_fits(
    monkeypatch: pytest.MonkeyPatch, room: int, fastest: int, best: int
) -> None:
    """A device that takes a second for up to `fastest` images, and has memory for `room`."""
    clock, loaded = [0.0], []
    monkeypatch.setattr(batch_size, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def load(size: int) -> registry.Embedder:
        def run(batch: np.ndarray) -> np.ndarray:
            if len(batch) > room:
                raise registry.OutOfMemory(f"a batch of {len(batch)} images does not fit")
            clock[0] += max(1.0, len(batch) / fastest)
            return batch

        loaded.append(size)
        return run

    assert batch_size.fastest(RECIPE, load) == best
    assert loaded[-1] == min(2 * best, 1024)  # none is tried behind one that was too large
    loaded.clear()
    assert batch_size.fastest(RECIPE, load) == best and loaded == []  # found earlier


def test_a_device_too_small_for_any_batch_is_said(cache_folder: Path) -> None:
    def load(size: int) -> registry.Embedder:
        raise registry.OutOfMemory(f"a batch of {size} images does not fit")

    with pytest.raises(registry.OutOfMemory, match="a batch of 8 images"):
        batch_size.fastest(RECIPE, load)
    assert not list(cache_folder.rglob("*.json"))


def test_what_picks_kernels_is_part_of_the_recipe(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [Extractor(name, small, 64, 4, "float32").recipe for name in registry.RUNTIMES]
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "1")
    assert [Extractor(name, small, 64, 4, "float32").recipe for name in registry.RUNTIMES] == before
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "AVX2")
    after = [Extractor(name, small, 64, 4, "float32").recipe for name in registry.RUNTIMES]
    assert all(one.fingerprint != other.fingerprint for one, other in zip(before, after, strict=True))


def test_a_full_disk_keeps_what_was_committed(cache_folder: Path) -> None:
    """SQLite is told that the disk ends here; what was there before is there afterwards."""
    fill()
    with EmbeddingCache(RECIPE, print) as cache:
        pages = cache._file.execute("PRAGMA page_count").fetchone()[0]
        cache._file.execute(f"PRAGMA max_page_count = {pages}")
        for number in range(10_000):
            cache.put(number.to_bytes(32, "big"), np.zeros(3, np.float32))
        with pytest.raises(LookalikeError, match="the disk is full"):
            cache.commit()
        cache._waiting.clear()
    assert found([]) == 50


# --- the stage ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """600 digits at 64 pixels and a network that is soon through with them, up to `extract`."""
    project = copy_project(tmp_path_factory.mktemp("prepared") / "project")
    project.set(extract__runtime="openvino", download__limit_per_class=COUNT // 10, model__backbone="MobileNetV2",
                model__layer="block_6_expand_relu")  # fmt: skip
    project.run("dvc", "repro", "preprocess", "model")
    return project


@pytest.fixture
def digits(prepared: Project, tmp_path: Path) -> Iterator[Project]:
    """A copy of it, with an empty cache."""
    shutil.copytree(prepared.folder, tmp_path / "project", symlinks=True)
    yield Project(tmp_path / "project")


EXTRACT = ("python", "stages/extract.py", "data/processed", "data/model", "data/features")


def known(done: subprocess.CompletedProcess[str]) -> tuple[int, int]:
    """Images, and how many of them were known before, as the stage says."""
    count, before = re.search(
        r"extract: (\d+) images, (\d+) of them from the cache or duplicates", done.stderr
    ).groups()
    return int(count), int(before)


@POSIX
def test_a_killed_extraction_goes_on_where_it_was(digits: Project) -> None:
    """SIGKILL at random moments, over and over, until it is through; then the bytes of an undisturbed run."""
    digits.set(model__backbone="ResNet50", model__layer="")  # which gives time to be killed in
    digits.run("dvc", "repro", "model")
    done = digits.run(*EXTRACT)
    assert known(done) == (COUNT, 0)
    features = digits.folder / "data/features/features.npy"
    undisturbed = features.read_bytes()
    shutil.rmtree(digits.environment["LOOKALIKE_CACHE"])
    shutil.rmtree(features.parent)
    journal = killed_until_through(digits, EXTRACT, features, rows=(20, 150), seed=1)
    assert len(journal) >= 3
    assert journal == sorted(journal) and journal[-1] > 0
    assert features.read_bytes() == undisturbed
    assert known(digits.run(*EXTRACT)) == (COUNT, COUNT)


def test_adding_ten_embeds_ten_and_going_back_none(digits: Project) -> None:
    digits.run(*EXTRACT)
    first = (digits.folder / "data/features/features.npy").read_bytes()
    digits.set(download__exclude=["BACKGROUND_Google", "9"])
    digits.run("dvc", "repro", "preprocess")
    count, before = known(digits.run(*EXTRACT))
    assert count == before < COUNT
    raw = digits.folder / "data/raw"
    for number in range(10):
        shutil.copy(sorted(raw.glob("3/*.png"))[number], raw / f"new{number}.png")
    from PIL import Image

    for number in range(10):  # another picture each, of real handwriting
        Image.open(raw / f"new{number}.png").rotate(90).save(raw / f"new{number}.png")
    with (raw / "labels.csv").open("a") as file:
        file.writelines(f"new{number}.png,3\n" for number in range(10))
    digits.run("python", "stages/preprocess.py", "data/raw", "data/processed")
    assert known(digits.run(*EXTRACT)) == (count + 10, count)
    digits.set(download__exclude=["BACKGROUND_Google"])
    digits.run("dvc", "repro", "--force", "download", "preprocess")
    assert known(digits.run(*EXTRACT)) == (COUNT, COUNT)
    assert (digits.folder / "data/features/features.npy").read_bytes() == first


def test_a_run_from_the_cache_loads_no_network(digits: Project) -> None:
    digits.set(extract__runtime="tensorflow")
    assert known(digits.run(*EXTRACT)) == (COUNT, 0)
    again = digits.run("python", "-X", "importtime", *EXTRACT[1:])
    assert known(again) == (COUNT, COUNT)
    assert not re.search(r"\| +(tensorflow|keras|openvino)$", again.stderr, re.MULTILINE)


def test_int8_is_calibrated_on_a_frozen_set(digits: Project) -> None:
    command = ("python", "-m", "lookalike.cli.calibration", "data/processed", "data/calibration.npy", "--images", "40")
    digits.run(*command)
    again = digits.run(*command, check=False)
    assert again.returncode == 1 and "data/calibration.npy exists; it is frozen" in again.stderr
    assert np.load(digits.folder / "data/calibration.npy").shape == (40, 64, 64, 3)
    digits.set(extract__precision="int8", extract__calibration="data/calibration.npy")
    digits.run("dvc", "repro", "--single-item", "extract")
    import json

    trace = json.loads((digits.folder / "data/features.json").read_text())
    assert 0.95 < trace["least_cosine_to_float32"] < 0.999999  # 0.986 without VNNI, 0.99 and more with
    low = np.load(digits.folder / "data/features/features.npy")
    digits.set(extract__precision="float32")
    digits.run(*EXTRACT)
    full = np.load(digits.folder / "data/features/features.npy")
    cosines = (low * full).sum(axis=1) / np.linalg.norm(low, axis=1) / np.linalg.norm(full, axis=1)
    assert not np.array_equal(low, full) and cosines.min() > 0.95
    digits.set(extract__precision="int8", extract__min_cosine=0.999999)
    refused = digits.run(*EXTRACT, check=False)
    assert refused.returncode == 1
    assert re.search(r"^extract: error: extract.precision int8 moves the embedding of \S+ to a cosine of [01]\.\d+ to "
                     r"float32, below extract.min_cosine 0\.999999; ", refused.stderr, re.MULTILINE)  # fmt: skip
    assert np.array_equal(np.load(digits.folder / "data/features/features.npy"), full)  # what was there is there


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "int8"}, "extract.precision is int8, which needs calibration images; set images apart"),
        ({"precision": "int8", "calibration": "none.npy"}, "extract.calibration none.npy: there is no such file"),
        ({"precision": "int8", "calibration": "params.yaml"}, "extract.calibration params.yaml is not a readable .npy"),
        (
            {"precision": "int8", "calibration": "data/processed/labels.npy"},
            r"is \(600,\), not uint8 \(n, 64, 64, 3\)",
        ),
        (
            {"precision": "int8", "runtime": "tensorflow"},
            "extract.runtime=tensorflow does not have; set the runtime to openvino",
        ),
        ({"runtime": "onnx"}, "extract.runtime is 'onnx': expected 'auto', 'tensorflow' or 'openvino'"),
        ({"batch_size": -1}, "extract.batch_size is -1: expected int >= 0"),
    ],
)
def test_mistakes_are_named(digits: Project, change: dict, message: str) -> None:
    digits.set(**{f"extract__{key}": value for key, value in change.items()})
    done = digits.run(*EXTRACT, check=False)
    assert done.returncode == 1
    assert re.search(rf"^extract: error: .*{message}", done.stderr, re.MULTILINE), done.stderr
    assert "Traceback" not in done.stderr


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


@pytest.mark.parametrize("broken", ["import", "package"])
def test_a_missing_openvino_is_named(digits: Project, broken: str) -> None:
    """Imports of it fail; or there is no sign of it at all."""
    without = digits.folder / "without"
    without.mkdir()
    if broken == "import":
        (without / "openvino.py").write_text("raise ImportError('no such library')")
        message = "OpenVINO cannot be imported (no such library): pip install -r requirements.txt"
    else:
        (without / "sitecustomize.py").write_text(
            "import importlib.metadata as m\nreal = m.version\n"
            "def version(name):\n"
            "    if name == 'openvino': raise m.PackageNotFoundError(name)\n"
            "    return real(name)\n"
            "m.version = version\n"
        )
        message = "openvino is not installed: pip install -r requirements.txt"
    digits.environment["PYTHONPATH"] = str(without)
    done = digits.run(*EXTRACT, check=False)
    assert f"extract: error: {message}" in done.stderr
    assert done.returncode == 1 and "Traceback" not in done.stderr


def test_the_fastest_batch_size_is_found_once(digits: Project) -> None:
    import json

    digits.set(extract__batch_size=0, extract__runtime="openvino")
    assert known(digits.run(*EXTRACT)) == (COUNT, 0)
    chosen = json.loads((digits.folder / "data/features.json").read_text())["batch_size"]
    assert chosen in (8, 16, 32, 64, 128, 256, 512, 1024)
    assert known(digits.run(*EXTRACT)) == (COUNT, COUNT)


@pytest.mark.parametrize("runtime", registry.RUNTIMES)
@LINUX
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path, small: Path, runtime) -> None:
    """Peak memory of the stage at some thousands of images of 32 pixels, and at ten times as many, within 10 %."""
    project = copy_project(tmp_path / "project")
    project.set(extract__runtime=runtime)
    shutil.copytree(small, project.folder / "data/model")
    peaks = []
    for count in (2_000, 20_000) if runtime == "openvino" else (300, 3_000):  # how they are read and kept is the same
        processed = tmp_path / f"processed{count}"
        processed.mkdir()
        with ArrayWriter(processed / "images.npy", (count, 32, 32, 3), np.uint8) as images:
            for start in range(0, count, 100):
                images.write(np.arange(start, start + 100), RNG.integers(0, 256, (100, 32, 32, 3), dtype=np.uint8))
        names = np.array([f"{row:064d}" for row in range(count)])  # as long as a hash, or a path
        for name in ("image_paths", "labels", "sha256"):
            np.save(processed / f"{name}.npy", names)
        (processed / "fit.txt").write_text("pad\n")
        script = (
            "import resource, runpy, sys; sys.argv[0] = 'stages/extract.py';"
            "runpy.run_path(sys.argv[0], run_name='__main__');"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        done = project.run("python", "-c", script, str(processed), "data/model", str(tmp_path / "features"))
        assert known(done) == (count, 0)
        peaks.append(int(done.stdout.split()[-1]))
    assert abs(peaks[1] / peaks[0] - 1) < 0.1, peaks


def test_the_cache_is_listed_and_pruned(digits: Project) -> None:
    digits.run(*EXTRACT)
    root = Path(digits.environment["LOOKALIKE_CACHE"])
    listed = digits.run("python", "-m", "lookalike.cli.cache").stdout
    assert re.search(
        r"MB  \d{4}-\d\d-\d\d  embeddings  600 images by MobileNetV2 block_6_expand_relu avg 64 float32 32", listed
    )
    assert f"kept in {root}" in listed
    wrong = digits.run("python", "-m", "lookalike.cli.cache", "prune", check=False)
    assert wrong.returncode == 2 and "prune needs --unused-for DAYS" in wrong.stderr
    digits.run("python", "-m", "lookalike.cli.cache", "prune", "--unused-for", "1", "--keep-gb", "1")
    assert known(digits.run(*EXTRACT)) == (COUNT, COUNT)
    file = next(root.glob("embeddings/*.sqlite"))
    os.utime(file, (0, time.time() - 2 * 86_400))
    deleted = digits.run("python", "-m", "lookalike.cli.cache", "prune", "--unused-for", "1").stdout
    assert "600 images" in deleted and not file.exists()
    assert known(digits.run(*EXTRACT)) == (COUNT, 0)
    for option in ("--unused-for", "--keep-gb"):
        wrong = digits.run("python", "-m", "lookalike.cli.cache", "prune", option, "-1", check=False)
        assert wrong.returncode == 2 and f"{option} is -1; choose 0 or more" in wrong.stderr
    digits.run("python", "-m", "lookalike.cli.cache", "prune", "--keep-gb", "0")
    assert not list(root.glob("embeddings/*"))


def test_each_file_of_the_cache_is_listed_as_what_it_is(cache_folder: Path) -> None:
    kept = fill()
    folder = kept.parent
    for name in ("a.sqlite-journal", "b.sqlite.damaged", "c.sqlite"):
        (folder / name).write_text("hello")
    with closing(sqlite3.connect(folder / "d.sqlite")) as other:
        other.execute("CREATE TABLE rows (pixels)")
    (cache_folder / "networks").mkdir()
    (cache_folder / "networks/e.lock").touch()
    assert {item.path.name: item.what for item in cache.items()} == {  # what is part of another is not listed
        kept.name: "50 images by b l avg 64 float32 4 r",
        "b.sqlite.damaged": "b.sqlite.damaged: set aside, or not ours",
        "c.sqlite": "c.sqlite: cannot be read (file is not a database)",
        "d.sqlite": "d.sqlite: not ours",
    }


def test_nothing_reports_to_its_maker() -> None:
    """OpenVINO's converter and NNCF send usage reports unless shut off."""
    script = (
        "from lookalike.ov import ov; import nncf, sys; from openvino.tools.ovc import telemetry_utils as t;"
        "from nncf.telemetry.wrapper import NNCFTelemetry, telemetry;"
        "print(isinstance(telemetry, NNCFTelemetry), t.tm.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True,
                          cwd=Path(__file__).parents[1])  # fmt: skip
    assert done.stdout.split() == ["False", "openvino.tools.ovc.telemetry_stub"]


def test_a_draw_of_calibration_images_is_seeded() -> None:
    one, again, other = (calibration.draw(PIXELS, 5, seed) for seed in (0, 0, 1))
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    assert np.array_equal(calibration.draw(PIXELS, 100, 0), PIXELS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["c.npy", "--images", "0"], "--images is 0; choose 1 to 10000"),
        (["c.npy", "--images", "10001"], "--images is 10001; choose 1 to 10000"),
        (["c.npy", "--seed", "-1"], "--seed is -1; choose 0 or more"),
        (["c.npz"], "c.npz: the name must end in .npy"),
    ],
)
def test_mistakes_in_setting_images_apart_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["calibration", "data/processed", *arguments])
    with pytest.raises(LookalikeError, match=f"^{re.escape(message)}$"):
        calibration.main()
    assert list(tmp_path.iterdir()) == []


def test_the_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert user_cache.folder("embeddings") == tmp_path / "cache/embeddings"
    monkeypatch.delenv("LOOKALIKE_CACHE")
    assert user_cache.folder("embeddings").parts[-2:] == ("lookalike", "embeddings")
    assert embedding_cache.FORMAT == 1
