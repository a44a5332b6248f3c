"""What steps between the language model's layers may look at: rows of attention, keys and states of text.

Queries and keys of the layer that ran last are at hand, whatever kernel used them. Only the rows a method asks for are
turned into attention again: O(rows x n), and nothing of it where no method asks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..errors import MethodError
from ..tokens import Extra
from .picture import content_of
from .seen import Seen
from .strip import Strip

if TYPE_CHECKING:
    from .prefill import Prefill

Look = Callable[[str, Strip, Tensor], Extra]


class _EnoughError(Exception):
    """Ends a layer's forward once its queries and keys are known."""


class Glance:
    """Gives views their extras. call: the prefill it belongs to."""

    def __init__(self, call: Prefill) -> None:
        self.call = call
        self.stops_at = -1  # layer that is run for its queries and keys alone

    def at(self, number: int, layer: nn.Module, states: Tensor, args: tuple, kwargs: dict[str, Any]) -> Look:
        """A function from (need, strip, (n,) columns) to an extra, before a layer. states: (b, fresh, d)."""
        call, behind = self.call, self.call.seen
        ahead, slots = list[Any](), list[Tensor]()

        def look(need: str, strip: Strip, columns: Tensor) -> Extra:
            row = strip.row
            asks = self.asks(strip)
            if need.startswith("first"):
                assert call.start is not None
                content = content_of(strip.picture.layout).to(strip.every.device)
                return Extra(call.start[row].detach()[asks if need == "first_text" else strip.every[content]], 0)
            if need == "text":
                return Extra(states[row].detach()[asks], number - 1)
            if need == "ahead_row":
                if not ahead:
                    ahead.append(self._ahead(number, layer, states, args, kwargs))
                seen = ahead[0]
            else:
                if behind is None or behind.layer != number - 1:
                    raise MethodError(f"{need!r} is read in the layer before, and there is none", hint="a later layer")
                seen = behind
            slots[:] = slots or [call.slots(states.device)]
            slot = slots[0][row]
            if need.endswith("keys"):
                key = seen.key[row]
                at = slot[columns if need == "layer_keys" else asks]
                rows = key[:, seen.first + at.clamp(min=0)] * (at >= 0)[:, None]
                return Extra(rows.transpose(0, 1).flatten(1), seen.layer, "all key heads side by side")
            if need == "text_text":
                return Extra(
                    seen.rows(row, slot[asks], slot[asks]), seen.layer, "text after the image, over all it sees"
                )
            one = need != "text_rows"
            weights = seen.rows(row, slot[asks[-1:] if one else asks], slot[columns])
            domain = ("last prompt token" if one else "text after the image") + ", over all it sees"
            return Extra(weights[:, 0] if one else weights, seen.layer, domain)

        return look

    def asks(self, strip: Strip) -> Tensor:
        """(q,) columns of the prompt's text after an image; if there is none, of the last token that is no padding."""
        text, valid = self.call.text[strip.row], self.call.valid[strip.row]
        after = text.clone()
        after[: int(strip.every[-1]) + 1] = False
        found = after.nonzero()[:, 0]
        if not len(found):
            found = (text if bool(text.any()) else valid).nonzero()[-1:, 0]
        return found

    def _ahead(self, number: int, layer: nn.Module, states: Tensor, args: tuple, kwargs: dict[str, Any]) -> Seen:
        """Queries and keys that a layer will have, were it run on what runs now."""
        call = self.call
        given, named = call.fitted(number, states, args, kwargs)
        self.stops_at = number
        try:
            layer.forward(*given, **{**named, "past_key_values": None, "use_cache": False})  # past our own hooks
        except _EnoughError:
            assert call.seen is not None
            return call.seen
        finally:
            self.stops_at = -1
        raise MethodError(f"layer {number} ran without its attention being read")

    def enough(self, number: int) -> None:
        """End the layer if it ran for its queries and keys alone."""
        if self.stops_at == number:
            raise _EnoughError
