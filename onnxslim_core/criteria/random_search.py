"""Random search at a fixed width: one that stays is swapped for one that goes, and the swap is kept where less is lost.

A polish for the order of any criterion, whose choices are made one after the other: here two are looked at together.
What is lost is read off the moments, or measured on the whole network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxslim_core.criteria.curves import Curve, Readers, Setting, error_along

__all__ = ["polish", "swaps"]

Ints = NDArray[np.int32]


def polish(readers: Readers, curve: Curve, classes: Ints, gone: int, setting: Setting, tries: int = 64) -> Curve:
    """A curve that loses no more than this one with `gone` classes gone.

    Args:
        readers: All sums that read the classes.
        curve: Where to start.
        classes: The classes that may go, (m,).
        gone: The width that counts: so many are gone.
        setting: Its seed draws; what it measures counts, and the moments where it measures nothing.
        tries: Swaps that are looked at.
    """
    lost = setting.measure or (lambda chosen: _lost(readers, chosen, setting.ridge))
    chosen = swaps(lost, curve.order[:gone], classes, setting.seed, tries)
    order = np.concatenate([chosen, [root for root in curve.order if root not in set(chosen.tolist())]])
    missing = [root for root in classes if root not in set(order.tolist())]
    order = np.concatenate([order, missing])[: len(curve.order)].astype(np.int32)
    return Curve(order, error_along(readers, order, setting.ridge))


def _lost(readers: Readers, chosen: Sequence[int], ridge: float | None) -> float:
    return float(error_along(readers, np.array(chosen, np.int32), ridge)[-1])


def swaps(lost: Callable[[Sequence[int]], float], gone: Ints, classes: Ints, seed: int, tries: int) -> Ints:
    """The classes that go after random swaps, each kept where strictly less is lost; (gone,)."""
    rng = np.random.default_rng(seed)
    out, kept = list(map(int, gone)), [int(root) for root in classes if root not in set(gone.tolist())]
    if not out or not kept:
        return gone
    best = lost(out)
    for _ in range(tries):
        i, j = int(rng.integers(len(out))), int(rng.integers(len(kept)))
        out[i], kept[j] = kept[j], out[i]
        now = lost(out)
        if now < best:
            best = now
        else:
            out[i], kept[j] = kept[j], out[i]
    return np.array(out, np.int32)
