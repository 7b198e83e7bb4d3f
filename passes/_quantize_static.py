"""The search of quantize: everything in int8, mended if need be, and layer by layer where that is not enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from onnxslim_core.calibration.batches import stacked
from onnxslim_core.graph import label_of
from onnxslim_core.quant.draft import Draft
from onnxslim_core.quant.dynamic import Dynamic
from onnxslim_core.quant.equalize import equalize
from onnxslim_core.quant.judge import Judge, Score
from onnxslim_core.quant.mend import mend
from onnxslim_core.quant.mixed import MARGIN, Choice, alone, choose, effort
from onnxslim_core.quant.ranges import Spread
from onnxslim_core.rewrite import Context, Sample

__all__ = ["Search", "Wanted"]

_WORK = 2e10
"""Multiply-adds that one look at a set of layers may take: it decides how many samples are looked at."""
_LOOKS = (6, 48)
_FEW = 6
"""Samples that a layer alone is looked at with."""
_LIMITS = (3.0, MARGIN)
"""Damage before mending that sets of layers may do."""
_COMFORTABLE = 0.25
"""Share of what may be lost below which nothing is mended."""


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
        seen, aside = split(context.samples)
        if wanted.mode == "dynamic":
            return self._dynamic(aside)
        batches = stacked(self.work, seen)
        draft = self._draft(self.work, wanted.nodes, batches)
        judge = self._judge(aside[: self._count(draft)])
        draft, score = self._equalized(draft, judge, batches)
        everything = tuple(draft.linear)
        score = self._mended(draft, judge, batches, everything, score)
        self.details |= {"layers": len(everything), "cosine_of_all": score.cosine}
        choice: Choice | None = Choice(everything, score)
        if score.damage > MARGIN:
            choice = self._mixed(draft, judge, self._judge(aside[: min(self._count(draft), _FEW)]), batches)
        if choice is None:
            return None, ()
        self._tell(choice, draft.linear)
        return draft.variant(draft.layout(choice.linear)), choice.linear

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
        found.method, found.percentile = wanted.ranges, wanted.percentile
        return found

    def _equalized(self, draft: Draft, judge: Judge, batches: Sequence[Sample]) -> tuple[Draft, Score]:
        """The draft with channels brought to one size, where that answers better, and what all its layers score."""
        before = self._look(draft, judge, draft.linear)
        if self.wanted.repair == "never" or (self.wanted.repair == "auto" and before.damage <= _COMFORTABLE):
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
        if after.damage >= before.damage:
            return draft, before
        self.details["equalized"] = True
        return other, after

    def _mixed(self, draft: Draft, judge: Judge, few: Judge, batches: Sequence[Sample]) -> Choice | None:
        """The largest set of layers that holds, once it has been mended as a whole.

        Mending takes most of the damage away, so sets that do too much without it are tried first.
        """
        context, wanted = self.context, self.wanted
        if wanted.repair != "never":
            layout = draft.layout(draft.linear)
            draft.weights = mend(
                draft,
                layout,
                batches,
                alone=True,
                seed=context.seed,
                threads=context.threads,
                progress=context.progress,
            )
        damages = alone(draft, lambda model: few.look(model).damage, (), context.progress)
        worst = sorted(damages, key=damages.__getitem__, reverse=True)[:10]
        self.details["damage_alone"] = {label_of(node): damages[node] for node in worst}
        efforts, single = effort(draft), draft.weights
        known: dict[frozenset[ir.Node], Score] = {}
        for limit in (MARGIN,) if wanted.repair == "never" else _LIMITS:
            draft.weights = single
            found = choose(
                draft, judge, damages, efforts, weights=single, limit=limit, known=known, progress=context.progress
            )
            if found is None:
                continue
            score = self._mended(draft, judge, batches, found.linear, found.score)
            if score.damage <= MARGIN:
                return Choice(found.linear, score)
        return None

    def _dynamic(self, samples: Sequence[Sample]) -> tuple[ir.Model | None, Sequence[ir.Node]]:
        """Products whose grids are made at run time: all of them, or those that can be."""
        draft, judge = Dynamic.of(self.work, self.wanted.nodes), self._judge(samples[: _LOOKS[1]])
        if not draft.linear:
            return None, ()
        score = judge.look(draft.variant(draft.layout(draft.linear)))
        choice: Choice | None = Choice(tuple(draft.linear), score)
        if not Choice((), score).holds:
            damages = alone(draft, lambda model: judge.look(model).damage, (), self.context.progress)
            choice = choose(draft, judge, damages, draft.efforts(), progress=self.context.progress)
        if choice is None:
            return None, ()
        self._tell(choice, draft.linear)
        return draft.variant(draft.layout(choice.linear)), choice.linear

    def _tell(self, choice: Choice, linear: Sequence[ir.Node]) -> None:
        self.details |= {"cosine": choice.score.cosine, "parts": dict(choice.score.parts)}
        if choice.score.agreement is not None:
            self.details["agreement"] = choice.score.agreement
        self.details["in_float"] = [label_of(node) for node in linear if node not in choice.linear]

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
        """Round these layers anew, with care, and keep that if it answers better; returns the better score."""
        if self.wanted.repair == "never" or (self.wanted.repair == "auto" and before.damage <= _COMFORTABLE):
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
        if after.damage < before.damage:
            self.details["mended"] = len(draft.weights)
            return after
        draft.weights = old
        return before

    def _count(self, draft: Draft) -> int:
        """Samples for a look: fewer of a large network."""
        work = sum(effort(draft).values()) / max(draft.batch, 1)
        return int(min(max(_WORK / max(work, 1.0), _LOOKS[0]), _LOOKS[1]))


def split(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Samples for ranges and samples kept aside, every third; a single one serves as both."""
    aside = [sample for number, sample in enumerate(samples) if number % 3 == 2]
    seen = [sample for number, sample in enumerate(samples) if number % 3 != 2]
    return seen, aside or seen
