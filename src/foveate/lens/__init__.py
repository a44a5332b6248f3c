"""Looking inside: which tokens of a picture were kept, drawn on the picture itself (Pillow and NumPy only)."""

from .picture import picture, seen, strip

__all__ = ["picture", "seen", "strip"]
