"""Looking inside: which tokens of a picture were kept, and which say something, drawn on the picture itself."""

from .alignment import alignment
from .classes import NAMES, Labelled, drawn, find_words, label
from .heads import looking_heads, ratios
from .picture import picture, seen, strip

__all__ = [
    "NAMES",
    "Labelled",
    "alignment",
    "drawn",
    "find_words",
    "label",
    "looking_heads",
    "picture",
    "ratios",
    "seen",
    "strip",
]
