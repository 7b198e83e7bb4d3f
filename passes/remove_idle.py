"""Remove channels that do not count: zero, unread, constant and duplicate filters.

    sum_k W[:, k] * x_k + b,  x_k = 0 or W[:, k] = 0     ->  without k
    sum_k W[:, k] * x_k + b,  x_k = c                    ->  without k, b + W[:, k] * c
    sum_k W[:, k] * x_k + b,  x_k = x_r                  ->  without k, W[:, r] + W[:, k]

over everything that a channel reaches: a filter is idle only where all its readers agree. The constant that a dead
filter still emits is carried through BatchNormalization, activations, pooling, Concat and Add. Next to zero padding
a constant is none at the border; there all constants of one set of readers are merged into one filter that stays.
Heads of attention and groups of a Conv are tried whole first, then by width.

Exact up to rounding. Refuses what would leave a width off the grid of the CPU (`round_to`), since a model with
exactly its idle channels gone can be slower than before, and constants that a float16 bias cannot hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, final

import onnx_ir as ir

from onnxslim_core.channels.boxes import inner, whole
from onnxslim_core.channels.groups import ChannelGraph, Group, analyse
from onnxslim_core.channels.idle import Idle, Known, find_idle, idle_weight, remove_idle_classes
from onnxslim_core.channels.spotless import is_spotless
from onnxslim_core.errors import RecipeError, UnsupportedModel
from onnxslim_core.graph import all_nodes
from onnxslim_core.ops.table import makes_channels
from onnxslim_core.rewrite import Change, Context, Kind, Override, Sample
from onnxslim_core.search.grid import kept_classes

from ._overrides import kept_by, unmatched, with_overrides

__all__ = ["RemoveIdle"]

_MOST_ROUNDS = 100


@dataclass(frozen=True, slots=True)
class _Find:
    """Idle classes of one group, in the order in which they go."""

    group: Group
    classes: tuple[int, ...]
    unfit: frozenset[int]

    @property
    def action(self) -> str:
        """What would be done, for the record."""
        unit = f" of {self.group.unit}" if self.group.unit > 1 else ""
        return f"remove {len(self.classes)} of {self.group.width} channels{unit}"


def width_on_grid(find: _Find, options: RemoveIdle) -> str | None:
    """A width off the grid of onnxruntime's kernels can be slower than a wider one on it."""
    group, left = find.group, max(find.group.width - len(find.classes), 1)
    if kept_classes(left, group.width, group.unit, options.round_to) < group.width:
        return None
    return f"{left * group.unit} of {group.width * group.unit} is off the grid of widths that are not slower"


def numbers_fit(find: _Find, options: RemoveIdle) -> str | None:
    """A float16 bias holds no more than 65504: the constant would become inf."""
    unfit = find.unfit & set(find.classes)
    return f"what {len(unfit)} of them add is too large for the type of the weights" if unfit else None


Guard = Callable[[_Find, "RemoveIdle"], str | None]


def _has_sizes(model: ir.Model, sample: Sample | None) -> bool:
    """False where an analysis would have to say that it does not know how large the inputs are."""
    return sample is not None or all(v.shape is not None and v.shape.is_static() for v in model.graph.inputs)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveIdle:
    """Remove zero, constant and duplicate channels exactly."""

    name: ClassVar[str] = "remove_idle"
    kind: ClassVar[Kind] = Kind.ALGEBRAIC
    guards: ClassVar[tuple[Guard, ...]] = (numbers_fit, width_on_grid)
    per_group: ClassVar[tuple[str, ...]] = ("round_to",)

    round_to: int | str = "auto"
    """Kept widths are rounded up to this many channels; `auto` is the CPU's grid, 1 removes all that is idle."""
    override: tuple[Override, ...] = ()
    """Another `round_to` for the groups that a glob fits, or `keep = true`."""

    def __post_init__(self) -> None:
        if self.round_to != "auto" and not (isinstance(self.round_to, int) and self.round_to >= 1):
            raise RecipeError(f"round_to of remove_idle is '{self.round_to}'", "'auto' or a number of channels from 1")

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Alternate both views of heads and groups until neither finds anything, then ask where idle weight is."""
        sample = context.samples[0] if context.samples else None
        if not self.override and not any(map(makes_channels, all_nodes(model.graph))):
            return []
        if not self.override and _has_sizes(model, sample) and is_spotless(model):
            return []
        changes: list[Change] = []
        refused: dict[tuple[str, str], Change] = {}
        misnamed: list[Change] = []
        quiet, views = 0, (whole, inner)
        last: ChannelGraph | None = None
        known: Known | None = None
        for turn in range(_MOST_ROUNDS):
            try:
                channels = analyse(model, sample, view=views[turn % 2], flow=None if last is None else last.flow)
            except UnsupportedModel as err:
                return [*changes, Change(self.name, (), "look for idle channels", reason=str(err), guard="sizes_known")]
            if quiet == len(views) or (last is not None and channels.same_classes(last)):
                view = idle_weight(channels.flow, (known or Known(channels.flow)).consts)
                if view is None:
                    break  # there is one way to see this graph, and nothing was found in it
                channels, quiet = analyse(model, sample, view=view, flow=channels.flow), len(views)
            if not turn:
                misnamed = unmatched(self.name, self.override, channels)
            known = Known(channels.flow) if known is None else known
            idle = find_idle(channels, known)
            chosen, found, refusals = self._choose(channels, idle)
            if chosen:
                saved = remove_idle_classes(channels, idle, chosen)
                found[0] = replace(found[0], bytes_saved=saved)
                changes += found
                refused.clear()
            refused |= {(change.where[0], change.guard): change for change in refusals}
            quiet, last, known = (0, None, None) if chosen else (quiet + 1, channels, known)
            if quiet > len(views):
                break
        return [*changes, *refused.values(), *misnamed]

    def _choose(self, channels: ChannelGraph, idle: Idle) -> tuple[set[int], list[Change], list[Change]]:
        """Idle classes that may go, group by group, with what to say about them."""
        kinds, unfit = idle.kinds(), frozenset(idle.unfit)
        chosen: set[int] = set()
        changes: list[Change] = []
        refused: list[Change] = []
        for group in channels.groups:
            members, options = set(group.classes.tolist()), with_overrides(self, group)
            find = _Find(group, tuple(root for root in kinds if root in members), unfit)
            if find.classes and (glob := kept_by(self, group)) is not None:
                kept_whole = f"an override keeps '{glob}'"
                refused.append(Change(self.name, (group.name,), find.action, reason=kept_whole, guard="not_kept"))
                continue
            for guard in self.guards:
                if find.classes and (reason := guard(find, options)) is not None:
                    refused.append(Change(self.name, (group.name,), find.action, reason=reason, guard=guard.__name__))
                    fit = () if guard is width_on_grid else tuple(c for c in find.classes if c not in unfit)
                    find = replace(find, classes=fit)
            kept = max(group.width - len(find.classes), 1)
            if width_on_grid in self.guards:
                kept = kept_classes(kept, group.width, group.unit, options.round_to)
            find = replace(find, classes=find.classes[: group.width - kept])
            if find.classes:
                chosen.update(find.classes)
                words = ", ".join(sorted({kinds[root] for root in find.classes}))
                details = {"removed": len(find.classes)}
                changes.append(Change(self.name, (group.name,), f"{find.action} ({words})", details=details))
        return chosen, changes, refused
