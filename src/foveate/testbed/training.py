"""Trains the testbed from nothing.

Stage 1, *tower*: no language model. Every patch is labelled with the words that are true of it, and tower +
connector learn to send the patch near the language model's own embeddings of those words. The CLS token learns which
words occur anywhere. Stage 2, *joint*: the whole model on about twenty short questions per picture (`sequences.py`). First
the decoder alone learns to use what the tower sees, reading every patch that shows something and a random choice of
the others, which more than halves the time; then everything is trained, on all patches every other step.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import questions, scenes, sequences
from .model import build_model, mark_text, start_decoder, tree_attention, tree_mask
from .text import BOS, DENSE_IDS, EOS, PAD, TOKEN_ID, build_processor
from .words import COLOURS, COLUMNS, DENSE, DENSE_INDEX, DIGITS, LETTER_ORDINALS, LETTERS, NUMBERS, ROWS, SHAPES

TOWER_MIX = {"shapes": 0.25, "labels": 0.32, "tags": 0.15, "page": 0.17, "chart": 0.11}
GROUPS = {
    "colour": COLOURS, "shape": SHAPES, "depth": ("front", "behind"), "row": ROWS, "column": COLUMNS, "number": NUMBERS,
    "ordinal": LETTER_ORDINALS,
    "char": tuple(f"'{c}" for c in LETTERS + DIGITS),
}  # fmt: skip


class DenseHead(nn.Module):
    """Training-only: cosine of every visual token to the embeddings of the dense words, and word presence from CLS."""

    ids: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        # A patch that means six words has a cosine of at most 0.41 to each: the scale must make that a clear yes.
        self.scale, self.bias = nn.Parameter(torch.tensor(28.0)), nn.Parameter(torch.tensor(-6.0))
        self.presence = nn.Linear(width, len(DENSE))
        self.register_buffer("ids", torch.tensor(DENSE_IDS), persistent=False)

    def logits(self, visual: Tensor, embedding: Tensor) -> Tensor:
        """visual (b, 576, d), embedding (vocabulary, d) -> (b, 576, words)."""
        words = F.normalize(embedding.index_select(0, self.ids).float(), dim=-1)
        return self.scale * F.normalize(visual.float(), dim=-1) @ words.T + self.bias


def dense_loss(logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Binary cross-entropy per patch and word, (b, n, words); summed over words, averaged over patches by weight (b, n)."""
    loss = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(-1)
    return (loss * weight).sum() / weight.sum()


@torch.no_grad()
def group_accuracy(logits: Tensor, labels: Tensor, weight: Tensor) -> dict[str, float]:
    """Of the patches that carry a word of a group, the share whose best word of that group is the right one."""
    out = {}
    for name, words in GROUPS.items():
        index = torch.tensor([DENSE_INDEX[w] for w in words])
        truth = labels[..., index]
        there = (truth.sum(-1) == 1) & (weight == 1)
        out[name] = ((logits[..., index].argmax(-1) == truth.argmax(-1)) & there).sum().item() / max(
            1, there.sum().item()
        )
    return out


@dataclass(frozen=True)
class Phase:
    """Part of a stage: so many steps of so many pictures, with a cosine schedule from `lr` that would end after
    `horizon` steps.

    adam: learning rate of what is not a matrix inside a layer, as a multiple of the matrices' rate.
    object_weight: weight of patches that show a shape, a label or a tag (there are few of them next to pages) in the
        dense loss.
    seeing, dense, budget: joint stage only: rate of tower and connector as a multiple of the decoder's (0: they stay
        as they are), weight of the dense loss, text tokens per picture.
    visible: joint stage only: how many visual tokens of a picture the decoder reads, at their own positions; one of these
        for each step (empty: all).
    mix: share of each kind of picture.
    """

    steps: int
    batch: int
    lr: float
    horizon: int
    adam: float = 1.0
    object_weight: float = 1.0
    seeing: float = 1.0
    dense: float = 1.0
    budget: int = 224
    visible: tuple[int, ...] = ()
    warm: int = 0
    mix: Mapping[str, float] = field(default_factory=lambda: TOWER_MIX)

    def rate(self, step: int) -> float:
        """Learning rate of the matrices at a step of this phase: warm-up, then cosine down to 4 %."""
        warm = min(1.0, (step + 1) / self.warm) if self.warm else 1.0
        return self.lr * warm * (0.04 + 0.48 * (1 + math.cos(math.pi * min(1.0, step / self.horizon))))


TOWER = (Phase(steps=2000, batch=16, lr=3e-3, horizon=2000, adam=0.5, object_weight=3.0, warm=60),)


def plan(phases: Sequence[Phase], start: int = 0) -> Iterator[tuple[int, Phase, int, int]]:
    """Walk through phases from a global step: (step, phase, step within the phase, number of the first picture)."""
    step = pictures = 0
    for phase in phases:
        for inner in range(phase.steps):
            if step >= start:
                yield step, phase, inner, pictures
            step, pictures = step + 1, pictures + phase.batch


class _Pictures(torch.utils.data.IterableDataset):
    """Batches for the tower stage, decided by the step number alone, so that a resumed run sees the same pictures."""

    def __init__(self, phases: Sequence[Phase], start: int) -> None:
        self.phases, self.start = phases, start

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for step, phase, _, first in plan(self.phases, self.start):
            kinds = np.random.default_rng(step).choice(list(phase.mix), size=phase.batch, p=list(phase.mix.values()))
            drawn = [scenes.draw((1 << 32) + first + i, str(kind)) for i, kind in enumerate(kinds)]
            yield (
                torch.from_numpy(np.stack([np.asarray(d.image) for d in drawn])),
                torch.from_numpy(np.stack([d.labels for d in drawn])),
                torch.from_numpy(np.stack([d.weight for d in drawn])),
            )


def pixels(images: Tensor) -> Tensor:
    """uint8 (b, 192, 192, 3) -> float (b, 3, 192, 192) in [-1, 1], as the processor does it."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def make_optimisers(modules: list[nn.Module], lr: float = 1e-3) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside transformer layers and connector, AdamW for everything else (tied weights once)."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    seen: set[int] = set()
    for module in modules:
        for name, p in module.named_parameters():
            if id(p) in seen:
                continue
            seen.add(id(p))
            inner = p.ndim == 2 and ("layers." in name or "linear_" in name)
            (matrices if inner else rest).append(p)
    out: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, lr=lr, weight_decay=0.02, betas=(0.9, 0.98))]
    if matrices:
        out.append(torch.optim.Muon(matrices, lr=lr, weight_decay=0.02, momentum=0.95, adjust_lr_fn="match_rms_adamw"))
    return out


def set_lr(optimisers: list[torch.optim.Optimizer], matrices: float, rest: float) -> None:
    """Set the learning rate of the matrices inside layers, and that of the rest."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = matrices if isinstance(optimiser, torch.optim.Muon) else rest


def _save(path: Path, model: Any, head: DenseHead, optimisers: list[torch.optim.Optimizer], step: int) -> None:
    scratch = path.with_suffix(".tmp")
    states = [o.state_dict() for o in optimisers]
    torch.save({"model": model.state_dict(), "head": head.state_dict(), "optimisers": states, "step": step}, scratch)
    scratch.rename(path)  # never a half-written checkpoint


def _restore(path: Path, model: Any, head: DenseHead, optimisers: list[torch.optim.Optimizer]) -> int:
    """Load a checkpoint of the same stage; the step to go on from, 0 if there is none."""
    if not path.exists():
        return 0
    saved = torch.load(path, weights_only=True)
    model.load_state_dict(saved["model"])
    head.load_state_dict(saved["head"])
    for one, state in zip(optimisers, saved["optimisers"], strict=True):
        one.load_state_dict(state)
    return saved["step"]


class _Log:
    """Sums over steps; writes their means as one line of `out/log.jsonl` and forgets them."""

    def __init__(self, out: Path, stage: str) -> None:
        self.path, self.stage, self.clock = out / "log.jsonl", stage, time.time()
        self.total: Counter[str] = Counter()
        self.count: Counter[str] = Counter()

    def add(self, values: Mapping[str, float], counts: Mapping[str, float] | None = None) -> None:
        self.total.update(values)
        self.count.update(counts or dict.fromkeys(values, 1))

    def flush(self, step: int) -> None:
        means = {k: round(v / max(1, self.count[k]), 3) for k, v in self.total.items()}
        with self.path.open("a") as file:
            file.write(
                json.dumps({"stage": self.stage, "step": step, "s": round(time.time() - self.clock), **means}) + "\n"
            )
        self.total.clear()
        self.count.clear()


def _update(
    loss: Tensor, parameters: Iterable[nn.Parameter], optimisers: list[torch.optim.Optimizer], clip: float
) -> float:
    """One step of all optimisers; the gradient norm before clipping."""
    for one in optimisers:
        one.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(parameters, clip)
    for one in optimisers:
        one.step()
    return norm.item()


Tick = Callable[[str, int, int], None]


@dataclass
class _Stage:
    """What both stages do after every step: count it, write log and checkpoint when due, look at the clock."""

    name: str
    path: Path
    steps: int
    log_every: int
    save_every: int
    deadline: float
    tick: Tick | None
    save: Callable[[Path, int], None]

    def __post_init__(self) -> None:
        self.log = _Log(self.path.parent, self.name)

    def late(self, step: int) -> bool:
        """True if the deadline has passed; everything is saved then. step: from 0."""
        late = time.time() > self.deadline
        last = late or step == self.steps - 1
        if step % self.log_every == self.log_every - 1 or last:
            self.log.flush(step + 1)
        if step % self.save_every == self.save_every - 1 or last:
            self.save(self.path, step + 1)
        if self.tick:
            self.tick(self.name, step + 1, self.steps)
        return late


def tower_stage(
    out: str | Path, phases: Sequence[Phase] = TOWER, seed: int = 0, log_every: int = 25, save_every: int = 100,
    deadline: float = math.inf, tick: Tick | None = None,
) -> bool:  # fmt: skip
    """Stage 1. Writes `out/tower.pt` every `save_every` steps and resumes from it. False if the deadline came first."""
    out = Path(out)
    model, path = build_model(seed), out / "tower.pt"
    tower, connector, embed = model.model.vision_tower, model.model.multi_modal_projector, model.get_input_embeddings()
    head = DenseHead(tower.config.hidden_size)
    modules = nn.ModuleList([tower, connector, embed, head])
    optimisers = make_optimisers(list(modules))
    start, steps = _restore(path, model, head, optimisers), sum(phase.steps for phase in phases)
    small = torch.tensor([DENSE_INDEX[w] for w in (*SHAPES, "label", "tag")])
    loader = torch.utils.data.DataLoader(_Pictures(phases, start), batch_size=None, num_workers=1, prefetch_factor=4)
    stage = _Stage(
        "tower", path, steps, log_every, save_every, deadline, tick, lambda p, n: _save(p, model, head, optimisers, n)
    )
    for (step, phase, inner, _), (images, labels, weight) in zip(plan(phases, start), loader, strict=True):
        rate = phase.rate(inner)
        set_lr(optimisers, rate, rate * phase.adam)
        labels = labels.float()
        with torch.autocast("cpu", torch.bfloat16):
            seen = tower(pixels(images), output_hidden_states=True)
            logits = head.logits(connector(seen.hidden_states[-2][:, 1:]), embed.weight)
            there = head.presence(seen.pooler_output)
        emphasis = 1 + (phase.object_weight - 1) * labels[..., small].amax(-1)
        dense = dense_loss(logits, labels, weight * emphasis)
        cls = F.binary_cross_entropy_with_logits(there.float(), labels.amax(1))
        norm = _update(dense + 4 * cls, modules.parameters(), optimisers, 2.0)
        stage.log.add(
            {"dense": dense.item(), "cls": cls.item(), "norm": norm, **group_accuracy(logits, labels, weight)}
        )
        if stage.late(step):
            return False
    return True


# ------------------------------------------------------------------------------------------------------------ joint stage

SOME = (144, 224, 336)  # unequal, so that nothing is learned about how many patches show nothing
MIX = {"shapes": 0.42, "labels": 0.23, "page": 0.12, "tags": 0.08, "chart": 0.08, "two-images": 0.07}
JOINT = (
    Phase(steps=1200, batch=16, lr=2.5e-3, horizon=1200, adam=0.15, seeing=0, visible=SOME, warm=30, mix=MIX),
    Phase(
        steps=200,
        batch=16,
        lr=8e-4,
        horizon=200,
        adam=0.15,
        seeing=0.15,
        visible=(576, 144, 576, 336),
        warm=10,
        mix=MIX,
    ),
)
SMOKE_TOWER = (Phase(steps=350, batch=16, lr=3e-3, horizon=350, adam=0.5, object_weight=3.0, warm=40),)
SMOKE_JOINT = (Phase(steps=120, batch=16, lr=2.5e-3, horizon=120, adam=0.15, seeing=0, visible=SOME, warm=20, mix=MIX),)


class _Trees(torch.utils.data.IterableDataset):
    """Batches for the joint stage: trees of one picture, or half as many of two."""

    def __init__(self, phases: Sequence[Phase], start: int) -> None:
        self.phases, self.start = phases, start

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for step, phase, _, first in plan(self.phases, self.start):
            mix, rng = phase.mix, np.random.default_rng(step)
            seeds = range(first, first + phase.batch)
            if rng.random() < 2 * mix.get(sequences.TWO, 0.0):
                trees = [sequences.grow(s, sequences.TWO, phase.budget) for s in seeds[: phase.batch // 2]]
            else:
                kinds = [k for k in mix if k != sequences.TWO]
                share = np.asarray([mix[k] for k in kinds])
                picked = rng.choice(kinds, size=phase.batch, p=share / share.sum())
                trees = [sequences.grow(s, str(k), phase.budget) for s, k in zip(seeds, picked, strict=True)]
            yield {k: torch.from_numpy(v) for k, v in sequences.collate(trees).items()}


def choose_visible(weight: Tensor, visible: int, draw: torch.Generator) -> Tensor:
    """Patches (b, visible) that the decoder reads, ascending: those that show something first, then a random choice.

    weight (b, 576): the dense labels' weights, 0.15 where a patch shows background.
    """
    shows = ((weight - scenes.BACKGROUND).abs() > 1e-3).float()
    return (2 * shows + torch.rand(weight.shape, generator=draw)).topk(visible).indices.sort().values


def place_visible(
    words: Tensor, visual: Tensor, chosen: Tensor | None, trunk: Tensor, image: int
) -> tuple[Tensor, Tensor]:
    """The trunk of every tree: words with the chosen visual tokens of its pictures, in order.

    Args:
        words: (t, d) embeddings of the trunk's ids.
        visual: (b, pictures * 576, d) visual tokens.
        chosen: (b, pictures, v) patches to read, or None for all.
        trunk: (t,) ids, 576 placeholders per picture.
        image: id of a placeholder.

    Returns:
        (b, m, d) embeddings and (b, m) their positions.
    """
    size, places = len(visual), (trunk == image).nonzero()[:, 0]
    if chosen is None:
        full = words.expand(size, -1, -1).index_copy(1, places, visual.to(words.dtype))
        return full, torch.arange(len(trunk)).expand(size, -1)
    per = len(places) // chosen.shape[1]
    index = (chosen + per * torch.arange(chosen.shape[1])[:, None]).flatten(1)  # (b, pictures * v) of the placeholders
    other = (trunk != image).nonzero()[:, 0]
    position, order = torch.cat([other.expand(size, -1), places[index]], 1).sort(1)
    kept = visual.gather(1, index[..., None].expand(-1, -1, visual.shape[-1])).to(words.dtype)
    fed = torch.cat([words[other].expand(size, -1, -1), kept], 1)
    return fed.gather(1, order[..., None].expand(-1, -1, fed.shape[-1])), position


def joint_stage(
    out: str | Path, phases: Sequence[Phase] = JOINT, seed: int = 0, log_every: int = 25, save_every: int = 50,
    deadline: float = math.inf, tick: Tick | None = None,
) -> bool:  # fmt: skip
    """Stage 2, from `out/tower.pt`. Writes `out/joint.pt` every `save_every` steps and resumes from it. False if the
    deadline came first.

    Raises:
        FileNotFoundError: if the tower stage has not been run.
    """
    from transformers import AttentionInterface

    out = Path(out)
    model, path = build_model(seed), out / "joint.pt"
    head = DenseHead(model.config.vision_config.hidden_size)
    tower, connector = model.model.vision_tower, model.model.multi_modal_projector
    language, embed = model.model.language_model, model.get_input_embeddings()
    AttentionInterface.register("testbed_tree", tree_attention)
    language.config._attn_implementation = "testbed_tree"
    seeing, thinking = make_optimisers([tower, connector, head]), make_optimisers([language])
    optimisers = [*seeing, *thinking]
    start, steps = _restore(path, model, head, optimisers), sum(phase.steps for phase in phases)
    some = pixels(torch.from_numpy(np.stack([np.asarray(scenes.draw(s).image) for s in range(16)])))
    if not start:
        if not (out / "tower.pt").exists():
            raise FileNotFoundError(
                f"testbed.training: no {out / 'tower.pt'}; run the tower stage first (it writes this file)"
            )
        saved = torch.load(out / "tower.pt", weights_only=True)
        head.load_state_dict(saved["head"])
        model.load_state_dict(saved["model"])
        mark_text(model, some)
        start_decoder(model)
    parameters = [p for one in optimisers for g in one.param_groups for p in g["params"]]
    loader = torch.utils.data.DataLoader(_Trees(phases, start), batch_size=None, num_workers=1, prefetch_factor=3)
    names = list(questions.SLICES)
    stage = _Stage(
        "joint", path, steps, log_every, save_every, deadline, tick, lambda p, n: _save(p, model, head, optimisers, n)
    )
    for (step, phase, inner, _), b in zip(plan(phases, start), loader, strict=True):
        rate = phase.rate(inner)
        set_lr(seeing, rate * phase.seeing, rate * phase.seeing * phase.adam)
        set_lr(thinking, rate, rate * phase.adam)
        size = len(b["ids"])
        trunk = torch.tensor(sequences.trunk(len(b["images"]) // size))
        chosen = None
        if phase.visible:
            draw = torch.Generator().manual_seed(step)
            visible = phase.visible[step % len(phase.visible)]
            chosen = choose_visible(b["weight"], visible, draw).unflatten(0, (size, -1))
        with torch.autocast("cpu", torch.bfloat16):
            with torch.set_grad_enabled(phase.seeing > 0):
                seen = tower(pixels(b["images"]), output_hidden_states=True)
                visual = connector(seen.hidden_states[-2][:, 1:])
            words, text = embed(trunk), embed(b["ids"])
            fed, where = place_visible(
                words, visual.reshape(size, -1, visual.shape[-1]), chosen, trunk, model.config.image_token_id
            )
            begin = fed.shape[1]
            mask = tree_mask(b["branch"], begin)
            hidden = language(
                inputs_embeds=torch.cat([fed, text], 1), position_ids=torch.cat([where, b["position"]], 1),
                use_cache=False, tree=mask,
            ).last_hidden_state  # fmt: skip
            goal = b["answer"][:, 1:] >= 0  # the token after each of these positions is part of an answer
            guess = model.lm_head(hidden[:, begin:-1][goal]).float()
        truth, turn = b["ids"][:, 1:][goal], b["answer"][:, 1:][goal]
        loss, labels = F.cross_entropy(guess, truth), b["labels"].float()
        with torch.set_grad_enabled(phase.seeing > 0), torch.autocast("cpu", torch.bfloat16):
            logits = head.logits(visual[..., :-1], embed.weight[:, :-1])  # without the channel that marks text
            there = head.presence(seen.pooler_output)
            dense = dense_loss(logits, labels, b["weight"])
            cls = F.binary_cross_entropy_with_logits(there.float(), labels.amax(1))
        norm = _update(loss + (phase.dense * (dense + 4 * cls) if phase.seeing else 0), parameters, optimisers, 1.0)
        wrong = torch.zeros(len(b["slice"])).index_add_(0, turn, (guess.argmax(-1) != truth).float())
        right: Counter[str] = Counter()
        asked: Counter[str] = Counter()
        for name, miss in zip(b["slice"].tolist(), wrong.tolist(), strict=True):
            right[names[name]] += miss == 0
            asked[names[name]] += 1
        stage.log.add({"answers": loss.item(), "dense": dense.item(), "cls": cls.item(), "norm": norm})
        stage.log.add(right, asked)
        stage.log.add({f"patch {k}": v for k, v in group_accuracy(logits, labels, b["weight"]).items()})
        if stage.late(step):
            return False
    return True


# ------------------------------------------------------------------------------------------------------------------- whole


def export(checkpoint: str | Path, folder: str | Path) -> Path:
    """Write a joint checkpoint as a folder that `AutoModelForImageTextToText` and `AutoProcessor` load; weights in float16."""
    folder = Path(folder)
    model = build_model()
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
    model.generation_config.update(
        do_sample=False, pad_token_id=TOKEN_ID[PAD], bos_token_id=TOKEN_ID[BOS], eos_token_id=TOKEN_ID[EOS]
    )
    model.half().save_pretrained(folder)
    build_processor().save_pretrained(folder)
    return folder


def train(
    out: str | Path, smoke: bool = False, hours: float | None = None, seed: int = 0, tick: Tick | None = None
) -> Path | None:
    """Train the testbed from nothing, or go on from the checkpoints in `out`. All of it follows from
    the seed and the phases at the top of each stage.

    Args:
        out: folder for checkpoints, the log (`log.jsonl`) and the finished model (`out/model`).
        smoke: a short recipe (about ten minutes on two cores) whose log shows that it learns; its model is not good.
        hours: stop, with a checkpoint, after this long.
        tick: called with (stage, step, steps) after every step.

    Returns:
        The model's folder, or None if `hours` ended first.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    deadline = time.time() + 3600 * hours if hours else math.inf
    tower, joint = (SMOKE_TOWER, SMOKE_JOINT) if smoke else (TOWER, JOINT)
    for stage, phases in ((tower_stage, tower), (joint_stage, joint)):
        if not stage(out, phases, seed, deadline=deadline, tick=tick):
            return None
    return export(out / "joint.pt", out / "model")
