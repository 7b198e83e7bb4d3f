"""Replace a large Gemm, MatMul or Conv by two or three small ones.

    form      layer             becomes                                   multiply-accumulates per position
    matrix    Gemm, MatMul      d x r, r x n                              r (d + n)              for  d n
    channel   Conv              k x k to r channels, 1 x 1                r (c k k + n)          for  c n k k
    spatial   Conv, both k > 1  k x 1 to r channels, 1 x k                r k (c + n)
    tucker    Conv, k > 1       1 x 1 to p, k x k from p to q, 1 x 1      c p + p q k k + q n

With samples of real inputs the *answers* are kept: each factor is the best of its rank in the metric of what the
layer reads (singular value decomposition of the whitened weight), the bias makes up for the mean error, and every
error that a choice rests on is measured on samples held out from the decomposition. In the end the last factors are
solved anew one after the other (`repair`), so that a layer also mends what happened before it: half of the loss on a
ResNet-56. Without samples the *weights* are kept: by their plain decomposition, the best where nothing is known of
the inputs; only Gemm and MatMul are then taken, unless `layers` or `form` asks for Conv. The mathematics, with its
sources, is in onnxslim_core/lowrank, a file per form.

The last of the new nodes keeps the name, the output and the bias. Lossy. A layer is left alone where no form is
cheaper, where another node reads its weight, where the weight is kept as int8, where a Conv has groups, or where it
is not measured faster.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import numpy as np
import onnx_ir as ir
from threadpoolctl import threadpool_limits

from onnxslim_core.calibration.batches import stacked
from onnxslim_core.calibration.consumers import constant_of, is_linear
from onnxslim_core.errors import RecipeError
from onnxslim_core.graph import Names, attribute, label_of, users_of
from onnxslim_core.lowrank.forms import FORMS, Offer, judged, offers
from onnxslim_core.lowrank.gather import Seen, gather
from onnxslim_core.lowrank.ranks import choose
from onnxslim_core.lowrank.split import split, stored
from onnxslim_core.lowrank.weights import shifted
from onnxslim_core.measure.pieces import Table
from onnxslim_core.measure.shapes import concrete_shapes
from onnxslim_core.repair.sequential import Refit
from onnxslim_core.rewrite import Change, Context, Kind, glob_for

from ._factor import Layer, layers_of, timed
from ._factor_record import details_of, how, refusal, what

__all__ = ["Factorize"]

Guard = Callable[[Layer, "Factorize"], str | None]

_OPS = ("Gemm", "MatMul", "Conv")
_FEWEST = 4
"""Samples, of which one is held out."""
_KEPT = {"weight": 0.98, "output": 0.99}
"""The energy that is kept where nothing is asked."""
_LEAST = 0.1
"""Share of a Conv's multiply-accumulates that has to go: another node and another map cost about as much."""
_TRIES = 4
"""Offers of a form that are judged before it is given up."""
_PER_NODE = 0.05
"""What a third node counts beside the multiply-accumulates of a form."""


def one_sum(layer: Layer, options: Factorize) -> str | None:
    """A Conv with groups is many small layers, which no form makes smaller."""
    groups = int(attribute(layer.node, "group", 1))
    return f"its {groups} groups are layers of their own" if groups > 1 else None


def weight_is_float(layer: Layer, options: Factorize) -> str | None:
    """A weight kept as int8 (or computed in another way) would come back as two float matrices, larger than it."""
    if layer.weight is not None or one_sum(layer, options):
        return None
    value = layer.node.inputs[layer.place]
    producer = value.producer() if value is not None else None
    return f"its weight is computed by {label_of(producer)}" if producer is not None else "its weight may be fed"


def weight_is_its_own(layer: Layer, options: Factorize) -> str | None:
    """A weight that is read elsewhere stays in the file beside its factors."""
    value = layer.node.inputs[layer.place]
    while value is not None:
        users, is_output = users_of(value)
        if len(users) > 1 or is_output:
            return f"its weight '{value.name}' is read elsewhere"
        producer = value.producer()
        value = producer.inputs[0] if producer is not None and producer.inputs else None
    return None


def weight_is_sound(layer: Layer, options: Factorize) -> str | None:
    """A matrix of zeros has no directions, one with inf or nan no singular values."""
    assert layer.weight is not None
    if not np.isfinite(layer.weight.astype(np.float64)).all():
        return "its weight holds inf or nan"
    return None if layer.weight.any() else "its weight is zero"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Factorize:
    """Split large Gemm, MatMul and Conv nodes in two or three of low rank."""

    name: ClassVar[str] = "factorize"
    kind: ClassVar[Kind] = Kind.LOSSY
    guards: ClassVar[tuple[Guard, ...]] = (one_sum, weight_is_float, weight_is_its_own, weight_is_sound)

    energy: float | None = None
    """Share of each layer's energy to keep: of the variance of its answers with samples, of the squares of its weights
    without; 0.99 and 0.98 where nothing is asked."""
    ratio: float | None = None
    """Share of each layer's multiply-accumulates to remove."""
    target: float | None = None
    """Share of the multiply-accumulates of all layers concerned to keep; the layers that lose least give most."""
    layers: tuple[str, ...] = ()
    """Operators that are looked at. Where nothing is said: Gemm and MatMul, and Conv with samples or a form of it."""
    form: str = "auto"
    """matrix, channel, spatial or tucker; auto takes for each layer the form that is cheapest, or loses least."""
    criterion: Literal["auto", "output", "weight"] = "auto"
    """What is kept: the output on the samples, or the weight; auto is the output where samples are real."""
    repair: Literal["auto", "least_squares", "none"] = "auto"
    """The last node of every split layer is solved anew, one layer after the other, on what it reads by then, to what
    the layer answered (needs samples); auto does so where there are samples."""
    round_to: int | Literal["auto"] = "auto"
    """Ranks are multiples of this: rounded up for an energy, down for a ratio or target. auto: 16, below 64 it is 8."""
    min_size: int = 16384
    """Smallest weight, in elements, that is looked at."""
    ignored: tuple[str, ...] = ()
    """Globs over node and weight names that are left alone."""
    only: tuple[str, ...] = ()
    """Globs over node and weight names outside of which nothing is done."""
    largest: int | None = None
    """Look at no more than so many layers, those with the most multiply-accumulates."""
    measure: Literal["auto", "always", "never"] = "auto"
    """Keep only what is measured faster; where nothing can be measured, auto goes on and always refuses."""

    def __post_init__(self) -> None:
        asked = [key for key in ("energy", "ratio", "target") if getattr(self, key) is not None]
        if len(asked) > 1:
            raise RecipeError(f"factorize: {' and '.join(asked)} exclude each other")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise RecipeError(f"factorize: energy must lie in (0, 1], found {self.energy}")
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise RecipeError(f"factorize: ratio must lie between 0 and 1, found {self.ratio}")
        if self.target is not None and not 0 < self.target < 1:
            raise RecipeError(f"factorize: target must lie between 0 and 1, found {self.target}")
        if unknown := [op for op in self.layers if op not in _OPS]:
            raise RecipeError(f"factorize: layers holds '{unknown[0]}'", f"any of {', '.join(_OPS)}")
        if self.form not in ("auto", *FORMS):
            raise RecipeError(f"factorize: form is '{self.form}'", f"auto or one of {', '.join(FORMS)}")
        if self.criterion not in ("auto", "output", "weight"):
            raise RecipeError(f"factorize: criterion is auto, output or weight, found '{self.criterion}'")
        if self.repair not in ("auto", "least_squares", "none"):
            raise RecipeError(f"factorize: repair is auto, least_squares or none, found '{self.repair}'")
        if self.round_to != "auto" and (isinstance(self.round_to, str) or self.round_to < 1):
            raise RecipeError(f"factorize: round_to is auto or an integer from 1, found {self.round_to}")
        if self.min_size < 1:
            raise RecipeError(f"factorize: min_size must be at least 1, found {self.min_size}")
        if self.largest is not None and self.largest < 1:
            raise RecipeError(f"factorize: largest must be at least 1, found {self.largest}")
        if self.measure not in ("auto", "always", "never"):
            raise RecipeError(f"factorize: measure is auto, always or never, found '{self.measure}'")

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Split the layers of the main graph that the options name, one after the other."""
        given = bool(context.samples) and context.samples_are_real
        if (self.criterion == "output" or self.repair == "least_squares") and not given:
            reason = "answers are known from samples of real inputs only: give --data"
            return [Change(self.name, (), "split", reason, "data_given")]
        sampled = given and self.criterion != "weight"
        shapes = concrete_shapes(model, context.samples[0] if context.samples else None)
        found = list(layers_of(model, shapes, self._operators(sampled)))
        if small := self._all_small(found):
            return [
                refusal(small, "large_enough", f"the largest layer has fewer than min_size = {self.min_size} elements")
            ]
        layers, changes = list[Layer](), list[Change]()
        for layer in self._chosen(found):
            verdict = next(((g.__name__, why) for g in self.guards if (why := g(layer, self)) is not None), None)
            if verdict is None:
                layers.append(layer)
            else:
                changes.append(refusal(layer, *verdict))
        with threadpool_limits(context.threads):
            self._study(layers, model, context, sampled)
            wanted = self._wanted(layers)
        reference = model.clone() if given and self.repair != "none" and any(wanted) else None
        names, table = Names(model), Table.of(context)
        for done, (layer, candidates) in enumerate(zip(layers, wanted, strict=True)):
            context.progress(self.name, done, len(layers))
            changes.append(self._factorize(layer, candidates, model, names, table))
            layer.offers, layer.seen = [], None
        done_to = [layer.node for layer in layers if layer.halved]
        return changes if reference is None else [*changes, *self._mend(done_to, reference, model, context)]

    def _mend(self, nodes: Sequence[ir.Node], reference: ir.Model, model: ir.Model, context: Context) -> list[Change]:
        """Solve the last nodes of split layers anew; they have kept the names of the layers."""
        # what has no place for a bias would cost another node
        named = [str(node.name) for node in nodes if node.name and shifted(node) is not None]
        if not named:
            return []
        batches = stacked(model, context.samples)
        job = Refit(reference, model, batches, {}, named, seed=context.seed, threads=context.threads)
        count = job.run(context.progress)
        return [Change(self.name, tuple(named), "solve what was split anew", details={"nodes_solved": count})]

    def _operators(self, sampled: bool) -> tuple[str, ...]:
        if self.layers:
            return self.layers
        of_conv = self.form in ("channel", "spatial", "tucker")
        return ("Conv",) if of_conv else _OPS if sampled and self.form == "auto" else ("Gemm", "MatMul")

    def _all_small(self, layers: Sequence[Layer]) -> Layer | None:
        """The largest layer where all are too small to be looked at; else a user would be told nothing at all."""
        largest = max(layers, key=lambda layer: layer.size, default=None)
        small = largest is not None and all(0 < each.size < self.min_size for each in layers)
        return largest if small else None

    def _chosen(self, layers: Iterable[Layer]) -> list[Layer]:
        found = [layer for layer in layers if layer.size == 0 or layer.size >= self.min_size]
        if self.only:
            found = [layer for layer in found if _is_named(layer, self.only)]
        found = [layer for layer in found if not _is_named(layer, self.ignored)]
        if self.largest is None:
            return found
        ranked = sorted(found, key=lambda layer: (layer.macs, layer.size), reverse=True)[: self.largest]
        return [layer for layer in found if layer in ranked]

    def _study(self, layers: Sequence[Layer], model: ir.Model, context: Context, sampled: bool) -> None:
        """What each layer can become, and what it loses by that."""
        by_node = {layer.node: layer for layer in layers}
        if sampled:
            for layer in layers:
                layer.why = _unseen(layer, len(context.samples))
            weights = {layer.node: layer.weight for layer in layers if not layer.why and layer.weight is not None}
            batches = stacked(model, context.samples)
            for node, seen in gather(
                model, batches, weights, seed=context.seed, threads=context.threads, progress=context.progress
            ):
                self._judge(by_node[node], seen)
        for layer in layers:
            if not layer.sampled:
                layer.why = layer.why or ("what it reads is the same in all samples" if sampled else "")
                layer.offers = self._offers(layer, None)

    def _offers(self, layer: Layer, seen: Seen | None) -> list[Offer]:
        forms = FORMS if self.form == "auto" else (self.form,)
        grid = None if self.round_to == "auto" else self.round_to
        return offers(layer.node, seen, layer.x, layer.y, forms=forms, grid=grid)

    def _judge(self, layer: Layer, seen: Seen) -> None:
        """Offers with their errors on the samples that were held out."""
        try:
            layer.offers = judged(layer.node, self._offers(layer, seen), seen)
            layer.seen = dataclasses.replace(seen, gram=None, answers=None)
        except ValueError as err:
            layer.why = str(err)

    def _wanted(self, layers: Sequence[Layer]) -> list[list[Offer]]:
        """For each layer the offers that meet what is asked, best first; none leaves it alone."""
        if self.target is not None:
            points = [[(offer.macs, offer.error) for offer in layer.offers] for layer in layers]
            chosen = choose([layer.macs for layer in layers], points, self.target)
            return [
                [layer.judge(layer.offers[at])] if at >= 0 else [] for layer, at in zip(layers, chosen, strict=True)
            ]
        if self.ratio is not None:
            limits = [(1 - self.ratio) * layer.macs * (1 + 1e-9) for layer in layers]
            return [
                [layer.judge(o) for o in _best([o for o in layer.offers if _cost(o) <= limit], lambda o: o.error)]
                for layer, limit in zip(layers, limits, strict=True)
            ]
        return [self._enough(layer) for layer in layers]

    def _enough(self, layer: Layer) -> list[Offer]:
        """The cheapest offer of each form that keeps the energy, judged itself."""
        limit = 1 - (self.energy or _KEPT["output" if layer.sampled else "weight"]) + 1e-12
        found = []
        for form in FORMS:
            mine = [offer for offer in self._cheaper(layer) if offer.form == form and offer.error <= limit]
            tries = sorted(mine, key=_cost)[:_TRIES]
            sure = next((offer for offer in map(layer.judge, tries) if offer.error <= limit), None)
            if sure is not None:
                found.append(sure)
        return sorted(found, key=_cost)

    def _factorize(
        self, layer: Layer, candidates: Sequence[Offer], model: ir.Model, names: Names, table: Table
    ) -> Change:
        if not candidates:
            return refusal(layer, "pays", self._too_dear(layer))
        refusals = []
        for offer in candidates:
            assert layer.weight is not None
            parts = stored(layer.node, offer)
            details = details_of(layer, offer, parts)
            if not all(np.isfinite(part.astype(np.float64)).all() for part in parts):
                reason = f"the factors do not fit into {layer.weight.dtype.name}"
                refusals.append(refusal(layer, "representable", reason, details))
                continue
            details["latency"] = "not measured"
            timing = timed(layer, offer, model, table) if self.measure != "never" else None
            if timing is not None:
                details["latency"] = {"ratio": timing.ratio, "low": timing.low, "high": timing.high}
                if timing.high >= 1:
                    spread = f"{timing.ratio:.2f} of the time ({timing.low:.2f} to {timing.high:.2f})"
                    refusals.append(refusal(layer, "measured_faster", f"not measured faster: {spread}", details))
                    continue
            elif self.measure == "always":
                return refusal(layer, "measured_faster", "its time cannot be measured", details)
            where, saved = (label_of(layer.node),), layer.weight.nbytes - sum(part.nbytes for part in parts)
            split(model, layer.node, offer, names)
            layer.halved = True
            return Change(self.name, where, f"{what(layer)} {how(offer)}", bytes_saved=saved, details=details)
        return refusals[0]

    def _too_dear(self, layer: Layer) -> str:
        """Why nothing is offered."""
        if not layer.offers:
            return "no form of any rank takes fewer multiply-accumulates"
        if self.target is not None:
            return "the target is met without it"
        if self.ratio is not None:
            return "no form of any rank is as cheap as that"
        least = min((offer.error for offer in self._cheaper(layer)), default=1.0)
        return f"no form that saves enough loses less than {least:.3g} of its energy"

    @staticmethod
    def _cheaper(layer: Layer) -> list[Offer]:
        """Offers that save what they must."""
        most = layer.macs * (1 - _LEAST if layer.kernel else 1)
        return [offer for offer in layer.offers if offer.macs <= most]


def _unseen(layer: Layer, samples: int) -> str:
    """Why the samples cannot say what a layer reads; empty where they can."""
    if samples < _FEWEST:
        return f"fewer than {_FEWEST} samples"
    if not is_linear(layer.node) or constant_of(layer.node) != layer.place:
        return "its weight or its bias is no constant of its own"
    return ""


def _cost(offer: Offer) -> float:
    return offer.macs * (1 + _PER_NODE * (offer.nodes - 2))


def _best(offers: Sequence[Offer], key: Callable[[Offer], float]) -> list[Offer]:
    """The best offer of each form, best form first."""
    found: dict[str, Offer] = {}
    for offer in sorted(offers, key=lambda offer: (key(offer), offer.macs)):
        found.setdefault(offer.form, offer)
    return list(found.values())


def _is_named(layer: Layer, globs: Sequence[str]) -> bool:
    weight = layer.node.inputs[layer.place]
    names = [layer.node.name or "", *(str(v.name) for v in (weight, *layer.node.outputs) if v is not None)]
    return glob_for(names, globs) is not None
