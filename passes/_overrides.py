"""Options of single groups of channels: what `[[pass.override]]` of a recipe says.

Names that a glob can fit are those of the nodes that make the channels of a group, and of their weights. Where several
overrides fit, the last one wins, option by option.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from onnxslim_core.channels.groups import ChannelGraph, Group
from onnxslim_core.rewrite import OVERRIDE_FITS, Change, Override, glob_for
from onnxslim_core.search.widths import Limits

__all__ = ["kept_by", "limits_of", "unmatched", "with_overrides"]


class _Overridden(Protocol):
    """A pass that takes overrides."""

    @property
    def override(self) -> tuple[Override, ...]:
        """Its overrides."""


_P = TypeVar("_P", bound=_Overridden)


class _Limited(_Overridden, Protocol):
    """A pass with limits to widths."""

    @property
    def round_to(self) -> int | str:
        """See `Limits`."""

    @property
    def max_ratio(self) -> float:
        """See `Limits`."""

    @property
    def min_width(self) -> int:
        """See `Limits`."""


def _makers(group: Group) -> list[str]:
    """Names of what makes the channels of a group."""
    weights = {str(use.constant.name) for use in group.uses if use.role == "out"}
    return sorted({group.name, *(str(node.name) for node in group.producers), *weights})


def with_overrides(step: _P, group: Group) -> _P:
    """The pass as it is for one group."""
    if not step.override:
        return step
    names, options = _makers(group), dict[str, Any]()
    for override in step.override:
        if override.glob_for(names) is not None:
            options |= override.options
    return replace(step, override=(), **options)  # type: ignore[type-var]


def limits_of(step: _Limited) -> Limits:
    """The limits of a pass to widths, group by group where it has overrides."""
    known: dict[str, Limits] = {}

    def of_group(group: Group) -> Limits:
        if group.name not in known:
            own = with_overrides(step, group)
            known[group.name] = Limits(own.round_to, own.max_ratio, own.min_width)
        return known[group.name]

    return Limits(step.round_to, step.max_ratio, step.min_width, of_group if step.override else None)


def kept_by(step: _Overridden, group: Group) -> str | None:
    """The glob of the last override that fits a group, where that one says `keep`."""
    if not step.override:
        return None
    names = _makers(group)
    fit = [(override, glob) for override in step.override if (glob := override.glob_for(names)) is not None]
    return fit[-1][1] if fit and fit[-1][0].keep else None


def unmatched(name: str, overrides: Sequence[Override], channels: ChannelGraph) -> list[Change]:
    """A refusal for every glob of an override that fits no group: most likely a name is wrong."""
    if not overrides:
        return []
    names = [maker for group in channels.groups for maker in _makers(group)]
    reason = "no node or weight that makes channels is called like that"
    return [
        Change(name, (glob,), "override", reason=reason, guard=OVERRIDE_FITS)
        for glob in dict.fromkeys(glob for override in overrides for glob in override.match)
        if glob_for(names, (glob,)) is None
    ]
