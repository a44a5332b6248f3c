"""What a method is: one file, one dataclass, one card.

To add yours, run ``foveate new mymethod`` or:

1. write ``methods/mymethod.py`` with a frozen dataclass named as you like that inherits :class:`ScoreMethod` (one
   function, a number per token) or :class:`Method` (any reduction), and a :class:`Card` whose ``name`` is the file's;
2. its fields are its options, in Python, in plan text, on the command line and in result files;
3. write ``tests/methods/test_mymethod.py`` with one case small enough to check by hand.

Everything else (registry, command line, contract tests, documentation, benchmark) finds it by itself.
"""

from __future__ import annotations

import ast
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from torch import Tensor

from .budget import Budget
from .entries import Entries, Eviction
from .errors import MethodError, PlanError
from .routes import Route, Work
from .tokens import Reduction, View

STAGES = ("input", "encoder", "connector", "layers", "cache")
RESERVED = ("keep", "at", "split")  # what plan text says about any step; no option may bear these names
# Read in the vision tower or known before the language model; between its layers; in its cache, besides "text_rows".
BEFORE = ("attention", "early", "keys", "question", "values", "value_attention", "pixels", "vocabulary")
BETWEEN = ("first", "first_text", "last_row", "ahead_row", "text_rows", "text_text", "text", "layer_keys", "text_keys")
CACHED = ("window_rows", "received", "query")
NEEDS = (*BEFORE, *BETWEEN, *CACHED)
CHOICES = {
    "features": ("before", "after"),
    "guidance": ("none", "question"),
    "count": ("fixed", "grid", "content"),
    "budget": ("left", "mean", "entries"),
    "touches": ("visual", "all"),
    "positions": ("original", "contiguous"),
    "training": ("none", "learned"),
    "mechanism": ("transformation", "similarity", "attention", "query", "reconstruction", "text-as-image"),
}


_WORDS = {"true": True, "false": False, "inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def read(text: str) -> Any:
    """The value of an option as plan text has it: a Python literal, true or false in any case, else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return _WORDS.get(text.lower(), text)


def write(value: Any) -> str:
    """Text from which :func:`read` makes the value again; quoted only where it would be read as something else."""
    if not isinstance(value, str):
        return repr(value)
    plain = value == value.strip() and not set(value) & set(",>=()[]{}'\"\\")
    return value if plain and read(value) == value else repr(value)


@dataclass(frozen=True)
class Card:
    """What a reader, the command line, the documentation, the tests and the benchmark know of a method.

    Attributes:
        name: the file's name; also what a plan says.
        title: full title of the paper, or what the baseline does.
        paper: where it is published ("arXiv:2412.01818"), or "" for a baseline.
        code: the authors' repository, or "".
        licence: licence of that repository, "" if there is none.
        stages: places where it can run; the first is its usual one.
        features: whether it sees features before or after the connector.
        needs: extras its view must carry: "attention" (h, n), "early" (h, n), which is attention read at the share
            `early` (a field of the method) of the tower's depth, "keys" (n, d), "question" (q, d), "values" (n, d),
            "value_attention" (h, n), which is attention between value vectors, "pixels" (n, c) of each token's patches,
            "vocabulary" (v, d), the language model's input embeddings.
            Between its layers: "first" (N, d) and "first_text" (q, d), the image's tokens and the text after it as they
            entered the language model; "last_row" (h, n) and "text_rows" (h, q, n), the attention of the last prompt token and of
            the text after the image in the layer before; "text_text" (h, q, q), what that text pays to itself; "ahead_row"
            (h, n), that of the last prompt token as the next layer will compute it; "text" (q, d), states of that text;
            "layer_keys" (n, c) and "text_keys" (q, c), keys of all key heads of the layer before, side by side.
            In the cache: "window_rows", "text_rows", "received", see :class:`foveate.entries.Entries`. For a second run:
            "query" (1, heads, c), that of the last prompt token in a layer.
        guidance: "none", or "question" if the text decides.
        count: "fixed" (exactly the budget), "grid" (nearest grid within it) or "content" (the input decides).
        budget: what keep counts: tokens "left" after its last stop, their "mean" over the language model's layers, or
            "entries" of the cache, text included.
        touches: "visual" tokens only, or "all".
        positions: what the paper used.
        training: "none" or "learned".
        modality: any of image, video, audio.
        mechanism: one of transformation, similarity, attention, query, reconstruction, text-as-image.
        differences: where this code departs from the paper or the authors' code, and why.
    """

    name: str
    title: str
    paper: str = ""
    code: str = ""
    licence: str = ""
    stages: tuple[str, ...] = ("connector",)
    features: str = "after"
    needs: tuple[str, ...] = ()
    guidance: str = "none"
    count: str = "fixed"
    budget: str = "left"
    touches: str = "visual"
    positions: str = "contiguous"
    training: str = "none"
    modality: tuple[str, ...] = ("image",)
    mechanism: str = "transformation"
    differences: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise PlanError(f"card of {self.name!r}: {name}={getattr(self, name)!r}", hint=" or ".join(allowed))
        for name, allowed in {"stages": STAGES, "needs": NEEDS}.items():
            for value in getattr(self, name):
                if value not in allowed:
                    raise PlanError(f"card of {self.name!r}: unknown {name} {value!r}", hint=", ".join(allowed))


@dataclass(frozen=True)
class Method(ABC):
    """A method: a view in, a reduction out. Subclasses are frozen dataclasses; their fields are the options."""

    card: ClassVar[Card]

    @abstractmethod
    def __call__(self, view: Any, /) -> Any:
        """From a :class:`~foveate.tokens.View` of n tokens to a :class:`~foveate.tokens.Reduction` to k slots.

        The card's ``count`` says how exactly k is met. Between the layers and at the cache other answers are allowed, and
        at the cache it is shown something else: see :class:`LayerMethod` and :class:`CacheMethod`.
        """

    @property
    def settled(self) -> bool:
        """Whether the options alone say how much stays: then a plan may leave out ``keep``."""
        return False

    @property
    def marked_by(self) -> tuple[str, ...] | None:
        """Extras of the vision tower that :meth:`mark` looks at, or None: it marks nothing."""
        return None

    def mark(self, view: View) -> Mapping[str, Tensor]:
        """(n,) tensors that later steps find in ``view.marks``, and users in the report; they follow the anchors.

        Called once for each picture, after the step (also where it dropped nothing), if :attr:`marked_by` is not None.

        Args:
            view: the tokens that are left, after the tower, with the extras of :attr:`marked_by`; k is their number.
        """
        return {}

    @property
    def name(self) -> str:
        return self.card.name

    def options(self) -> dict[str, Any]:
        """The fields that differ from their defaults."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    def __str__(self) -> str:
        return (
            self.name
            + (":" if (options := self.options()) else "")
            + ",".join(f"{k}={write(v)}" for k, v in options.items())
        )


@dataclass(frozen=True)
class ScoreMethod(Method):
    """A method that is one number per token: the ``view.k`` highest stay, in their order, ties to the lowest index."""

    @abstractmethod
    def score(self, view: View) -> Tensor:
        """(n,) the higher the better."""

    def __call__(self, view: View) -> Reduction:
        from .parts.select import top

        score = self.score(view)
        if score.shape != (view.n,):
            raise MethodError(f"{self.name} scored {tuple(score.shape)}, the view has {view.n} tokens")
        return Reduction.drop(top(score, view.k), view.n)


@dataclass(frozen=True)
class TowerMethod(Method):
    """A method that works between the blocks of the vision tower, at one stop or at several.

    At each of its :meth:`stops` it is called with the tokens that are left (a view per picture or tile), and extras that
    were read in the block before. ``view.k`` is what must be left after the last stop, ``view.left`` how many stops are
    still to come; before the last one it may leave more. It answers as any method; the tower's next block runs on that.
    """

    @property
    def weighs(self) -> bool:
        """Whether later blocks attend to a merged token as to all the tokens in it: log size is added to its logits."""
        return False

    @abstractmethod
    def stops(self, depth: int) -> Sequence[int]:
        """Blocks before which it is called, ascending; 0 is before the first, when nothing but pixels can be looked at.

        Args:
            depth: blocks of the tower up to the one whose output is used.
        """

    def carry(self, view: View) -> Mapping[str, Tensor]:
        """(n,) tensors that are the view's ``marks`` when it is called, and, for tokens that stay, at the next stop."""
        return {}


@dataclass(frozen=True)
class LayerMethod(Method):
    """A method that works between the layers of the language model, at one stop or at several.

    At each of its :meth:`stops` it is called with the image's tokens that are not lost yet: their states ``view.x``, what
    its card needs of the layer before, ``view.layer`` and ``view.depth``. ``view.k`` is its budget (what that counts, says
    ``card.budget``), ``view.left`` how many stops are still to come, ``view.entered`` the tokens at its first stop.

    It answers a reduction, which may keep nothing, or a :class:`~foveate.routes.Route`, or None: all goes on as it is. If
    some tokens wait, ``view.marks["waiting"]`` (n,) says which; a reduction lets all that it keeps run.
    """

    @abstractmethod
    def stops(self, depth: int) -> Sequence[int]:
        """Layers before which it is called, ascending; 0 is before the first. depth: layers of the language model."""

    def looks(self, layer: int, depth: int) -> bool:
        """Whether it is shown what its card needs at a stop; where not, nothing is read for it."""
        return True

    def carry(self, view: View) -> Mapping[str, Tensor]:
        """(n,) tensors that are the view's ``marks`` when it is called, and, for tokens that stay, at the next stop."""
        return {}

    @abstractmethod
    def __call__(self, view: View) -> Reduction | Route | Work | None:
        """What happens to the tokens before layer ``view.layer``."""


@dataclass(frozen=True)
class WorkMethod(LayerMethod):
    """A method that leaves every token where it is and changes what some layers do for the image's: less.

    At each of its stops it answers a :class:`~foveate.routes.Work` for the layer that comes next, and for that alone. It may
    also let the picture leave, by a reduction to nothing. ``keep`` has no meaning but 1.0, which switches it off.
    """

    @property
    def settled(self) -> bool:
        return True

    @property
    def attends(self) -> bool:
        """Whether it changes attention, not only what follows it."""
        return True

    @abstractmethod
    def __call__(self, view: View) -> Work | Reduction | None:
        """What layer ``view.layer`` does for the image's tokens."""


@dataclass(frozen=True)
class CacheMethod(Method):
    """A method that thins out the key/value cache once a prompt is in it, and perhaps while answers are decoded.

    ``keep`` counts the entries of a prompt, text included, that a layer keeps for each key head: on average, if
    :meth:`allot` gives some layers more than others. An entry that goes is seen by no later token; memory is freed.
    """

    @property
    def window(self) -> int:
        """How many of the last prompt tokens "window_rows" are read of."""
        return 1

    @property
    def evicts(self) -> bool:
        """Whether entries go while decoding, too: as many as come."""
        return False

    def score(self, entries: Entries) -> Tensor | None:
        """(h, n) the higher the better; asked of every layer while its attention is at hand. None: it needs none."""
        return None

    def measure(self, entries: Entries) -> float:
        """A number per layer by which :meth:`allot` may share the budget; asked when :meth:`score` is."""
        return 0.0

    def allot(self, k: int, n: int, measures: Sequence[float]) -> Sequence[int]:
        """Entries to keep in each layer. k: on average; n: entries; measures: of each layer that is thinned out."""
        return [k] * len(measures)

    @abstractmethod
    def __call__(self, entries: Entries, score: Tensor | None = None) -> Eviction:
        """What stays of a layer's entries. score: what :meth:`score` said of them."""

    def oldest(self, score: Tensor | None, alive: Tensor) -> Tensor:
        """(b, h) slot whose entry goes at a step of decoding, of a layer that holds one more than its budget.

        Args:
            score: (b, h, s) what :meth:`score` said of each entry, and what the steps since gave it; None without.
            alive: (b, s) False for slots that hold nothing.
        """
        raise NotImplementedError(f"{self.name} does not evict while decoding")


@dataclass(frozen=True)
class RerunMethod(Method):
    """A method that lets the first layers run on the whole prompt, chooses by what it sees there, and starts again.

    ``keep`` counts the tokens of the prompt, text included, with which the whole model then runs.
    """

    @abstractmethod
    def layer(self, depth: int) -> int:
        """The layer whose queries and keys it looks at. depth: layers of the language model."""

    @abstractmethod
    def __call__(self, entries: Entries) -> Tensor:
        """(k,) tokens that stay, ascending, k = ``entries.k``.

        Args:
            entries: keys of one prompt in that layer, and under "query" (1, heads, c) that of its last token.
        """


@dataclass(frozen=True)
class Recipe(ABC):
    """Several methods under one name and one budget, e.g. a paper with stages before and inside the language model."""

    card: ClassVar[Card]

    @abstractmethod
    def steps(self, keep: Budget) -> Sequence[tuple[Method, object, str]]:
        """(method, keep, stage) of each step, given the user's budget; each keep in any spelling, or None if it is settled."""

    @property
    def name(self) -> str:
        return self.card.name

    options = Method.options
    __str__ = Method.__str__
