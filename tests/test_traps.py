"""Traps that tools for ONNX fall into, each with its test.

`TRAPS` says for every trap what it is and where it is proven: a test, a case of a page, or a name of a case, which has
to be there. Those that are a matter of a few nodes are proven here: models that go through the exact recipe and
have to answer, shape by shape and bit by bit or within rounding, as before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from onnxslim_core.passes import pass_class

from onnxslim_core.model import load
from onnxslim_core.pipeline import compress
from onnxslim_core.rewrite import Context
from tests import oracles

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Model:
    """A model with a trap in it.

    Attributes:
        trap: Its number in `TRAPS`.
        name: What is in it.
        interface: Inputs and outputs in ONNX text.
        body: Nodes in ONNX text.
        opset: Of the standard domain.
        weights: By name.
        bits: Every bit has to be the same.
    """

    trap: int
    name: str
    interface: str
    body: str
    opset: int = 17
    weights: dict[str, Any] = field(default_factory=dict)
    bits: bool = True

    def __str__(self) -> str:
        return f"T{self.trap:02d}-{self.name.replace(' ', '-')}"

    @property
    def proto(self) -> onnx.ModelProto:
        model = parser.parse_model(
            f'<ir_version: 8, opset_import: ["" : {self.opset}]> g {self.interface} {{ {self.body} }}'
        )
        for name, values in self.weights.items():
            array = np.asarray(values)
            array = array.astype(np.float32) if array.dtype == np.float64 else array
            model.graph.initializer.append(numpy_helper.from_array(array, name))
        return model


def drawn(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


X = "(float[2,3,5,4] x) => (float y)"
XY = "(float[2,3,5,4] x) => (float y, float z)"
ROWS = "(float[4,3] x) => (float y)"
MODELS = [
    Model(13, "absent in the middle and at the end", X, 'c = Clip(x, "", m) y = Resize<mode="nearest">(c, "", s)',
          weights={"m": np.float32(0.5), "s": np.array([1, 1, 2, 2], np.float32)}),
    Model(13, "output without a name", X, 't, i = TopK<axis=1>(x, k) y = Relu(t)', weights={"k": np.array([2])}),
    Model(14, "one value twice among the readers of an output", XY, "y = Relu(x) z = Add(y, y)"),
    Model(23, "both inputs the same", X, "r = Relu(x) a = Add(r, r) c = Concat<axis=1>(a, a) y = Mul(c, c)"),
    Model(24, "empty and scalar tensors", "(float[2,0,3] x, float s) => (float y, float z)",
          "a = Relu(x) b = Concat<axis=1>(a, a) y = Identity(b) z = Neg(s)"),
    Model(25, "sequences and text", "(float[2,3] x, string[2] t) => (seq(float) y, string[2] z)",
          "s = SequenceConstruct(x, x) i = Identity(t) y = Identity(s) z = Identity(i)"),
    Model(28, "unread optional outputs", X, "p, i = MaxPool<kernel_shape=[2,2]>(x) d, m = Dropout(p) y = Relu(d)",
          bits=False),  # Relu goes before the pool, which may turn the sign of a zero
    Model(31, "transposed with output padding", "(float[1,4,5,5] x) => (float y)",
          "c = ConvTranspose<group=2, strides=[2,2], output_padding=[1,1]>(x, w)"
          " y = BatchNormalization(c, g, b, m, v)",
          weights={"w": drawn(1, 4, 3, 3, 3), "g": drawn(2, 6), "b": drawn(3, 6), "m": drawn(4, 6), "v": np.ones(6)},
          bits=False),
    Model(32, "uneven padding, SAME and a missing kernel_shape", "(float[1,2,7,6] x) => (float y, float z)",
          'a = Conv<pads=[0,1,2,0]>(x, w) y = Mul(a, s) b = Conv<auto_pad="SAME_LOWER", strides=[2,2]>(x, u)'
          " z = Mul(b, s)",
          weights={"w": drawn(1, 4, 2, 3, 2), "s": drawn(2, 4, 1, 1), "u": drawn(3, 4, 2, 2, 3)}, bits=False),
    Model(33, "alpha, beta, both transposed, C of a column", "(float[3,4] x) => (float y, float z)",
          "a = Gemm<alpha=0.5, beta=2.0, transA=1, transB=1>(x, w, c) y = Mul(a, s) b = Gemm<beta=0.0, transA=1, transB=1>(x, w, c) z = Add(b, s)",
          weights={"w": drawn(1, 5, 3), "c": drawn(2, 4, 1), "s": drawn(3, 5)}, bits=False),
    Model(34, "one dimension, a constant on the left, a bias of a column", "(float[3,4] x) => (float y, float z)",
          "a = MatMul(v, x) y = MatMul(a, u) b = MatMul(w, x) z = Add(b, c)",
          weights={"v": drawn(1, 3), "u": drawn(2, 4), "w": drawn(3, 5, 3), "c": drawn(4, 5, 1)}, bits=False),
    Model(35, "zeros and ones that do something", "(float[3,1] x) => (float y, float z)",
          "a = Add(x, n) b = Mul(a, o) y = Div(x, x) z = Mul(b, p)",
          weights={"n": np.zeros((1, 4)), "o": np.ones((2, 1, 1)), "p": np.float32(0)}),
    Model(35, "minus zero", ROWS, "a = Mul(x, n) y = Add(a, p)", weights={"n": np.float32(-0.0), "p": np.float32(-0.0)}),
    Model(37, "copied, inferred, allowed zeros", "(float[2,3,4] x) => (float y, float z)",
          "a = Reshape(x, s) b = Reshape(a, t) y = Flatten<axis=-1>(b) e = Slice(x, o, o, o) z = Reshape<allowzero=1>(e, u)",
          weights={"s": np.array([0, -1]), "t": np.array([-1, 0]), "o": np.array([0]), "u": np.array([3, 0])}),
    Model(38, "axes as attributes before opset 13", X, "a = Squeeze<axes=[0]>(r) y = ReduceSum<axes=[1], keepdims=0>(a)"
          " r = Slice<starts=[0], ends=[1], axes=[0]>(p) p = Pad<pads=[0,0,1,0,0,0,0,1], value=2.0>(x)", 9),
    Model(38, "sizes and bounds as attributes", X, "a, b = Split<axis=1, split=[1,2]>(x) c = Clip<min=-0.5>(b)"
          " u = Unsqueeze<axes=[0]>(c) y = Upsample<mode=\"nearest\">(c, s)", 9, {"s": np.array([1, 1, 2, 2], np.float32)}),
    Model(39, "Softmax flattens before opset 13", X, "a = Softmax<axis=1>(x) y = LogSoftmax(a)", 11, bits=False),
    Model(39, "Softmax along the last axis", X, "a = Softmax(x) y = LogSoftmax<axis=1>(a)", 13, bits=False),
    Model(40, "a minimum above the maximum, none, integers", "(float[2,3] x, int32[4] i) => (float y, int32 z, float u)",
          'y = Clip(x, a, b) z = Clip(i, c) r = Relu(x) u = Clip(r, "", b)',
          weights={"a": np.float32(1), "b": np.float32(-1), "c": np.int32(2)}),
    Model(41, "Constant in every form", ROWS, "a = Constant<value_float=2.0>() b = Constant<value_floats=[1.0,2.0,3.0]>()"
          " c = Constant<value_int=1>() d = Constant<value_ints=[1,3]>() e = Mul(x, a) f = Add(e, b)"
          " g = Gather<axis=1>(f, c) y = Expand(g2, d) g2 = Unsqueeze(g, d2) d2 = Constant<value_ints=[1]>()"),
    Model(42, "casts that lose bits", ROWS, "a = Cast<to=7>(x) b = Cast<to=1>(a) c = Cast<to=9>(b) d = Cast<to=1>(c)"
          " e = Cast<to=10>(d) f = Cast<to=1>(e) y = Add(b, f)"),
    Model(43, "a zero border before MaxPool", X, "a = Neg(x) s = Abs(a) n = Neg(s) p = Pad(n, q)"
          " y = MaxPool<kernel_shape=[2,2]>(p)", weights={"q": np.array([0, 0, 1, 1, 0, 0, 1, 1])}),
    Model(43, "borders that are cut, mirrored and of a number", X, 'a = Pad(x, q) b = Pad<mode="reflect">(a, r) y = Pad(b, t, v)',
          weights={"q": np.array([0, 0, -1, 0, 0, 0, 0, -1]), "r": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
                   "t": np.array([0, 1, 0, 0, 0, 0, 0, 0]), "v": np.float32(3)}),
    Model(44, "averages over a border", X, "p = Pad(x, q) a = AveragePool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(p)"
          " b = AveragePool<kernel_shape=[2,2], pads=[1,1,1,1], count_include_pad=1>(a)"
          ' y = MaxPool<kernel_shape=[2,2], auto_pad="SAME_UPPER">(b)', weights={"q": np.array([0, 0, 1, 1, 0, 0, 1, 1])},
          bits=False),
    Model(45, "without a perm, and two in a row", X, "a = Transpose(x) b = Transpose<perm=[1,0,3,2]>(a) y = Transpose<perm=[3,1,0,2]>(b)"),
    Model(45, "a transpose before Gemm", ROWS, "t = Transpose(x) y = Gemm<transA=1>(t, w)", weights={"w": drawn(1, 3, 5)},
          bits=False),
    Model(46, "Concat of one and of nothing, uneven parts", X, "a = Concat<axis=-1>(x) e = Slice(x, o, o, o)"
          " b = Concat<axis=0>(a, e) c, d = Split<axis=2, num_outputs=2>(b) f = Concat<axis=-2>(d, c) y = Relu(f)", 18,
          {"o": np.array([0])}),
    Model(47, "backwards, far ends and no axes", X, "a = Slice(x, s, e, ax, st) y = Slice(a, o, f)",
          weights={"s": np.array([-1, 2**63 - 1]), "e": np.array([-(2**63), 0]), "ax": np.array([-1, 2]),
                   "st": np.array([-1, -2]), "o": np.array([0, 0]), "f": np.array([2**31 - 1, 2])}),
    Model(47, "negative and scalar indices", X, "a = Gather<axis=1>(x, i) y = Gather<axis=-1>(a, j)",
          weights={"i": np.array(-1), "j": np.array([[0, -2], [1, 3]])}),
    Model(48, "sizes, scales and modes", "(float[1,2,4,6] x) => (float y, float z)",
          'y = Resize<mode="linear", coordinate_transformation_mode="align_corners">(x, "", "", t)'
          ' z = Resize<mode="nearest", nearest_mode="floor", coordinate_transformation_mode="asymmetric">(x, "", s)',
          weights={"t": np.array([1, 2, 7, 5]), "s": np.array([1, 1, 0.5, 1.5], np.float32)}, bits=False),
    Model(55, "infinite, not a number, tiny, and integers that wrap", "(float[3] x, int32[2] i) => (float y, int32 z)",
          "a = Add(w, v) b = Mul(x, a) y = Max(b, n) c = Mul(j, j) z = Add(c, i)",
          weights={"w": np.array([np.inf, 1e-40, 1.0]), "v": np.array([1.0, 1e-41, -0.0]), "n": np.array([0.0, -1.0, np.nan]),
                   "j": np.array([2**30, -(2**31)], np.int32)}),
]  # fmt: skip


def feed(model: onnx.ModelProto, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    found = oracles.make_feeds(model, seed, {})
    for value in model.graph.input:
        array = found[value.name]
        if array.dtype == np.float32 and array.size:
            array.reshape(-1)[: 1 + array.size // 4] = rng.choice([0.0, -0.0, 1e30, -3.5], 1 + array.size // 4)
    return found


@pytest.mark.parametrize("case", MODELS, ids=str)
@pytest.mark.filterwarnings("ignore")
def test_the_trap_is_passed_by(case: Model) -> None:
    before = case.proto
    result = compress(before, measure_latency=False)
    assert not [(s.name, s.reason) for s in result.report.steps if s.outcome == "rolled back"]
    after = result.model.to_proto()
    oracles.assert_same_interface(before, after)
    for seed in range(3):
        given = feed(before, seed)
        expected, found = oracles.run(before, given), oracles.run(after, given)
        oracles.compare(before, expected, found, None if case.bits else oracles.RELATIVE)


def test_names_of_any_kind_and_none() -> None:
    """No names, names with slashes and colons, in other scripts, like those that we give."""
    names = ["", "", "same", "other", "/a/b:0", "Größe 尺寸", "Neg_0_output"]
    text = "".join(f"v{i + 1} = Neg(v{i}) " for i in range(len(names)))
    head = '<ir_version: 8, opset_import: ["" : 17]> g (float[3] v0) => (float[3] y)'
    model = parser.parse_model(f"{head} {{ {text} y = Abs(v{len(names)}) }}")
    odd = {"v1": "a/b", "v2": "é:0", "v3": "Neg_0_output", "v4": " "}
    for node in model.graph.node:
        node.input[0], node.output[0] = (odd.get(n, n) for n in (node.input[0], node.output[0]))
    given = {"v0": np.array([1, -2, 0], np.float32)}
    expected = oracles.run(model, given)
    for node, name in zip(model.graph.node, names, strict=False):
        node.name = name
    held = load(model)
    pass_class("normalize")().run(held.ir, Context())
    after = held.to_proto()
    for found in (
        [node.name for node in after.graph.node],
        [name for node in after.graph.node for name in node.output],
    ):
        assert all(found)
        assert len(found) == len(set(found))
    oracles.compare(model, expected, oracles.run(after, given), None)


# ---------------------------------------------------------------------------------------------------- the table
HERE_TOO = "tests/test_traps.py"
TRAPS: dict[int, tuple[str, tuple[str, ...]]] = {
    1: ("onnx-graphsurgeon drops metadata, doc strings, annotations", (
        "tests/test_surgeon.py: def test_what_is_dropped_is_said_once",
        "tests/test_surgeon_passes.py: def test_a_function_runs_in_a_recipe_and_its_losses_are_on_record")),
    2: ("it loses attributes and crashes on types", (
        "tests/test_surgeon.py: def test_attributes_that_it_loses_or_crashes_on_are_refused",
        "tests/test_surgeon.py: def test_types_that_it_loses_or_crashes_on_are_refused")),
    3: ("it copies captured weights into every branch", ("tests/test_surgeon.py: sharing of weights that several bodies read",)),
    4: ("it cannot write some element types", ("tests/test_surgeon.py: def test_weights_that_it_cannot_write_are_refused",)),
    5: ("'' and ai.onnx are one domain", ("tests/test_surgeon.py: def test_a_graph_made_by_hand_comes_in",)),
    6: ("libraries alias the caller's proto", (
        "tests/test_model.py: def test_source_proto_is_never_changed", "tests/test_surgeon.py: def test_the_source_is_never_changed")),
    7: ("onnx_ir drops or raises on what it cannot hold", (
        "tests/test_model.py: def test_round_trip_keeps_every_field", "tests/test_model.py: def test_zipmap_goes_through_and_runs",
        "tests/test_model.py: def test_training_information_goes_with_the_weights_it_trains")),
    8: ("an initializer that is an input may be fed", (
        "tests/test_model.py: def test_initializers_among_the_inputs_become_constant_on_record",
        "tests/test_model.py: def test_initializers_among_the_inputs_stay_feedable_on_demand",
        "tests/passes/fold_constants.md: ## A weight that a caller may feed is no constant")),
    9: ("the IR version that a runtime reads", ("tests/test_model.py: def test_ir_version_is_four_as_soon_as_a_weight_is_no_input",)),
    10: ("external data lies beside its model", (
        "tests/test_model.py: def test_external_data_is_found_from_anywhere", "tests/test_model.py: def test_too_large_for_a_proto",
        "tests/test_model_broken.py: def test_external_data_that_is_not")),
    11: ("weights in typed fields, packed, little-endian", ("tests/test_model.py: def test_tensors_in_typed_fields_keep_their_bits",)),
    12: ("domains, functions, overloads, training information", (
        "tests/passes/normalize.md: ## Functions are written out", "tests/passes/normalize.md: ## refused: same_opsets")),
    13: ("absent inputs and outputs", (HERE_TOO,)),
    14: ("an output of the model is read by the caller", (
        HERE_TOO, "tests/test_rewrite.py: def test_replace_when_a_value_is_two_outputs",
        "tests/test_rewrite.py: def test_users_are_seen_in_bodies_and_at_outputs")),
    15: ("an Identity that must stay, names of outputs", (
        "tests/passes/normalize.md: ## An Identity from an input, from a weight or from another output stays",)),
    16: ("a weight or an input that is an output", ("tests/test_model.py: def test_an_input_that_is_an_output_keeps_its_type",)),
    17: ("bodies capture values", ("tests/passes/normalize.md: ## A value that only a branch reads is not dead",)),
    18: ("names in bodies", (
        "tests/test_verify.py: def test_sibling_bodies_may_repeat_names",
        "tests/test_rewrite.py: def test_new_names_are_unique_in_all_scopes_and_come_fast")),
    19: ("a loop's body runs several times", ("tests/passes/normalize.md: ## Nothing moves out of a Loop",)),
    20: ("unsorted nodes, cycles, long chains", (
        "tests/test_model.py: def test_unsorted_captures_are_sorted", "tests/test_model.py: def test_a_chain_of_many_nodes_is_no_recursion",
        "tests/test_model_broken.py: def test_broken_graphs_are_named")),
    21: ("names of any kind", (f"{HERE_TOO}: def test_names_of_any_kind_and_none",)),
    22: ("one weight, two readers", (
        "tests/passes/prune_channels.md: ## The same channels of a weight that two nodes share",
        "tests/test_prune_from_samples.py: def test_a_layer_that_is_called_twice_stays_one_layer",
        "tests/passes/fuse_batchnorm.md: ## A small weight that another Conv reads is copied")),
    23: ("one value as both inputs", (HERE_TOO, "tests/ops/test_move.py: T23")),
    24: ("sizes of zero, scalars, unknown ranks", (
        HERE_TOO, "tests/passes/normalize.md: ## Zero sizes and scalars",
        "tests/passes/fold_constants.md: ## Equal names of symbolic sizes are no promise")),
    25: ("sequences, maps, text", (HERE_TOO, "tests/test_pitfalls.py: def test_constant_strings_are_left_alone")),
    26: ("declared shapes may be wrong", ("tests/passes/fold_constants.md: ## A declared size inside the graph may be wrong",)),
    27: ("random operators differ from themselves", (
        "tests/passes/normalize.md: ## refused: deterministic: two random tensors are not equal",
        "tests/passes/fold_constants.md: ## refused: deterministic: random numbers are drawn anew in every run")),
    28: ("optional outputs that nobody reads", (HERE_TOO, "tests/passes/normalize.md: ## Removes nodes, weights and optional outputs")),
    29: ("a foreign operator with a standard name", (
        "tests/passes/normalize.md: ## A foreign operator with a standard name is left alone",
        "tests/test_rewrite.py: def test_foreign_operators_are_no_anchors")),
    30: ("float16 overflows, training mode, variances", (
        "tests/passes/fuse_batchnorm.md: ## refused: representable: float16 weights that would overflow",
        "tests/passes/fuse_batchnorm.md: ## refused: inference_mode", "tests/test_pitfalls.py: def test_statistics_per_element_are_left_alone")),
    31: ("layout of ConvTranspose", (HERE_TOO, "tests/passes/fuse_batchnorm.md: ## After ConvTranspose with groups")),
    32: ("groups, auto_pad, uneven padding, ranks", (
        HERE_TOO, "tests/passes/fuse_batchnorm.md: ## refused: border_sees_no_shift: SAME pads")),
    33: ("alpha, beta and C of Gemm", (
        HERE_TOO, "tests/passes/fuse_batchnorm.md: ## After Gemm whose C does not count, since beta is 0")),
    34: ("ranks and sides of MatMul", (HERE_TOO, "tests/passes/fuse_batchnorm.md: ## After MatMul of three dimensions")),
    35: ("zeros and ones that are no identity", (HERE_TOO,)),
    36: ("a vector is per last axis", ("tests/passes/fuse_batchnorm.md: ## A constant [W] beside a Conv is on the last axis", "tests/ops/test_join.py: T36")),
    37: ("0 and -1 in Reshape", (HERE_TOO, "tests/passes/fold_constants.md: ## With allowzero a 0 is a size")),
    38: ("attributes that became inputs", (HERE_TOO, "tests/test_fuse_batchnorm.py: def test_old_opsets_broadcast_otherwise_and_are_left_alone")),
    39: ("Softmax before opset 13", (HERE_TOO, "tests/ops/test_mix.py: T39")),
    40: ("bounds of Clip", (HERE_TOO, "tests/passes/fuse_activations.md: ## Other ends, a clip alone, bounds in the wrong order")),
    41: ("forms of Constant", (HERE_TOO, "tests/test_rewrite.py: def test_array_of_every_form_of_constant")),
    42: ("casts lose bits", (HERE_TOO, "tests/passes/normalize.md: ## A Cast that cuts and comes back is no identity")),
    43: ("a zero border is not MaxPool's", (HERE_TOO, "tests/measure/test_fidelity.py: def test_what_an_optimizer_merges_wrongly_is_judged_as_written")),
    44: ("what a pool counts", (HERE_TOO, "tests/passes/fold_constants.md: ## A size of the last window of a pool")),
    45: ("Transpose without perm, in a row, before Gemm", (HERE_TOO, "tests/passes/reorder.md: ## Two Transposes in a row, without a perm")),
    46: ("Concat and Split", (HERE_TOO, "tests/passes/normalize.md: ## A split into equal parts of an axis of unknown size stays")),
    47: ("bounds and steps of Slice, indices of Gather", (HERE_TOO,)),
    48: ("modes of Resize", (HERE_TOO,)),
    49: ("int8 weights stay int8", (
        "tests/passes/fold_constants.md: ## refused: keeps_quantized: int8 weights stay int8",
        "tests/passes/fuse_batchnorm.md: ## Quantization between Conv and BatchNormalization blocks")),
    50: ("folding that makes much of little", ("tests/passes/fold_constants.md: ## refused: within_bound: Expand, ConstantOfShape",)),
    51: ("norms, slopes, Einsum and recurrent layers", (
        "tests/test_architectures.py: def test_what_is_dead_goes_and_the_answers_stay", "tests/ops/test_mutants.py: \"LSTM\"")),
    52: ("nothing left, outputs, what is not understood", (
        "tests/passes/prune_channels.md: ## refused: channels_are_free: an operator nobody knows",
        "tests/passes/remove_idle.md: ## Nothing is left out of what a model answers")),
    53: ("both sides of a residual sum", ("tests/passes/prune_channels.md: ## Everywhere a channel reaches",)),
    54: ("ranks that do not pay", ("tests/passes/factorize.md: ## refused: pays: nearly all the energy takes nearly all the ranks",)),
    55: ("infinite, tiny, wrapping numbers", (HERE_TOO, "tests/passes/fold_constants.md: ## Integer overflow wraps as in onnxruntime")),
    56: ("a bias as Expand(CastLike(0, x), Shape(W))", ("tests/passes/fold_constants.md: ## The bias that PyTorch writes",)),
    57: ("a dead filter next to padding", ("tests/passes/remove_idle.md: ## Next to padding a constant is none at the border",)),
    58: ("a bias that two nodes read", ("tests/passes/remove_idle.md: ## A bias that another node reads is not touched",)),
    59: ("narrower can be slower", ("tests/passes/remove_idle.md: ## refused: width_on_grid: 7 of 8 channels are slower than 8",)),
    60: ("equal nodes that are not equal", (
        "tests/passes/normalize.md: ## refused: deterministic: two Bernoulli draws are not equal",
        "tests/passes/normalize.md: ## Merges equal weights, and leaves 0.0 and -0.0 apart")),
    61: ("shape inference that fails or overwrites", ("tests/test_verify.py: def test_what_did_not_infer_before_proves_nothing",)),
    62: ("a weight and its shape are replaced together", ("tests/channels/test_idle.py: onnx.shape_inference.infer_shapes(after, check_type=True",)),
    63: ("writing is not atomic", (
        "tests/test_model.py: def test_a_failure_between_the_two_files_brings_the_old_data_back",
        "tests/test_model.py: def test_saving_over_the_source")),
    64: ("only external data is mapped", ("tests/test_model.py: def test_external_data_is_mapped_and_written_as_external_data",)),
    65: ("label arrays need operators that a runtime lacks", ("tests/ops/test_move.py: depth to space", "tests/ops/test_move.py: space to depth")),
    66: ("hard links and links", ("tests/test_model.py: def test_hard_links_are_read_and_links_that_leave_need_a_root",)),
}  # fmt: skip


def test_every_trap_has_a_test_that_exists() -> None:
    assert sorted(TRAPS) == list(range(1, 67))
    here = {case.trap for case in MODELS}
    missing = []
    for number, (what, places) in TRAPS.items():
        for place in places:
            file, _, text = place.partition(": ")
            known = number in here if place == HERE_TOO else text in (HERE.parent / file).read_text(encoding="utf-8")
            if not known:
                missing.append(f"T{number:02d} ({what}): {place}")
    assert not missing
    assert here <= set(TRAPS)
