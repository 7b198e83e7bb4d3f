"""Truncated singular value decomposition of one weight matrix: W (d x n) ~ A (d x r) B (r x n).

The product of the r largest singular triples is the best rank-r matrix in the Frobenius and in the spectral norm
(Eckart and Young, 1936): the error is sqrt(sum of the dropped s_i^2) in the one and the first dropped s_i in the
other. Without data no better choice is possible. It costs r (d + n) multiply-accumulates per row of the input instead
of d n, so it saves where r < d n / (d + n).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Decomposition", "Factors", "break_even", "decompose", "ranks_up_to"]


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """Two matrices whose product stands for one.

    Attributes:
        a: d x r, float64.
        b: r x n, float64.
        first_dropped: The largest singular value left out, which is the spectral norm of W - A B; 0 at full rank.
    """

    a: np.ndarray
    b: np.ndarray
    first_dropped: float


@dataclass(frozen=True, slots=True, eq=False)
class Decomposition:
    """W = U diag(s) V', thin: U is d x k, s has k = min(d, n) elements in falling order, V' is k x n; float64.

    The rows of V' are orthonormal. So are the columns of U in the metric in which s^2 is an error: the identity in
    `decompose`, the Gram matrix of the inputs in `whitened.whiten`.
    """

    u: np.ndarray
    s: np.ndarray
    vt: np.ndarray

    def factors(self, rank: int) -> Factors:
        """The best product of a given rank; each pair of a column and a row is of like norm.

        Args:
            rank: 1 to k.
        """
        if not 1 <= rank <= self.s.size:
            raise ValueError(f"rank must lie between 1 and {self.s.size}, found {rank}")
        dropped = float(self.s[rank]) if rank < self.s.size else 0.0
        norms = np.linalg.norm(self.u[:, :rank], axis=0)
        norms[norms == 0] = 1.0
        a = self.u[:, :rank] * np.sqrt(self.s[:rank] / norms)
        b = np.sqrt(self.s[:rank] * norms)[:, None] * self.vt[:rank]
        return Factors(a, b, dropped)

    def tail(self) -> np.ndarray:
        """Squared error at each rank 1 ... k: the sum of the dropped s^2."""
        squares = self.s**2
        return np.asarray(np.append(np.cumsum(squares[::-1])[::-1][1:], 0.0))


def decompose(weight: np.ndarray) -> Decomposition:
    """All singular triples of a matrix, computed in float64 whatever its type.

    Args:
        weight: d x n, finite.
    """
    if weight.ndim != 2 or 0 in weight.shape:
        raise ValueError(f"a matrix is needed, found the shape {weight.shape}")
    wide = weight.astype(np.float64)
    if not np.isfinite(wide).all():
        raise ValueError("the matrix holds inf or nan")
    return Decomposition(*np.linalg.svd(wide, full_matrices=False))


def break_even(rows: int, columns: int) -> int:
    """The largest rank at which two factors take fewer multiply-accumulates (and weights) than one matrix."""
    return (rows * columns - 1) // (rows + columns)


def ranks_up_to(largest: int, grid: int | None) -> list[int]:
    """The ranks from 1 to `largest` that run fast.

    Args:
        largest: The last one that is asked about.
        grid: Multiples of this; None takes 16 from 64 on, 8 from 8 on, 4 from 4 on and 1 below (a CPU's vectors).
    """
    return [rank for rank in range(1, largest + 1) if rank % (grid or _step(rank)) == 0]


def _step(rank: int) -> int:
    return 16 if rank >= 64 else 8 if rank >= 8 else 4 if rank >= 4 else 1
