"""Which plans a server runs, and which budgets a request may ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..budget import Budget
from ..errors import FoveateError, KeepError, PlanError
from ..plan import Plan
from .limits import RequestError


@dataclass(frozen=True)
class Offer:
    """A plan that requests may use.

    Attributes:
        name: by which a request asks for it: its text, as it was given.
        draft: what :meth:`foveate.Plan.of` reads.
        keep: the budget of a request that names none; None if the plan has budgets of its own, which stay.
        caps: a request's budget may not be above the one with its unit.
        positions, split: see :func:`foveate.compress`.
    """

    name: str
    draft: Any
    keep: Budget | None
    caps: tuple[Budget, ...]
    positions: str | None = None
    split: str | None = None

    def plan(self, keep: object = None) -> Plan:
        """The plan under a budget.

        Raises:
            KeepError: if it cannot be read, or is above the cap.
            PlanError: if the plan's budgets are its own.
        """
        if keep is None:
            return Plan.of(self.draft, self.keep, self.positions, self.split)
        if self.keep is None:
            raise PlanError(f"the plan {self.name!r} has budgets of its own", hint="leave out foveate.keep")
        budget = Budget.parse(keep, self.split or "proportional")
        self.check(budget)
        return Plan.of(self.draft, budget, self.positions, self.split)

    def check(self, budget: Budget) -> None:
        """Raise a KeepError for a budget above the cap."""
        if any(cap.is_all for cap in self.caps):
            return
        written = ", ".join(map(str, self.caps))
        same = [cap for cap in self.caps if cap.unit == budget.unit]
        if not same:
            raise KeepError(
                f"keep={budget} cannot be compared with this server's cap, {written}",
                hint=f"a budget such as {written}",
            )
        if budget.amount > max(cap.amount for cap in same):
            raise KeepError(f"keep={budget} is above this server's cap, {written}", hint=f"at most {written}")


class Menu:
    """The plans of a server; the first is that of requests that name none.

    Args:
        plans: text, or :class:`foveate.Plan`.
        keep: budget of the step that names none, for all plans that have one.
        cap: budgets, with commas between them: the most that a request may ask for, in each unit. Without it, a
            request may ask for no more than its plan's budget.
        positions, split: see :func:`foveate.compress`.

    Raises:
        PlanError, KeepError: see :meth:`foveate.Plan.of`; a plan named twice; a plan's budget above the cap.
    """

    def __init__(
        self,
        plans: Sequence[str | Plan],
        keep: object = None,
        cap: str | None = None,
        positions: str | None = None,
        split: str | None = None,
    ) -> None:
        if not plans:
            raise PlanError("a server needs a plan", hint='--plan "divprune:keep=0.25"')
        caps = tuple(Budget.parse(_number(one)) for one in cap.split(",")) if cap else ()
        self.offers: dict[str, Offer] = {}
        for plan in plans:
            draft, own = _draft(plan, keep)
            offer = Offer(_name(plan), draft, own, caps or ((own,) if own else ()), positions, split)
            if offer.name in self.offers:
                raise PlanError(f"the plan {offer.name!r} is named twice", hint="leave one out")
            if own is not None:
                offer.check(own)
            offer.plan()
            self.offers[offer.name] = offer
        took = [o.keep is not None and o.draft is p for o, p in zip(self.offers.values(), plans, strict=True)]
        if keep is not None and not any(took):
            raise PlanError(f"keep={keep!r} was given, but every plan has its own", hint="leave one of them out")
        self.default = next(iter(self.offers.values()))

    def chosen(self, asked: Any) -> Plan:
        """The plan of a request.

        Args:
            asked: its field ``foveate``: None, or a mapping with ``plan`` (a name) and ``keep`` (a budget), both optional.

        Raises:
            RequestError: a field that does not exist, a plan that is not offered, a budget that is not allowed.
        """
        if asked is None:
            return self.default.plan()
        if not isinstance(asked, dict) or (unknown := set(asked) - {"plan", "keep"}):
            said = f"it has {', '.join(sorted(map(str, unknown)))}" if isinstance(asked, dict) else f"it is {asked!r}"
            raise RequestError(
                f"the field foveate is an object with keep, plan or both; {said}",
                param="foveate",
                hint='{"keep": 0.1} or {"keep": "64/image"}',
            )
        name, keep = asked.get("plan"), asked.get("keep")
        offer = self.default if name is None else self.offers.get(_name(name)) if isinstance(name, str) else None
        if offer is None:
            raise RequestError(
                f"this server does not run the plan {name!r}", param="foveate.plan", hint="; ".join(self.offers)
            )
        try:
            return offer.plan(keep)
        except FoveateError as error:
            raise RequestError(error.what, param="foveate.keep", hint=error.hint) from error

    def to_dict(self) -> list[dict[str, Any]]:
        """What may be asked for, for the pages about a server's state."""
        return [
            {
                "plan": offer.name,
                "keep": None if offer.keep is None else str(offer.keep),
                "cap": [str(cap) for cap in offer.caps] if offer.keep is not None else [],
                "positions": offer.plan().positions,
            }
            for offer in self.offers.values()
        ]


def _name(plan: str | Plan) -> str:
    return " > ".join(part.strip() for part in str(plan).split(">"))


def _draft(plan: str | Plan, keep: object) -> tuple[Any, Budget | None]:
    """A plan without the budget that a request may set, and that budget; the plan and None if there is none."""
    if keep is not None:
        budget = Budget.parse(keep)
        try:
            Plan.of(plan, budget)
        except PlanError:
            Plan.of(plan)  # it has budgets of its own, or is wrong in itself
        else:
            return plan, budget
    whole = Plan.of(plan)
    if len(whole.steps) == 1 and (own := whole.steps[0].keep) is not None:
        return replace(whole, steps=(replace(whole.steps[0], keep=None),)), own
    return plan, None


def _number(text: str) -> object:
    text = text.strip()
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        return text
