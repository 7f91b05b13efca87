"""Options by their dotted names, ``optimiser.lr``: put over a config, checked as a file's keys are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from typing import Any, TypeVar

from specalign.config import from_table
from specalign.errors import UserError

C = TypeVar("C")


def with_options(config: C, options: Mapping[str, Any], source: str) -> C:
    """The config with these options in the place of its own; errors say that they stand in ``source``.

    ``objective.hyper.beta`` is one entry of that table, ``objective.hyper`` the table as a whole.
    """
    for key, value in options.items():
        outer, _, last = key.rpartition(".")
        table = _at(config, outer)
        named = _nested(outer, {**table, last: value}) if isinstance(table, dict) else _nested(key, value)
        config = overlay(config, named, from_table(type(config), named, source))
    return config


def overlay(base: C, named: Mapping[str, Any], values: Any) -> C:
    """``base`` with the keys of ``named`` replaced: by the attributes of ``values``, or by their own values."""
    changes: dict[str, Any] = {}
    for key, value in named.items():
        inner = None if values is None else getattr(values, key)
        if is_dataclass(getattr(base, key)):
            if not isinstance(value, Mapping):
                raise UserError(f"{key} is a table of options, not {value!r}")
            changes[key] = overlay(getattr(base, key), value, inner)
        else:
            changes[key] = value if values is None else inner
    return replace(base, **changes)  # type: ignore[type-var]


def _at(config: Any, key: str) -> Any:
    """What stands at a dotted name; None where there is no such name."""
    for name in key.split("."):
        config = getattr(config, name, None)
    return config


def _nested(key: str, value: Any) -> dict[str, Any]:
    """The value in tables in tables."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return dict(value)
