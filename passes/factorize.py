"""Replace a large Gemm or MatMul by two small ones through truncated singular value decomposition.

    y = W'x + b   with W (d x n) ~ A (d x r) B (r x n)    ->    h = A'x,  y = B'h + b

The r largest singular triples, computed in float64; the bias, alpha and beta stay with the second node. It costs
r*(d + n) multiply-accumulates per row instead of d*n, and as many weights.

Lossy: the spectral norm of W - A*B is the first singular value left out, which the report gives with the energy kept.
Without data the error is the same for every direction of the input. A layer is left alone where two factors are not
smaller, where another node reads its weight, where the weight is kept as int8, or where it is not measured faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal, final

import numpy as np
import onnx_ir as ir

from onnxslim_core.errors import RecipeError
from onnxslim_core.graph import Names, label_of, opset_of, users_of
from onnxslim_core.lowrank.ranks import Offers, ranks_for_target
from onnxslim_core.lowrank.svd import Factors, break_even, rank_for_energy, rank_for_ratio, round_rank
from onnxslim_core.measure.shapes import Shapes, concrete_shapes
from onnxslim_core.rewrite import Change, Context, Kind

from ._factor import Layer, layers_of, measure, split

__all__ = ["Factorize"]


Guard = Callable[[Layer, "Factorize"], str | None]


def weight_is_float(layer: Layer, options: Factorize) -> str | None:
    """A weight kept as int8 (or computed in another way) would come back as two float matrices, larger than it."""
    if layer.weight is not None:
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


def saves_nothing(layer: Layer, rank: int) -> str | None:
    """Why a rank does not pay."""
    rows, columns = _sizes(layer)
    if rank <= break_even(rows, columns):
        return None
    return f"rank {rank} of {rows} x {columns} saves nothing: two factors are smaller up to {break_even(rows, columns)}"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Factorize:
    """Split large Gemm and MatMul nodes in two by truncated SVD."""

    name: ClassVar[str] = "factorize"
    kind: ClassVar[Kind] = Kind.LOSSY
    guards: ClassVar[tuple[Guard, ...]] = (weight_is_float, weight_is_its_own, weight_is_sound)

    energy: float | None = None
    """Share of each weight's energy (sum of squares of the singular values) to keep; 0.98 where nothing is asked."""
    ratio: float | None = None
    """Share of each layer's multiply-accumulates to remove."""
    target: float | None = None
    """Share of the multiply-accumulates of all layers concerned to keep; the layers that lose least give most."""
    round_to: int | Literal["auto"] = "auto"
    """Ranks are multiples of this: rounded up for an energy, down for a ratio or target. auto: 16, below 32 it is 8."""
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
        shapes = concrete_shapes(model, context.samples[0] if context.samples else None)
        changes: list[Change] = []
        layers: list[Layer] = []
        found = list(layers_of(model, shapes))
        if small := self._all_small(found):
            return [
                _refusal(small, "large_enough", f"the largest layer has fewer than min_size = {self.min_size} elements")
            ]
        for layer in self._chosen(found):
            verdict = next(((g.__name__, why) for g in self.guards if (why := g(layer, self)) is not None), None)
            if verdict is None:
                layers.append(layer)
            else:
                changes.append(_refusal(layer, *verdict))
        names = Names(model)
        for done, (layer, rank) in enumerate(zip(layers, self._ranks(layers), strict=True)):
            context.progress(self.name, done, len(layers))
            changes.append(self._factorize(layer, rank, model, shapes, names, context))
            layer.found = None
        return changes

    def _all_small(self, layers: Sequence[Layer]) -> Layer | None:
        """The largest layer where all are too small to be looked at; else a user would be told nothing at all."""
        largest = max(layers, key=lambda layer: layer.size, default=None)
        small = largest is not None and all(each.weight is not None and each.size < self.min_size for each in layers)
        return largest if small else None

    def _chosen(self, layers: Iterable[Layer]) -> list[Layer]:
        found = [layer for layer in layers if layer.weight is None or layer.size >= self.min_size]
        if self.only:
            found = [layer for layer in found if _is_named(layer, self.only)]
        found = [layer for layer in found if not _is_named(layer, self.ignored)]
        if self.largest is None:
            return found
        ranked = sorted(found, key=lambda layer: (layer.macs, layer.size), reverse=True)[: self.largest]
        return [layer for layer in found if layer in ranked]

    def _ranks(self, layers: Sequence[Layer]) -> list[int]:
        """A rank for each layer; 0 leaves it alone."""
        grid = None if self.round_to == "auto" else self.round_to
        if self.target is not None:
            offers = [
                Offers(_sizes(layer), layer.decomposition().energy(), layer.macs or layer.size) for layer in layers
            ]
            return ranks_for_target(offers, self.target, grid)
        ranks = []
        for layer in layers:
            if self.ratio is not None:
                rank = rank_for_ratio(*_sizes(layer), self.ratio)
                ranks.append(round_rank(rank, grid, up=False) if rank else 0)
                continue
            rank = rank_for_energy(layer.decomposition().s, 0.98 if self.energy is None else self.energy)
            rounded = round_rank(rank, grid, up=True)
            # off the grid rather than not at all: the measurement has the last word
            ranks.append(min(rounded, max(rank, break_even(*_sizes(layer)))))
        return ranks

    def _factorize(
        self, layer: Layer, rank: int, model: ir.Model, shapes: Shapes, names: Names, context: Context
    ) -> Change:
        assert layer.weight is not None
        if rank == 0:
            return _refusal(layer, "pays", "the target is met without it" if self.target else "no rank is low enough")
        if (reason := saves_nothing(layer, rank)) is not None:
            return _refusal(layer, "pays", reason)
        factors = layer.decomposition().factors(rank)
        stored = [part.astype(layer.weight.dtype) for part in (factors.a, factors.b)]
        details = _details(layer, rank, factors, stored)
        if not all(np.isfinite(part.astype(np.float64)).all() for part in stored):
            return _refusal(layer, "representable", f"the factors do not fit into {layer.weight.dtype.name}", details)
        details["latency"] = "not measured"
        if self.measure != "never":
            timing = measure(layer, stored, model, shapes, context)
            if timing is not None:
                details["latency"] = {"ratio": timing.ratio, "low": timing.low, "high": timing.high}
                if timing.high >= 1:
                    spread = f"{timing.ratio:.2f} of the time ({timing.low:.2f} to {timing.high:.2f})"
                    return _refusal(layer, "measured_faster", f"not measured faster: {spread}", details)
            elif self.measure == "always":
                return _refusal(layer, "measured_faster", "its time cannot be measured", details)
        where = (label_of(layer.node),)
        saved = layer.weight.nbytes - sum(part.nbytes for part in stored)
        split(layer.node, layer.place, stored, names, opset_of(model))
        rows, columns = _sizes(layer)
        return Change(self.name, where, f"split {rows} x {columns} at rank {rank}", bytes_saved=saved, details=details)


def _sizes(layer: Layer) -> tuple[int, int]:
    assert layer.weight is not None
    rows, columns = layer.weight.shape
    return rows, columns


def _is_named(layer: Layer, globs: Sequence[str]) -> bool:
    weight = layer.node.inputs[layer.place]
    names = [layer.node.name or "", *(str(v.name) for v in (weight, *layer.node.outputs) if v is not None)]
    return any(fnmatchcase(name, glob) for name in names for glob in globs)


def _refusal(layer: Layer, guard: str, reason: str, details: dict[str, Any] | None = None) -> Change:
    what = "" if layer.weight is None else f" {layer.weight.shape[0]} x {layer.weight.shape[1]}"
    return Change("factorize", (label_of(layer.node),), f"split{what}", reason, guard, details=details or {})


def _details(layer: Layer, rank: int, factors: Factors, stored: Sequence[np.ndarray]) -> dict[str, Any]:
    """What a reader can check: the error is that of the factors as they are stored, rounding included."""
    assert layer.weight is not None
    rows, columns = layer.weight.shape
    left = layer.weight.astype(np.float64) - stored[0].astype(np.float64) @ stored[1].astype(np.float64)
    return {
        "rows": rows,
        "columns": columns,
        "rank": rank,
        "energy": factors.kept_energy,
        "first_dropped": factors.first_dropped,
        "spectral_error": _spectral_norm(left),
        "macs_before": layer.macs,
        "macs_after": layer.macs * rank * (rows + columns) // (rows * columns),
    }


def _spectral_norm(array: np.ndarray) -> float:
    """The largest singular value, by the eigenvalues of the smaller Gram matrix: exact for the largest, and cheap."""
    scale = float(np.abs(array).max(initial=0.0))
    if scale == 0:
        return 0.0
    unit = array / scale
    gram = unit @ unit.T if unit.shape[0] <= unit.shape[1] else unit.T @ unit
    return scale * float(np.sqrt(max(np.linalg.eigvalsh(gram)[-1], 0.0)))
