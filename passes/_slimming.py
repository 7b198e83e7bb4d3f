"""The engine behind `slim`, `prune_channels` with samples and `drop_blocks`: options of all kinds in one plan.

    study    one pass of the samples: what every reader of channels sums over (moments)
    rows     per group the widths on the grid, per residual branch "gone": what each loses, measured on samples of
             their own by running the tail of the network with the weights it would have (`calibration.tails`)
    costs    multiply-adds, or the time of the parts at those widths (`measure.pieces`)
    choose   the rows of least loss under the target (`search.plan`)
    carry    cut, drop, solve the readers anew (`repair.sequential`); the same share everywhere competes, and what
             loses less on the samples set aside is what is kept

Under a latency target the cut model is timed against the original and the target of the plan moved until the ratio is
met: parts alone do not add up to the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from onnxslim_core.calibration.batches import stacked
from onnxslim_core.calibration.consumers import (
    Consumer,
    answer_of,
    bias_of,
    consumers_of,
    is_linear,
    kept_outputs,
    note_kept,
    put_weights,
    readers_of,
    target_of,
    weights_of,
)
from onnxslim_core.calibration.diversity import advised_ridge, halves
from onnxslim_core.calibration.moments import Moments
from onnxslim_core.calibration.pieces import Swap
from onnxslim_core.calibration.study import study
from onnxslim_core.calibration.tails import Tails
from onnxslim_core.channels.branches import Branch, branches_of, drop
from onnxslim_core.channels.groups import ChannelGraph, Group
from onnxslim_core.channels.removal import remove_atoms
from onnxslim_core.channels.trace import trace
from onnxslim_core.channels.twin import twin_of
from onnxslim_core.criteria.curves import Setting
from onnxslim_core.criteria.table import MEASURED, curve_of
from onnxslim_core.graph import is_op, label_of
from onnxslim_core.lowrank.forms import weights_like
from onnxslim_core.measure.pieces import Table, cache_folder
from onnxslim_core.measure.session import open_session, run
from onnxslim_core.model import wrap
from onnxslim_core.repair.least_squares import solve
from onnxslim_core.repair.sequential import Refit
from onnxslim_core.rewrite import Change, Context, Sample
from onnxslim_core.search.plan import Costs, Row, Term, Unit, choose, loss_of
from onnxslim_core.search.segments import segment_of, segment_of_nodes
from onnxslim_core.search.widths import Limits

from ._ranks import Rank, layers_for_ranks, rank_rows, split_layers, split_like, variants_of

__all__ = ["ALLOCATIONS", "FORMS", "Demand", "Slimming"]

ALLOCATIONS = ("uniform", "global", "macs", "latency", "sensitivity")
FORMS = ("width", "gone", "rank")

Reader = tuple[Consumer, Moments]
Choice = tuple[int, ...]

_PROBES = 128
"""Samples set aside to measure what single options and whole plans lose."""
_ANCHORS = (0.4, 0.75)
"""Shares of a group at which the loss is measured; in between the curve of the criterion is scaled."""
_NEAR = 1.5
"""A plan that is predicted to lose more than so many times the best is not mended to be compared."""
_POSITIONS = 24
_ENOUGH = 10
"""Rows per weight that a last layer needs, to be solved for although nothing it reads went."""
_ROUNDS = 5
"""Plans that are cut and timed, at most, until a latency target is met."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What is asked of the plan.

    Attributes:
        name: Of the pass, for the record.
        allocation: A word of `ALLOCATIONS`.
        target: Share kept of what the allocation counts: channels for `global`, seconds for `latency`, else
            multiply-adds. Not used by `uniform`.
        ratio: For `uniform`, the share of a group that goes.
        forms: Kinds of options: "width", "gone".
        criterion: The order in which channels of a group go.
        limits: The grid of widths and the least that stays.
        repair: A row of `REPAIRS`, or `none`.
        ignored: Globs over nodes; a branch that holds one of them stays.
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


@dataclass(frozen=True, slots=True, eq=False)
class _Width:
    """The first classes of a group's order of removal."""

    group: Group
    classes: NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class _Mended:
    """What a plan comes to.

    Attributes:
        choice: The plan.
        classes: What goes.
        weights: By name of a linear node its new weights and bias, at full width.
        lost: Measured on the probes.
    """

    choice: Choice
    classes: list[int]
    weights: dict[str, Swap]
    lost: float


class Slimming:
    """One plan for one model.

    Args:
        channels: The channel graph of the model; the model is changed only by `run`, at the end.
        groups: Groups that may be cut.
        demand: What is asked.
        context: Samples and measuring.
    """

    def __init__(self, channels: ChannelGraph, groups: Sequence[Group], demand: Demand, context: Context) -> None:
        self.channels, self.groups, self.demand, self.context = channels, groups, demand, context
        self.model = channels.flow.model
        fit, probe = _set_apart(context)
        self._ridge = advised_ridge(context.origins, max((group.width for group in groups), default=1))
        self.fit, self.probe = stacked(self.model, fit), stacked(self.model, probe)
        self.all = stacked(self.model, context.samples)
        self.refused: list[Change] = []
        self.units: list[Unit] = []
        self._homes: list[Group | Branch | ir.Node] = []
        self._branches: list[Branch] = []
        if "gone" in demand.forms:
            shapes = dict(channels.flow.shapes.shape)
            self._branches = [b for b in branches_of(self.model, shapes) if not _named(b.nodes, demand.ignored)]

    def run(self) -> list[Change]:
        """Plan, carry out, and say what was done."""
        with threadpool_limits(self.context.threads):
            self._gather()
            if not self.units:
                return self.refused
            if self.demand.allocation == "uniform":
                return self._finish([self._same_share(self.demand.ratio)], self._costs())
            if self.demand.allocation == "latency":
                return self._timed(self._costs())
            return self._best(self._costs())

    def drop_one_by_one(self, count: int) -> list[Change]:
        """Drop the branch that costs least, then the one that costs least without it, and so on."""
        with threadpool_limits(self.context.threads):
            self._gather()
            if not self.units:
                reason = "no branch starts from the very tensor that it is added to, and serves nothing else"
                return [Change(self.demand.name, (), "drop blocks", reason=reason, guard="has_blocks")]
            losses = {number: unit.rows[1].loss for number, unit in enumerate(self.units)}
            gone: list[int] = []
            while losses and len(gone) < count:
                self.context.progress("drop blocks", len(gone), count)
                gone.append(min(losses, key=lambda number: losses[number]))
                losses = self._without(gone) if len(gone) < count else {}
            choice = tuple(int(number in gone) for number in range(len(self.units)))
            return self._finish([choice], self._costs())

    def _without(self, gone: Sequence[int]) -> dict[int, float]:
        """What each further branch would cost, with these gone; by number of the unit."""
        work = self.model.clone()
        branches = _here(work, self._branches)
        for number in gone:
            drop(work, branches[number])
        left = [number for number in range(len(branches)) if number not in gone]
        tails = Tails(work, self.probe, [[branches[n].add] for n in left], self.context.threads, self.tails.answers())
        found = {}
        for number in left:
            found[number] = tails.lost({}, zeroed=branches[number].result)
            tails.done([branches[number].add])
        return found

    # ------------------------------------------------------------------------------------------ rows
    def _gather(self) -> None:
        """A unit per group and per branch, with what every row loses."""
        context, flow = self.context, self.channels.flow
        self._consumers = consumers_of(self.channels) if self.groups or "rank" in self.demand.forms else {}
        self._moments = study(
            self.model, self.fit, self._consumers, seed=context.seed, threads=context.threads, progress=context.progress
        )
        readers = [self._readers(group) for group in self.groups]
        order = {node: place for place, node in enumerate(flow.model.graph)}
        asked: list[tuple[int, int, Any]] = []
        for number, (group, found) in enumerate(zip(self.groups, readers, strict=True)):
            if isinstance(found, str):
                self._refuse(group.name, f"prune {group.width} channels", "readers_solvable", found)
            elif "width" in self.demand.forms:
                asked.append((min(order[each.node] for each, _ in found), number, group))
        asked += [(order[branch.add], number, branch) for number, branch in enumerate(self._branches)]
        if "rank" in self.demand.forms:
            layers = layers_for_ranks(self.model, self._moments)
            asked += [(order[n], i, n) for i, n in enumerate(layers) if not _named([n], self.demand.ignored)]
        asked.sort(key=lambda each: each[:2])
        mine = [found if isinstance(found, list) else [] for found in readers]

        def nodes_of(number: int, what: Group | Branch | ir.Node) -> list[ir.Node]:
            if isinstance(what, Group):
                return [each.node for each, _ in mine[number]]
            return [what.add] if isinstance(what, Branch) else [what]

        sets = [nodes_of(number, what) for _, number, what in asked]
        self.tails = Tails(self.model, self.probe, sets, context.threads)
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
                self._homes.append(what)
            elif isinstance(what, Group):
                reason = "no narrower width is on the grid or within the limits"
                self._refuse(what.name, "prune channels", "width_on_grid", reason)

    def _readers(self, group: Group) -> list[Reader] | str:
        """Every sum that reads the group with its moments, or why one of them cannot be solved for."""
        found = readers_of(self.channels, group, self._consumers)
        if isinstance(found, str):
            return found
        large = next((each.node for each in found if each.node not in self._moments), None)
        if large is not None:
            return f"{label_of(large)} has too many inputs per output to be solved for"
        return [(each, self._moments[each.node]) for each in found]

    def _widths(self, group: Group, readers: list[Reader]) -> list[Row]:
        measure = None
        if self.demand.criterion in MEASURED:

            def measure(chosen: Sequence[int]) -> float:
                return self._damage(readers, np.array(chosen, np.int32))

        setting = Setting(self.channels, group, self.context.seed, self._ridge, measure)
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
            rows.append(Row(what, max(loss, rows[-1].loss), 1 - r / group.width, _Width(group, curve.order[:r])))
        return rows

    def _anchors(self, kept: Sequence[int], count: int) -> list[int]:
        """Where the loss is measured: rows near some shares of the group."""
        return sorted({min(kept, key=lambda r: abs(r - share * count)) for share in _ANCHORS})

    def _fits(self, group: Group, width: int) -> bool:
        return self.demand.limits.kept(group, width) == width

    def _damage(self, readers: list[Reader], classes: NDArray[np.int32]) -> float:
        """What is lost without these classes, their readers solved anew, on the probes."""
        return self.tails.lost(
            {each.node: _solved_without(each, moments, classes, self._ridge) for each, moments in readers}
        )

    def _gone(self, branch: Branch) -> list[Row]:
        loss = self.tails.lost({}, zeroed=branch.result)
        return [Row("keep", 0.0, 1.0), Row("gone", loss, 0.0, branch)]

    # ------------------------------------------------------------------------------------------ costs
    def _costs(self) -> Costs:
        """What the allocation counts: multiply-adds by layer, seconds by layer from timed parts, or channels."""
        channels = self.channels
        if self.demand.allocation == "global":
            sizes = [what.width * what.unit if isinstance(what, Group) else 0 for what in self._homes]
            return Costs(tuple(Term(float(size), ({number: 1.0},)) for number, size in enumerate(sizes)))
        home = np.full(len(channels.classes.of), -1, np.int32)
        inside: dict[ir.Node, int] = {}
        ranked: dict[ir.Node, int] = {}
        for number, what in enumerate(self._homes):
            if isinstance(what, Group):
                home[what.classes] = number
            elif isinstance(what, ir.Node):
                ranked[what] = number
            else:
                inside |= dict.fromkeys(what.nodes, number)
        terms, works = [], []
        for work in channels.works:
            factors: list[dict[int, float]] = []
            for labels in work.factors:
                units, counts = np.unique(home[channels.of(labels)], return_counts=True)
                parts = {int(u): float(c) / labels.size for u, c in zip(units, counts, strict=True) if u >= 0}
                if parts:
                    factors.append(parts)
            if work.node in inside:
                factors.append({inside[work.node]: 1.0})
            if work.node in ranked:
                factors.append({ranked[work.node]: 1.0})
            if factors:
                terms.append(Term(float(work.macs), tuple(factors)))
                works.append(work.node)
        if self.demand.allocation == "latency":
            return self._seconds(terms, works)
        return Costs(tuple(terms), channels.macs() - sum(term.base for term in terms))

    def _seconds(self, terms: list[Term], works: list[ir.Node]) -> Costs:
        """Terms in seconds: each part's time is shared among its layers by their multiply-adds."""
        table = Table(self.context.threads, cache_folder())
        weight = {node: term.base for node, term in zip(works, terms, strict=True)}
        found: dict[ir.Node, list[float]] = {}
        for number, what in enumerate(self._homes):
            self.context.progress("timing", number, len(self._homes))
            if isinstance(what, Branch):
                continue
            rows = self.units[number].rows
            if isinstance(what, Group):
                segment = segment_of(self.channels, what)
                widths = [what.width - len(row.payload.classes) for row in rows[1:]]
                variants = None if segment is None else segment.at_widths(what, widths)
            else:
                segment = segment_of_nodes(self.channels, [what])
                variants = None if segment is None else variants_of(segment, rows[1:])
            if segment is None or variants is None:
                # nobody knows what these widths would save, so they are no options
                self.units[number] = Unit(self.units[number].name, rows[:1])
                reason = "the part of the model in which it lives cannot be timed alone"
                self._refuse(self.units[number].name, "make it narrower", "part_timed", reason)
                continue
            full, *left = table.left(segment.proto, variants, segment.sample)
            own = [node for node in segment.nodes if node in weight]
            total = sum(weight[node] for node in own)
            for node in own if isinstance(what, Group) else []:
                found.setdefault(node, []).append(full * weight[node] / max(total, 1.0))
            # a smaller width that is not faster is no option, but a plan may pass over it
            new = tuple(
                Row(row.what, row.loss, share, row.payload) for row, share in zip(rows, [1.0, *left], strict=True)
            )
            self.units[number] = Unit(self.units[number].name, new)
        table.save()
        rate = _median([float(np.mean(s)) / weight[node] for node, s in found.items() if weight[node]])
        timed = [
            Term(float(np.mean(found[node])) if node in found else term.base * rate, term.factors)
            for term, node in zip(terms, works, strict=True)
        ]
        others = self.channels.macs() - sum(term.base for term in terms)
        return Costs(tuple(timed), others * rate)

    # ------------------------------------------------------------------------------------------ choice
    def _best(self, costs: Costs) -> list[Change]:
        """The plan under a target that can be counted, beside the same share everywhere."""
        target = self.demand.target * costs.total(self.units, (0,) * len(self.units))
        if self.demand.allocation == "sensitivity":
            choice = self._common_loss(costs, target)
        else:
            choice = choose(self.units, costs, target)
        if choice is None:
            return [self._unreached(costs), *self.refused]
        rivals = [choice] if self.demand.allocation == "sensitivity" else [choice, self._uniform(costs, target)]
        return self._finish(rivals, costs)

    def _common_loss(self, costs: Costs, target: float) -> Choice | None:
        """Every unit as narrow as one threshold on its own loss allows, the least threshold that meets the target."""
        levels = sorted({row.loss for unit in self.units for row in unit.rows})

        def under(level: float) -> Choice:
            return tuple(
                min((i for i, row in enumerate(unit.rows) if row.loss <= level), key=lambda i: (unit.rows[i].left, i))
                for unit in self.units
            )

        low, high = 0, len(levels) - 1
        while low < high:
            middle = (low + high) // 2
            if costs.total(self.units, under(levels[middle])) <= target:
                high = middle
            else:
                low = middle + 1
        choice = under(levels[low])
        return choice if costs.total(self.units, choice) <= target else None

    def _timed(self, costs: Costs) -> list[Change]:
        """The plan under a latency target: planned, cut and timed until the ratio is met."""
        demand = self.demand
        if self.context.latency is None:
            reason = "allocation 'latency' needs timing: leave out --no-latency"
            return [Change(demand.name, (), "plan by latency", reason=reason, guard="timing_on"), *self.refused]
        full = costs.total(self.units, (0,) * len(self.units))
        low, high, target = 0.0, 1.0, demand.target
        met: Choice | None = None
        seen: dict[Choice, float] = {}
        for number in range(_ROUNDS):
            self.context.progress("plan by latency", number, _ROUNDS)
            choice = choose(self.units, costs, target * full)
            if choice is None:
                low = target
            else:
                if choice not in seen:
                    timing = self.context.latency(self.model, self._cut(choice))
                    seen[choice] = timing.ratio
                if seen[choice] <= demand.target:
                    met, low = choice, target
                else:
                    high = target
            ratio = seen.get(choice, float("nan")) if choice is not None else float("nan")
            guess = target * demand.target / ratio if ratio == ratio else (low + high) / 2
            target = guess if low < guess < high else (low + high) / 2
            if high - low < 0.01:
                break
        if met is None:
            least = min(seen.values(), default=1.0)
            reason = f"the fastest plan within the limits was measured at {least:.2f} of the time"
            what = f"take no more than {demand.target:g} of the time"
            return [Change(demand.name, (), what, reason=reason, guard="target_reachable"), *self.refused]
        rivals = [met]
        uniform = self._uniform(costs, costs.total(self.units, met))
        if uniform not in (None, met):
            timing = self.context.latency(self.model, self._cut(uniform))
            rivals += [uniform] if timing.ratio <= demand.target else []
        return self._finish(rivals, costs, {"latency_planned": seen[met]})

    def _uniform(self, costs: Costs, target: float) -> Choice | None:
        """The same share of every group, as little as meets the target; None where no share does."""
        for percent in range(1, 100):
            share = percent / 100
            choice = self._same_share(partial(_same, share))
            if costs.total(self.units, choice) <= target:
                return choice
        return None

    def _same_share(self, ratio: Callable[[Group], float]) -> Choice:
        """So much of every group, rounded up to what stays; blocks stay."""
        choice = []
        for unit, what in zip(self.units, self._homes, strict=True):
            row = 0
            if isinstance(what, Group):
                wanted = self.demand.limits.kept(what, int(np.ceil(what.width * (1 - ratio(what)) - 1e-9)))
                gone = [0, *(len(each.payload.classes) for each in unit.rows[1:])]
                row = max(i for i, count in enumerate(gone) if count <= what.width - wanted)
            choice.append(row)
        return tuple(choice)

    def _unreached(self, costs: Costs) -> Change:
        least = tuple(int(np.argmin([row.left for row in unit.rows])) for unit in self.units)
        share = costs.total(self.units, least) / costs.total(self.units, (0,) * len(self.units))
        counted = "channels that may go" if self.demand.allocation == "global" else "multiply-adds"
        limits = "round_to, max_ratio, min_width and what is free"
        reason = f"at least {share:.3f} of the {counted} stay within {limits}"
        what = f"keep no more than {self.demand.target:g} of the {counted}"
        return Change(self.demand.name, (), what, reason=reason, guard="target_reachable")

    # ------------------------------------------------------------------------------------------ carrying out
    def _finish(
        self, choices: Sequence[Choice | None], costs: Costs, details: dict[str, Any] | None = None
    ) -> list[Change]:
        """Mend every candidate; the one that loses least on the probes is done to the model, with all samples."""
        candidates = list(dict.fromkeys(choice for choice in choices if choice is not None and any(choice)))
        if not candidates:
            reason = "the model is within the target as it is"
            return [Change(self.demand.name, (), "plan", reason=reason, guard="worth_cutting"), *self.refused]
        near = _NEAR * min(loss_of(self.units, choice) for choice in candidates)
        built = [self._mended(choice) for choice in candidates if loss_of(self.units, choice) <= near]
        best = min(built, key=lambda each: each.lost)
        shown = {
            "predicted_loss": {str(n): loss_of(self.units, each) for n, each in enumerate(candidates)},
            "measured_loss": best.lost,
            "cost_ratio": costs.total(self.units, best.choice) / costs.total(self.units, (0,) * len(self.units)),
            "nodes_solved": len(best.weights),
            **(details or {}),
        }
        return [*self._tell(best.choice), self._carry_out(best, shown), *self.refused]

    def _mended(self, choice: Choice) -> _Mended:
        """What a plan comes to: the classes that go, and the weights of every reader solved anew, one after the other.

        The copy on which this is found keeps its full widths. What goes has rows of zeros, and which channels these
        are is decided only when their reader is reached, on what it reads by then.
        """
        work = self.model.clone()
        widths, branches, ranks = self._chosen(choice)
        for branch in _here(work, branches):
            drop(work, branch)
        twins = {str(node.name): node for node in work.graph}
        for rank in ranks:
            put_weights(work, twins[rank.name], *weights_like(rank.node, rank.offer))
        at_once: dict[str, tuple[Group, Consumer, int]] = {}
        rows: dict[str, NDArray[np.bool_]] = {}
        classes: list[int] = []
        for width in widths:
            readers = readers_of(self.channels, width.group, self._consumers)
            assert not isinstance(readers, str)
            late = len(readers) == 1 and self.demand.criterion not in MEASURED and self.demand.repair != "none"
            if late:
                at_once[str(readers[0].node.name)] = width.group, readers[0], len(width.classes)
                continue
            classes += [int(root) for root in width.classes]
            for each in readers:
                own = np.repeat(~np.isin(each.classes, width.classes), each.taps)
                rows[str(each.node.name)] = rows.get(str(each.node.name), True) & own

        def stays(node: ir.Node, moments: Moments) -> NDArray[np.bool_] | None:
            name = str(node.name)
            found = rows.get(name)
            if name in at_once:
                group, consumer, count = at_once[name]
                setting = Setting(self.channels, group, self.context.seed, self._ridge)
                free = group.classes[group.free]
                goes = curve_of(self.demand.criterion, [(consumer, moments)], free, setting).order[:count]
                classes.extend(int(root) for root in goes)
                mine = np.repeat(~np.isin(consumer.classes, goes), consumer.taps)
                found = mine if found is None else found & mine
            return found

        nodes = [*at_once, *rows, *self._last_layers()]
        more, targets = self._around(branches)
        nodes += more
        if self.demand.repair == "none":
            for node in work.graph:
                if (used := rows.get(str(node.name))) is not None:
                    put_weights(work, node, weights_of(node) * used[:, None], _own_bias(node))
            return _Mended(choice, classes, {}, self._lost(work))
        job = Refit(
            self.model,
            work,
            self.all,
            {},
            list(dict.fromkeys(nodes)),
            seed=self.context.seed,
            threads=self.context.threads,
            repair=self.demand.repair,
            ridge=self._ridge,
            targets=targets,
            stays=stays,
        )
        job.run(self.context.progress)
        weights = {str(node.name): (weights_of(node), _own_bias(node)) for node in job.mended}
        return _Mended(choice, classes, weights, self._lost(work))

    def _around(self, branches: Sequence[Branch]) -> tuple[list[str], dict[str, str]]:
        """Who makes up for branches that go, and what for.

        The layer before a branch takes over what the branch did to the stream, so its sum is to be like the sum at the
        end of the branch; each later end of a branch corrects the stream that has lost one.
        """
        ends = {branch.add: branch for branch in branches}
        targets: dict[str, str] = {}
        names = []
        for branch in branches:
            stream, like = branch.shortcut, str(branch.add.outputs[0].name)
            while True:
                source = stream.producer()
                if is_op(source, "Relu") and source is not None:
                    stream = source.inputs[0]  # type: ignore[assignment]
                    source = stream.producer()
                if source is None or source not in ends:
                    break
                stream = ends[source].shortcut
            targets[str(stream.name)] = like
            if source is not None:
                makers = [source] if is_linear(source) else [v.producer() for v in source.inputs if v is not None]
                names += [str(maker.name) for maker in makers if maker is not None and is_linear(maker)]
        after = False
        for node in self.model.graph:
            after = after or node in ends
            if after and is_linear(node) and target_of(node)[1] is not None:
                names.append(str(node.name))
        return names, targets

    def _last_layers(self) -> list[str]:
        """Linear nodes whose answer is an answer of the model, where the samples say enough to solve for them.

        They see all that was lost before them, and their target is what counts in the end.
        """
        found = []
        for node in self.model.graph:
            if not is_linear(node) or not answer_of(node).is_graph_output():
                continue
            shape = self.channels.flow.shapes.shape.get(node.outputs[0], ())
            places = int(np.prod(shape[2:] if node.op_type.startswith("Conv") else shape[1:-1]))
            if len(self.context.samples) * min(places, _POSITIONS) >= _ENOUGH * len(weights_of(node)):
                found.append(str(node.name))
        return found

    def _chosen(self, choice: Choice) -> tuple[list[_Width], list[Branch], list[Rank]]:
        """The payloads of a choice, by kind; what is in a branch that goes is not split."""
        payloads = [unit.rows[row].payload for unit, row in zip(self.units, choice, strict=True)]
        branches = [p for p in payloads if isinstance(p, Branch)]
        gone = {node for branch in branches for node in branch.nodes}
        ranks = [p for p in payloads if isinstance(p, Rank) and p.node not in gone]
        return [p for p in payloads if isinstance(p, _Width)], branches, ranks

    def _cut(self, choice: Choice) -> ir.Model:
        """The plan's widths and blocks on a copy, to be timed; nothing is solved for."""
        work = self.model.clone()
        channels = twin_of(self.channels, work)
        widths, branches, ranks = self._chosen(choice)
        ends = _here(work, branches)
        remove_atoms(channels, channels.gone([int(root) for width in widths for root in width.classes]))
        for branch in ends:
            drop(work, branch)
        twins = {str(node.name): node for node in work.graph}
        for rank in ranks:
            split_like(work, twins[rank.name], rank)
        return work

    def _carry_out(self, best: _Mended, shown: dict[str, Any]) -> Change:
        """Do to the model what was found: new weights at their full width, then the cut, then the blocks."""
        _, branches, ranks = self._chosen(best.choice)
        reference = self.model.clone() if ranks else self.model
        nodes = {str(node.name): node for node in self.model.graph}
        for name, (weights, bias) in best.weights.items():
            put_weights(self.model, nodes[name], weights, bias)
        flow = trace(self.model, self.context.samples[0], widths=self.channels.flow.widths)
        channels = ChannelGraph(flow, self.channels.classes)
        gone = channels.gone(best.classes)
        macs = channels.macs(gone)
        kept = kept_outputs(channels, gone)
        saved = remove_atoms(channels, gone)
        note_kept(self.model, kept)
        for branch in _here(self.model, branches):
            drop(self.model, branch)
        if ranks:
            count = split_layers(self.model, ranks, reference, self.all, self.context, self.demand.repair)
            shown = {**shown, "split": count, "measured_loss": self._lost(self.model)}
        what = f"remove {len(best.classes)} channels in all, repair {self.demand.repair}"
        what = f"split {len(ranks)} layers and {what}" if ranks else what
        what = f"drop {len(branches)} blocks and {what}" if branches else what
        details = {"macs_ratio": macs / max(self.channels.macs(), 1), **shown} if not branches else shown
        return Change(self.demand.name, (), what, bytes_saved=saved, details=details)

    def _lost(self, model: ir.Model) -> float:
        session = open_session(wrap(model), threads=self.context.threads)
        return self.tails.answers().lost([run(session, batch) for batch in self.probe])

    # ------------------------------------------------------------------------------------------ record
    def _tell(self, choice: Choice) -> list[Change]:
        changes = []
        for unit, row, what in zip(self.units, choice, self._homes, strict=True):
            chosen = unit.rows[row]
            if len(unit.rows) == 1:
                continue
            if row == 0:
                action = "split the layer" if isinstance(what, ir.Node) else "drop the block"
                action = f"prune {what.width} channels" if isinstance(what, Group) else action
                reason = "the plan takes as much elsewhere, where less is lost"
                changes.append(Change(self.demand.name, (unit.name,), action, reason=reason, guard="worth_cutting"))
                continue
            details: dict[str, Any] = {"predicted_loss": chosen.loss}
            action = f"split it: {chosen.what}" if isinstance(what, ir.Node) else "drop the block"
            if isinstance(what, Group):
                removed = len(chosen.payload.classes)
                of = f" of {what.unit}" if what.unit > 1 else ""
                action = f"remove {removed} of {what.width} channels{of}"
                details["removed"] = removed
            changes.append(Change(self.demand.name, (unit.name,), action, details=details))
        return changes

    def _refuse(self, where: str, action: str, guard: str, reason: str) -> None:
        self.refused.append(Change(self.demand.name, (where,), action, reason=reason, guard=guard))


def _solved_without(consumer: Consumer, moments: Moments, classes: NDArray[np.int32], ridge: float | None) -> Swap:
    """The best weights and bias of a reader with the rows of these classes zero, from the original's own moments."""
    start = weights_of(consumer.node)
    stays = np.repeat(~np.isin(consumer.classes, classes), consumer.taps)
    weights = np.zeros_like(start)
    weights[stays], bias = solve(moments.only(stays), start[stays], ridge)
    return weights, bias


def _same(share: float, group: Group) -> float:
    return share


def _own_bias(node: ir.Node) -> NDArray[np.float64]:
    return bias_of(node, weights_of(node).shape[1])


def _named(nodes: Sequence[ir.Node], globs: Sequence[str]) -> bool:
    return any(fnmatchcase(str(node.name), glob) for node in nodes for glob in globs)


def _here(model: ir.Model, branches: Sequence[Branch]) -> list[Branch]:
    """The same branches in a copy, or in the model as it is by now."""
    ends = {branch.add.name for branch in branches}
    add = {node.name: node for node in model.graph if node.name in ends}
    found = []
    for branch in branches:
        end = add[branch.add.name]
        place = next(i for i, v in enumerate(branch.add.inputs) if v is branch.result)
        result, shortcut = end.inputs[place], end.inputs[1 - place]
        assert result is not None and shortcut is not None
        found.append(Branch(end, shortcut, result, ()))
    return found


def _set_apart(context: Context) -> tuple[list[Sample], list[Sample]]:
    """Samples to solve with, and others to measure what is lost, of other origins: at most a fifth."""
    samples = context.samples
    share = min(_PROBES / len(samples), 0.2)
    if len(samples) * share < 1:
        return list(samples), list(samples)
    origins = context.origins or range(len(samples))
    fit, probe = halves(origins, share)
    if not len(fit) or not len(probe):
        return list(samples), list(samples)
    return [samples[number] for number in fit], [samples[number] for number in probe]


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else 1.0
