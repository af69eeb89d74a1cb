"""What the names of timm's plain ViTs tell of them, since planning imports no timm: those it builds as they say."""

from __future__ import annotations

import re
from typing import NamedTuple


class Shape(NamedTuple):
    """Of a ViT."""

    width: int
    num_layers: int


VITS = {
    "small": Shape(384, 12),
    "base": Shape(768, 12),
    "large": Shape(1024, 24),
    "huge": Shape(1280, 32),
    "giant": Shape(1536, 40),  # DINOv2's; the others are narrower
}
PLAIN = re.compile(r"vit_(small|base|large|huge|giant(?=\w*_dinov2))_patch(\d+)_(?!plus|\d+x\d)")


def shape_of(timm: str | None) -> Shape | None:
    """Width and blocks of a timm model; None where its name does not tell, and it is checked when it is opened."""
    known = PLAIN.match(timm or "")
    return VITS[known[1]] if known else None


def patch_of(timm: str | None) -> int | None:
    """Pixels per side of its patches; None likewise."""
    known = PLAIN.match(timm or "")
    return int(known[2]) if known else None
