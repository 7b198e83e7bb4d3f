"""Which way a head or a group is cut: the way that loses least."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from onnxslim_core.channels.boxes import settle
from onnxslim_core.channels.groups import ChannelGraph, atom_mass
from onnxslim_core.channels.trace import trace
from onnxslim_core.model import load
from onnxslim_core.search.views import least_loss, maker_energy
from tests.channels.test_idle import planted
from tests.ops.cases import Case

TENSORS = "x N,3,H,W | A 12,3,1,1 | G 12,4,3,3 | B 5,12,1,1"
BODY = "h = Conv(x, A) r = Relu(h) g = Conv<group=3>(r, G) y = Conv(g, B)"


def graph_of(plant: Mapping[str, str]) -> ChannelGraph:
    plain = Case("groups", TENSORS, BODY, 0)
    arrays = {
        name: planted(
            plain.array(name, "float", [12, 3 if name == "A" else 4, *([1, 1] if name == "A" else [3, 3])]), how
        )
        for name, how in plant.items()
    }
    case = Case("groups", TENSORS, BODY, 0, arrays=arrays)
    flow = trace(load(case.model).ir, case.feeds()[0])
    return ChannelGraph(flow, settle(flow.atoms, least_loss(maker_energy(flow), 1 / 3), atom_mass(flow)))


@pytest.mark.parametrize(
    ("plant", "units"),
    [
        ({"A": "zero 0: 4 5 6 7", "G": "zero 0: 4 5 6 7"}, {4}),  # the second of three groups
        ({"A": "zero 0: 0 4 8", "G": "zero 0: 1 5 9"}, {3}),  # one position in each
    ],
)
def test_the_way_that_costs_least_is_taken(plant: Mapping[str, str], units: set[int]) -> None:
    channels = graph_of(plant)
    assert {group.unit for group in channels.groups if group.free.any()} == units
