"""Truncated decomposition of a weight in the metric of its inputs: the answers stay, not the weights.

    min ||X (W - A B)||_F,  X: rows x d, W: d x n, rank r;   with X'X / rows = H = L L':  L'W = U S V'
    A = L'^-1 U_r S_r,  B = V_r',  error per row = sum of the dropped s_i^2

One decomposition serves every rank. Where n < d it is taken of the n x n matrix W'HW, which is the covariance of the
answers: its eigenvectors are V, and A B = W V_r V_r' needs no inverse of H (principal components of the responses:
Zhang, Zou, He, Sun, Accelerating Very Deep Convolutional Networks for Classification and Detection, TPAMI 2016, 3.1).
The other form is that of Wang et al., SVD-LLM, ICLR 2025, with eigenvalues in the place of the Cholesky factor.

A penalty p stands for inputs that the samples never show: H + p I is the metric, so p ||W - A B||_F^2 is counted too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxslim_core.lowrank.svd import Decomposition, decompose

__all__ = ["of_responses", "whiten"]

Floats = NDArray[np.float64]


def whiten(weight: Floats, gram: Floats | None, penalty: float = 0.0) -> Decomposition:
    """All factors of a weight in the metric of its inputs, in falling order of what they add to the answers.

    Args:
        weight: d x n, float64.
        gram: Covariance (or mean outer product) of the inputs, d x d; None takes the identity: the plain SVD.
        penalty: Added to the diagonal of `gram`.

    Returns:
        U with (gram + penalty I)-orthonormal columns, s, and V' with orthonormal rows; U S V' is the weight.
    """
    if gram is None:
        return decompose(weight)
    if weight.shape[1] <= weight.shape[0]:
        return of_responses(weight, weight.T @ (gram @ weight), penalty)
    values, vectors = np.linalg.eigh(gram)
    # a sample sees less than all directions, and rounding makes small eigenvalues negative
    root = np.sqrt(np.maximum(values, 1e-12 * max(float(values[-1]), 0.0)) + penalty)
    if not root.all():
        raise ValueError("the inputs are all zero")
    seen = (vectors * root).T @ weight
    squares, left = np.linalg.eigh(seen @ seen.T)
    s, left = np.sqrt(np.maximum(squares[::-1], 0.0)), left[:, ::-1]
    return Decomposition((vectors / root) @ left, s, (left.T @ seen) / _nonzero(s)[:, None])


def of_responses(weight: Floats, covariance: Floats, penalty: float = 0.0) -> Decomposition:
    """The same from the covariance of the answers W'HW alone, n x n: for weights with more rows than columns.

    Args:
        weight: d x n, float64.
        covariance: Of x W, n x n.
        penalty: As in `whiten`.
    """
    squares, vectors = np.linalg.eigh(covariance + penalty * (weight.T @ weight))
    s, vectors = np.sqrt(np.maximum(squares[::-1], 0.0)), vectors[:, ::-1]
    return Decomposition((weight @ vectors) / _nonzero(s), s, vectors.T)


def _nonzero(s: Floats) -> Floats:
    return np.where(s > 0, s, np.inf)
