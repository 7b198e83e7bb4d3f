"""What `merge_convs` works on: a place where linear nodes can become one, and the node that they become."""

from __future__ import annotations

from dataclasses import dataclass
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

    def nbytes(self) -> int:
        """Of weight and bias as they will be stored."""
        return self.dtype.itemsize * (self.weight.size + (0 if self.bias is None else self.bias.size))


@dataclass(frozen=True, slots=True, eq=False)
class Merge(Match):
    """A place. `node`, the anchor, is the last node of it but for `Copies`.

    Attributes:
        terms: The linear nodes taken in, in the order of the data.
    """

    terms: tuple[Term, ...]

    def single(self) -> Single:
        """What the one node computes."""
        raise NotImplementedError

    def work(self) -> tuple[float, float]:
        """Multiply-accumulates before and after, in one unit of the place's own."""
        raise NotImplementedError

    def added_bytes(self) -> int:
        """Of the weights that the one node will have."""
        return self.single().nbytes()

    def taken_in(self) -> ir.Value:
        """The value whose readers will read the one node."""
        return self.node.outputs[0]
