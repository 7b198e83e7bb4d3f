"""Let a network work on 8-bit integers where that is measured faster and near enough.

    x ~ s (q - z)    activations in uint8, one scale and zero point per tensor, from the samples
    W ~ s_n q        weights in int8, one scale per output channel n;  bias in int32 with s * s_n

Written as QuantizeLinear and DequantizeLinear, which onnxruntime fuses into 8-bit kernels. Everything between two
8-bit layers follows, so that no conversion is left there. A layer that takes longer in int8 by itself (as the first of
a network of images often does) stays in float, where the whole is measured faster so. Answers are judged on samples
that gave no ranges, in each part of each output. Where all layers together lose much of what `min_cosine` allows,
those that take next to no time and do most of the damage stay in float, and the weights of the others are rounded
anew, layer by layer, on what the 8-bit network reads (`repair`). Where they still lose more, every layer is measured
alone, and those that cost most for what they gain go back to float until the answers hold. What is not measured faster
is undone.

Lossy. Needs samples of real inputs, but for `mode = "weights"`. Sources: Jacob et al., CVPR 2018; Nagel et al., ICCV
2019 (bias correction, equalization); Frantar et al., ICLR 2023 (error feedback); ONNX DequantizeLinear (13).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import onnx_ir as ir

from onnxslim_core.errors import MeasureError, RecipeError, UnsupportedModel
from onnxslim_core.graph import is_op, label_of
from onnxslim_core.measure.pieces import Table, settled
from onnxslim_core.quant.dynamic import store_weights
from onnxslim_core.quant.layout import is_quantized, linear_nodes
from onnxslim_core.quant.ranges import METHODS
from onnxslim_core.rewrite import Change, Context, Kind, weight_bytes

from ._opset import raise_opset
from ._precision import in_int8, is_named
from ._precision_clock import fastest_layers
from ._quantize_prepare import prepare
from ._quantize_static import Search, Wanted

__all__ = ["Quantize"]


_PROBES = 4
"""Timings until one is clear."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Quantize:
    """Work on 8-bit integers where that is faster and near enough."""

    name: ClassVar[str] = "quantize"
    kind: ClassVar[Kind] = Kind.LOSSY

    mode: Literal["auto", "static", "dynamic", "weights"] = "auto"
    """Ranges from samples, or taken at each call (Gemm and MatMul only); weights: int8 in the file alone, for size.
    auto: static where there is a Conv, else dynamic."""
    min_cosine: float = 0.99
    """What every part of every output has to reach, mean over the samples kept aside."""
    min_agreement: float | None = None
    """Share of equal first answers that every output with scores has to reach."""
    ranges: str = "auto"
    """How the range of an activation is taken from what was seen: minmax, percentile, mse or entropy; auto is minmax,
    or what answers best where a layer does much damage."""
    percentile: float = 99.99
    """Of the values, in per cent, that stay inside the range, for `percentile`."""
    repair: Literal["auto", "always", "never"] = "auto"
    """Solve for weights and biases that make up for the rounding; auto does it where all layers lose too much."""
    ignored: tuple[str, ...] = ()
    """Globs over node and weight names that stay in float."""
    measure: Literal["auto", "always", "never"] = "auto"
    """Keep the result only if it is measured faster; where nothing can be measured, auto goes on and always refuses."""

    def __post_init__(self) -> None:
        if self.ranges not in ("auto", *METHODS):
            raise RecipeError(f"ranges of quantize is '{self.ranges}'", f"one of auto, {', '.join(METHODS)}")
        for name, share in (("min_cosine", self.min_cosine), ("min_agreement", self.min_agreement)):
            if share is not None and not 0 <= share <= 1:
                raise RecipeError(f"{name} of quantize is {share}", "a number from 0 to 1")
        if self.mode not in ("auto", "static", "dynamic", "weights"):
            raise RecipeError(f"mode of quantize is '{self.mode}'", "auto, static, dynamic or weights")
        if self.repair not in ("auto", "always", "never"):
            raise RecipeError(f"repair of quantize is '{self.repair}'", "auto, always or never")
        if not 50 < self.percentile <= 100:
            raise RecipeError(f"percentile of quantize is {self.percentile}", "a number above 50, up to 100")
        if self.measure not in ("auto", "always", "never"):
            raise RecipeError(f"measure of quantize is '{self.measure}'", "auto, always or never")

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Take ranges, choose what is 8 bits wide, write it, time it."""
        if is_quantized(model):
            return [self._refusal("still_float", "the model works on few bits already")]
        mode = self._mode_for(model)
        if mode == "weights":
            return self._store(model)
        if not context.samples or not context.samples_are_real:
            return [self._refusal("data_given", "int8 needs samples of real inputs: give --data")]
        work = model.clone()
        try:
            prepare(work, context)
        except UnsupportedModel as err:
            return [self._refusal("opset_fits", str(err))]
        nodes = [node for node in linear_nodes(work) if not is_named(node, self.ignored)]
        if not nodes:
            return [self._refusal("has_weights", "no Conv, Gemm or MatMul has constant float32 weights")]
        details: dict[str, Any] = {}
        try:
            if mode == "static" and self.measure != "never" and context.latency is not None:
                nodes = self._fast(work, nodes, context, details)
            wanted = Wanted(mode, self.min_cosine, self.min_agreement, self.ranges, self.percentile, self.repair, nodes)
            search = Search(model, work, wanted, context, details)
            found, chosen = search.run()
        except MeasureError as err:
            return [self._refusal("runs", str(err))]
        if found is None:
            reason = f"no layer can be int8 with a cosine of {self.min_cosine:g} in every part"
            if (worst := search.details.get("worst_of_all")) is not None:
                reason += f" (all of them at once: {search.details['cosine_of_all']:.4f} at '{worst}')"
            return [self._refusal("near_enough", reason, search.details)]
        if (slow := self._slow(model, found, context, search.details)) is not None:
            return [slow]
        saved = weight_bytes(model) - weight_bytes(found)
        model.graph, model.ir_version = found.graph, found.ir_version
        action = f"{len(chosen)} of {len(nodes)} layers in int8"
        where = tuple(label_of(node) for node in chosen)
        return [Change(self.name, where, action, bytes_saved=saved, details=search.details)]

    def _fast(self, work: ir.Model, nodes: list[ir.Node], context: Context, details: dict[str, Any]) -> list[ir.Node]:
        """The layers without those that are slower in int8, each timed alone, where the whole is measured faster so."""
        assert context.latency is not None
        fast = fastest_layers(work, nodes, Table.of(context), context)
        slow = [node for node in nodes if node not in fast]
        if not fast or not slow:
            return nodes
        ignored = [str(node.name) for node in work.graph if node not in nodes]
        whole = in_int8(work, ignored, context.samples[:1], context)
        mixed = in_int8(work, [*ignored, *(str(node.name) for node in slow)], context.samples[:1], context)
        if whole is None or mixed is None or context.latency(whole, mixed).ratio >= 1:
            return nodes
        details["slower_in_int8"] = [label_of(node) for node in slow]
        return fast

    def _mode_for(self, model: ir.Model) -> str:
        """Fixed ranges where there is a Conv; a network of matrix products takes them call by call."""
        if self.mode != "auto":
            return self.mode
        return "static" if any(is_op(node, "Conv") for node in model.graph) else "dynamic"

    def _store(self, model: ir.Model) -> list[Change]:
        """int8 weights behind a DequantizeLinear, for size alone."""
        try:
            raise_opset(model, 13)
        except UnsupportedModel as err:
            return [self._refusal("opset_fits", str(err))]
        nodes = [node for node in linear_nodes(model) if not is_named(node, self.ignored)]
        if not nodes:
            return [self._refusal("has_weights", "no Conv, Gemm or MatMul has constant float32 weights")]
        where = tuple(label_of(node) for node in nodes)
        saved = store_weights(model, nodes)
        return [Change(self.name, where, f"weights of {len(nodes)} layers stored in int8", bytes_saved=saved)]

    def _slow(self, model: ir.Model, found: ir.Model, context: Context, details: dict[str, Any]) -> Change | None:
        """Why the time does not speak for the result; None where it does, or is not asked."""
        details["latency"] = "not measured"
        if self.measure == "never" or (context.latency is None and self.measure == "auto"):
            return None
        if context.latency is None:
            return self._refusal("measured_faster", "the time cannot be measured", details)
        timing = settled(context.latency, model, found, _PROBES)
        details["latency"] = {"ratio": timing.ratio, "low": timing.low, "high": timing.high}
        if timing.high < 1:
            return None
        spread = f"{timing.ratio:.2f} of the time ({timing.low:.2f} to {timing.high:.2f})"
        return self._refusal("measured_faster", f"not measured faster: {spread}", details)

    def _refusal(self, guard: str, reason: str, details: dict[str, Any] | None = None) -> Change:
        return Change(self.name, (), "work on 8-bit integers", reason, guard, details=details or {})
