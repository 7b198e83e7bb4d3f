"""What the answers lose when a share of one group of channels goes, or one residual block, and nothing else.

For every group and every ratio the channels that a criterion holds for the least important go: their rows in all
readers become zero, the readers are mended (or not) from the moments of the original, and the rest of the network is
run on samples set aside (`calibration.tails`), about a tenth of a pass per question. That equals cutting the model and
running it, without ever cutting it. A block goes by adding zeros to its stream; what it did to the stream is mended in
the layer before (`search/bypass.py`).

Curves per layer are Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, 3.2; PaddleSlim draws them too, with
labels and without repair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from onnxslim_core.calibration.batches import stacked
from onnxslim_core.calibration.consumers import Consumer, consumers_of, readers_of, taps_of, weights_of
from onnxslim_core.calibration.diversity import advised_ridge
from onnxslim_core.calibration.pieces import Swap
from onnxslim_core.calibration.study import study, too_large
from onnxslim_core.calibration.tails import Tails
from onnxslim_core.channels.branches import Branch, branches_of
from onnxslim_core.channels.groups import ChannelGraph, Group
from onnxslim_core.channels.removal import remove_atoms
from onnxslim_core.channels.twin import twin_of
from onnxslim_core.criteria.curves import Readers, Setting
from onnxslim_core.criteria.table import CRITERIA, SAMPLED, curve_of
from onnxslim_core.errors import RecipeError
from onnxslim_core.measure.fidelity import Metric, scored
from onnxslim_core.measure.session import open_session, run
from onnxslim_core.measure.truth import Tallies
from onnxslim_core.model import wrap
from onnxslim_core.repair.table import REPAIRS
from onnxslim_core.repair.without import without
from onnxslim_core.rewrite import Progress, Sample, glob_for
from onnxslim_core.search.bypass import Bypass, bypass_of, rows_of
from onnxslim_core.search.widths import Candidate, Limits

__all__ = ["RATIOS", "Examination", "LossCurve", "Point", "Question"]

Ints = NDArray[np.int32]
Answering = Callable[[Ints], list[dict[str, object]]]
"""Classes that go -> what is answered without them, batch by batch."""

_ON_WEIGHTS = "l2"
"""The criterion where readers cannot be solved for, unless one on weights was asked for."""

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of every group.

    Attributes:
        ratios: Shares of a group that go, rising.
        round_to: 1: any width; `auto`: kept widths are rounded up to the CPU's grid; or a number of channels.
        criterion: Which channels go first: any row of the tables of criteria.
        repair: A row of `REPAIRS`, or `none`.
        blocks: Whether residual blocks are asked about, too.
        only: Globs over names of groups, blocks and nodes in them; empty: all.
        probes: At most so many samples measure what is lost.
        seed: Of everything that is drawn.

    Raises:
        RecipeError: if one of them is wrong.
    """

    ratios: tuple[float, ...] = RATIOS
    round_to: int | str = 1
    criterion: str = "obs"
    repair: str = "least_squares"
    blocks: bool = True
    only: tuple[str, ...] = ()
    probes: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("criterion", self.criterion, (*CRITERIA, *SAMPLED)),
            ("repair", self.repair, (*REPAIRS, "none")),
        ):
            if value not in allowed:
                raise RecipeError(f"{name} is '{value}'", f"one of {', '.join(allowed)}")
        if not self.ratios or any(not 0 < ratio < 1 for ratio in self.ratios):
            raise RecipeError(f"ratios are {', '.join(f'{r:g}' for r in self.ratios) or 'none'}", "shares between 0, 1")
        if self.round_to != "auto" and not (isinstance(self.round_to, int) and self.round_to >= 1):
            raise RecipeError(f"round_to is '{self.round_to}'", "'auto' or a number from 1")
        if self.probes < 1:
            raise RecipeError(f"probes is {self.probes}", "a number from 1")
        object.__setattr__(self, "ratios", tuple(sorted({float(ratio) for ratio in self.ratios})))


@dataclass(frozen=True, slots=True)
class Point:
    """What is lost at one ratio.

    Attributes:
        ratio: The share that was asked for; 1 of a block.
        removed: Channels (or heads, see `LossCurve.unit`) that went, after rounding; 1 of a block.
        kept: Those that stay; 0 of a block.
        macs: The share of the model's multiply-adds that stays.
        loss: Squared error of the answers over their variance, mean over outputs; 1 is as bad as a constant.
        cosine: Of the worst output, mean over samples; None where no output has one.
        top1: Share of samples with the same first answer, of the worst output; None where no output holds scores.
        metric: The user's metric; None without one.
    """

    ratio: float
    removed: int
    kept: int
    macs: float
    loss: float
    cosine: float | None = None
    top1: float | None = None
    metric: float | None = None


@dataclass(frozen=True, slots=True)
class LossCurve:
    """What is lost when a group, or a block, goes bit by bit.

    Attributes:
        name: Of the group or block, as everywhere; numbered where one node makes several.
        kind: "group" or "block".
        channels: Of the group, in units; 1 of a block.
        unit: Channels that go as one, such as the slots of a head.
        points: By rising ratio.
        mended: Whether what is left was mended; False where nobody asked, or what reads it cannot be solved for.
        criterion: What put the channels in order: where readers cannot be solved for, one on weights; empty of a block.
    """

    name: str
    kind: str
    channels: int
    unit: int
    points: tuple[Point, ...] = ()
    mended: bool = False
    criterion: str = ""


class Examination:
    """One model under question: what can be asked about is known at once, the curves come one by one.

    Args:
        channels: The channel graph of the model, which is not changed.
        question: What is asked.

    Attributes:
        units: What is asked about, in the order of the graph, without points.
        skipped: (name, reason) of what would have been expected.
        widest: Channels of the widest group that could be asked about.
        baseline: What the user's metric says of the model as it is, once `curves` has begun; None without a metric.
    """

    def __init__(self, channels: ChannelGraph, question: Question) -> None:
        self._channels, self._question = channels, question
        self._model = channels.flow.model
        self._limits = Limits(question.round_to, max(question.ratios), 1)
        self._consumers: dict[ir.Node, Consumer] = consumers_of(channels)
        self.widest = max((group.width for group in channels.groups if group.free.any()), default=1)
        self._order = {node: place for place, node in enumerate(self._model.graph)}
        self.skipped: list[tuple[str, str]] = []
        self.baseline: float | None = None
        found: list[tuple[int, Group | Branch]] = []
        self._readers: dict[Group, list[Consumer]] = {}
        self._bypasses: dict[Branch, Bypass] = {}
        self._names: dict[object, str] = {}
        for group in channels.groups:
            self._names[group] = self._fresh(group.name)
            if not self._is_meant(group.name, group.producers):
                continue
            if group.width < 2 or not group.free.any():
                self.skipped.append((self._names[group], _why(group)))
                continue
            self._readers[group] = self._readers_of(group)
            found.append((self._place(self._nodes(group)), group))
        if question.blocks:
            branches = branches_of(self._model, dict(channels.flow.shapes.shape))
            branches = [b for b in branches if self._is_meant(b.name, (*b.nodes, b.add))]
            self._bypasses = self._bypasses_of(branches) if question.repair != "none" else {}
            self._names |= {branch: self._fresh(branch.name) for branch in branches}
            found += [(self._order[branch.add], branch) for branch in branches]
        found.sort(key=lambda each: each[0])
        self._things = [thing for _, thing in found]
        self.units = [_unit(thing, self._names[thing]) for thing in self._things]

    def _place(self, nodes: Sequence[ir.Node]) -> int:
        """Where the first of some nodes stands."""
        return min((self._order.get(node, 0) for node in nodes), default=0)

    def _fresh(self, name: str) -> str:
        """A name with a number where another thing has it: one node can make several groups."""
        taken = set(self._names.values())
        numbers = (f"{name} #{number}" for number in count(2))
        return name if name not in taken else next(each for each in numbers if each not in taken)

    def _is_meant(self, name: str, nodes: Sequence[ir.Node]) -> bool:
        names = [name, *(str(node.name) for node in nodes)]
        return not self._question.only or glob_for(names, self._question.only) is not None

    def _readers_of(self, group: Group) -> list[Consumer]:
        """Every sum that reads a group; none where one of them cannot be solved for."""
        readers = readers_of(self._channels, group, self._consumers)
        if isinstance(readers, str) or any(too_large(each) is not None for each in readers):
            return []
        return readers

    def _bypasses_of(self, branches: Sequence[Branch]) -> dict[Branch, Bypass]:
        shapes = self._channels.flow.shapes.shape
        found = {branch: bypass_of(branch, shapes) for branch in branches}
        return {branch: bypass for branch, bypass in found.items() if bypass is not None}

    def curves(
        self,
        fit: Sequence[Sample],
        probes: Sequence[Sample],
        *,
        origins: Sequence[int] = (),
        known: Callable[[int], bool] = lambda number: False,
        metric: Metric | None = None,
        labels: object = None,
        threads: int = 1,
        progress: Progress | None = None,
    ) -> Iterator[tuple[int, LossCurve]]:
        """The curves of all units that are not known yet, with their numbers, one by one.

        Args:
            fit: Samples that say which channels go and how readers are mended.
            probes: Others, on which the loss is measured.
            origins: Parallel to `fit`; see `calibration.diversity`.
            known: Whether the curve of a unit, by number, is known already.
            metric: A user's measure.
            labels: Of the probes, handed to the metric.
            threads: For onnxruntime and BLAS.
            progress: Told (step, done, total).
        """
        todo = [number for number in range(len(self._things)) if not known(number)]
        todo.sort(key=lambda number: self._place(self._nodes(self._things[number])))
        if not todo:
            return
        question, tell = self._question, progress or (lambda _step, _done, _total: None)
        # all of them even where few are left to do: what is drawn must not depend on what is known
        wanted = {node for readers in self._readers.values() for node in (each.node for each in readers)}
        consumers = {node: each for node, each in self._consumers.items() if node in wanted}
        self._ridge = advised_ridge(origins, self.widest)
        with threadpool_limits(threads):
            batches = stacked(self._model, fit)
            self._moments = study(self._model, batches, consumers, seed=question.seed, threads=threads, progress=tell)
            seen = rows_of(self._model, batches, list(self._bypasses.values()), seed=question.seed, threads=threads)
            self._around = dict(zip(self._bypasses, seen, strict=True))
        judged = stacked(self._model, probes)
        sets = {number: self._nodes(self._things[number]) for number in todo}
        tails = Tails(self._model, judged, list(sets.values()), threads)
        judge = _Judge(tails, judged, metric, labels, threads)
        self.baseline = judge.metric_of(tails.own_answers())
        for done, number in enumerate(todo):
            tell("curves", len(self._things) - len(todo) + done, len(self._things))
            thing = self._things[number]
            with threadpool_limits(threads):
                points = self._block(thing, judge) if isinstance(thing, Branch) else self._group(thing, judge)
            tails.done(sets[number])
            yield number, replace(self.units[number], points=points, **self._how(thing))

    def _how(self, thing: Group | Branch) -> dict[str, Any]:
        """How what is left was mended, and what put channels in order."""
        solved = self._readers[thing] if isinstance(thing, Group) else thing in self._bypasses
        mended = self._question.repair != "none" and bool(solved)
        return {"mended": mended, "criterion": self._criterion(thing) if isinstance(thing, Group) else ""}

    def _criterion(self, group: Group) -> str:
        asked = self._question.criterion
        return asked if self._readers[group] or asked in CRITERIA else _ON_WEIGHTS

    def _nodes(self, thing: Group | Branch) -> list[ir.Node]:
        if isinstance(thing, Group):
            return [each.node for each in self._readers[thing]]
        bypass = self._bypasses.get(thing)
        return [thing.add] if bypass is None else [bypass.maker, thing.add]

    def _block(self, branch: Branch, judge: _Judge) -> tuple[Point, ...]:
        inside = set(branch.nodes)
        total = max(self._channels.macs(), 1)
        macs = sum(work.macs for work in self._channels.works if work.node in inside)
        swaps: dict[ir.Node, Swap] = {}
        if (bypass := self._bypasses.get(branch)) is not None:
            start = weights_of(bypass.maker)
            mend, taps = REPAIRS[self._question.repair], taps_of(bypass.maker)
            swaps[bypass.maker] = mend(self._around[branch], start, taps, self._ridge)
        return (judge.point(1.0, 1, 0, 1 - macs / total, judge.tails.answers_with(swaps, zeroed=branch.result)),)

    def _group(self, group: Group, judge: _Judge) -> tuple[Point, ...]:
        order, answers = self._by_cut(group, judge) if not self._readers[group] else self._by_readers(group, judge)
        total, points = max(self._channels.macs(), 1), dict[int, Point]()
        found = []
        for ratio in self._question.ratios:
            removed = self._count(group, ratio, len(order))
            if removed not in points:
                macs = self._channels.macs(self._channels.gone(order[:removed].tolist())) / total
                points[removed] = judge.point(ratio, removed, group.width - removed, macs, answers(order[:removed]))
            found.append(replace(points[removed], ratio=ratio))
        return tuple(found)

    def _by_readers(self, group: Group, judge: _Judge) -> tuple[Ints, Answering]:
        """The order in which classes go, and what is answered without some: from the moments of the readers."""
        readers: Readers = [(each, self._moments[each.node]) for each in self._readers[group]]

        def swaps(classes: Ints) -> dict[ir.Node, Swap]:
            repair = self._question.repair
            return {each.node: without(each, moments, classes, repair, self._ridge) for each, moments in readers}

        def lost(chosen: Sequence[int]) -> float:
            return judge.tails.lost(swaps(np.array(chosen, np.int32)))

        setting = Setting(self._channels, group, self._question.seed, self._ridge, lost)
        curve = curve_of(self._question.criterion, readers, group.classes[group.free], setting)
        return curve.order, lambda classes: judge.tails.answers_with(swaps(classes))

    def _by_cut(self, group: Group, judge: _Judge) -> tuple[Ints, Answering]:
        """The same where readers cannot be solved for: the model is cut and run as a whole."""
        scores = CRITERIA[self._criterion(group)](self._channels, group, self._question.seed)

        def answers(classes: Ints) -> list[dict[str, object]]:
            work = self._model.clone()
            twin = twin_of(self._channels, work)
            remove_atoms(twin, twin.gone(classes.tolist()))
            return judge.asked(work)

        return Candidate(group, scores).order()[: group.width - 1], answers

    def _count(self, group: Group, ratio: float, most: int) -> int:
        """How many classes go at a ratio; what stays is rounded up to the grid."""
        kept = self._limits.kept(group, int(np.ceil(group.width * (1 - ratio) - 1e-9)))
        return group.width - max(kept, self._limits.kept(group, group.width - most))


class _Judge:
    """What is said of answers beside the original's."""

    def __init__(
        self, tails: Tails, batches: Sequence[Sample], metric: Metric | None, labels: object, threads: int
    ) -> None:
        self.tails, self._batches, self._threads = tails, batches, threads
        self._metric, self._labels = metric, labels

    def asked(self, model: ir.Model) -> list[dict[str, object]]:
        """What another model answers."""
        session = open_session(wrap(model), threads=self._threads)
        return [run(session, batch) for batch in self._batches]

    def point(
        self, ratio: float, removed: int, kept: int, macs: float, answers: Sequence[Mapping[str, object]]
    ) -> Point:
        """The figures of one set of answers."""
        own = self.tails.own_answers()
        tally = Tallies(list(own[0]), {})
        for ours, theirs, batch in zip(own, answers, self._batches, strict=True):
            tally.add(ours, dict(theirs), batch)
        figures = tally.results({}).values()
        cosines = [each.cosine for each in figures if each.cosine is not None]
        agreed = [each.top1 for each in figures if each.top1 is not None]
        return Point(
            ratio,
            removed,
            kept,
            macs,
            self.tails.answers().lost(answers),
            float(np.min(cosines)) if cosines else None,
            float(np.min(agreed)) if agreed else None,
            self.metric_of(answers),
        )

    def metric_of(self, answers: Sequence[Mapping[str, object]]) -> float | None:
        """What the user's metric says of answers."""
        return None if self._metric is None else scored(self._metric, [dict(a) for a in answers], self._labels)


def _unit(thing: Group | Branch, name: str) -> LossCurve:
    if isinstance(thing, Branch):
        return LossCurve(name, "block", 1, 1)
    return LossCurve(name, "group", thing.width, thing.unit)


def _why(group: Group) -> str:
    """Why a group is not asked about."""
    if group.free.any():
        return "it is one channel"
    return "it stays" if group.reason is None else f"{group.reason.node}: {group.reason.text}".lstrip(": ")
