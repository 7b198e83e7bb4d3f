"""Thirteen architectures in which half of what can go is dead: all of it goes, and the answers stay.

Each is built twice from the same draw: at full width with dead channels at random places, and at half width without
them. The first one has to reach the size of the second one by exact passes alone.
"""

from __future__ import annotations

import typing

import numpy as np
import onnx
import pytest
from onnxslim_core.passes import pass_class

from onnxslim_core.model import load
from onnxslim_core.rewrite import Context
from onnxslim_core.verify import Interface, verify
from tests import oracles
from tests.architectures.builder import Net
from tests.architectures.images import NETS as IMAGES
from tests.architectures.sequences import NETS as SEQUENCES
from tests.halved import Draw, How

NETS = IMAGES | SEQUENCES
SIZES = ({"N": 2, "H": 32, "W": 24, "T": 9}, {"N": 3, "H": 40, "W": 56, "T": 13})
"""What symbols stand for: first where the graph is analysed, then where it is proven again."""

POINTS = 0.01
"""Of the weights of the original that may stay beyond the ideal."""


def built(name: str, how: How, *, half: bool) -> onnx.ModelProto:
    net = Net(Draw(how, half))
    NETS[name](net)
    return net.model()


def feed(model: onnx.ModelProto, sizes: dict[str, int], seed: int) -> dict[str, np.ndarray]:
    rng, found = np.random.default_rng(seed), {}
    for value in model.graph.input:
        shape = [d.dim_value or sizes[d.dim_param] for d in value.type.tensor_type.shape.dim]
        is_float = value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        array = rng.standard_normal(shape).astype(np.float32) + 0.3 if is_float else rng.integers(0, 50, shape)
        found[value.name] = np.asarray(array, np.float32 if is_float else np.int64)
    return found


def weights_of(model: onnx.ModelProto) -> int:
    """Float elements; scalars are not counted."""
    return sum(
        int(np.prod(t.dims)) for t in model.graph.initializer if t.dims and t.data_type == onnx.TensorProto.FLOAT
    )


def through(model: onnx.ModelProto, passes: tuple[str, ...], sample: dict[str, np.ndarray]) -> onnx.ModelProto:
    held = load(model)
    interface = Interface.of(held.ir)
    for name in passes:
        options = {"round_to": 1} if name == "remove_idle" else {}
        pass_class(name)(**options).run(held.ir, Context(samples=[sample]))
    assert not (problems := verify(held.ir, interface)), problems
    return held.to_proto()


def off(before: onnx.ModelProto, after: onnx.ModelProto, sample: dict[str, np.ndarray], *, optimize: bool) -> float:
    """The largest difference of the answers over their scale."""
    expected, found = (oracles.run(m, sample, optimize=optimize) for m in (before, after))
    assert [a.shape for a in expected] == [b.shape for b in found]
    assert all(a.std(axis=0).max() > 1e-3 for a in expected), "the answers do not depend on the input"
    return max(
        float(np.abs(a.astype(np.float64) - b).max() / np.abs(a).max()) for a, b in zip(expected, found, strict=True)
    )


@pytest.mark.parametrize("how", typing.get_args(How))
@pytest.mark.parametrize("name", NETS)
def test_what_is_dead_goes_and_the_answers_stay(name: str, how: How) -> None:
    full, half = built(name, how, half=False), built(name, how, half=True)
    feeds = [feed(full, sizes, seed) for seed, sizes in enumerate(SIZES)]
    ideal = weights_of(through(half, ("normalize", "fold_constants"), feeds[0]))
    after = through(full, ("normalize", "fold_constants", "remove_idle", "normalize"), feeds[0])
    for sample in feeds:
        assert off(full, half, sample, optimize=False) < 1e-4, "the half is not the same network"
        for optimize in (False, True):
            assert off(full, after, sample, optimize=optimize) <= oracles.RELATIVE
    assert weights_of(after) <= ideal + POINTS * weights_of(full)
    assert ideal < 0.8 * weights_of(full)
