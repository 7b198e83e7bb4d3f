"""Pieces of networks that were met in the wild and once left something behind, or came out wrong."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnxslim_core.passes import pass_class

from onnxslim_core.channels.explain import explain
from onnxslim_core.measure.counted import counted_by_data
from onnxslim_core.model import load
from onnxslim_core.pipeline import compress
from onnxslim_core.recipe import Recipe
from onnxslim_core.report import headline
from onnxslim_core.rewrite import Context
from onnxslim_core.verify import Interface, verify
from tests import oracles
from tests.channels.test_idle import Planted, check
from tests.ops.cases import Case

ODD = "zero 0: 1 3 5 7"
ODD16 = "zero 0: 1 3 5 7 9 11 13 15"

IDLE = [
    Planted(
        "as many groups as channels in each: whole groups and positions look alike",
        "x N,3,H,W | A 16,3,3,3 | B 16,4,3,3 | b 16 | Z 5,16,1,1",
        "h = Conv(x, A) r = Relu(h) k = Conv<group=4, pads=[1,1,1,1]>(r, B, b) q = Relu(k) y = Conv(q, Z)",
        {"A": ODD16, "B": ODD16, "b": ODD16},
        {"A": (8, 3, 3, 3), "B": (8, 2, 3, 3), "b": (8,), "Z": (5, 8, 1, 1)},
    ),
    Planted(
        "whole groups, as many as channels in each",
        "x N,3,H,W | A 16,3,3,3 | B 16,4,3,3 | b 16 | Z 5,16,1,1",
        "h = Conv(x, A) r = Relu(h) k = Conv<group=4, pads=[1,1,1,1]>(r, B, b) q = Relu(k) y = Conv(q, Z)",
        {"A": "zero 0: 4 5 6 7", "B": "zero 0: 4 5 6 7", "b": "zero 0: 4 5 6 7"},
        {"A": (12, 3, 3, 3), "B": (12, 4, 3, 3), "b": (12,), "Z": (5, 12, 1, 1)},
    ),
    Planted(
        "style transfer: reflected borders and InstanceNormalization",
        "x N,3,8,9 | int64 P 8 | A 8,3,3,3 | s 8 | t 8 | B 6,8,3,3",
        'h = Conv(x, A) n = InstanceNormalization(h, s, t) r = Relu(n) p = Pad<mode="reflect">(r, P) y = Conv(p, B)',
        {"P": "zero 0: 0 1 4 5; set 0: 2=1 3=1 6=1 7=1", "A": ODD, "s": "0.7", "t": ODD},
        {"A": (4, 3, 3, 3), "s": (4,), "t": (4,), "B": (6, 4, 3, 3)},
    ),
    Planted(
        "InstanceNormalization with a scale of zero is its shift",
        "x N,3,8,9 | A 8,3,3,3 | s 8 | t 8 | B 6,8,3,3",
        "h = Conv(x, A) n = InstanceNormalization(h, s, t) r = Relu(n) y = Conv(r, B)",
        {"s": "zero 0: 2 6"},
        {"A": (6, 3, 3, 3), "s": (6,), "t": (6,), "B": (6, 6, 3, 3)},
        nodes=("Conv", "InstanceNormalization", "Relu", "Conv"),
    ),
    Planted(
        "sub-pixel convolution: the four channels of one that is dead",
        "x N,3,H,W | A 16,3,3,3 | B 6,4,3,3",
        'h = Conv(x, A) r = Relu(h) d = DepthToSpace<blocksize=2, mode="CRD">(r) y = Conv(d, B)',
        {"A": "zero 0: 4 5 6 7 12 13 14 15"},
        {"A": (8, 3, 3, 3), "B": (6, 2, 3, 3)},
    ),
    Planted(
        "space to depth of a dead channel",
        "x N,3,10,8 | A 6,3,3,3 | B 7,24,1,1",
        "h = Conv(x, A) r = Relu(h) d = SpaceToDepth<blocksize=2>(r) y = Conv(d, B)",
        {"A": "zero 0: 1 4"},
        {"A": (4, 3, 3, 3), "B": (7, 16, 1, 1)},
    ),
    Planted(
        "branches stacked on an axis of their own",
        "x N,3,H,W | int64 U 1 | A 8,3,3,3 | B 8,3,3,3 | Z 5,8,1,1",
        "a = Conv(x, A) b = Conv(x, B) a5 = Unsqueeze(a, U) b5 = Unsqueeze(b, U) c = Concat<axis=1>(a5, b5)"
        " s = Softmax<axis=1>(c) m = Mul(c, s) z = ReduceSum<keepdims=0>(m, U) y = Conv(z, Z)",
        {"U": "1", "A": "zero 0: 1 6", "B": "zero 0: 1 2"},
        {"A": (7, 3, 3, 3), "B": (7, 3, 3, 3), "Z": (5, 7, 1, 1)},
    ),
    Planted(
        "token mixing: neurons beside channels that are labelled already",
        "x N,5,6 | E 6,8 | T 5,10 | t 10 | U 10,5 | Z 8,4",
        "e = MatMul(x, E) h = Transpose<perm=[0,2,1]>(e) m = MatMul(h, T) b = Add(m, t) r = Relu(b) u = MatMul(r, U)"
        " k = Transpose<perm=[0,2,1]>(u) y = MatMul(k, Z)",
        {"T": "zero 1: 2 7", "t": "zero 0: 2 7"},
        {"T": (5, 8), "t": (8,), "U": (8, 5)},
    ),
    Planted(
        "hidden units of a GRU whose new state is zero, in both directions",
        "x 7,N,6 | W 2,12,6 | R 2,12,4 | B 2,24 | int64 S 3 | Z 8,5",
        'h, = GRU<hidden_size=4, direction="bidirectional", linear_before_reset=1>(x, W, R, B)'
        " t = Transpose<perm=[0,2,1,3]>(h) s = Reshape(t, S) y = MatMul(s, Z)",
        {"W": "zero 1: 9 11", "R": "zero 1: 9 11", "B": "zero 1: 9 11 21 23", "S": "zero 0: 0 1; set 0: 2=8"},
        {"W": (2, 6, 6), "R": (2, 6, 2), "B": (2, 12), "Z": (4, 5)},
    ),
    Planted(
        "hidden units of an LSTM that feed each other with zeros",
        "x 7,N,6 | W 1,16,6 | R 1,16,4 | B 1,32 | Z 4,5",
        "a, h = LSTM<hidden_size=4>(x, W, R, B) y = MatMul(h, Z)",
        {"W": "zero 1: 13 14", "R": "zero 1: 13; zero 1: 14", "B": "zero 1: 13 14 29 30"},
        {"W": (1, 8, 6), "R": (1, 8, 2), "B": (1, 16), "Z": (2, 5)},
    ),
    Planted(
        "a hidden unit that only itself reads",
        "x 7,N,6 | W 1,4,6 | R 1,4,4 | Z 4,5",
        "a, h = RNN<hidden_size=4>(x, W, R) y = MatMul(h, Z)",
        {"R": "zero 2: 2", "Z": "zero 0: 2"},
        {"W": (1, 3, 6), "R": (1, 3, 3), "Z": (3, 5)},
    ),
    Planted(
        "features that no gate reads",
        "x N,3,5 | A 3,8 | W 1,12,8 | R 1,12,4 | Z 4,5",
        "t = Transpose<perm=[2,0,1]>(x) e = MatMul(t, A) a, h = GRU<hidden_size=4>(e, W, R) y = MatMul(h, Z)",
        {"W": "zero 2: 1 6"},
        {"A": (3, 6), "W": (1, 12, 6)},
    ),
    Planted(
        "a hidden unit that starts at another state than zero stays",
        "x 7,1,6 | W 1,12,6 | R 1,12,4 | B 1,24 | int64 I 1 | h0 1,1,4 | Z 4,5",
        "a, h = GRU<hidden_size=4>(x, W, R, B, , h0) y = MatMul(h, Z)",
        {"W": "zero 1: 9 11", "R": "zero 1: 9 11", "B": "zero 1: 9 11 21 23", "h0": "zero 2: 0 1", "I": "0"},
        {"W": (1, 9, 6), "R": (1, 9, 3), "B": (1, 18), "h0": (1, 1, 3), "Z": (3, 5)},
    ),
    Planted(
        "slots of heads beside a table with a column per head",
        "x N,6,8 | A 8,24 | B 8,24 | T 9,4 | int64 I 36 | int64 S 4 | int64 F 3 | int64 M 3 | Z 24,5",
        "q0 = MatMul(x, A) k0 = MatMul(x, B) q1 = Reshape(q0, S) k1 = Reshape(k0, S)"
        " q = Transpose<perm=[0,2,1,3]>(q1) kt = Transpose<perm=[0,2,3,1]>(k1) s = MatMul(q, kt)"
        " t0 = Gather(T, I) t1 = Reshape(t0, M) t = Transpose<perm=[2,0,1]>(t1) u = Add(s, t) p = Softmax(u)"
        " w = MatMul(p, q) o = Transpose<perm=[0,2,1,3]>(w) f = Reshape(o, F) y = MatMul(f, Z)",
        {
            "A": "zero 1: 1 4 7 10 13 16 19 22",
            "S": "zero 0: 0 1; set 0: 2=4 3=6",
            "F": "zero 0: 0 1; set 0: 2=24",
            "M": "set 0: 0=6 1=6 2=4",
            "I": "4",
        },
        {"A": (8, 16), "B": (8, 16), "Z": (16, 5)},
    ),
    Planted(
        "heads with their columns of a table",
        "x N,6,8 | A 8,24 | B 8,24 | T 9,4 | int64 I 36 | int64 S 4 | int64 F 3 | int64 M 3 | Z 24,5",
        "q0 = MatMul(x, A) k0 = MatMul(x, B) q1 = Reshape(q0, S) k1 = Reshape(k0, S)"
        " q = Transpose<perm=[0,2,1,3]>(q1) kt = Transpose<perm=[0,2,3,1]>(k1) s = MatMul(q, kt)"
        " t0 = Gather(T, I) t1 = Reshape(t0, M) t = Transpose<perm=[2,0,1]>(t1) u = Add(s, t) p = Softmax(u)"
        " w = MatMul(p, q) o = Transpose<perm=[0,2,1,3]>(w) f = Reshape(o, F) y = MatMul(f, Z)",
        {
            "A": "zero 1: 6 7 8 9 10 11 18 19 20 21 22 23",
            "S": "zero 0: 0 1; set 0: 2=4 3=6",
            "F": "zero 0: 0 1; set 0: 2=24",
            "M": "set 0: 0=6 1=6 2=4",
            "I": "4",
        },
        {"A": (8, 12), "B": (8, 12), "T": (9, 2), "Z": (12, 5)},
    ),
    Planted(
        "heads with their columns of a table, as another exporter looks them up",
        "x N,6,8 | A 8,24 | B 8,24 | T 9,4 | int64 I 36,1 | int64 S 4 | int64 F 3 | int64 M 3 | Z 24,5",
        "q0 = MatMul(x, A) k0 = MatMul(x, B) q1 = Reshape(q0, S) k1 = Reshape(k0, S)"
        " q = Transpose<perm=[0,2,1,3]>(q1) kt = Transpose<perm=[0,2,3,1]>(k1) s = MatMul(q, kt)"
        " t0 = GatherND(T, I) t1 = Reshape(t0, M) t = Transpose<perm=[2,0,1]>(t1) u = Add(s, t) p = Softmax(u)"
        " w = MatMul(p, q) o = Transpose<perm=[0,2,1,3]>(w) f = Reshape(o, F) y = MatMul(f, Z)",
        {
            "A": "zero 1: 6 7 8 9 10 11 18 19 20 21 22 23",
            "S": "zero 0: 0 1; set 0: 2=4 3=6",
            "F": "zero 0: 0 1; set 0: 2=24",
            "M": "set 0: 0=6 1=6 2=4",
            "I": "4",
        },
        {"A": (8, 12), "B": (8, 12), "T": (9, 2), "Z": (12, 5)},
    ),
]


@pytest.mark.parametrize("case", IDLE, ids=str)
def test_what_is_dead_goes(case: Planted) -> None:
    check(case)


def pruned(model: onnx.ModelProto, feed: dict[str, np.ndarray], **options: object) -> onnx.ModelProto:
    """The model after prune_channels, valid by the verifier."""
    held = load(model)
    interface = Interface.of(held.ir)
    pass_class("prune_channels")(**options).run(held.ir, Context(samples=[feed]))
    assert not (problems := verify(held.ir, interface)), problems
    return held.to_proto()


def test_expected_values_do_not_reach_a_conv_that_slides_over_channels() -> None:
    """Channel attention of ECA-Net: a Conv along the vector of channels once broke the repair of the bias."""
    case = Case(
        "eca",
        "x N,3,H,W | A 8,3,3,3 | s 8 | t 8 | m 8 | v 8 | int64 U 1 | E 1,1,3 | B 6,8,1,1 | Z 5,6,1,1",
        "h = Conv(x, A) n = BatchNormalization(h, s, t, m, v) p = ReduceMean<axes=[2,3], keepdims=0>(n)"
        " w = Unsqueeze(p, U) e = Conv<pads=[1,1]>(w, E) k = Mul(n, n) b = Conv(k, B) r = Relu(b) y = Conv(r, Z)"
        " y2 = Identity(e)",
        0,
        arrays={"v": np.full(8, 0.7), "U": [1]},
    )
    feed = case.feeds()[0]
    small = pruned(case.model, feed, ratio=0.5, round_to=1)
    shapes = {t.name: tuple(t.dims) for t in small.graph.initializer}
    assert shapes["A"] == (8, 3, 3, 3)
    assert shapes["Z"] == (5, 3, 1, 1)
    for each in case.feeds():
        assert [y.shape for y in oracles.run(small, each)] == [y.shape for y in oracles.run(case.model, each)]


DETECTOR = Case(
    "a detector that suppresses boxes itself",
    "x 1,3,16,16 | A 16,3,3,3 | B 4,16,1,1 | C 2,16,1,1 | int64 R 3 | int64 Q 3 | int64 M 1 | I 1 | S 1",
    "h = Conv<strides=[2,2]>(x, A) r = Relu(h) b = Conv(r, B) c = Conv(r, C) g = Sigmoid(b)"
    " f = Reshape(g, R) t = Transpose<perm=[0,2,1]>(f) s = Reshape(c, Q) y = NonMaxSuppression(t, s, M, I, S)"
    " y2 = ReduceMax(c)",
    0,
    arrays={"R": [1, 4, -1], "Q": [1, 2, -1], "M": [40], "I": [0.6], "S": [0.0]},
    outputs={"y": "int64"},
)


def test_a_detector_that_finds_another_number_of_boxes_is_no_broken_one() -> None:
    """Without limits on answers, another number of boxes takes no pruning back; the report says so."""
    assert counted_by_data(load(DETECTOR.model).ir) == {"y"}
    recipe = 'version = 1\n[[pass]]\nname = "prune_channels"\nratio = 0.5\nround_to = 1\n'
    result = compress(DETECTOR.model, recipe=Recipe.parse(recipe, "test"), measure_latency=False)
    assert result.report.outcome == "compressed"
    shapes = {t.name: tuple(t.dims) for t in result.model.to_proto().graph.initializer}
    assert shapes["A"] == (8, 3, 3, 3)
    assert "answers of another size (y)" in headline(result.report)


def test_a_residual_stream_behind_a_norm_says_so() -> None:
    """Post-norm transformers: the projection meets what a norm made; nothing in the Add itself mixes channels."""
    case = Case(
        "post-norm",
        "x N,5,6 | E 6,8 | s 8 | t 8 | A 8,12 | B 12,8 | Z 8,4",
        "e = MatMul(x, E) n = LayerNormalization(e, s, t) a = MatMul(n, A) r = Relu(a) b = MatMul(r, B) m = Add(n, b)"
        " y = MatMul(m, Z)",
        0,
    )
    notes = {note.name: note for note in explain(load(case.model).ir, case.feeds()[0]).groups}
    assert [(n.free, n.reason) for n in notes.values()] == [
        (0, "values along the channels depend on each other"),
        (12, ""),
        (0, "what it is combined with has no channels that could go"),
        (0, "an output of the model keeps its shape"),
    ]


def test_heads_whose_widths_were_chosen_are_no_group_of_their_own() -> None:
    """Weights [width, heads, slots] make a grid: what is not chosen there is nothing that a user could free."""
    case = Case(
        "einsum heads",
        "x N,5,6 | A 6,4,3 | B 6,4,3 | V 6,4,3 | O 4,3,6",
        'q = Einsum<equation="bnd,dhk->bhnk">(x, A) k = Einsum<equation="bnd,dhk->bhnk">(x, B)'
        ' v = Einsum<equation="bnd,dhk->bhnk">(x, V) kt = Transpose<perm=[0,1,3,2]>(k) a = MatMul(q, kt)'
        ' s = Softmax(a) w = MatMul(s, v) y = Einsum<equation="bhqd,hdo->bqo">(w, O)',
        0,
    )
    notes = explain(load(case.model).ir, case.feeds()[0]).groups
    assert [note.free for note in notes if not note.reason.startswith("an output")] == [3, 3]


def test_factorize_says_why_a_small_network_is_left_alone() -> None:
    case = Case("two small layers", "x N,6 | A 6,9 | B 9,4", "h = MatMul(x, A) y = MatMul(h, B)", 0)
    (told,) = pass_class("factorize")().run(load(case.model).ir, Context(samples=case.feeds()[:1]))
    assert (told.applied, told.action, told.guard) == (False, "split 6 x 9", "large_enough")
    assert told.reason == "the largest layer has fewer than min_size = 16384 elements"
