"""A matrix that rounding made indefinite is factored all the same."""

from __future__ import annotations

import numpy as np

from onnxslim_core.criteria.curves import cholesky


def test_a_matrix_that_is_barely_indefinite_is_factored() -> None:
    rng = np.random.default_rng(0)
    half = rng.normal(size=(6, 3))
    matrix = half @ half.T  # of rank 3: three eigenvalues are zero, or just below
    matrix -= 1e-12 * np.eye(6)
    lower = cholesky(matrix)
    np.testing.assert_allclose(lower @ lower.T, matrix, atol=1e-6)


def test_a_definite_one_is_left_as_it_is() -> None:
    matrix = np.diag([1.0, 2.0, 3.0])
    np.testing.assert_array_equal(cholesky(matrix), np.linalg.cholesky(matrix))
