"""Remove channels that do not count: zero, unread, constant and duplicate filters.

    sum_k W[:, k] * x_k + b,  x_k = 0 or W[:, k] = 0     ->  without k
    sum_k W[:, k] * x_k + b,  x_k = c                    ->  without k, b + W[:, k] * c
    sum_k W[:, k] * x_k + b,  x_k = x_r                  ->  without k, W[:, r] + W[:, k]

over everything that a channel reaches: a filter is idle only where all its readers agree. The constant that a dead
filter still emits is carried through BatchNormalization, activations, pooling, Concat and Add. Next to zero padding
a constant is none at the border; there all constants of one set of readers are merged into one filter that stays.
Heads of attention and groups of a Conv are tried whole first, then by width.

Exact up to rounding. Refuses what would leave a width off the grid of the CPU (`round_to`), since a model with
exactly its idle channels gone can be slower than before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

import onnx_ir as ir

from onnxslim_core.channels.boxes import inner, whole
from onnxslim_core.channels.groups import ChannelGraph, analyse
from onnxslim_core.channels.idle import Idle, find_idle, remove_idle_classes
from onnxslim_core.errors import RecipeError, UnsupportedModel
from onnxslim_core.rewrite import Change, Context, Kind
from onnxslim_core.search.grid import kept_classes

__all__ = ["RemoveIdle"]

_MOST_ROUNDS = 100


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveIdle:
    """Remove zero, constant and duplicate channels exactly."""

    name: ClassVar[str] = "remove_idle"
    kind: ClassVar[Kind] = Kind.ALGEBRAIC

    round_to: int | str = "auto"
    """Kept widths are rounded up to this many channels; `auto` is the CPU's grid, 1 removes all that is idle."""

    def __post_init__(self) -> None:
        if self.round_to != "auto" and not (isinstance(self.round_to, int) and self.round_to >= 1):
            raise RecipeError(f"round_to of remove_idle is '{self.round_to}'", "'auto' or a number of channels from 1")

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Alternate both views of heads and groups until neither finds anything."""
        sample = context.samples[0] if context.samples else None
        changes: list[Change] = []
        refused: dict[str, Change] = {}
        quiet, views = 0, (whole, inner)
        for turn in range(_MOST_ROUNDS):
            try:
                channels = analyse(model, sample, view=views[turn % 2])
            except UnsupportedModel as err:
                return [*changes, Change(self.name, (), "look for idle channels", reason=str(err), guard="sizes_known")]
            idle = find_idle(channels)
            chosen, found, refusals = self._choose(channels, idle)
            refused.update(refusals)
            if chosen:
                saved = remove_idle_classes(channels, idle, chosen)
                found[0] = replace(found[0], bytes_saved=saved)
                changes += found
            quiet = 0 if chosen else quiet + 1
            if quiet == len(views):
                break
        return changes + list(refused.values())

    def _choose(self, channels: ChannelGraph, idle: Idle) -> tuple[set[int], list[Change], dict[str, Change]]:
        """Idle classes that may go within the grid, group by group, with what to say about them."""
        everything = set(idle.all())
        chosen: set[int] = set()
        changes: list[Change] = []
        refused: dict[str, Change] = {}
        for group in channels.groups:
            mine = [root for root in idle.all() if root in everything and root in set(group.classes.tolist())]
            if not mine:
                continue
            kept = kept_classes(max(group.width - len(mine), 1), group.width, group.unit, self.round_to)
            goes = mine[: group.width - kept]
            unit = f" of {group.unit}" if group.unit > 1 else ""
            if len(goes) < len(mine) and not goes:
                refused[group.name] = Change(
                    self.name,
                    (group.name,),
                    f"remove {len(mine)} of {group.width} channels{unit}",
                    reason=f"{(group.width - len(mine)) * group.unit} is off the grid of the CPU and would be slower",
                    guard="width_on_grid",
                )
            if goes:
                chosen.update(goes)
                kinds = sorted({idle.kind(root) for root in goes})
                action = f"remove {len(goes)} of {group.width} channels{unit} ({', '.join(kinds)})"
                changes.append(Change(self.name, (group.name,), action, details={"removed": len(goes)}))
        return chosen, changes, refused
