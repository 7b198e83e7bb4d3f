"""The weights of the model given, and weights that are parts of them."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir

from onnxslim_core import _tensors
from onnxslim_core.errors import ModelError
from onnxslim_core.lock.hashes import Hashed, by_hash
from onnxslim_core.lock.record import Kept

__all__ = ["Pool", "indices_of"]

_SEARCHED = 2**24
"""Elements of a weight up to which it is looked up what was kept of it."""


class Pool:
    """The weights of the model given, by hash and by name."""

    def __init__(self, model: ir.Model, hashed: Hashed) -> None:
        self.tensors: dict[str, ir.TensorProtocol] = {}
        for tensor in _tensors.tensors_of(model):
            if by_hash(tensor):
                self.tensors.setdefault(hashed(tensor), tensor)
        self._hashed = hashed
        self._named = {name: v.const_value for name, v in model.graph.initializers.items() if v.const_value is not None}

    def part(self, name: str, tensor: ir.TensorProtocol) -> Kept | None:
        """What was kept of which weight, where that is all that happened to it; it is looked for by its name."""
        whole = self._named.get(name) or self._named.get(re.sub(r"(_\d+)+$", "", name))
        if whole is None or whole.dtype != tensor.dtype or whole.size > _SEARCHED or not by_hash(whole):
            return None
        axes = _selection(np.asarray(whole.numpy()), np.asarray(tensor.numpy()))
        if axes is None:
            return None
        shape = tuple(int(d) for d in whole.shape.numpy())
        return Kept(self._hashed(whole), whole.dtype.value, shape, {axis: _ranges(kept) for axis, kept in axes.items()})


def _selection(whole: np.ndarray, part: np.ndarray) -> dict[int, np.ndarray] | None:
    """What of each axis of an array makes up another one, bit for bit; None where no such choice does or many do.

    Elements that occur once in the whole give away where they were.
    """
    if whole.ndim != part.ndim or not part.size or any(p > w for p, w in zip(part.shape, whole.shape, strict=True)):
        return None
    bits = np.dtype(f"u{whole.itemsize}") if whole.itemsize in (2, 4, 8) else None
    if bits is None:
        return None
    flat, sought = np.ascontiguousarray(whole).view(bits).reshape(-1), np.ascontiguousarray(part).view(bits)
    order = np.argsort(flat, kind="stable")
    ranked = flat[order]
    place = np.minimum(np.searchsorted(ranked, sought), ranked.size - 1)
    if not np.array_equal(ranked[place], sought):
        return None
    twice = np.concatenate([ranked[1:] == ranked[:-1], [False]])
    twice[1:] |= twice[:-1].copy()
    found = np.unravel_index(order[place], whole.shape)
    kept: dict[int, np.ndarray] = {}
    for axis, size in enumerate(whole.shape):
        others = tuple(each for each in range(whole.ndim) if each != axis)
        index = np.where(twice[place], -1, found[axis]).max(axis=others)
        if index.min() < 0:
            return None
        if not np.array_equal(index, np.arange(size)):
            kept[axis] = index
    cut = whole
    for axis, index in kept.items():
        cut = cut.take(index, axis)
    return kept if cut.tobytes() == part.tobytes() else None


def _ranges(indices: np.ndarray) -> str:
    """Such as "0-3,7"."""
    runs = np.split(indices, np.flatnonzero(np.diff(indices) != 1) + 1)
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def indices_of(text: str, size: int) -> np.ndarray:
    """The indices that `_ranges` wrote.

    Raises:
        ModelError: if they are no indices of so many, or one is there twice.
    """
    found: list[np.ndarray] = []
    if not re.fullmatch(r"\d{1,18}(-\d{1,18})?(,\d{1,18}(-\d{1,18})?)*", text, re.ASCII):
        raise ModelError("the lock is damaged: what was kept of an axis is no list of indices")
    for run in text.split(","):
        first, _, last = run.partition("-")
        start, stop = int(first), int(last or first) + 1
        if not start < stop <= size:
            raise ModelError(f"the lock is damaged: indices {run[:40]} of an axis of {size}")
        found.append(np.arange(start, stop))
        if len(found) > size:
            break
    indices = np.concatenate(found)
    if len(np.unique(indices)) != len(indices):
        raise ModelError("the lock is damaged: an index was kept twice")
    return indices
