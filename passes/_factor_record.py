"""What `factorize` puts on record: what a layer becomes, and figures that a reader can check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxslim_core.graph import label_of
from onnxslim_core.lowrank.channel import Matrix
from onnxslim_core.lowrank.forms import Offer
from onnxslim_core.rewrite import Change

from ._factor import Layer

__all__ = ["details_of", "how", "refusal", "what"]


def what(layer: Layer) -> str:
    """In words: `split 64 x 48`, or `split 3 x 3 Conv 64 to 128`."""
    if layer.weight is None:
        return "split"
    depth, outputs = layer.weight.shape
    if not layer.kernel:
        return f"split {depth} x {outputs}"
    size = " x ".join(str(side) for side in layer.kernel)
    return f"split {size} Conv {depth // int(np.prod(layer.kernel))} to {outputs}"


def how(offer: Offer) -> str:
    rank = " and ".join(str(rank) for rank in offer.ranks)
    return f"at rank {rank}" if offer.form == "matrix" else f"at rank {rank}, {offer.form}"


def refusal(layer: Layer, guard: str, reason: str, details: Mapping[str, Any] | None = None) -> Change:
    return Change("factorize", (label_of(layer.node),), what(layer), reason, guard, details=details or {})


def details_of(layer: Layer, offer: Offer, parts: Sequence[np.ndarray]) -> dict[str, Any]:
    """What a reader can check."""
    assert layer.weight is not None
    details: dict[str, Any] = {
        "rows": layer.weight.shape[0],
        "columns": layer.weight.shape[1],
        "form": offer.form,
        "rank": offer.rank,
        "ranks": list(offer.ranks),
        "criterion": "output" if layer.sampled else "weight",
        "error": offer.error,
        "energy": 1 - offer.error,
        "macs_before": layer.macs,
        "macs_after": offer.macs,
    }
    if layer.why:
        details["criterion_because"] = layer.why
    if isinstance(offer.curve, Matrix) and not layer.sampled:
        # of the factors as they are stored, rounding included
        a, b = (part.astype(np.float64) for part in parts)
        left = layer.weight.astype(np.float64) - (a @ b if offer.form == "matrix" else _product(a, b))
        dropped = offer.curve.found.factors(offer.rank).first_dropped
        details |= {"first_dropped": dropped, "spectral_error": _spectral_norm(left)}
    return details


def _product(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of the kernels [r, c, taps...] and [n, r, 1...]: d x n."""
    return np.asarray(first.reshape(len(first), -1).T @ second.reshape(len(second), -1).T)


def _spectral_norm(array: np.ndarray) -> float:
    """The largest singular value, by the eigenvalues of the smaller Gram matrix: exact for the largest, and cheap."""
    scale = float(np.abs(array).max(initial=0.0))
    if scale == 0:
        return 0.0
    unit = array / scale
    gram = unit @ unit.T if unit.shape[0] <= unit.shape[1] else unit.T @ unit
    return scale * float(np.sqrt(max(np.linalg.eigvalsh(gram)[-1], 0.0)))
