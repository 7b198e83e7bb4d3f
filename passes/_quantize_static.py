"""The search of quantize: everything in int8, mended if need be, and layer by layer where that is not enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from onnxslim_core import graph as verbs
from onnxslim_core.calibration.batches import stacked
from onnxslim_core.calibration.diversity import set_apart
from onnxslim_core.graph import label_of
from onnxslim_core.quant.draft import Draft
from onnxslim_core.quant.dynamic import Dynamic
from onnxslim_core.quant.equalize import equalize
from onnxslim_core.quant.insert import Rounded
from onnxslim_core.quant.judge import Judge, Score
from onnxslim_core.quant.mend import mend
from onnxslim_core.quant.mixed import MARGIN, Choice, alone, choose, effort, leaving, mended_set
from onnxslim_core.quant.ranges import Spread
from onnxslim_core.rewrite import Context, Sample

__all__ = ["Search", "Wanted"]

_WORK = 2e10
"""Multiply-adds that one look at a set of layers may take: it decides how many samples are looked at."""
_LOOKS = (16, 48)
_ASIDE = 1 / 3
"""Share of the samples that gives no ranges, and says what is lost."""
_FEW = (3, 6)
"""Samples that a layer alone is looked at with, which only says which layers are worst."""
_REFITTED = 12
"""Layers whose ranges are fitted, at most: those that do most damage alone."""
_CHEAP = 0.01
"""Share of the effort of all layers that those left in float for their damage may have."""
_SPARED = 0.5
"""Of the damage of all layers, what may be left without them."""
_WORSE = 1.1
"""What one of them may add to the damage of the others and still be int8."""
_BETTER = 0.9
"""Of a layer's damage, what another range has to leave at most."""
_COMFORTABLE = 0.25
"""Share of what may be lost below which nothing is mended, where many samples say so."""
_MANY = 32
"""Fewer samples may all be of the kind that nothing can go wrong with: answers of a Softmax that are 0 or 1, say."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user asks for; see the options of the pass."""

    mode: str
    min_cosine: float
    min_agreement: float | None
    ranges: str
    percentile: float
    repair: str
    nodes: Sequence[ir.Node]


@dataclass(slots=True)
class Search:
    """One search.

    Attributes:
        original: The float model as it was.
        work: The same, prepared.
        wanted: What is asked for.
        context: Samples and the like.
        details: For the report.
    """

    original: ir.Model
    work: ir.Model
    wanted: Wanted
    context: Context
    details: dict[str, Any] = field(default_factory=dict)

    def run(self) -> tuple[ir.Model | None, Sequence[ir.Node]]:
        """The best model and its int8 layers; None where no set of layers keeps the answers.

        Raises:
            MeasureError: if a model does not run.
        """
        wanted, context = self.wanted, self.context
        seen, aside = set_apart(context, _ASIDE)
        seen = seen or aside
        if wanted.mode == "dynamic":
            return self._dynamic(aside)
        batches = stacked(self.work, seen)
        draft = self._draft(self.work, wanted.nodes, batches)
        judge = self._judge(aside[: self._count(draft, _WORK, _LOOKS)])
        score = self._without_cheap(draft, judge)
        draft, score = self._equalized(draft, judge, batches, score)
        everything = tuple(draft.linear)
        score = self._mended(draft, judge, batches, everything, score)
        worst = min(score.parts, key=score.parts.__getitem__, default=None)
        self.details |= {"layers": len(everything), "cosine_of_all": score.cosine, "worst_of_all": worst}
        choice: Choice | None = Choice(everything, score)
        if score.damage > MARGIN:
            choice = self._mixed(draft, judge, judge.fewer(self._count(draft, _WORK / 4, _FEW)), batches, score)
        if choice is None:
            return None, ()
        self._tell(choice)
        return draft.variant(draft.layout(choice.linear)), choice.linear

    def _without_cheap(self, draft: Draft, judge: Judge) -> Score:
        """Leave out of the draft what does much of the damage and takes next to none of the time; what the rest scores.

        Nothing is lost with the small product of a head in float, and no rounding mends what it does.
        """
        whole = self._look(draft, judge, draft.linear)
        efforts = effort(draft)
        held, cheap = sum(efforts.values()) * _CHEAP, list[ir.Node]()
        for node in sorted(draft.linear, key=efforts.__getitem__):
            held -= efforts[node]
            if held < 0:
                break
            cheap.append(node)
        if not cheap or len(cheap) == len(draft.linear) or not self._wants_mending(judge, whole):
            return whole
        inside = [node for node in draft.linear if node not in cheap]
        score = self._look(draft, judge, inside)
        if score.strain > _SPARED * whole.strain:
            return whole
        for node in sorted(cheap, key=_count_weights, reverse=True):  # what takes most bytes
            more = [each for each in draft.linear if each is node or each in inside]
            found = self._look(draft, judge, more)
            if found.strain <= max(_WORSE * score.strain, _COMFORTABLE):
                inside, score = more, found
        if spared := [label_of(node) for node in draft.linear if node not in inside]:
            self.details["cheap_in_float"] = spared
        draft.linear = inside
        return score

    def _draft(self, model: ir.Model, nodes: Sequence[ir.Node], batches: Sequence[Sample]) -> Draft:
        wanted, context = self.wanted, self.context
        found = Draft.of(
            model,
            batches,
            linear=nodes,
            histograms=wanted.ranges != "minmax",
            threads=context.threads,
            progress=context.progress,
        )
        found.method = "minmax" if wanted.ranges == "auto" else wanted.ranges
        found.percentile = wanted.percentile
        return found

    def _equalized(self, draft: Draft, judge: Judge, batches: Sequence[Sample], before: Score) -> tuple[Draft, Score]:
        """The draft with channels brought to one size, where that answers better, and what all its layers score."""
        if not self._wants_mending(judge, before):
            return draft, before
        model = self.work.clone()
        twins = dict(zip(self.work.graph, model.graph, strict=True))
        seen: dict[ir.Value, Spread] = {}
        for old, new in twins.items():
            seen |= {b: draft.spreads[a] for a, b in zip(old.outputs, new.outputs, strict=True) if a in draft.spreads}
        if not equalize(model, seen):
            return draft, before
        other = self._draft(model, [twins[node] for node in draft.linear], batches)
        after = self._look(other, judge, other.linear)
        if after.strain >= before.strain:
            return draft, before
        self.details["equalized"] = True
        return other, after

    def _mixed(self, draft: Draft, judge: Judge, few: Judge, batches: Sequence[Sample], whole: Score) -> Choice | None:
        """The largest set of layers that holds; once it has been mended as a whole, since that takes most away.

        Args:
            draft: The model.
            judge: What a set has to satisfy.
            few: The same, on fewer samples, for layers alone.
            batches: Samples to mend with.
            whole: What all layers scored.
        """
        context, wanted = self.context, self.wanted
        mends = wanted.repair != "never"
        if mends:
            layout, told = draft.layout(draft.linear), context.progress
            draft.weights = mend(
                draft, layout, batches, alone=True, seed=context.seed, threads=context.threads, progress=told
            )
        damages = alone(draft, lambda model: few.look(model).strain, (), context.progress)
        share = whole.damage / max(sum(damages.values()), 1e-12)
        refitted = wanted.ranges == "auto" and self._fit_ranges(draft, few, damages)
        worst = sorted(damages, key=damages.__getitem__, reverse=True)[:10]
        self.details["damage_alone"] = {label_of(node): damages[node] for node in worst}
        efforts, single = effort(draft), draft.weights
        if mends:
            solved: dict[tuple[ir.Node, ...], dict[ir.Node, Rounded]] = {}

            def mended(nodes: tuple[ir.Node, ...]) -> Score:
                draft.weights = single
                score = self._mended(draft, judge, batches, nodes, self._look(draft, judge, nodes))
                solved[nodes] = draft.weights
                return score

            order = leaving(draft.linear, damages, efforts)
            found = mended_set(order, damages, share, mended, least=0 if refitted else 1)
            draft.weights = single if found is None else solved[found.linear]
            if found is not None:
                return found
        return choose(draft, judge, damages, efforts, weights=draft.weights, progress=context.progress)

    def _fit_ranges(self, draft: Draft, few: Judge, damages: dict[ir.Node, float]) -> bool:
        """Try other ranges for what the worst layers read and answer; True where some are better.

        No way to take a range is best for all values: outliers that one layer can do without are what another is for.
        """
        tried: set[tuple[ir.Value, str]] = set()
        for node in sorted(damages, key=damages.__getitem__, reverse=True)[:_REFITTED]:
            layout = draft.layout([node])
            for value in {layout.root(value): None for value in layout.rounded if verbs.array_of(value) is None}:
                for method in ("percentile", "mse"):
                    if (value, method) in tried:
                        continue
                    tried.add((value, method))
                    before = draft.methods.get(value, draft.method)
                    draft.methods[value] = method
                    damage = few.look(draft.variant(draft.layout([node]))).strain
                    if damage <= _BETTER * damages[node]:
                        damages[node] = damage
                    else:
                        draft.methods[value] = before
        kept = {value: method for value, method in draft.methods.items() if method != draft.method}
        if kept:
            self.details["ranges"] = {str(value.name): method for value, method in kept.items()}
        return bool(kept)

    def _dynamic(self, samples: Sequence[Sample]) -> tuple[ir.Model | None, Sequence[ir.Node]]:
        """Products whose grids are made at run time: all of them, or those that can be."""
        draft, judge = Dynamic.of(self.work, self.wanted.nodes), self._judge(samples[: _LOOKS[1]])
        if not draft.linear:
            return None, ()
        score = judge.look(draft.variant(draft.layout(draft.linear)))
        choice: Choice | None = Choice(tuple(draft.linear), score)
        if not Choice((), score).holds:
            damages = alone(draft, lambda model: judge.look(model).strain, (), self.context.progress)
            choice = choose(draft, judge, damages, draft.efforts(), progress=self.context.progress)
        if choice is None:
            return None, ()
        self._tell(choice)
        return draft.variant(draft.layout(choice.linear)), choice.linear

    def _tell(self, choice: Choice) -> None:
        self.details |= {"cosine": choice.score.cosine, "parts": dict(choice.score.parts)}
        if choice.score.agreement is not None:
            self.details["agreement"] = choice.score.agreement
        chosen = {label_of(node) for node in choice.linear}
        self.details["in_float"] = [label for label in map(label_of, self.wanted.nodes) if label not in chosen]

    def _judge(self, samples: Sequence[Sample]) -> Judge:
        return Judge(
            self.original,
            stacked(self.original, samples),
            min_cosine=self.wanted.min_cosine,
            min_agreement=self.wanted.min_agreement,
            parts=self.context.parts,
            threads=self.context.threads,
        )

    def _look(self, draft: Draft, judge: Judge, linear: Sequence[ir.Node]) -> Score:
        return judge.look(draft.variant(draft.layout(linear)))

    def _mended(
        self, draft: Draft, judge: Judge, batches: Sequence[Sample], linear: Sequence[ir.Node], before: Score
    ) -> Score:
        """Round these layers anew, with care, and keep that if it answers better; returns the better score.

        Where both answer so well that few samples cannot tell them apart, what was mended is kept: layer by layer it
        was measured to be nearer, on many positions.
        """
        if not self._wants_mending(judge, before):
            return before
        old, context = draft.weights, self.context
        draft.weights = old | mend(
            draft,
            draft.layout(linear),
            batches,
            seed=context.seed,
            threads=context.threads,
            progress=context.progress,
        )
        after = self._look(draft, judge, linear)
        if after.strain < max(before.strain, _COMFORTABLE):
            self.details["mended"] = len(draft.weights)
            return after
        draft.weights = old
        return before

    def _wants_mending(self, judge: Judge, before: Score) -> bool:
        sure = before.strain <= _COMFORTABLE and judge.answers >= _MANY
        return self.wanted.repair == "always" or (self.wanted.repair == "auto" and not sure)

    def _count(self, draft: Draft, work: float, bounds: tuple[int, int]) -> int:
        """Samples for a look: fewer of a large network."""
        each = sum(effort(draft).values()) / max(draft.batch, 1)
        return int(min(max(work / max(each, 1.0), bounds[0]), bounds[1]))


def _count_weights(node: ir.Node) -> int:
    value = node.inputs[1]
    return 0 if value is None or value.const_value is None else value.const_value.size
