"""The mask oracle on random networks. `GENERATED=5000` runs that many."""

from __future__ import annotations

import os

import pytest

from tests.channels.generated import Net
from tests.channels.masks import prove
from tests.ops.cases import VIEWS

COUNT = int(os.environ.get("GENERATED", "100"))


@pytest.mark.parametrize("seed", range(COUNT))
def test_smaller_model_equals_the_masked_one(seed: int) -> None:
    net = Net(seed)
    model = net.build(2 + seed % 6)
    view = list(VIEWS.values())[seed % 2]
    prove(model, net.feeds(), view, seed, 0.3, tolerance=3e-4)
