"""Which groups of channels a pass may cut, and why the others stay; shared by the passes that cut channels."""

from __future__ import annotations

from typing import Protocol

import onnx_ir as ir

from onnxslim_core.channels.boxes import settle
from onnxslim_core.channels.groups import ChannelGraph, Group, atom_mass
from onnxslim_core.channels.trace import trace
from onnxslim_core.rewrite import Change, Context, Override, glob_for
from onnxslim_core.search.views import least_loss, maker_energy

from ._overrides import kept_by, unmatched

__all__ = ["analysed", "free_groups"]


class _Selective(Protocol):
    """A pass that leaves some groups alone."""

    @property
    def name(self) -> str:
        """As in a recipe."""

    @property
    def ignored(self) -> tuple[str, ...]:
        """Globs of groups that stay whole."""

    @property
    def override(self) -> tuple[Override, ...]:
        """Options of single groups."""


def analysed(model: ir.Model, context: Context, share: float, *, widths: bool = False) -> ChannelGraph:
    """The channel graph, seen in the way that loses least when the weakest share of it goes.

    Args:
        model: The model.
        context: Its first sample sets the sizes.
        share: In 0..1.
        widths: Whether norms and means over channels may lose some.

    Raises:
        UnsupportedModel: where sizes are not known.
    """
    flow = trace(model, context.samples[0] if context.samples else None, widths=widths)
    view = least_loss(maker_energy(flow), min(max(share, 0.1), 0.9))
    return ChannelGraph(flow, settle(flow.atoms, view, atom_mass(flow)))


def free_groups(step: _Selective, channels: ChannelGraph) -> tuple[list[Group], list[Change]]:
    """Groups that may be cut, and why the others may not."""
    groups, refused = [], unmatched(step.name, step.override, channels)
    for group in channels.groups:
        action = f"prune {group.width} channels"
        if not group.free.any():
            reason = "stays" if group.reason is None else f"{group.reason.node}: {group.reason.text}".lstrip(": ")
            refused.append(Change(step.name, (group.name,), action, reason=reason, guard="channels_are_free"))
        elif (glob := _ignored(step.ignored, group)) is not None:
            reason = f"'{glob}' is ignored"
            refused.append(Change(step.name, (group.name,), action, reason=reason, guard="not_ignored"))
        elif (glob := kept_by(step, group)) is not None:
            reason = f"an override keeps '{glob}'"
            refused.append(Change(step.name, (group.name,), action, reason=reason, guard="not_ignored"))
        else:
            groups.append(group)
    return groups, refused


def _ignored(globs: tuple[str, ...], group: Group) -> str | None:
    if not globs:
        return None
    names = {group.name, *(str(node.name) for node in (*group.producers, *group.consumers))}
    for use in group.uses:
        names |= {str(use.constant.name), str(use.node.name)}
    return glob_for(names, globs)
