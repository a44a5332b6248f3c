"""What the stock model says about a reduction, worked out by hand: nothing here uses the code that is tested.

Two references. *Masked*: the whole prompt, with the dropped tokens' columns hidden in the attention mask. *Short*: a
prompt written without them, and features reduced with a dense matrix.
"""

from __future__ import annotations

import copy
import inspect
from functools import cache

import torch
import transformers
from torch import Tensor

import tiny

IMAGE_A, IMAGE_B = ("image", "a"), ("image", "b")
MIXED = [[3, IMAGE_A, 4], [2, IMAGE_A, 3, IMAGE_B, 5], [6]]  # one image, two unequal ones, none
ALIGNED = ("token_type_ids", "mm_token_type_ids")
STEPS = 8
BEFORE_5_23 = tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 23)


@cache
def model_of(name: str, attn: str = "sdpa", seed: int = 0, dtype: torch.dtype = torch.float32):
    """A tiny instance that is shared by all tests and must be left as it was found."""
    return tiny.build(name, seed, attn).to(dtype)


def batch_of(name: str, prompts: list[list] = MIXED, dtype: torch.dtype = torch.float32, **more) -> dict[str, Tensor]:
    """Inputs of a family; floats in ``dtype``."""
    batch = tiny.inputs(name, model_of(name), prompts, **more)
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()}


def logits_of(model, batch: dict, **more) -> Tensor:
    with torch.no_grad():
        return model(**batch, **more).logits


def generated(model, batch: dict, steps: int = STEPS, **more):
    """Sequences, and logits (b, steps, vocabulary) of greedy decoding unless ``more`` says otherwise."""
    options = {
        "do_sample": False,
        "max_new_tokens": steps,
        "output_logits": True,
        "return_dict_in_generate": True,
    } | more
    out = model.generate(**batch, **options)
    return out.sequences, torch.stack(out.logits, 1)


@cache
def stock(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """The stock model on MIXED: prompt logits, generated sequences, their logits."""
    model, batch = model_of(name), batch_of(name)
    return logits_of(model, batch), *generated(model, batch)


# -- where things are ------------------------------------------------------------------------------------------------


def places(name: str, prompts: list[list], batch: dict) -> list[list[Tensor]]:
    """Columns of each image's placeholders, prompt by prompt."""
    model, found = model_of(name), []
    for row, prompt in zip(batch["input_ids"], prompts, strict=True):
        sizes = [segment[1] for segment in prompt if not isinstance(segment, int)]
        counts = [tiny.image_counts(name, model, size, len(sizes)) for size in sizes]
        found.append(list((row == tiny.image_token_id(name, model)).nonzero()[:, 0].split(counts)))
    return found


def kept(where: list[list[Tensor]], report, batch: dict) -> Tensor:
    """(b, L) columns that are neither padding nor dropped."""
    mask = batch.get("attention_mask")
    keep = torch.ones_like(batch["input_ids"]).bool() if mask is None else mask.bool()
    for image in report.images:
        columns = where[image.sample][image.ordinal]
        keep[image.sample, columns] = False
        keep[image.sample, columns[image.kept]] = True
    return keep


def positions_of(model, batch: dict) -> Tensor:
    """What plain forward gives the decoder when the caller names no positions."""
    seen = {}

    def look(_, args, kwargs):
        seen["positions"] = kwargs.get("position_ids")

    hook = model.get_decoder().register_forward_pre_hook(look, with_kwargs=True)
    try:
        logits_of(model, batch)
    finally:
        hook.remove()
    if seen["positions"] is None:
        return torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])
    return seen["positions"].expand(*seen["positions"].shape[:-2], len(batch["input_ids"]), -1)


def generation_positions(model, batch: dict) -> Tensor:
    """What ``generate`` hands to forward."""
    return model._prepare_position_ids_for_generation(batch["input_ids"], dict(batch))


# -- features --------------------------------------------------------------------------------------------------------


def encode(model, batch: dict):
    """The encoder's output, the field that is merged into the prompt, and the batch without what it took."""
    function = model.base_model.get_image_features
    names = set(inspect.signature(function).parameters) - {"kwargs"}
    with torch.no_grad():
        output = function(**{k: v for k, v in batch.items() if k in names}, return_dict=True)
    field = "pooler_output" if output.get("pooler_output") is not None else "last_hidden_state"
    return output, field, {k: v for k, v in batch.items() if k not in names}


def rows_of(features) -> Tensor:
    return torch.cat([f.reshape(-1, f.shape[-1]) for f in features])


def dense(reduction, dtype: torch.dtype) -> Tensor:
    """(m, n) the matrix of a reduction."""
    weight = torch.ones(len(reduction.src)) if reduction.weight is None else reduction.weight.float()
    matrix = torch.zeros(reduction.m, reduction.n)
    matrix.index_put_((reduction.dst, reduction.src), weight, accumulate=True)
    return matrix.to(dtype)


def reduced(output, field: str, report, replace=None):
    """A copy of an encoder output with its features multiplied out, image by image, in a container of the same type."""

    def each(rows: Tensor, again: bool) -> list[Tensor]:
        found, start = [], 0
        for i, image in enumerate(report.images):
            mine = rows[start : start + len(image.kind)]
            start += len(image.kind)
            new = mine if image.reduction is None else dense(image.reduction, rows.dtype) @ mine
            found.append(replace(i, new) if again and replace else new)
        assert start == len(rows)
        return found

    new, features = copy.copy(output), each(rows_of(output[field]), True)
    # Of a tensor the library reads rows only; one a row fits every version's way of counting.
    new[field] = torch.cat(features)[:, None] if isinstance(output[field], Tensor) else features
    if output.get("deepstack_features") is not None:
        new["deepstack_features"] = [each(torch.cat(list(plane)), False) for plane in output["deepstack_features"]]
    return new


def pack(x: Tensor, keep: Tensor, fill: int = 0, right: bool = False) -> Tensor:
    """Kept columns of (b, L) or (axes, b, L), padded to equal length."""
    if x.ndim == 3:
        return torch.stack([pack(axis, keep, fill, right) for axis in x])
    side = "right" if right else "left"
    rows = [row[k] for row, k in zip(x, keep, strict=True)]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill, padding_side=side)


def short(
    model, batch: dict, keep: Tensor, report, positions: Tensor | None, right: bool = False, replace=None
) -> dict:
    """Arguments of the stock model for the prompt without dropped tokens.

    Args:
        positions: to be kept along with the tokens; None for those that the stock model gives a prompt of this length.
    """
    output, field, rest = encode(model, batch)
    new = {k: v for k, v in rest.items() if k not in (*ALIGNED, "input_ids", "attention_mask")}
    new["input_ids"] = pack(batch["input_ids"], keep, tiny.PAD, right)
    new["attention_mask"] = pack(torch.ones_like(batch["input_ids"]), keep, 0, right)
    for key in ALIGNED:
        if key in batch:
            new[key] = pack(batch[key], keep, 0, right)
    if positions is not None:
        new["position_ids"] = pack(positions, keep, 0, right)
    elif "mm_token_type_ids" in new:
        del new["mm_token_type_ids"]  # or the model would look for a picture of this length
    return new | {"mm_encoder_outputs": {"image": reduced(output, field, report, replace)}}


def same_rows(ours: Tensor, theirs: Tensor, keep: Tensor, atol: float = 1e-4, right: bool = False) -> None:
    """Our logits of a shortened batch, against those of the whole one at the columns that were kept."""
    for row, k in enumerate(keep):
        n = int(k.sum())
        mine = ours[row, :n] if right else ours[row, ours.shape[1] - n :]
        torch.testing.assert_close(mine, theirs[row][k], atol=atol, rtol=0)


# -- is the model as it was ------------------------------------------------------------------------------------------


def traces(model) -> list:
    """Everything that attaching could leave behind: hooks, instance attributes, configs that are not the model's."""
    found: list = []
    for name, module in model.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._forward_hooks_with_kwargs)
        found.append((name, [len(h) for h in hooks], sorted(module.__dict__), id(module.__dict__.get("config"))))
    return found
