"""Which columns of an output are told apart, and what that does to the figure of what is lost."""

from __future__ import annotations

import numpy as np
import pytest

from onnxslim_core.calibration.answers import Answers, told_apart

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
