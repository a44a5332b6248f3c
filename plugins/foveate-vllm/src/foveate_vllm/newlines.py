"""Every newline of a picture stays: with this rule the tokens of tiles are counted before anything is encoded.

LLaVA-OneVision puts a newline token after every row of a picture's tiles. In ``foveate.compress`` a newline stays while
any token of its row does, so how many stay depends on which tokens are chosen. vLLM has to know the number beforehand,
therefore all of them stay there. Methods choose among the content alone: the chosen tokens are the same under both
rules. Needs no vLLM: :func:`keep` puts the rule into a run in transformers, whose answers are then those of vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from foveate.attach import Run
from foveate.families import Layout


def every(layouts: Sequence[Layout]) -> list[Layout]:
    """Layouts whose newlines do not go with their lines."""
    return [replace(layout, line=None) for layout in layouts]


def keep(run: Run) -> Run:
    """Let a run of ``foveate.compress`` keep every newline, as vLLM does::

        with newlines.keep(foveate.compress(model, "divprune:keep=0.25", positions="contiguous")):
            model.generate(**inputs)

    Args:
        run: attached, of any model; where a model's pictures have no newlines nothing changes.

    Returns:
        The same run.
    """
    family: Any = run.family  # made for this run alone
    by_line = family.layouts

    def layouts(arguments: dict[str, Any], output: Any) -> list[Layout]:
        return every(by_line(arguments, output))

    family.layouts = layouts
    return run
