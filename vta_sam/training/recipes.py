"""What a job does to its config before it builds anything."""

from __future__ import annotations

from typing import Any

from ..errors import InputError

INDECISIVE = ("workers", "expected_s", "latents", "cache", "cache_gb")


def decisive(told: Any) -> Any:
    """A config without what changes no result: how many processes, how long it took elsewhere, where copies lie."""
    if isinstance(told, dict):
        return {key: decisive(value) for key, value in told.items() if key not in INDECISIVE}
    return told


FROM_DATA = "from_data"  # in a conditioner's config: a dimension that the dataset knows


def with_dimensions(recipe: Any, known: dict[str, Any]) -> Any:
    """A conditioner's recipe with the dataset's dimensions where it says ``from_data``."""
    if not isinstance(recipe, dict):
        return recipe
    unknown = [key for key, value in recipe.items() if value == FROM_DATA and key not in known]
    if unknown:
        raise InputError(f"{unknown[0]}: {FROM_DATA} can't be filled in; a dataset knows {', '.join(known)}")
    return {key: known[key] if value == FROM_DATA else with_dimensions(value, known) for key, value in recipe.items()}
