"""Which layers leave: sets that are mended as a whole, by a made-up law of what is left of their damage."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from onnxslim_core.quant.judge import Score
from onnxslim_core.quant.mixed import MARGIN, leaving, mended_set


def scored(damage: float) -> Score:
    return Score(1.0, None, damage, damage, {})


def layers(count: int) -> list[ir.Node]:
    return [ir.node("Relu", [ir.Value(name=f"x{number}")], name=f"n{number}") for number in range(count)]


def test_layers_leave_by_damage_over_effort() -> None:
    a, b, c = layers(3)
    assert leaving([a, b, c], {a: 1.0, b: 3.0, c: 2.0}, {a: 1.0, b: 10.0, c: 4.0}) == [a, c, b]


@pytest.mark.parametrize("kept", [0.1, 0.4, 1.0])
def test_no_more_layers_leave_than_have_to(kept: float) -> None:
    nodes = layers(12)
    damages = {node: 2.0**-number for number, node in enumerate(nodes)}
    seen = []

    def mended(inside: tuple[ir.Node, ...]) -> Score:
        seen.append(inside)
        return scored(kept * 10 * sum(damages[node] for node in inside))

    found = mended_set(nodes, damages, kept * 10, mended)
    assert found is not None and found.holds and found.linear in seen
    least = next(n for n in range(1, 12) if kept * 10 * sum(list(damages.values())[n:]) <= MARGIN)
    assert len(found.linear) == 12 - least and len(seen) <= 4


def test_a_share_that_was_guessed_too_low_is_learned() -> None:
    nodes = layers(20)
    damages = dict.fromkeys(nodes, 1.0)
    found = mended_set(nodes, damages, 0.05, lambda inside: scored(0.2 * len(inside)))
    assert found is not None and len(found.linear) == 4


def test_none_where_no_set_was_met() -> None:
    nodes = layers(5)
    assert mended_set(nodes, dict.fromkeys(nodes, 1.0), 1.0, lambda inside: scored(50.0)) is None
