"""What `merge_convs` works on: a place where linear nodes can become one, and the node that they become."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxslim_core.rewrite import Match

from ._merge_terms import Geometry, Term

__all__ = ["Merge", "Single"]


@dataclass(frozen=True, slots=True)
class Single:
    """The one node that takes the place of several.

    Attributes:
        like: The term whose op type and layout it has.
        weight: Kernel or matrix [inputs, outputs], float64.
        bias: Per output, float64; None where nothing is added.
        geometry: Of a Conv.
    """

    like: Term
    weight: np.ndarray
    bias: np.ndarray | None
    geometry: Geometry | None = None
    op_type: str = ""
    turned_input: bool = False

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the weights as they are stored."""
        return self.like.array.dtype


@dataclass(frozen=True, slots=True, eq=False)
class Merge(Match):
    """A place. `node`, the anchor, is the last node of it but for `Copies`.

    Attributes:
        terms: The linear nodes taken in, in the order of the data.
    """

    terms: tuple[Term, ...]
    _made: list[Single] = field(default_factory=list, init=False, repr=False)

    def single(self) -> Single:
        """What the one node computes; computed once."""
        if not self._made:
            self._made.append(self.compute())
        return self._made[0]

    def compute(self) -> Single:
        """What the one node computes."""
        raise NotImplementedError

    def work(self) -> tuple[int, int]:
        """Multiply-accumulates per output position before and after; the latter are the elements of the one weight."""
        raise NotImplementedError

    def outputs(self) -> int:
        """Channels that the one node makes."""
        return self.terms[-1].outputs

    def added_bytes(self) -> int:
        """Of the weights that the one node will have, without computing them."""
        bias = self.outputs() if any(term.bias_value is not None for term in self.terms) else 0
        return self.terms[0].array.dtype.itemsize * (self.work()[1] + bias)

    def taken_in(self) -> ir.Value:
        """The value whose readers will read the one node."""
        return self.node.outputs[0]
