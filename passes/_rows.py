"""What can be decided in a plan: a unit per group of channels, residual branch and layer, with what each option loses.

Losses are those of the answers, on samples set aside, by running what follows with the weights it would have
(`calibration.tails`): a channel that goes is a row of zeros in its readers, solved anew; a branch that goes is zeros; a
layer in another form is the product of its factors, and a layer in int8 answers as onnxruntime has it, alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxslim_core.calibration.answers import answers_of
from onnxslim_core.calibration.batches import stacked
from onnxslim_core.calibration.consumers import Consumer, consumers_of, readers_of, weights_of
from onnxslim_core.calibration.diversity import advised_ridge, set_apart
from onnxslim_core.calibration.moments import Moments
from onnxslim_core.calibration.pieces import Swap
from onnxslim_core.calibration.sharing import layers_of
from onnxslim_core.calibration.study import study, too_large
from onnxslim_core.calibration.tails import Tails
from onnxslim_core.channels.branches import Branch, branches_of
from onnxslim_core.channels.groups import ChannelGraph, Group
from onnxslim_core.criteria.curves import Setting
from onnxslim_core.criteria.table import MEASURED, curve_of
from onnxslim_core.graph import label_of
from onnxslim_core.repair.least_squares import solve
from onnxslim_core.repair.without import without
from onnxslim_core.rewrite import Change, Context, Sample, glob_for
from onnxslim_core.search.bypass import Bypass, bypass_of, rows_of
from onnxslim_core.search.plan import Row, Unit
from onnxslim_core.search.widths import Limits

from ._precision import Precision, precision_units
from ._ranks import layers_for_ranks, rank_rows

__all__ = ["ALLOCATIONS", "FORMS", "Demand", "Options", "Width", "probed"]

ALLOCATIONS = ("uniform", "global", "macs", "latency", "sensitivity")
FORMS = ("width", "gone", "rank", "int8")

Reader = tuple[Consumer, Moments]

_PROBES = 128
"""Samples set aside to measure what single options and whole plans lose."""
_ANCHORS = (0.4, 0.75)
"""Shares of a group at which the loss is measured; in between the curve of the criterion is scaled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What is asked of the plan.

    Attributes:
        name: Of the pass, for the record.
        allocation: A word of `ALLOCATIONS`.
        target: Share kept of what the allocation counts: channels for `global`, seconds for `latency`, else
            multiply-adds. Not used by `uniform`.
        ratio: For `uniform`, the share of a group that goes.
        forms: Kinds of options: words of `FORMS`.
        criterion: The order in which channels of a group go.
        limits: The grid of widths and the least that stays.
        repair: A row of `REPAIRS`, or `none`.
        ignored: Globs over nodes; a branch that holds one of them stays.
        polish: Swaps tried per group once its width is settled (`criteria.random_search`).
    """

    name: str
    allocation: str
    target: float = 1.0
    ratio: Callable[[Group], float] = field(default=lambda group: 0.0)
    forms: tuple[str, ...] = ("width",)
    criterion: str
    limits: Limits
    repair: str
    ignored: tuple[str, ...] = ()
    polish: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Width:
    """The first classes of a group's order of removal."""

    group: Group
    classes: NDArray[np.int32]


class Options:
    """The units of a plan, and what is known of the model for them.

    Args:
        channels: The channel graph of the model.
        groups: Groups that may be cut.
        demand: What is asked.
        context: Samples and measuring.

    Attributes:
        units: What is decided.
        homes: Parallel to the units: the group, the branch, the layer that is split, or the layer that is int8.
        refused: Why other groups stay.
        tails: For what options lose.
        consumers: Linear nodes that read channels.
        all: All samples, in batches.
        probe: Those set aside, in batches.
        ridge: For all that is solved; see `diversity.advised_ridge`.
    """

    def __init__(self, channels: ChannelGraph, groups: Sequence[Group], demand: Demand, context: Context) -> None:
        self.channels, self.groups, self.demand, self.context = channels, groups, demand, context
        self.model = channels.flow.model
        fit, probe = probed(context)
        self.ridge = advised_ridge(context.origins, max((group.width for group in groups), default=1))
        self.fit, self.probe = stacked(self.model, fit), stacked(self.model, probe)
        self.all = stacked(self.model, context.samples)
        self.refused: list[Change] = []
        self.units: list[Unit] = []
        self.homes: list[Group | Branch | ir.Node | Precision] = []
        self.branches: list[Branch] = []
        self._bypasses: dict[Branch, tuple[Bypass, Moments]] = {}
        if "gone" in demand.forms:
            shapes = dict(channels.flow.shapes.shape)
            self.branches = [b for b in branches_of(self.model, shapes) if not _named(b.nodes, demand.ignored)]
        self._gather()

    def setting(self, group: Group, measure: Callable[[Sequence[int]], float] | None = None) -> Setting:
        """What a criterion is told."""
        return Setting(self.channels, group, self.context.seed, self.ridge, measure)

    def lost(self, model: ir.Model) -> float:
        """What a model loses on the probes: squared error of its answers over their variance."""
        return self.tails.answers().lost(answers_of(model, self.probe, self.context.threads))

    def refuse(self, where: str, action: str, guard: str, reason: str) -> None:
        self.refused.append(Change(self.demand.name, (where,), action, reason=reason, guard=guard))

    def _gather(self) -> None:
        """A unit per group and per branch, with what every row loses."""
        context, flow = self.context, self.channels.flow
        self.consumers = consumers_of(self.channels) if self.groups or "rank" in self.demand.forms else {}
        self._solvable = {node for layer in layers_of(self.consumers) for node in layer}
        self._moments = study(
            self.model, self.fit, self.consumers, seed=context.seed, threads=context.threads, progress=context.progress
        )
        readers = [self._readers(group) for group in self.groups]
        order = {node: place for place, node in enumerate(flow.model.graph)}
        asked: list[tuple[int, int, Any]] = []
        for number, (group, found) in enumerate(zip(self.groups, readers, strict=True)):
            if isinstance(found, str):
                self.refuse(group.name, f"prune {group.width} channels", "readers_solvable", found)
            elif "width" in self.demand.forms:
                asked.append((min(order[each.node] for each, _ in found), number, group))
        self._find_bypasses()
        for number, branch in enumerate(self.branches):
            bypass, _ = self._bypasses.get(branch, (None, None))
            asked.append((order[branch.add if bypass is None else bypass.maker], number, branch))
        if "rank" in self.demand.forms:
            layers = layers_for_ranks(self.model, self._moments)
            asked += [(order[n], i, n) for i, n in enumerate(layers) if not _named([n], self.demand.ignored)]
        asked.sort(key=lambda each: each[:2])
        mine = [found if isinstance(found, list) else [] for found in readers]

        def nodes_of(number: int, what: Group | Branch | ir.Node) -> list[ir.Node]:
            if isinstance(what, Group):
                return [each.node for each, _ in mine[number]]
            if isinstance(what, Branch):
                return [what.add, *([self._bypasses[what][0].maker] if what in self._bypasses else [])]
            return [what]

        sets = [nodes_of(number, what) for _, number, what in asked]
        self.tails = Tails(self.model, self.probe, sets, context.threads, parts=context.parts)
        for done, ((_, number, what), nodes) in enumerate(zip(asked, sets, strict=True)):
            context.progress("options", done, len(asked))
            if isinstance(what, Group):
                rows = self._widths(what, mine[number])
            elif isinstance(what, Branch):
                rows = self._gone(what)
            else:
                rows = rank_rows(what, self._moments[what], self.tails, self.channels)
            self.tails.done(nodes)
            if len(rows) > 1:
                self.units.append(Unit(label_of(what) if isinstance(what, ir.Node) else what.name, tuple(rows)))
                self.homes.append(what)
            elif isinstance(what, Group):
                reason = "no narrower width is on the grid or within the limits"
                self.refuse(what.name, "prune channels", "width_on_grid", reason)
        if "int8" in self.demand.forms:
            for unit, layer in precision_units(self.model, self.fit, self.probe, self.demand.ignored, context):
                self.units.append(unit)
                self.homes.append(layer)

    def _readers(self, group: Group) -> list[Reader] | str:
        """Every sum that reads the group with its moments, or why one of them cannot be solved for."""
        found = readers_of(self.channels, group, self.consumers)
        if isinstance(found, str):
            return found
        large = next(filter(None, map(too_large, found)), None)
        return large or [(each, self._moments[each.node]) for each in found]

    def _widths(self, group: Group, readers: list[Reader]) -> list[Row]:
        measure = None
        if self.demand.criterion in MEASURED:

            def measure(chosen: Sequence[int]) -> float:
                return self._damage(readers, np.array(chosen, np.int32))

        setting = self.setting(group, measure)
        curve = curve_of(self.demand.criterion, readers, group.classes[group.free], setting)
        kept = [r for r in range(1, len(curve.order) + 1) if self._fits(group, group.width - r)]
        if not kept:
            return [Row("keep", 0.0, 1.0)]
        if self.demand.allocation == "uniform":
            scale, anchors = [1.0], [1]
        else:
            anchors = self._anchors(kept, len(curve.order))
            scale = [self._damage(readers, curve.order[:r]) / max(float(curve.error[r]), 1e-12) for r in anchors]
        rows = [Row("keep", 0.0, 1.0)]
        for r in kept:
            loss = float(curve.error[r]) * float(np.exp(np.interp(r, anchors, np.log(np.maximum(scale, 1e-12)))))
            what = f"{group.width - r} of {group.width}"
            rows.append(Row(what, max(loss, rows[-1].loss), 1 - r / group.width, Width(group, curve.order[:r])))
        return rows

    def _anchors(self, kept: Sequence[int], count: int) -> list[int]:
        """Where the loss is measured: rows near some shares of the group."""
        return sorted({min(kept, key=lambda r: abs(r - share * count)) for share in _ANCHORS})

    def _fits(self, group: Group, width: int) -> bool:
        return self.demand.limits.kept(group, width) == width

    def _damage(self, readers: list[Reader], classes: NDArray[np.int32]) -> float:
        """What is lost without these classes, on the probes, all readers solved anew that will be."""
        swaps = {}
        for each, moments in readers:
            repair = "least_squares" if each.node in self._solvable else "none"
            swaps[each.node] = without(each, moments, classes, repair, self.ridge)
        return self.tails.lost(swaps)

    def _find_bypasses(self) -> None:
        """The layers that can take over what a branch does to its stream, with what they read and should answer."""
        shapes = self.channels.flow.shapes.shape
        found = {branch: bypass_of(branch, shapes) for branch in self.branches}
        mends = self.demand.repair != "none"
        known = {branch: bypass for branch, bypass in found.items() if bypass is not None and mends}
        context = self.context
        moments = rows_of(self.model, self.fit, list(known.values()), seed=context.seed, threads=context.threads)
        self._bypasses = {b: (bypass, m) for (b, bypass), m in zip(known.items(), moments, strict=True)}

    def _gone(self, branch: Branch) -> list[Row]:
        """A branch that goes, with the layer before it solved anew so that it takes over, where there is one."""
        swaps: dict[ir.Node, Swap] = {}
        if branch in self._bypasses:
            bypass, moments = self._bypasses[branch]
            swaps[bypass.maker] = solve(moments, weights_of(bypass.maker), self.ridge)
        loss = self.tails.lost(swaps, zeroed=branch.result)
        return [Row("keep", 0.0, 1.0), Row("gone", loss, 0.0, branch)]


def _named(nodes: Sequence[ir.Node], globs: Sequence[str]) -> bool:
    return glob_for([str(node.name) for node in nodes], globs) is not None


def probed(context: Context) -> tuple[list[Sample], list[Sample]]:
    """Samples to solve with, and others to measure what is lost: at most a fifth; where that is none, all are both."""
    samples = list(context.samples)
    share = min(_PROBES / len(samples), 0.2)
    fit, probe = set_apart(context, share)
    return (fit, probe) if len(samples) * share >= 1 and fit else (samples, samples)
