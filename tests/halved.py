"""Weights in which half of the channels are dead at random places, so that the right answer is known.

An axis of a weight is a number, a `Width` (a set of channels of which half are dead), or a tuple of these: their
product in row-major order, as in a Reshape to [heads, slots]. The same draw is made at full width, with the dead
entries silenced, and at half width, without them; both networks answer the same, and the second one has the size that
exact removal has to reach. numpy only: `tests/architectures.py` builds ONNX with it, `bench/` builds PyTorch.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

__all__ = ["Axis", "Draw", "How", "Part", "Width"]

How = Literal["made", "read"]
"""Where dead channels are silenced: in the weights that make them, or in those that read them."""


@dataclass(frozen=True, eq=False, slots=True)
class Width:
    """A set of channels, of which the `kept` ones are alive."""

    name: str
    size: int
    kept: tuple[int, ...]


Part = int | Width
Axis = Part | tuple[Part, ...]


@dataclass(slots=True)
class Draw:
    """Seeded weights at one of the two widths.

    Attributes:
        how: Where dead channels are silenced; of no account at half width.
        half: Leave the dead channels out.
        seed: Of places and values.
        widths: What was asked for so far, by name.
    """

    how: How = "made"
    half: bool = False
    seed: int = 0
    widths: dict[str, Width] = field(default_factory=dict)

    def _rng(self, name: str) -> np.random.Generator:
        return np.random.default_rng([zlib.crc32(name.encode()), self.seed])

    def width(self, name: str, size: int, kept: Sequence[int] | None = None) -> Width:
        """A set of channels by its name; half of them die at random places unless `kept` says which live."""
        if name not in self.widths:
            places = self._rng(name).permutation(size)[: size // 2] if kept is None else kept
            self.widths[name] = Width(name, size, tuple(sorted(int(place) for place in places)))
        found = self.widths[name]
        assert found.size == size, name
        return found

    def size(self, axis: Axis) -> int:
        """The length of an axis as it is built."""
        parts = axis if isinstance(axis, tuple) else (axis,)
        return math.prod(p if isinstance(p, int) else len(p.kept) if self.half else p.size for p in parts)

    def weight(
        self,
        name: str,
        axes: Sequence[Axis],
        *,
        makes: Sequence[int] = (),
        reads: Sequence[int] = (),
        fan: int | None = None,
        around: float = 0.0,
    ) -> np.ndarray:
        """A float32 weight by its name.

        Args:
            name: Seeds the values.
            axes: Of the weight.
            makes: Axes along which it makes channels: zero at the dead ones where `how` is "made".
            reads: Axes along which it reads channels: zero at the dead ones where `how` is "read".
            fan: How many products are summed; the values are normal with variance 2 / fan. Where None, they lie in
                `around` +- 0.3.
            around: See `fan`.
        """
        rng, full = self._rng(name), [self._full(axis) for axis in axes]
        values = rng.uniform(around - 0.3, around + 0.3, full) if fan is None else rng.normal(0, (2 / fan) ** 0.5, full)
        return self.table(values.astype(np.float32), axes, makes=makes, reads=reads)

    def table(
        self, values: np.ndarray, axes: Sequence[Axis], *, makes: Sequence[int] = (), reads: Sequence[int] = ()
    ) -> np.ndarray:
        """Given values at full width, silenced or cut as `weight` does."""
        values = values.copy()
        for index, axis in enumerate(axes):
            alive = self.alive(axis)
            if self.half:
                values = np.compress(alive, values, axis=index)
            elif index in (makes if self.how == "made" else reads):
                np.moveaxis(values, index, 0)[~alive] = 0
        return np.ascontiguousarray(values)

    def alive(self, axis: Axis) -> np.ndarray:
        """Mask over an axis at full width."""
        found = np.ones(1, bool)
        for part in axis if isinstance(axis, tuple) else (axis,):
            mask = np.ones(part if isinstance(part, int) else part.size, bool)
            if isinstance(part, Width):
                mask[:] = False
                mask[list(part.kept)] = True
            found = np.logical_and.outer(found, mask).reshape(-1)
        return found

    @staticmethod
    def _full(axis: Axis) -> int:
        parts = axis if isinstance(axis, tuple) else (axis,)
        return math.prod(part if isinstance(part, int) else part.size for part in parts)
