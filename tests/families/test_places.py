"""Where the adapters say that tokens lie, against the real image processors.

The picture's colours are its coordinates, so that every patch a processor makes tells where it came from. The
processors are those for numpy, which need no torchvision; Llama 4 has none.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from foveate.families import Layout, adapt
from foveate.families.tiles import arrangement
from foveate.tokens import Kind

SHAPES = [(70, 150), (150, 70), (64, 64), (31, 127), (200, 60)]  # height, width


@cache
def family_of(name: str):
    return adapt(tiny.build(name))


def processed(module: str, name: str, height: int, width: int, **options) -> dict[str, Any]:
    """What an image processor makes of a picture with red from left to right, green from top to bottom, and blue."""
    y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    picture = (np.stack([x, y, np.ones_like(x)], -1) * 255).round().astype(np.uint8)
    package = importlib.import_module(f"transformers.models.{module}.image_processing_pil_{module}")
    options = {"do_normalize": False, "do_rescale": False, "resample": 2} | options
    return getattr(package, name)(**options)(images=[picture], return_tensors="pt", input_data_format="channels_last")


def raster(tiles: Tensor, patch: int) -> Tensor:
    """(all patches, 3) mean colours of the patches of (tiles, 3, S, S), in shares; tile by tile, row by row."""
    means = torch.nn.functional.avg_pool2d(tiles.float(), patch)
    return means.flatten(2).mT.reshape(-1, 3) / 255


def check(layout: Layout, patches: Tensor, near: float) -> None:
    """Every content token lies where the colours of its patches say; padding, which is black, says nothing.

    Args:
        patches: (patches, 3) mean colours, in the order of ``Layout.source``.
        near: how far off a token may be, in shares of the picture.
    """
    content = (layout.kind == Kind.CONTENT).nonzero()[:, 0]
    box = torch.tensor(layout.boxes)[layout.tile[content]]
    height, width = torch.tensor(layout.grids)[layout.tile[content]].unbind(1)
    x = box[:, 0] + (box[:, 2] - box[:, 0]) * (layout.col[content] + 0.5) / width
    y = box[:, 1] + (box[:, 3] - box[:, 1]) * (layout.row[content] + 0.5) / height
    source = layout.source[content]
    whole = ((patches[source.clamp(min=0)][..., 2] > 0.995) & (source >= 0)) | (source < 0)
    pure = whole.all(1)
    assert pure.float().mean() > 0.5
    there = (source >= 0).float()[..., None]
    colours = (patches[source.clamp(min=0)] * there).sum(1) / there.sum(1)
    torch.testing.assert_close(torch.stack([x, y], 1)[pure], colours[pure, :2], atol=near, rtol=0)


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
def test_anyres_tiles(name: str, size: tuple[int, int]) -> None:
    family, side = family_of(name), 16
    cls = {"llava_next": "LlavaNextImageProcessorPil", "llava_onevision": "LlavaOnevisionImageProcessorPil"}[name]
    square = {"height": side, "width": side}
    more = {"size": {"shortest_edge": side}, "crop_size": square} if name == "llava_next" else {"size": square}
    out = processed(name, cls, *size, image_grid_pinpoints=tiny.PINPOINTS, **more)
    (layout,) = family.layouts({"image_sizes": out["image_sizes"], "vision_aspect_ratio": "anyres_max_9"}, None)
    patches = raster(out["pixel_values"][0], tiny.PATCH)
    assert layout.boxes[0] == (0.0, 0.0, 1.0, 1.0)
    check(layout, patches, 0.03)


TILED = {
    "internvl": ("got_ocr2", "GotOcr2ImageProcessorPil"),
    "aya_vision": ("got_ocr2", "GotOcr2ImageProcessorPil"),
    "ovis2": ("ovis2", "Ovis2ImageProcessorPil"),
    "smolvlm": ("smolvlm", "SmolVLMImageProcessorPil"),
    "idefics3": ("idefics3", "Idefics3ImageProcessorPil"),
}
GUESSED = ("internvl", "aya_vision")
SQUARE = {"size": {"height": 32, "width": 32}, "crop_to_patches": True, "max_patches": 6}
LONGEST = {"size": {"longest_edge": 96}, "max_image_size": {"longest_edge": 32}, "return_row_col_info": True}


def prompt_of(name: str, rows: int, cols: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, list[Tensor]]:
    """Ids of a prompt with one image in rows x cols tiles, and the places of each tile's placeholders."""
    monkeypatch.setitem(tiny.TILES, "a", (rows, cols))
    model = family_of(name).model
    (ids,) = tiny.inputs(name, model, [[3, ("image", "a"), 4]])["input_ids"]
    places = (ids == model.config.image_token_id).nonzero()[:, 0]
    return ids, list(places.split(tiny.PER_TILE))


# Where nothing in the prompt tells how tiles were arranged, only what the guess gets right.
CASES = [(name, size) for name in TILED for size in SHAPES if name not in GUESSED or size in ((70, 150), (64, 64))]


@pytest.mark.parametrize(("name", "size"), CASES)
def test_tiles(name: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    family, (module, cls) = family_of(name), TILED[name]
    out = processed(module, cls, *size, **(LONGEST if name in ("smolvlm", "idefics3") else SQUARE))
    tiles = out["pixel_values"].flatten(0, -4)
    if "rows" in out:
        ((rows,),), ((cols,),) = out["rows"], out["cols"]
    elif "grids" in out:
        rows, cols = out["grids"][0].tolist()
    else:
        rows, cols = arrangement(len(tiles) - 1, None)
    assert len(tiles) == rows * cols + 1
    ids, places = prompt_of(name, rows, cols, monkeypatch)
    assert family.group(ids, places) == [list(range(len(tiles)))]
    arguments = family.encoder_arguments({k: torch.as_tensor(v).float() for k, v in out.items() if "pixel" in k})
    if "pixel_attention_mask" in arguments:
        arguments["pixel_attention_mask"] = arguments["pixel_attention_mask"].bool()
    with torch.no_grad():
        layouts = family.layouts(arguments, family.core.get_image_features(**arguments, return_dict=True))
    layout = replace(Layout.join(layouts), boxes=family.boxes(ids, places))
    check(layout, raster(tiles, tiny.PATCH), 0.03)


@pytest.mark.parametrize("grid", [(1, 3), (3, 1), (2, 3), (3, 2), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("name", ["llama4", "ovis2", "smolvlm", "idefics3", *GUESSED])
def test_arrangement_of_tiles(name: str, grid: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    ids, places = prompt_of(name, *grid, monkeypatch)
    family = family_of(name)
    tiles = places[1:] if family.overview == "first" else places[:-1]
    expected = arrangement(len(tiles), None) if name in GUESSED else grid
    assert arrangement(len(tiles), family.row_ends(ids, tiles)) == expected
    boxes = list(family.boxes(ids, places))
    assert boxes.pop(0 if family.overview == "first" else -1) == (0.0, 0.0, 1.0, 1.0)
    rows, cols = expected
    assert boxes == [(c / cols, r / rows, (c + 1) / cols, (r + 1) / rows) for r in range(rows) for c in range(cols)]


# -- pictures of any size --------------------------------------------------------------------------------------------

GRIDS = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v"]


@pytest.mark.parametrize("name", GRIDS)
def test_patches_in_blocks(name: str) -> None:
    family = family_of(name)
    options = {"patch_size": tiny.PATCH, "size": {"shortest_edge": 64 * 16, "longest_edge": 256 * 16}}
    out = processed("qwen2_vl", "Qwen2VLImageProcessorPil", 70, 150, **options)
    check_blocks(family, out)
    (layout,) = family.full_layouts(out)
    (height, width) = layout.grids[0]
    smaller = family.shrunk(out, [(height - 1, width // 2)])
    assert smaller["image_grid_thw"].tolist() == [[1, 2 * (height - 1), 2 * (width // 2)]]
    check_blocks(family, smaller)


def check_blocks(family: Any, arguments: dict[str, Any]) -> None:
    (layout,) = family.full_layouts(arguments)
    pixels = arguments["pixel_values"].view(-1, 3, 2, tiny.PATCH, tiny.PATCH)
    assert torch.equal(pixels[:, :, 0], pixels[:, :, 1]), "two frames of a still image"
    check(layout, pixels.mean((2, 3, 4)) / 255, 0.02)


def test_pictures_on_a_common_canvas() -> None:
    family = family_of("mistral3")
    options = {"patch_size": 2 * tiny.PATCH, "size": {"longest_edge": 64}}
    out = processed("pixtral", "PixtralImageProcessorPil", 30, 60, **options)
    check_canvas(family, out)
    (layout,) = family.full_layouts(out)
    (height, width) = layout.grids[0]
    smaller = family.shrunk(dict(out), [(height - 1, width // 2)])
    assert torch.as_tensor(smaller["image_sizes"]).tolist() == [[8 * (height - 1), 8 * (width // 2)]]
    check_canvas(family, smaller)


def check_canvas(family: Any, arguments: dict[str, Any]) -> None:
    (layout,) = family.full_layouts(arguments)
    (height, width) = torch.as_tensor(arguments["image_sizes"])[0].tolist()
    check(layout, raster(arguments["pixel_values"][:1, :, :height, :width], tiny.PATCH), 0.02)
