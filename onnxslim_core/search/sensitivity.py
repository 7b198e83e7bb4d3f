"""What the answers lose when a share of one group of channels goes, or one residual block, and nothing else.

For every group and every ratio the channels that a criterion holds for the least important go: their rows in all
readers become zero, the readers are mended (or not) from the moments of the original, and the rest of the network is
run on samples set aside (`calibration.tails`), about a tenth of a pass per question. That equals cutting the model and
running it, without ever cutting it. A block goes by adding zeros to its stream.

Curves per layer are Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, 3.2; PaddleSlim draws them too, with
labels and without repair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from onnxslim_core.calibration.batches import stacked
from onnxslim_core.calibration.consumers import Consumer, consumers_of, readers_of
from onnxslim_core.calibration.diversity import advised_ridge
from onnxslim_core.calibration.study import LARGEST, study
from onnxslim_core.calibration.tails import Tails
from onnxslim_core.channels.branches import Branch, branches_of
from onnxslim_core.channels.groups import ChannelGraph, Group
from onnxslim_core.criteria.curves import Readers, Setting
from onnxslim_core.criteria.table import CRITERIA, SAMPLED, curve_of
from onnxslim_core.errors import RecipeError
from onnxslim_core.graph import label_of
from onnxslim_core.measure.fidelity import Metric, scored
from onnxslim_core.measure.truth import Tallies
from onnxslim_core.repair.table import REPAIRS
from onnxslim_core.repair.without import without
from onnxslim_core.rewrite import Progress, Sample
from onnxslim_core.search.widths import Limits

__all__ = ["RATIOS", "Examination", "LossCurve", "Point", "Question"]

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
        name: Of the group or block, as everywhere.
        kind: "group" or "block".
        channels: Of the group, in units; 1 of a block.
        unit: Channels that go as one, such as the slots of a head.
        points: By rising ratio.
    """

    name: str
    kind: str
    channels: int
    unit: int
    points: tuple[Point, ...] = ()


class Examination:
    """One model under question: what can be asked about is known at once, the curves come one by one.

    Args:
        channels: The channel graph of the model, which is not changed.
        question: What is asked.

    Attributes:
        units: What is asked about, in the order of the graph, without points.
        skipped: (name, reason) of what would have been expected.
        baseline: What the user's metric says of the model as it is, once `curves` has begun; None without a metric.
    """

    def __init__(self, channels: ChannelGraph, question: Question) -> None:
        self._channels, self._question = channels, question
        self._model = channels.flow.model
        self._limits = Limits(question.round_to, max(question.ratios), 1)
        self._consumers: dict[ir.Node, Consumer] = consumers_of(channels)
        self._order = {node: place for place, node in enumerate(self._model.graph)}
        self.skipped: list[tuple[str, str]] = []
        self.baseline: float | None = None
        found: list[tuple[int, Group | Branch]] = []
        self._readers: dict[Group, list[Consumer]] = {}
        for group in channels.groups:
            if not self._is_meant(group.name, group.producers):
                continue
            readers = self._readers_of(group)
            if isinstance(readers, str):
                self.skipped.append((group.name, readers))
                continue
            self._readers[group] = readers
            found.append((min(self._order[each.node] for each in readers), group))
        if question.blocks:
            branches = branches_of(self._model, dict(channels.flow.shapes.shape))
            found += [(self._order[b.add], b) for b in branches if self._is_meant(b.name, (*b.nodes, b.add))]
        found.sort(key=lambda each: each[0])
        self._things = [thing for _, thing in found]
        self.units = [_unit(thing) for thing in self._things]

    def _is_meant(self, name: str, nodes: Sequence[ir.Node]) -> bool:
        names = [name, *(str(node.name) for node in nodes)]
        return not self._question.only or any(fnmatchcase(n, glob) for n in names for glob in self._question.only)

    def _readers_of(self, group: Group) -> list[Consumer] | str:
        """Every sum that reads a group, or why it cannot be asked about."""
        if not group.free.any():
            reason = group.reason
            return "it stays" if reason is None else f"{reason.node}: {reason.text}".lstrip(": ")
        if group.width < 2:
            return "it is one channel"
        readers = readers_of(self._channels, group, self._consumers)
        if isinstance(readers, str):
            return readers
        large = next((each.node for each in readers if len(each.classes) * each.taps > LARGEST), None)
        if large is not None:
            return f"{label_of(large)} has too many inputs per output to be solved for"
        return readers

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
        if not todo:
            return
        question, tell = self._question, progress or (lambda _step, _done, _total: None)
        # all of them even where few are left to do: what is drawn must not depend on what is known
        wanted = {node for readers in self._readers.values() for node in (each.node for each in readers)}
        consumers = {node: each for node, each in self._consumers.items() if node in wanted}
        widest = max((group.width for group in self._readers), default=1)
        self._ridge = advised_ridge(origins, widest)
        with threadpool_limits(threads):
            batches = stacked(self._model, fit)
            self._moments = study(self._model, batches, consumers, seed=question.seed, threads=threads, progress=tell)
        judged = stacked(self._model, probes)
        sets = {number: self._nodes(self._things[number]) for number in todo}
        tails = Tails(self._model, judged, list(sets.values()), threads)
        judge = _Judge(tails, judged, metric, labels)
        self.baseline = judge.metric_of(tails.own_answers())
        for done, number in enumerate(todo):
            tell("curves", len(self._things) - len(todo) + done, len(self._things))
            thing = self._things[number]
            with threadpool_limits(threads):
                points = self._block(thing, judge) if isinstance(thing, Branch) else self._group(thing, judge)
            tails.done(sets[number])
            unit = self.units[number]
            yield number, LossCurve(unit.name, unit.kind, unit.channels, unit.unit, points)

    def _nodes(self, thing: Group | Branch) -> list[ir.Node]:
        return [thing.add] if isinstance(thing, Branch) else [each.node for each in self._readers[thing]]

    def _block(self, branch: Branch, judge: _Judge) -> tuple[Point, ...]:
        inside = set(branch.nodes)
        total = max(self._channels.macs(), 1)
        macs = sum(work.macs for work in self._channels.works if work.node in inside)
        return (judge.point(1.0, 1, 0, 1 - macs / total, judge.tails.answers_with({}, zeroed=branch.result)),)

    def _group(self, group: Group, judge: _Judge) -> tuple[Point, ...]:
        readers: Readers = [(each, self._moments[each.node]) for each in self._readers[group]]

        def lost(chosen: Sequence[int]) -> float:
            return judge.tails.lost(self._swaps(readers, np.array(chosen, np.int32)))

        setting = Setting(self._channels, group, self._question.seed, self._ridge, lost)
        order = curve_of(self._question.criterion, readers, group.classes[group.free], setting).order
        total, points = max(self._channels.macs(), 1), dict[int, Point]()
        for ratio in self._question.ratios:
            count = self._count(group, ratio, len(order))
            if count not in points:
                gone = self._channels.gone(order[:count].tolist())
                answers = judge.tails.answers_with(self._swaps(readers, order[:count]))
                macs = self._channels.macs(gone) / total
                points[count] = judge.point(ratio, count, group.width - count, macs, answers)
        return tuple(_at(points[self._count(group, ratio, len(order))], ratio) for ratio in self._question.ratios)

    def _count(self, group: Group, ratio: float, most: int) -> int:
        """How many classes go at a ratio; what stays is rounded up to the grid."""
        kept = self._limits.kept(group, int(np.ceil(group.width * (1 - ratio) - 1e-9)))
        return group.width - max(kept, self._limits.kept(group, group.width - most))

    def _swaps(
        self, readers: Readers, classes: NDArray[np.int32]
    ) -> Mapping[ir.Node, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        repair = self._question.repair
        return {each.node: without(each, moments, classes, repair, self._ridge) for each, moments in readers}


class _Judge:
    """What is said of answers beside the original's."""

    def __init__(self, tails: Tails, batches: Sequence[Sample], metric: Metric | None, labels: object) -> None:
        self.tails, self._batches, self._metric, self._labels = tails, batches, metric, labels

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


def _unit(thing: Group | Branch) -> LossCurve:
    if isinstance(thing, Branch):
        return LossCurve(thing.name, "block", 1, 1)
    return LossCurve(thing.name, "group", thing.width, thing.unit)


def _at(point: Point, ratio: float) -> Point:
    """The same where another ratio comes to the same width."""
    figures = (point.removed, point.kept, point.macs, point.loss, point.cosine, point.top1, point.metric)
    return Point(ratio, *figures)
