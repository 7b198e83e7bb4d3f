"""The journal of a pass that does many small things: one record per kind of thing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnxslim_core.rewrite import Change

__all__ = ["records"]

_SHOWN = 8
"""Names of a group that go on record; `details["count"]` says how many there are."""


def records(
    name: str, done: Mapping[str, Sequence[str]], refused: Mapping[tuple[str, str], Sequence[str]], saved: int
) -> list[Change]:
    """One record per kind of thing, with a count and the first names."""
    changes = [
        Change(name, tuple(places[:_SHOWN]), action, details={"count": len(places)}) for action, places in done.items()
    ]
    if saved:
        changes.append(Change(name, (), "dropped weights", bytes_saved=saved))
    for (guard, reason), places in refused.items():
        unique = list(dict.fromkeys(places))
        where, count = tuple(unique[:_SHOWN]), len(unique)
        changes.append(Change(name, where, "left alone", reason=reason, guard=guard, details={"count": count}))
    return changes
