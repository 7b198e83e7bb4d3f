"""Facts about values: what onnx infers is looked up, and still every unknown size stands for itself."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser
from onnxslim_core.passes import _facts as facts_module
from onnxslim_core.passes import pass_class
from onnxslim_core.passes._facts import Facts, learn_all

from onnxslim_core.measure import infer
from onnxslim_core.model import load
from onnxslim_core.rewrite import Context


def _facts(text: str, opset: int = 17, **weights: np.ndarray) -> tuple[Facts, dict[str, ir.Value]]:
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{text}')
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    model = load(proto).ir
    return learn_all(model), {str(v.name): v for node in model.graph for v in node.outputs}


def test_sizes_that_depend_on_data_are_never_taken_for_one_another() -> None:
    text = "g (float[4] x, float[4] y) => (int64[1, n] a, int64[1, m] b) { a = NonZero(x) b = NonZero(y) }"
    facts, values = _facts(text)
    first, second = facts.dims(values["a"]), facts.dims(values["b"])
    assert first is not None and second is not None
    assert first[0] == second[0] == 1
    assert first[1] != second[1]
    assert not facts.same_shape(values["a"], values["b"])


def test_the_contents_of_a_shape_count() -> None:
    text = "g (float[2, 6] x) => (float[3, 4] a, float[4, 3] b) { a = Reshape(x, s) b = Reshape(x, t) }"
    facts, values = _facts(text, s=np.array([3, 4]), t=np.array([4, 3]))
    assert (facts.dims(values["a"]), facts.dims(values["b"])) == ((3, 4), (4, 3))


@pytest.mark.parametrize("axis", [0, 1])
def test_attributes_count(axis: int) -> None:
    text = f"g (float[2, 6] x) => (float[n, m] a) {{ a = Concat<axis = {axis}>(x, x) }}"
    facts, values = _facts(text)
    assert facts.dims(values["a"]) == ((4, 6) if axis == 0 else (2, 12))


def test_opsets_count() -> None:
    text = "g (float[2, 6] x) => (float[n, m] a) { a = ReduceSum<axes = [1]>(x) }"
    for opset, sizes in ((11, (2, 1)), (17, None)):  # from 13 on axes are an input, and this is no valid node
        facts, values = _facts(text, opset)
        assert facts.dims(values["a"]) == sizes


def test_a_full_table_is_emptied_and_filled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infer, "_MOST_KNOWN", 1)
    nodes = " ".join(f"x{i + 1} = Concat<axis = 0>(x{i}, x{i})" for i in range(6))
    facts, values = _facts(f"g (float[1, 2] x0) => (float[64, 2] x6) {{ {nodes} }}")
    assert facts.dims(values["x6"]) == (64, 2)


_MINUS_ONE: list[tuple[str, list[int], tuple[int | str, ...] | None]] = [
    ("N, 6, 1, 1", [-1, 6, 1, 1], ("N", 6, 1, 1)),
    ("N, 6, 2, 1", [3, -1, 4], (3, "N", 4)),
    ("N, 6, 1", [-1, 0, 1], ("N", 6, 1)),  # a copied size is as good as a number
    ("2, N, 3", [-1, 5], None),
    ("N, 0, 3", [-1, 0, 3], None),  # of nothing, -1 may be anything
    ("N, M, 3", [-1, 0, 3], None),  # M may be 0
    ("N, M, 3", [-1, 3], None),
    ("N, 3", [0, -1], ("N", 3)),
    ("2, 3", [-1, 2], (3, 2)),
]


@pytest.mark.parametrize(("given", "target", "wanted"), _MINUS_ONE)
def test_a_minus_one_stands_for_the_one_unknown_size(
    given: str, target: list[int], wanted: tuple[int | str, ...] | None
) -> None:
    text = f"g (float[{given}] x) => (float y) {{ a = Relu(x) y = Reshape(a, s) }}"
    facts, values = _facts(text, s=np.array(target))
    source, found = facts.dims(values["a"]), facts.dims(values["y"])
    assert source is not None
    tokens = dict(zip(given.split(", "), source, strict=True))
    if wanted is not None:
        assert found == tuple(tokens.get(str(size), size) for size in wanted)
    else:
        assert found is None or any(isinstance(size, str) and size not in source for size in found)


_PLAIN = (
    "b = Conv(a, W) c = BatchNormalization(b, s, s, s, s) d = Flatten(c) e = MatMul(d, M) f = Add(e, s) y = Mul(f, s)"
)
_ASKS = "b = Mul(a, a) c = Sub(b, t) d = Mul(c, t) y = Conv(d, W)"


@pytest.mark.parametrize(("nodes", "times"), [(_PLAIN, 0), (_ASKS, 1)])
@pytest.mark.parametrize("name", ["fuse_batchnorm", "fuse_activations", "merge_convs"])
def test_a_walk_over_the_whole_model_is_made_once_and_only_where_somebody_asks(
    nodes: str, times: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"g (float[N,4,1,1] x) => (float y) {{ a = Sin(x) {nodes} }}"
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{text}')
    sizes = {"W": (4, 4, 1, 1), "M": (4, 4), "s": (4,), "t": (4, 1, 1)}
    ones = {key: np.ones(shape, np.float32) for key, shape in sizes.items()}
    proto.graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in ones.items())
    walks: list[ir.Model] = []
    learn = facts_module.learn_all

    def counted(model: ir.Model) -> Facts:
        walks.append(model)
        return learn(model)

    monkeypatch.setattr(facts_module, "learn_all", counted)
    changes = pass_class(name)().run(load(proto).ir, Context())
    assert len(walks) == (times if name == "fuse_batchnorm" else 0)
    assert sum(change.applied for change in changes) == (2 if name == "fuse_batchnorm" else 0)
