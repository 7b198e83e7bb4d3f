"""Few images that look like many: halves by origin, the ridge that follows, noise."""

from __future__ import annotations

import numpy as np
import pytest

from onnxslim_core.calibration.diversity import advised_ridge, distinct, halves, looks_like_noise, set_apart, shortage
from onnxslim_core.calibration.moments import Sums
from onnxslim_core.repair.least_squares import solve
from onnxslim_core.rewrite import Context


def test_halves_share_no_origin_and_miss_no_sample() -> None:
    rng = np.random.default_rng(0)
    origins = rng.integers(0, 23, 200).tolist()
    for share in (0.1, 0.25, 0.5, 0.8):
        parts = halves(origins, share)
        assert sorted(np.concatenate(parts).tolist()) == list(range(200))
        assert not {origins[i] for i in parts[0]} & {origins[i] for i in parts[1]}
        assert abs(len(parts[1]) - 200 * share) <= 12


def test_what_a_pass_sets_apart_is_of_other_origins() -> None:
    samples = [{"x": np.full(1, number, np.float32)} for number in range(6)]
    fit, aside = set_apart(Context(samples=samples, origins=[0, 0, 0, 1, 1, 2]), 0.5)
    assert [[float(each["x"][0]) for each in part] for part in (fit, aside)] == [[3, 4, 5], [0, 1, 2]]
    fit, aside = set_apart(Context(samples=samples), 0.2)  # nobody knows: each is its own
    assert (len(fit), len(aside)) == (5, 1)
    assert set_apart(Context(samples=samples, origins=[7] * 6), 0.2)[0] == []


def test_halves_interleave() -> None:
    deciding, judging = halves(list(range(7)))
    assert (deciding.tolist(), judging.tolist()) == ([1, 3, 5], [0, 2, 4, 6])
    deciding, judging = halves([0, 0, 0, 0, 1, 2, 3])
    assert (deciding.tolist(), judging.tolist()) == ([4, 5, 6], [0, 1, 2, 3])
    assert [len(half) for half in halves([4, 4, 4])] == [0, 3]
    deciding, judging = halves(list(range(20)), held_out=0.2)
    assert judging.tolist() == [0, 7, 12, 17]


def test_an_error_on_other_origins_sees_what_one_on_itself_hides() -> None:
    """Rows of few origins: weights fitted on some of them look perfect there, and are judged worse on the others."""
    rng = np.random.default_rng(0)
    width, images, each = 24, 16, 30
    start = rng.standard_normal((width, 5))
    centers = rng.standard_normal((images, width))
    x = (centers[:, None] + 0.01 * rng.standard_normal((images, each, width))).reshape(-1, width).astype(np.float32)
    y = (np.tanh(x) @ start).astype(np.float32)
    origins = np.repeat(np.arange(images), each).tolist()

    def moments(numbers: np.ndarray):  # type: ignore[no-untyped-def]
        sums = Sums()
        sums.add(x[numbers], y[numbers])
        return sums.moments()

    def errors(parts: list[np.ndarray]) -> tuple[float, float]:
        on_itself, on_others = [], []
        for number, part in enumerate(parts):
            rest = np.concatenate([other for place, other in enumerate(parts) if place != number])
            weights, _ = solve(moments(rest), np.zeros_like(start), 1e-6)
            on_itself.append(moments(rest).error(weights) / moments(rest).v.sum())
            on_others.append(moments(part).error(weights) / moments(part).v.sum())
        return float(np.mean(on_itself)), float(np.mean(on_others))

    by_origin = errors(list(halves(origins)))
    by_row = errors([np.arange(k, images * each, 2) for k in range(2)])
    assert by_origin[1] > 20 * by_origin[0]
    assert by_row[1] < 2 * by_row[0]  # the trap: rows of the same images on both sides


def test_the_ridge_grows_where_images_are_few() -> None:
    assert advised_ridge(list(range(256)), 64) is None
    assert advised_ridge([], 64) is None
    assert advised_ridge([0, 1, 2] * 100, 64) == pytest.approx(1e-1)
    assert advised_ridge(list(range(64)), 64) == pytest.approx(1e-1)
    between = [advised_ridge(list(range(n)), 100) or 0.0 for n in (100, 150, 250, 350, 399)]
    assert between == sorted(between, reverse=True) and between[-1] == pytest.approx(1e-2, rel=0.1)
    assert distinct([3, 3, 1]) == 2


def test_a_warning_only_where_images_are_few() -> None:
    assert shortage(list(range(64)), 64) == "" and shortage([], 64) == ""
    assert "decided on 20 different samples" in shortage(list(range(20)) * 9, 1152)
    assert "1152 channels" in shortage(list(range(20)), 1152)


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_noise_is_told_from_pictures(dtype: type, layout: str) -> None:
    rng = np.random.default_rng(1)

    def sample(smooth: bool) -> dict[str, np.ndarray]:
        x = rng.standard_normal((1, 3, 32, 32)) * 40 + 128
        if smooth:
            x = np.cumsum(np.cumsum(x - 128, -1), -2) / 10 + 128
        x = np.clip(x, 0, 255).astype(dtype)
        return {"x": x if layout == "NCHW" else x.transpose(0, 2, 3, 1)}

    assert looks_like_noise([sample(False) for _ in range(4)])
    assert not looks_like_noise([sample(True) for _ in range(4)])


def test_what_is_no_picture_is_not_called_noise() -> None:
    rng = np.random.default_rng(0)
    assert not looks_like_noise([{"x": rng.standard_normal((1, 64))}])
    assert not looks_like_noise([{"x": rng.standard_normal((1, 256, 1, 1))}])
    assert not looks_like_noise([{"x": np.full((1, 3, 32, 32), 0.5)}])
    assert not looks_like_noise([{"ids": rng.integers(0, 99, (1, 32))}])
    assert not looks_like_noise([])
