"""A text compared with images by CLIP: KerasHub's own answers, read without it. Random weights, a small vocabulary."""

import asyncio
import json
import shutil
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from lookalike import cli
from lookalike.artifacts import descriptions
from lookalike.artifacts.descriptions import Embedding, describe
from lookalike.base.errors import LookalikeError
from lookalike.base.vectors import unit_length
from lookalike.collection import bundle
from lookalike.collection.collection import Gallery
from lookalike.collection.picture_search import Pictures
from lookalike.collection.query import Query
from lookalike.images import decode
from lookalike.runtimes import openvino, text_encoder
from stages import model as model_stage
from tests.helpers.small_collection import coloured, write_index

pytest.importorskip("keras_hub", reason="KerasHub is not installed: pip install -r requirements/vit.txt")
pytestmark = pytest.mark.slow  # TensorFlow
WORDS = ["red", "a red shoe", "A  Red\tSHOE!", "it's 42 — naïve café ☕", "", "shoe " * 40]
MERGES = ["r e", "re d</w>", "s h", "o e</w>", "sh oe</w>", "e r"]


def vocabulary() -> dict[str, int]:
    """CLIP's in small: every byte, every byte at a word's end, what is merged, start and end."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    signs = [chr(byte) for byte in plain] + [chr(256 + number) for number in range(256 - len(plain))]
    merged = [merge.replace(" ", "") for merge in MERGES]
    tokens = [*signs, *(f"{sign}</w>" for sign in signs), *merged, "<|startoftext|>", "<|endoftext|>"]
    return {token: number for number, token in enumerate(tokens)}


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A preset's folder, as KerasHub keeps one."""
    from keras_hub.models import CLIPTokenizer

    from lookalike.networks import vit
    from lookalike.networks.keras_setup import keras

    folder = tmp_path_factory.mktemp("preset") / "clip"
    keras.backend.clear_session()
    keras.utils.set_random_seed(5)
    vit.build("clip_tiny").save_to_preset(str(folder))
    CLIPTokenizer(vocabulary=vocabulary(), merges=MERGES, pad_with_end_token=True).save_to_preset(str(folder))
    return folder


def make(preset: Path, folder: Path) -> Path:
    """Network files, as the stage `model` writes them."""
    section = {"backbone": "clip_tiny", "weights": "file", "file": str(preset), "layer": "", "pooling": "head",
               "mirror": False, "seed": 0}  # fmt: skip
    params = folder.with_suffix(".yaml")
    params.write_text(yaml.safe_dump({"model": section}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["model.py", str(folder), "--params", str(params)])
        model_stage.main()
    return folder


@pytest.fixture(scope="module")
def collection(preset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures embedded by the image tower, indexed as they are."""
    folder = tmp_path_factory.mktemp("collection")
    model = make(preset, folder / "model")
    embed, found = openvino.load(model, 64, 1, "float32"), {}
    for label in ("blue", "green", "red"):
        (folder / "raw" / label).mkdir(parents=True)
        for number in range(8):
            path = f"{label}/{number}.png"
            coloured(label, number).save(folder / "raw" / path)
            pixels = decode.fit(decode.decode((folder / "raw" / path).read_bytes(), 10**7), 64, "pad")
            found[path] = embed(pixels[np.newaxis])[0]
    np.save(folder / "features.npy", np.stack([found[path] for path in sorted(found)]))
    write_index(folder / "index", found, Embedding(describe(model), 64, "pad"), storage="float32")
    return folder


@pytest.fixture
def opened(collection: Path, tmp_path: Path) -> Pictures:
    return Pictures(collection / "index", collection / "model", tmp_path / "changes")


def test_texts_are_read_as_kerashub_reads_them(preset: Path, collection: Path) -> None:
    """Tokens and vectors, against KerasHub's tokenizer, packer and text tower."""
    from keras_hub.models import CLIPBackbone, CLIPPreprocessor, CLIPTokenizer
    from tokenizers import Tokenizer

    plain = CLIPTokenizer.from_preset(str(preset))
    packed = CLIPPreprocessor(plain, sequence_length=16)({"prompts": WORDS, "images": None})["token_ids"]
    ids = np.asarray(packed)  # (6, 16)
    ours = Tokenizer.from_file(str(collection / "model" / descriptions.TOKENIZER_FILE))
    assert [ours.encode(text).ids for text in WORDS] == ids.tolist()
    expected = np.asarray(CLIPBackbone.from_preset(str(preset)).get_text_embeddings(ids))
    read = text_encoder.load(collection / "model")
    rows = np.stack([read(text) for text in WORDS])
    assert (rows.shape, rows.dtype) == ((6, 32), np.float32)
    assert np.abs(rows - expected).max() < 1e-5 * max(1, np.abs(expected).max())
    assert np.array_equal(rows, np.stack([read(text) for text in WORDS]))
    assert np.array_equal(read("a red shoe"), read("A  RED shoe"))
    assert not np.array_equal(read("a red shoe"), read("a shoe"))


def test_a_text_finds_by_cosine_to_the_images(collection: Path, opened: Pictures) -> None:
    """Text alone, mixed with a picture, and with one of the collection; against the vectors themselves."""
    features = unit_length(np.load(collection / "features.npy"))  # (24, 32), rows sorted by path
    said = unit_length(text_encoder.load(collection / "model")("a red shoe")[np.newaxis])
    content = (collection / "raw/green/3.png").read_bytes()
    asked = unit_length(opened.embed(content)[np.newaxis])

    def expected(query: np.ndarray) -> list[float]:
        return sorted((features @ unit_length(query)[0]).tolist(), reverse=True)

    hits = opened.search(None, Query(24, text="a red shoe"))
    assert np.allclose([hit.cosine for hit in hits], expected(said), atol=1e-6)
    assert [hit.text for hit in hits] == [None] * 24
    for weight in (0.0, 0.3, 1.0, None):
        both = opened.search(content, Query(24, text="a red shoe", text_weight=weight))
        mixed = (1 - (0.5 if weight is None else weight)) * asked + (0.5 if weight is None else weight) * said
        assert np.allclose([hit.cosine for hit in both], expected(mixed), atol=1e-6)
    like = opened.gallery.similar("green/3.png", Query(23, text="a red shoe"))
    mixed = unit_length(0.5 * features[11:12] + 0.5 * said)  # the fourth of the second eight
    own = float(features[11] @ mixed[0])
    assert np.allclose([own, *(hit.cosine for hit in like)] if own > like[0].cosine else sorted(
        [own, *(hit.cosine for hit in like)], reverse=True), expected(mixed), atol=1e-6)  # fmt: skip
    assert opened.gallery.similar("green/3.png", Query(5)) == opened.gallery.similar(
        "green/3.png", Query(5, text_weight=None)
    )


def test_the_command_and_a_bundle_search_with_a_text(collection: Path, opened: Pictures, tmp_path: Path) -> None:
    where = ["--index", str(collection / "index"), "--model", str(collection / "model"),
             "--changes", str(tmp_path / "changes")]  # fmt: skip
    done = CliRunner().invoke(cli.app, ["search", "--text", "a red shoe", "-k", "3", "--json", *where])
    assert done.exit_code == 0, done.output
    shown = [json.loads(line) for line in done.stdout.splitlines()]
    assert [hit["path"] for hit in shown] == [hit.path for hit in opened.search(None, Query(3, text="a red shoe"))]
    source = bundle.Source(collection / "index", collection / "model", collection / "raw", tmp_path, tmp_path)
    bundle.write(tmp_path / "served", opened, source, without_changes=False, progress=lambda count: lambda: None)
    served = Pictures(tmp_path / "served/index", tmp_path / "served/model", tmp_path / "none")
    assert served.search(None, Query(3, text="a red shoe")) == opened.search(None, Query(3, text="a red shoe"))
    (tmp_path / "served/model/text.bin").write_bytes(b"other")
    with pytest.raises(LookalikeError, match=r"text\.bin"):
        Pictures(tmp_path / "served/index", tmp_path / "served/model", tmp_path / "none").search(
            None, Query(3, text="x")
        )


def test_http_searches_with_a_text(collection: Path, opened: Pictures, tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="pip install -r requirements/serve.txt")
    from lookalike.api.service import Service
    from lookalike.api.settings import Settings

    service = Service(Settings(collection / "index", collection / "model", tmp_path / "none"))
    service.open()
    service.load().result()
    content, wanted = (collection / "raw/green/3.png").read_bytes(), opened.search(None, Query(3, text="a red shoe"))
    with closing(service):
        assert asyncio.run(service.search(None, Query(3, -1, None, "a red shoe", None))) == wanted
        both = asyncio.run(service.search(content, Query(3, -1, None, "a red shoe", 0.3)))
    assert both == opened.search(content, Query(3, text="a red shoe", text_weight=0.3))


def test_the_page_finds_what_is_like_an_image_when_no_words_are_typed(
    collection: Path, opened: Pictures, tmp_path: Path
) -> None:
    """Its slider gives words a weight all the same; that there are none is no mistake of the visitor's."""
    pytest.importorskip("streamlit", reason="pip install -r requirements/serve.txt")
    from lookalike.ui.session import Opened, Places, Start

    page = Opened(
        Places(collection / "index", collection / "model", tmp_path / "none", collection / "raw", tmp_path, tmp_path)
    )
    path = str(opened.gallery.state.names.paths[0])
    plain, both = (page.answer(Start(path=path), Query(3, -1, None, text, 0.5)).hits for text in (None, "a red shoe"))
    assert plain == opened.gallery.similar(path, Query(3))
    assert both == opened.gallery.similar(path, Query(3, text="a red shoe", text_weight=0.5)) != plain


def test_mistakes_are_named(preset: Path, collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lookalike.networks import clip_text
    from lookalike.networks.vit_presets import TOWERS

    text, known = TOWERS["clip_tiny"].text, vocabulary()
    for wrong in ({**known, "later": len(known)}, {"a": 0}, {**known, **{f"more{n}": -n for n in range(200)}}):
        with pytest.raises(
            LookalikeError,
            match=r"does not belong to this text encoder, which has 600; it must contain <\|startoftext\|> and",
        ):
            clip_text.tokenizer(wrong, [], text)
    assert clip_text.preset_of("clip_tiny", "preset", Path("data/none"), "head") == "clip_tiny"  # from the web
    # A weights file alone, another pooling, random weights: images alone, and the way out when a text comes.
    weights = preset / "model.weights.h5"
    for answer in (("file", weights, "head"), ("file", preset, "cls"), ("random", preset, "head")):
        assert clip_text.preset_of("clip_tiny", *answer) == ""
    without = tmp_path / "model"
    shutil.copytree(collection / "model", without)
    for name in descriptions.FILES:
        (without / name).unlink()
    silent = Pictures(collection / "index", without, tmp_path / "changes")
    with pytest.raises(LookalikeError, match=r"has no tags, .*; or take a network that reads texts"):
        silent.search(None, Query(3, text="red"))
    empty = tmp_path / "preset"
    shutil.copytree(preset, empty)
    (empty / "tokenizer.json").unlink()
    with pytest.raises(LookalikeError, match=r"the tokenizer of the preset .*preset cannot be read"):
        make(empty, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    broken = tmp_path / "broken"
    shutil.copytree(collection / "model", broken)
    (broken / descriptions.TOKENIZER_FILE).write_text("{}")
    with pytest.raises(LookalikeError, match=r"broken cannot read texts: .*dvc repro --force model"):
        text_encoder.load(broken)
    with pytest.raises(LookalikeError, match=r"text weight 0\.5 has no text"):
        Gallery(collection / "index", tmp_path / "changes", read=lambda text: np.zeros(32)).search(
            np.ones((1, 32), np.float32), Query(3, text_weight=0.5)
        )
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(LookalikeError, match=r"tokenizers, .*: pip install -r requirements/vit\.txt"):
        text_encoder.load(collection / "model")
