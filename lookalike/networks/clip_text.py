"""CLIP's text encoder and its tokenizer, converted from KerasHub to files.

A query reads the files without KerasHub: lookalike/runtimes/text_encoder.py.
"""

import warnings
from pathlib import Path
from typing import Any, cast

from lookalike.artifacts import descriptions
from lookalike.base.errors import LookalikeError
from lookalike.networks import vit
from lookalike.networks.keras_setup import keras
from lookalike.networks.vit_presets import TOWERS, Text

START, END = "<|startoftext|>", "<|endoftext|>"
# Pattern of the pieces that CLIP splits a text into: OpenAI's clip/simple_tokenizer.py.
PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def preset_of(name: str, weights: str, file: Path, pooling: str) -> str:
    """Return the name or folder of the preset whose tokenizer makes texts comparable with images; "" if there is none.

    There is one only for CLIP with its head, and not for random weights or a weights file outside a preset's folder.
    """
    if name not in TOWERS or TOWERS[name].family != "clip" or pooling != "head":
        return ""
    if weights == "preset":
        return name
    return str(file) if weights == "file" and file.is_dir() else ""


def save(whole: keras.Model, name: str, preset: str, folder: Path) -> None:
    """Write the text encoder's files beside those of the image tower, which was cut out of `whole`.

    preset  name or folder of the preset that has the tokenizer.

    Raises LookalikeError if the tokenizer cannot be read or does not belong to this tower.
    """
    text = cast(Text, TOWERS[name].text)  # never None for CLIP
    vocabulary, merges = _fetched(preset)
    tokenizer(vocabulary, merges, text).save(str(folder / descriptions.TOKENIZER_FILE))
    ids = keras.Input((text.length,), dtype="int32", name="token_ids")
    tower = keras.Model(ids, whole.get_text_embeddings(ids))
    from lookalike.networks.openvino_setup import convert
    from lookalike.networks.openvino_setup import save as save_openvino

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The structure of `inputs`")  # the converter passes a tuple
        save_openvino(convert(tower), folder / descriptions.TEXT_FILE)


def _fetched(preset: str) -> tuple[dict[str, int], list[str]]:
    models = vit.library()
    try:
        fetched = models.CLIPTokenizer.from_preset(preset)
        return dict(fetched.vocabulary), [merge for merge in fetched.merges if not merge.startswith("#version")]
    except Exception as error:  # KerasHub, Kaggle's client and the HTTP client each raise their own
        reason = " ".join(str(error).split())[:200]
        raise LookalikeError(f"the tokenizer of the preset {preset} cannot be read: {reason}") from None


def tokenizer(vocabulary: dict[str, int], merges: list[str], text: Text) -> Any:
    """Return CLIP's tokenizer, which turns a text into exactly `text.length` tokens.

    They are: start, the text's tokens (at most `text.length` - 2), end, padding. The text encoder reads its result at
    the token with the highest number, so the end token must have it.
    Source: OpenAI's clip/simple_tokenizer.py; and CLIP's tokenizer in KerasHub, which a test compares with.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    if START not in vocabulary or vocabulary.get(END) != max(vocabulary.values()) or len(vocabulary) > text.vocabulary:
        raise LookalikeError(
            f"a tokenizer of {len(vocabulary)} tokens does not belong to this text encoder, which has "
            f"{text.vocabulary}; it must contain {START} and, as the last token, {END}"
        )
    pairs = [(first, second) for first, second in (merge.split(" ") for merge in merges)]
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, end_of_word_suffix="</w>", unk_token=END))
    made.add_special_tokens([START, END])
    made.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PIECES), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    numbers = [(sign, vocabulary[sign]) for sign in (START, END)]
    made.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=numbers)
    made.enable_truncation(text.length)
    made.enable_padding(length=text.length, pad_id=vocabulary[END], pad_token=END)
    return made
