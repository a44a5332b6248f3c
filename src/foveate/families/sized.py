"""Towers of the Pixtral kind: pictures of any size, padded to a common canvas, their patches packed into one sequence.

What they share whatever the family around them; ``image_sizes`` holds the (height, width) of each picture in pixels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from .layout import Layout, block_source


def layouts(arguments: dict[str, Any], patch: int, merge: int) -> list[Layout]:
    """One grid per picture; a token joins ``merge`` x ``merge`` patches of ``patch`` pixels a side, in raster order."""
    found = []
    for height, width in torch.as_tensor(arguments["image_sizes"]).tolist():
        h, w = height // (patch * merge), width // (patch * merge)
        found.append(Layout.grid(h, w, block_source(h * merge, w * merge, merge)))
    return found


def pixels(canvas: torch.Tensor, arguments: dict[str, Any], patch: int) -> list[torch.Tensor]:
    """The patches of each picture, (h * w, c) in raster order, out of a common canvas (b, channels, H, W)."""
    sizes = torch.as_tensor(arguments["image_sizes"]).tolist()
    pictures = (one[:, :h, :w].float() for one, (h, w) in zip(canvas, sizes, strict=True))
    return [F.unfold(picture[None], patch, stride=patch).mT[0] for picture in pictures]


def shrunk(arguments: dict[str, Any], sizes: list[tuple[int, int]], scale: int) -> dict[str, Any]:
    """Encoder arguments for the same pictures with ``sizes`` (rows, columns) of tokens of ``scale`` pixels a side."""
    old = torch.as_tensor(arguments["image_sizes"])
    new = torch.tensor([[h * scale, w * scale] for h, w in sizes], dtype=old.dtype, device=old.device)
    pixels = arguments["pixel_values"]
    canvas = pixels.new_zeros(*pixels.shape[:2], *new.amax(0).tolist())
    for i, ((height, width), (h, w)) in enumerate(zip(old.tolist(), new.tolist(), strict=True)):
        canvas[i, :, :h, :w] = resized(pixels[i : i + 1, :, :height, :width], h, w)[0]
    return {**arguments, "pixel_values": canvas, "image_sizes": new}


def resized(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Pictures (b, channels, h, w) at another size; untouched if it is the same."""
    if pixels.shape[-2:] == (height, width):
        return pixels
    return F.interpolate(pixels.float(), (height, width), mode="bicubic", antialias=True).to(pixels.dtype)
