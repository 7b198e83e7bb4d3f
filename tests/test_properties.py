"""What holds for any model and any exact pass or chain of them. In CI the same examples are drawn every time.

`HYPOTHESIS_PROFILE=nightly` draws new ones, `HYPOTHESIS_EXAMPLES` of them per property.
"""

from __future__ import annotations

import os

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnxslim_core.passes import TABLE, pass_class

from onnxslim_core.model import load
from onnxslim_core.rewrite import Change, Context
from onnxslim_core.verify import Interface, verify
from tests import oracles, pages, strategies

_COMMON = settings(deadline=None, suppress_health_check=list(HealthCheck))
settings.register_profile("ci", _COMMON, derandomize=True, max_examples=80)
settings.register_profile("nightly", _COMMON, max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "3000")))
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

EXACT = [row.name for row in TABLE if row.kind.exact]
LOCAL = ["normalize", "fold_constants", "fuse_activations", "fuse_batchnorm", "merge_convs", "reorder"]
GROWTH = 1100
"""What fold_constants may add for one stored value, and a little for names and attributes of others."""


def _run(names: list[str], model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[Change]]:
    held = load(model)
    interface, changes = Interface.of(held.ir), []
    for name in names:
        changes += pass_class(name)().run(held.ir, Context())
        assert not (problems := verify(held.ir, interface)), f"after {name}: {problems}"
    return held.to_proto(), changes


@pytest.mark.parametrize("name", LOCAL)
@given(model=strategies.models())
def test_pass_keeps_the_answers_and_comes_to_rest(name: str, model: onnx.ModelProto) -> None:
    source = model.SerializeToString(deterministic=True)
    after, _ = _run([name], model)
    assert model.SerializeToString(deterministic=True) == source
    oracles.assert_equal(model, after, pass_class(name).kind)
    again, changes = _run([name], after)
    assert not [change for change in changes if change.applied]
    assert again.SerializeToString(deterministic=True) == after.SerializeToString(deterministic=True)


@given(model=strategies.models(), recipe=st.lists(st.sampled_from(LOCAL), min_size=2, max_size=4))
def test_recipe_keeps_the_answers(model: onnx.ModelProto, recipe: list[str]) -> None:
    after, _ = _run(recipe, model)
    oracles.assert_equal(model, after, pass_class("fold_constants").kind)


@pytest.mark.parametrize("name", ["normalize", "fold_constants"])
@given(model=strategies.models())
def test_names_inside_do_not_matter(name: str, model: onnx.ModelProto) -> None:
    plain, other = (_run([name], m)[0] for m in (model, strategies.renamed(model)))
    pages.assert_same_structure(plain, other, frozenset())


@pytest.mark.parametrize("name", LOCAL)
@given(model=strategies.models(), seed=st.integers(0, 99))
def test_order_of_nodes_does_not_matter(name: str, model: onnx.ModelProto, seed: int) -> None:
    after, _ = _run([name], strategies.shuffled(model, seed))
    oracles.assert_equal(model, after, pass_class(name).kind)


@pytest.mark.parametrize("name", LOCAL)
@given(model=strategies.models())
def test_file_does_not_grow_beyond_the_bound(name: str, model: onnx.ModelProto) -> None:
    after, _ = _run([name], model)
    oracles.assert_not_bigger(load(model).to_proto(), after, GROWTH)


@given(model=strategies.models())
def test_drawn_models_are_valid_and_run(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    for feed in oracles.runnable_feeds(model, wanted=1):
        shapes = [np.shape(value) for value in oracles.run(model, feed)]
        declared = [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.output]
        for got, said in zip(shapes, declared, strict=True):
            assert all(s in (0, g) for g, s in zip(got, said, strict=True))


def test_drawn_models_hold_the_traps() -> None:
    """The grammar reaches what it is there for."""
    seen: set[str] = set()

    @settings(_COMMON, max_examples=200, derandomize=True)
    @given(model=strategies.models())
    def collect(model: onnx.ModelProto) -> None:
        seen.update(node.op_type for node in model.graph.node)

    collect()
    wanted = {"If", "RandomUniformLike", "SplitToSequence", "CastLike", "ConstantOfShape", "Dropout", "Identity"}
    assert wanted | {"BatchNormalization", "Conv", "Shape", "Slice", "Pad", "Constant"} <= seen
