"""Solve every linear layer anew so that a compressed model answers more like the one it was made from.

    W = (H + l I)^-1 (C + l W0),   b = mean_y - mean_x' W

for each Conv, ConvTranspose, Gemm and MatMul with constant weights, in the order of the graph: H and C are moments of
what the layer reads in the compressed model as it is by then and of what it answered in the model before the first
lossy pass (in a residual network the stream that it is added into). It runs after any lossy pass: `factorize`,
`prune_channels`, one of another package.

Lossy, and meant to gain: a part of the samples is set aside, by origin, and the new weights stay only where whole
answers on that part are nearer to the original's than before; a stronger ridge is tried while it helps. No node is
added but an Add behind a MatMul that had no bias. With few samples it overfits, and then it refuses.

Refuses without samples of real inputs, where nothing lossy ran before, and where it does not help. Layers without a
counterpart in the original (the first factor of a pair), depthwise ones and those of more than 6144 inputs are left.
A layer that is called several times is solved as one, or left where one call waits for another.
Source: He, Zhang, Sun, Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017, 3.1 and 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import onnx_ir as ir

from onnxslim_core.calibration.answers import Answers, answers_of
from onnxslim_core.calibration.batches import stacked
from onnxslim_core.calibration.consumers import is_depthwise, is_linear, kept_of
from onnxslim_core.calibration.diversity import set_apart
from onnxslim_core.errors import RecipeError
from onnxslim_core.repair.sequential import Refit as Repair
from onnxslim_core.repair.table import REPAIRS
from onnxslim_core.rewrite import Change, Context, Kind, Sample

__all__ = ["Refit"]

_RIDGES = (None, 1e-2, 1e-1)
"""What is tried where nothing is said, weakest first."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Refit:
    """Solve all linear layers of a compressed model against the original."""

    name: ClassVar[str] = "refit"
    kind: ClassVar[Kind] = Kind.LOSSY

    repair: str = "least_squares"
    """What is solved for: `least_squares` (all weights), `scale` (one factor per input channel), `variance`, `bias`."""
    ridge: float | None = None
    """Pull towards the weights as they are, over the variance of an input; several are tried if none is given."""
    held_out: float = 0.25
    """Share of the samples that says whether it helped."""
    per_sample: int = 24
    """Positions looked at per sample and layer."""

    def __post_init__(self) -> None:
        if self.repair not in REPAIRS:
            raise RecipeError(f"repair of refit is '{self.repair}'", f"one of {', '.join(REPAIRS)}")
        if self.ridge is not None and not self.ridge >= 0:
            raise RecipeError(f"ridge of refit is {self.ridge}", "a number from 0")
        if not 0 < self.held_out < 1:
            raise RecipeError(f"held_out of refit is {self.held_out}", "a share between 0 and 1")
        if self.per_sample < 1:
            raise RecipeError(f"per_sample of refit is {self.per_sample}", "a number from 1")

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Try on a copy, and do the same here where it helps."""
        if not context.samples or not context.samples_are_real:
            return [self._refused("refit needs samples of real inputs: give --data", "data_given")]
        if context.reference is None:
            return [self._refused("no lossy pass ran before, so there is nothing to mend", "reference_given")]
        fit, held = set_apart(context, self.held_out)
        if not fit or not held:
            return [self._refused("all samples are of one origin, so none can be set aside", "samples_apart")]
        names = [str(n.name) for n in model.graph if n.name and is_linear(n) and not is_depthwise(n)]
        batches, judged = stacked(model, fit), stacked(model, held)
        truth = Answers(answers_of(context.reference, judged, context.threads), context.parts)
        if not truth:
            return [self._refused("no output holds floating-point numbers", "outputs_comparable")]
        before = best = truth.lost(answers_of(model, judged, context.threads))
        chosen, reached = None, None
        for ridge in _RIDGES if self.ridge is None else (self.ridge,):
            trial = model.clone()
            count = self._repair(trial, batches, names, context, ridge)
            after = truth.lost(answers_of(trial, judged, context.threads)) if count else before
            reached = after if reached is None else min(reached, after)
            if not after < best:
                break
            best, chosen = after, (ridge,)
        if chosen is None:
            reason = f"on samples set aside the loss would go from {before:.4g} to {reached or before:.4g}"
            return [self._refused(reason, "helps_held_out")]
        count = self._repair(model, batches, names, context, chosen[0])
        details = {"nodes_solved": count, "loss_before": before, "loss_after": best, "ridge": chosen[0] or "default"}
        action = f"solve {count} layers anew, loss on samples set aside {before:.4g} -> {best:.4g}"
        return [Change(self.name, (), action, details=details)]

    def _refused(self, reason: str, guard: str) -> Change:
        return Change(self.name, (), "solve linear layers anew", reason=reason, guard=guard)

    def _repair(
        self, model: ir.Model, batches: Sequence[Sample], names: Sequence[str], context: Context, ridge: float | None
    ) -> int:
        assert context.reference is not None
        return Repair(
            context.reference,
            model,
            batches,
            kept_of(model),
            names,
            per_sample=self.per_sample,
            seed=context.seed,
            threads=context.threads,
            repair=self.repair,
            ridge=ridge,
        ).run(context.progress)
