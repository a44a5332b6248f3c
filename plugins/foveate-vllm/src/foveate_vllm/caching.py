"""Keys of caches: the same picture under two plans is not the same thing.

One engine has one plan, and its own caches. But caches of encoder outputs and of key/value blocks can be shared between
engines, or kept on disk, and look things up by the picture's hash alone.
"""

from __future__ import annotations

from typing import Any

from .plans import digest, plan_of


class Keyed:
    """Mixin of a multi-modal processor: the plan is part of every picture's hash, also where the caller gave an id."""

    info: Any

    def _get_mm_hashes(self, inputs: Any) -> Any:
        plan = plan_of(self.info.get_hf_config())
        found = super()._get_mm_hashes(inputs)  # type: ignore[misc]
        if plan is None:
            return found
        key = digest(plan)
        return {modality: [f"{one}-foveate-{key}" for one in hashes] for modality, hashes in found.items()}
