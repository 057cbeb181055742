"""The architectures of vision transformers by name. Only numbers, so that importing this module does not import Keras.

Each name is that of a KerasHub preset, whose weights `model.weights: preset` downloads. Names ending in _tiny are our
own: small enough to try the whole pipeline in seconds, with random weights only.
"""

from dataclasses import dataclass
from typing import Literal

Family = Literal["vit", "dinov2", "clip", "siglip"]


@dataclass(frozen=True)
class Text:
    """A text tower beside an image tower."""

    vocabulary: int  # number of different tokens
    length: int  # most tokens of a text
    layers: int
    heads: int
    dim: int
    mlp: int  # units between the two dense layers of a block


@dataclass(frozen=True)
class Tower:
    """An image tower: special tokens, then the patches' tokens, through equal blocks."""

    family: Family
    image_size: int  # pixels a side; the only size accepted, because there is one position embedding per patch
    patch: int  # pixels a side
    layers: int
    heads: int
    dim: int  # dimensions of a token
    mlp: int  # units between the two dense layers of a block
    trained_size: int = 0  # DINOv2 only: image size of the weights' position embeddings, interpolated to image_size
    registers: int = 0  # extra tokens beside the patches: Darcet et al., Vision Transformers Need Registers, 2023
    text: Text | None = None  # CLIP and SigLIP only, whose weight files hold both towers
    projection: int = 0  # CLIP only: dimensions of the space that images and texts share

    @property
    def special_tokens(self) -> int:
        """Number of tokens before the patches' tokens: the class token, which SigLIP does not have, and registers."""
        return (0 if self.family == "siglip" else 1) + self.registers


def _vit(patch: int, size: int, layers: int, heads: int, dim: int) -> Tower:
    return Tower("vit", size, patch, layers, heads, dim, 4 * dim)


def _dinov2(size: int, layers: int, heads: int, dim: int, registers: int = 0) -> Tower:
    return Tower("dinov2", size, 14, layers, heads, dim, 4 * dim, trained_size=518, registers=registers)


def _clip(patch: int, size: int, layers: int, heads: int, dim: int, shared: int) -> Tower:
    text = Text(49408, 77, 12, shared // 64, shared, 4 * shared)
    return Tower("clip", size, patch, layers, heads, dim, 4 * dim, text=text, projection=shared)


def _siglip(patch: int, size: int, layers: int, heads: int, dim: int, mlp: int, length: int = 64) -> Tower:
    return Tower("siglip", size, patch, layers, heads, dim, mlp, text=Text(32000, length, layers, heads, dim, mlp))


BASE, LARGE, SMALL = (12, 12, 768), (24, 16, 1024), (12, 6, 384)  # blocks, heads, dimensions
_TINY_TEXT = Text(vocabulary=600, length=16, layers=2, heads=2, dim=32, mlp=64)
# Each has as many parameters as KerasHub states for its preset (tests/networks/test_vit.py).
TOWERS: dict[str, Tower] = {
    "vit_base_patch16_224_imagenet": _vit(16, 224, *BASE),
    "vit_base_patch16_384_imagenet": _vit(16, 384, *BASE),
    "vit_base_patch32_384_imagenet": _vit(32, 384, *BASE),
    "vit_large_patch16_224_imagenet": _vit(16, 224, *LARGE),
    "vit_large_patch16_384_imagenet": _vit(16, 384, *LARGE),
    "vit_base_patch16_224_imagenet21k": _vit(16, 224, *BASE),
    "vit_base_patch32_224_imagenet21k": _vit(32, 224, *BASE),
    "vit_large_patch16_224_imagenet21k": _vit(16, 224, *LARGE),
    "dinov2_small": _dinov2(224, *SMALL),
    "dinov2_base": _dinov2(224, *BASE),
    "dinov2_large": _dinov2(224, *LARGE),
    "dinov2_with_registers_small": _dinov2(224, *SMALL, registers=4),
    "dinov2_with_registers_base": _dinov2(224, *BASE, registers=4),
    "dinov2_with_registers_large": _dinov2(224, *LARGE, registers=4),
    "clip_vit_base_patch16": _clip(16, 224, *BASE, shared=512),
    "clip_vit_base_patch32": _clip(32, 224, *BASE, shared=512),
    "clip_vit_large_patch14": _clip(14, 224, *LARGE, shared=768),
    "clip_vit_large_patch14_336": _clip(14, 336, *LARGE, shared=768),
    "siglip_base_patch16_224": _siglip(16, 224, *BASE, mlp=3072),
    "siglip_base_patch16_256": _siglip(16, 256, *BASE, mlp=3072),
    "siglip_base_patch16_384": _siglip(16, 384, *BASE, mlp=3072),
    "siglip_base_patch16_512": _siglip(16, 512, *BASE, mlp=3072),
    "siglip_large_patch16_256": _siglip(16, 256, *LARGE, mlp=4096),
    "siglip_large_patch16_384": _siglip(16, 384, *LARGE, mlp=4096),
    "siglip_so400m_patch14_224": _siglip(14, 224, 27, 16, 1152, mlp=4304, length=16),
    "siglip_so400m_patch14_384": _siglip(14, 384, 27, 16, 1152, mlp=4304),
    "vit_tiny": Tower("vit", 64, 8, 2, 2, 64, 128),
    "dinov2_tiny": Tower("dinov2", 64, 8, 2, 2, 64, 128, trained_size=96, registers=4),
    "clip_tiny": Tower("clip", 64, 8, 2, 2, 64, 128, text=_TINY_TEXT, projection=32),
    "siglip_tiny": Tower("siglip", 64, 8, 2, 2, 64, 128, text=_TINY_TEXT),
}
