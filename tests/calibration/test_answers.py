"""Which columns of an output are told apart, and what that does to the figure of what is lost."""

from __future__ import annotations

import numpy as np
import pytest

from onnxslim_core.calibration.answers import Answers, told_apart
from onnxslim_core.errors import MeasureError

RNG = np.random.default_rng(0)


def detector(axis: int = 1, silent: tuple[int, ...] = ()) -> np.ndarray:
    """Boxes in pixels in four columns of which the last two are ten times smaller, scores in eighteen."""
    boxes = RNG.uniform(50, 600, (3, 4, 60)) * np.array([1, 1, 0.1, 0.1])[:, None]
    scores = RNG.uniform(0, 1, (3, 18, 60)) ** 8 * np.logspace(0, -3, 18)[:, None]
    for column in silent:
        scores[:, column] = 0
    return np.moveaxis(np.concatenate([boxes, scores], axis=1), 1, axis).astype(np.float32)


@pytest.mark.parametrize(("axis", "silent"), [(1, ()), (2, ()), (1, (0,)), (1, (17, 3))])
def test_boxes_are_told_from_scores_where_they_begin(axis: int, silent: tuple[int, ...]) -> None:
    answers = detector(axis, silent)
    found = told_apart([answers[:2], answers[2:]])
    assert found is not None and found[0] == axis
    ends = {4, 5} if 0 in silent else {4}  # a class that nobody saw goes with either
    assert found[1]["first"][1] in ends and found[1]["rest"][0] in ends


def test_scores_before_boxes() -> None:
    assert told_apart([detector()[:, ::-1]]) == (1, {"first": (0, 18), "rest": (18, 22)})


@pytest.mark.parametrize(
    "answers",
    [
        np.outer(np.logspace(-3, 0, 30), np.ones(8)).reshape(1, 30, 8),  # a map that is dark at one side
        np.concatenate([np.zeros((1, 3, 8)), np.ones((1, 9, 8))], axis=1),  # a border that says nothing
        np.zeros((2, 5, 8)),
        detector()[:, :, 0],
        detector().astype(np.int64),
        detector(axis=0),
    ],
    ids=["gradient", "silent border", "zeros", "two axes", "integers", "first axis"],
)
def test_what_is_one_thing_stays_one(answers: np.ndarray) -> None:
    assert told_apart([answers]) is None


def test_answers_of_other_shapes_are_not_told_apart() -> None:
    assert told_apart([detector(), detector()[:, :, :30]]) is None


def test_each_part_counts_half() -> None:
    before = detector()
    answers = Answers([{"y": before}])
    for part in (slice(0, 4), slice(4, 22)):
        after = before.copy()
        after[:, part] = before[:, part].mean(axis=0)
        assert answers.lost([{"y": after}]) == pytest.approx(0.5, rel=1e-6)


def two_things() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Four columns of which the first two vary ten times as much, and errors of one size in either half."""
    answer = RNG.standard_normal((64, 4)) * np.array([10, 10, 1, 1])
    error = RNG.standard_normal((64, 2))
    wide, narrow = np.zeros_like(answer), np.zeros_like(answer)
    wide[:, :2], narrow[:, 2:] = error, error
    return answer, wide, narrow


def test_declared_columns_weigh_by_their_own_variance() -> None:
    answer, wide, narrow = two_things()
    plain, apart = Answers([{"y": answer}]), Answers([{"y": answer}], {"y": (-1, {"first": (0, 2), "rest": (2, 4)})})
    assert plain.lost([{"y": answer + wide}]) == pytest.approx(plain.lost([{"y": answer + narrow}]))
    assert apart.lost([{"y": answer + narrow}]) > 50 * apart.lost([{"y": answer + wide}])


def test_columns_that_nobody_declared_are_one_part_more() -> None:
    answer, _, narrow = two_things()
    some = Answers([{"y": answer}], {"y": (1, {"first": (0, 2)})})
    all_ = Answers([{"y": answer}], {"y": (1, {"first": (0, 2), "rest": (2, 4)})})
    lost = some.lost([{"y": answer + narrow}])
    assert lost > 0 and lost == pytest.approx(all_.lost([{"y": answer + narrow}]))


def test_columns_that_are_not_there_are_an_error() -> None:
    with pytest.raises(MeasureError, match="columns 0 to 9 of 4"):
        Answers([{"y": two_things()[0]}], {"y": (1, {"first": (0, 9)})})


@pytest.mark.parametrize("still", [500.0, 0.0])
@pytest.mark.parametrize("alone", [False, True])
def test_rounding_of_what_never_moves_does_not_count(still: float, alone: bool) -> None:
    """Anchors that are the same for every image, or a class that nobody saw, beside scores."""
    answer = np.concatenate([np.full((8, 10, 4), still), RNG.uniform(0.1, 0.5, (8, 10, 3))], axis=2)
    answer = answer[..., : 4 if alone and still else None].astype(np.float32)
    after = np.where(answer == still, np.float32(still) * np.float32(1 + 3e-7) + np.float32(1e-9), answer)
    parts = None if alone else {"y": (2, {"anchors": (0, 4)})}
    assert 0 < Answers([{"y": answer}], parts).lost([{"y": after}]) < 0.01
