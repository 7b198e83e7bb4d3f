"""Widths of the grid."""

from __future__ import annotations

import pytest

from onnxslim_core.search.grid import admissible, kept_classes


@pytest.mark.parametrize(
    ("full", "widths"),
    [
        (64, {16, 32, 48, 64}),
        (33, {16, 32, 33}),
        (32, {4, 8, 12, 16, 32}),
        (30, {4, 8, 12, 16, 30}),
        (12, {4, 8, 12}),
        (5, {4, 5}),
        (3, {3}),
        (1, {1}),
    ],
)
def test_blocks_of_sixteen_and_a_few_small_widths(full: int, widths: set[int]) -> None:
    assert {width for width in range(1, full + 1) if admissible(width, full, "auto")} == widths


def test_a_number_is_a_grid_of_its_multiples() -> None:
    assert [width for width in range(1, 22) if admissible(width, 21, 8)] == [8, 16, 21]
    assert all(admissible(width, 21, 1) for width in range(1, 22))


@pytest.mark.parametrize(
    ("wanted", "classes", "unit", "round_to", "kept"),
    [
        (33, 64, 1, "auto", 48),
        (32, 64, 1, "auto", 32),
        (0, 64, 1, "auto", 16),
        (0, 64, 1, 1, 1),
        (61, 64, 1, "auto", 64),
        (2, 3, 64, "auto", 2),  # heads of 64 channels: any number of them is on the grid
        (3, 8, 12, "auto", 4),  # heads of 12: four are 48 channels
        (5, 8, 12, "auto", 8),
        (5, 7, 3, 6, 6),
    ],
)
def test_classes_are_rounded_up_to_channels_on_the_grid(
    wanted: int, classes: int, unit: int, round_to: int | str, kept: int
) -> None:
    assert kept_classes(wanted, classes, unit, round_to) == kept


def test_rounding_is_monotone_and_never_below_what_is_wanted() -> None:
    for classes in range(1, 70):
        for unit in (1, 3, 16):
            for round_to in ("auto", 1, 4, 7):
                kept = [kept_classes(wanted, classes, unit, round_to) for wanted in range(1, classes + 1)]
                assert kept == sorted(kept)
                assert all(wanted <= found <= classes for wanted, found in enumerate(kept, 1))
                assert all(kept_classes(found, classes, unit, round_to) == found for found in kept)


@pytest.mark.parametrize(
    ("wanted", "classes", "round_to", "beside", "kept"),
    [
        (16, 24, "auto", (), 16),
        (16, 24, "auto", (24,), 24),  # 48 may become 32, not 40
        (5, 24, "auto", (24,), 8),
        (20, 32, "auto", (16, 32), 32),
        (10, 32, "auto", (16, 32), 16),
        (3, 8, "auto", (92,), 8),  # 100 is off the grid, and so is what would be left of it
        (13, 24, 8, (24,), 16),
        (13, 24, 1, (24,), 13),
    ],
)
def test_axes_with_the_channels_of_others_stay_on_the_grid(
    wanted: int, classes: int, round_to: int | str, beside: tuple[int, ...], kept: int
) -> None:
    assert kept_classes(wanted, classes, 1, round_to, beside) == kept
