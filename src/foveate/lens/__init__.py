"""Looking inside: which tokens of a picture were kept, and which say something, drawn on the picture itself."""

from .classes import Labelled, drawn, find_words, label
from .picture import picture, seen, strip

__all__ = ["Labelled", "drawn", "find_words", "label", "picture", "seen", "strip"]
