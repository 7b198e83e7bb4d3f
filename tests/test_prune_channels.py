"""prune_channels as a user calls it: what it takes, what it leaves and why, on whole networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxslim_core.passes import pass_class

from onnxslim_core.channels.boxes import settle
from onnxslim_core.channels.groups import ChannelGraph, atom_mass
from onnxslim_core.channels.trace import trace
from onnxslim_core.criteria.table import CRITERIA
from onnxslim_core.errors import RecipeError
from onnxslim_core.measure.cost import cost
from onnxslim_core.model import load, wrap
from onnxslim_core.rewrite import Change, Context
from onnxslim_core.search.grid import admissible
from onnxslim_core.search.views import least_loss, maker_energy
from onnxslim_core.verify import Interface, verify
from tests import oracles
from tests.channels.masks import masked
from tests.ops.cases import Case

BN = "".join(f" | {part}{n} {w}" for n, w in ((1, 40), (2, 24), (3, 40)) for part in "gbmv")
NET = Case(
    "residual",
    "x 2,3,13,11 | A 40,3,3,3 | C 24,40,1,1 | D 40,24,3,3 | E 32,40,1,1 | F 48,72 | f 48 | K 48,5" + BN,
    "a = Conv<pads=[1,1,1,1]>(x, A) p = BatchNormalization(a, g1, b1, m1, v1) r = Relu(p)"
    " c = Conv(r, C) q = BatchNormalization(c, g2, b2, m2, v2) s = HardSwish(q)"
    " d = Conv<pads=[1,1,1,1]>(s, D) t = BatchNormalization(d, g3, b3, m3, v3) u = Add(t, r) w = Relu(u)"
    " e = Conv(w, E) k = Concat<axis=1>(e, w) o = GlobalAveragePool(k) l = Flatten(o)"
    " h = Gemm<transB=1>(l, F, f) i = Relu(h) y = MatMul(i, K)",
    0,
    arrays={f"v{n}": np.linspace(0.5, 2, w) for n, w in ((1, 40), (2, 24), (3, 40))},
)
FEED = NET.feeds()[0]
WIDTHS = {"A": 40, "C": 24, "E": 32, "F": 48}


def prune(model: onnx.ModelProto = NET.model, seed: int = 0, **options: Any) -> tuple[onnx.ModelProto, list[Change]]:
    held = load(model)
    changes = prune_ir(held.ir, seed, **options)
    return held.to_proto(), changes


def prune_ir(model: ir.Model, seed: int = 0, **options: Any) -> list[Change]:
    interface = Interface.of(model)
    changes: list[Change] = pass_class("prune_channels")(**options).run(model, Context(samples=[FEED], seed=seed))
    assert not (problems := verify(model, interface)), problems
    return changes


def widths(model: onnx.ModelProto) -> dict[str, int]:
    return {t.name: t.dims[0] for t in model.graph.initializer if t.name in WIDTHS}


def macs(model: onnx.ModelProto, feed: Mapping[str, np.ndarray] = FEED) -> int:
    return cost(wrap(ir.from_proto(model)), feed).macs


# ---------------------------------------------------------------------- options
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize(
    "options",
    [
        {"ratio": 0.5},
        {"ratio": 0.3, "round_to": 1},
        {"ratio": 0.99, "round_to": 1, "max_ratio": 0.6},
        {"allocation": "global", "target": 0.7, "round_to": 4},
        {"allocation": "macs", "target": 0.6, "round_to": "auto"},
        {"allocation": "macs", "target": 0.3, "round_to": 1, "min_width": 10},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_every_option_is_honoured(criterion: str, options: dict[str, Any]) -> None:
    after, changes = prune(criterion=criterion, **options)
    assert all(np.isfinite(out).all() for out in oracles.run(after, FEED))
    touched = {change.where[0] for change in changes if change.applied and change.where}
    assert touched
    left = widths(after)
    for name, width in WIDTHS.items():
        assert admissible(left[name], width, options.get("round_to", "auto"))
        assert left[name] >= width * (1 - options.get("max_ratio", 0.9))
        assert left[name] >= options.get("min_width", 1)
        if "ratio" in options:
            assert left[name] >= width * (1 - options["ratio"])
    if options.get("allocation") == "macs":
        assert 0.75 * options["target"] < macs(after) / macs(NET.model) <= options["target"]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_same_seed_gives_the_same_bytes(criterion: str) -> None:
    first, second = (prune(criterion=criterion, ratio=0.4, round_to=1, seed=3)[0] for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


def test_more_ratio_leaves_less() -> None:
    sizes = [sum(widths(prune(ratio=ratio, round_to=1)[0]).values()) for ratio in (0.0, 0.1, 0.25, 0.5, 0.75, 0.89)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)


def test_nothing_asked_is_nothing_done() -> None:
    for options in ({"ratio": 0.0}, {"allocation": "macs", "target": 1.0}, {"allocation": "global", "target": 1.0}):
        after, changes = prune(**options)
        assert not [change for change in changes if change.applied]
        assert after.SerializeToString(deterministic=True) == load(NET.model).to_proto().SerializeToString(
            deterministic=True
        )


@pytest.mark.parametrize("glob", ["A", "?1", "E", "*Conv*", "Conv -> 'e'"])
def test_what_is_ignored_stays_whole(glob: str) -> None:
    after, changes = prune(ratio=0.5, round_to=1, ignored=(glob,))
    refused = {change.where[0] for change in changes if change.guard == "not_ignored"}
    assert refused
    left = widths(after)
    kept = {"A": "A", "?1": "A", "E": "E"}.get(glob)
    if kept:
        assert left[kept] == WIDTHS[kept]
    assert any(left[name] < WIDTHS[name] for name in WIDTHS) != (glob == "*Conv*" and len(refused) > 3)


@pytest.mark.parametrize("allocation", ["macs", "global"])
def test_a_target_out_of_reach_names_the_least_and_changes_nothing(allocation: str) -> None:
    after, changes = prune(allocation=allocation, target=0.3, max_ratio=0.2, round_to=1)
    (refused,) = (change for change in changes if change.guard == "target_reachable")
    assert not [change for change in changes if change.applied]
    assert widths(after) == WIDTHS
    least = float(refused.reason.split()[2])
    reached, done = prune(allocation=allocation, target=least + 0.001, max_ratio=0.2, round_to=1)
    assert not [change for change in done if change.guard == "target_reachable"]
    if allocation == "macs":
        assert macs(reached) / macs(NET.model) == pytest.approx(least, abs=0.002)


@pytest.mark.parametrize(
    "options",
    [
        {"criterion": "l3"},
        {"allocation": "latency"},
        {"repair": "prayer"},
        {"round_to": 0},
        {"ratio": 1.0},
        {"ratio": -0.1},
        {"max_ratio": 1.5},
        {"min_width": 0},
        {"target": 0.5},
        {"allocation": "macs"},
        {"allocation": "macs", "target": 0.5, "ratio": 0.5},
        {"allocation": "macs", "target": 1.5},
    ],
    ids=str,
)
def test_a_wrong_option_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="prune_channels"):
        pass_class("prune_channels")(**options)


# ---------------------------------------------------------------------- what is removed
@pytest.mark.parametrize("criterion", ["l1", "l2", "bn_scale", "geometric_median"])
@pytest.mark.parametrize("options", [{"ratio": 0.5}, {"allocation": "global", "target": 0.6}], ids=str)
def test_a_fused_network_loses_the_same_channels(criterion: str, options: dict[str, Any]) -> None:
    """With its BatchNormalizations inside the weights, the record left there says what they were."""
    if criterion == "bn_scale" and "target" in options:
        options = {**options, "target": 0.75}
    plain, fused = load(NET.model).ir, load(NET.model).ir
    pass_class("fuse_batchnorm")().run(fused, Context())
    for model in (plain, fused):
        assert any(c.applied for c in prune_ir(model, criterion=criterion, round_to=1, repair="none", **options))
    pass_class("fuse_batchnorm")().run(plain, Context())
    answers = [oracles.run(wrap(model).to_proto(), FEED)[0] for model in (plain, fused)]
    assert [node.op_type for node in plain.graph] == [node.op_type for node in fused.graph]
    assert answers[0] == pytest.approx(answers[1], rel=1e-4, abs=1e-4 * float(np.abs(answers[0]).max()))


def test_bn_scale_has_one_threshold_on_gamma_over_the_whole_network() -> None:
    """Network Slimming: gamma of the second layer is far below that of the others, so it gives nearly everything."""
    arrays = {**NET.arrays, "g1": np.linspace(1, 2, 40), "g3": np.linspace(1, 2, 40), "g2": np.linspace(0.01, 0.9, 24)}
    net = Case(NET.name, NET.tensors, NET.body, 0, arrays=arrays)
    after, changes = prune(net.model, criterion="bn_scale", allocation="global", target=0.75, round_to=1)
    left = widths(after)
    assert left == {"A": 40, "C": 8, "E": 32, "F": 48}
    unscaled = {change.where[0] for change in changes if change.guard == "scale_known"}
    assert unscaled == {"Conv -> 'e'", "Gemm -> 'h'"}
    gamma = next(onnx.numpy_helper.to_array(t) for t in after.graph.initializer if t.name == "g2")
    assert np.array_equal(gamma, np.linspace(0.01, 0.9, 24).astype(np.float32)[16:])


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_smaller_model_equals_the_masked_one(criterion: str) -> None:
    """What is taken is found by the names of what is left: every weight of the network holds different numbers."""
    model = load(NET.model).ir
    flow = trace(model, FEED)
    channels = ChannelGraph(flow, settle(flow.atoms, least_loss(maker_energy(flow), 0.4), atom_mass(flow)))
    gone: list[int] = []
    for group in channels.groups:
        if group.free.any():
            ranked = group.classes[np.argsort(CRITERIA[criterion](channels, group, 0), kind="stable")]
            gone += ranked[: int(group.width * 0.4 + 1e-9)].tolist()
    reference = wrap(masked(channels, channels.gone(gone))).to_proto()
    after, _ = prune(criterion=criterion, ratio=0.4, round_to=1, repair="none")
    oracles.assert_equal(reference, after, pass_class("remove_idle").kind, FEED)
    before, mask = (oracles.run(model, FEED)[0] for model in (NET.model, reference))
    assert np.abs(before - mask).max() > 1e-2 * np.abs(before).max()


def test_the_weakest_go_first() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((40, 3, 3, 3)) * np.where(np.arange(40) % 2, 1.0, 1e-3)[:, None, None, None]
    net = Case(
        "plain",
        "x 2,3,13,11 | A 40,3,3,3 | B 5,40,1,1",
        "a = Conv(x, A) r = Relu(a) y = Conv(r, B)",
        0,
        arrays={"A": weight},
    )
    after, _ = prune(net.model, ratio=0.5, round_to=1)
    kept = next(onnx.numpy_helper.to_array(t) for t in after.graph.initializer if t.name == "A")
    assert np.array_equal(kept, weight[1::2].astype(np.float32))


# ---------------------------------------------------------------------- refusals
FROZEN = {
    "an output": ("h = Conv(x, A) y = Relu(h) z = Conv(y, B) y2 = Conv(z, C)", "output 'y'"),
    "an unknown operator": ("h = Conv(x, A) u = other.Odd(h) z = Conv(u, B) y = Conv(z, C)", "Odd"),
    "a computed weight": ("h = Conv(x, A) z = Conv(h, x2) y = Conv(z, C)", "Conv -> 'z'"),
    "a norm over channels": ("h = Conv(x, A) s = Softmax<axis=1>(h) z = Conv(s, B) y = Conv(z, C)", "Softmax"),
}


@pytest.mark.parametrize("what", FROZEN)
def test_a_frozen_group_names_the_node_and_the_reason(what: str) -> None:
    body, node = FROZEN[what]
    case = Case(what, "x 2,3,9,8 | x2 20,16,1,1 | A 16,3,1,1 | B 20,16,1,1 | C 5,20,1,1", body, 0)
    changes = pass_class("prune_channels")(ratio=0.5).run(load(case.model).ir, Context())
    frozen = {change.where[0]: change.reason for change in changes if change.guard == "channels_are_free"}
    (reason,) = (why for where, why in frozen.items() if where in ("Conv -> 'h'",))
    assert node in reason
    assert reason.partition(": ")[2]


def test_widths_that_are_not_on_the_grid_are_refused_with_a_reason() -> None:
    _, changes = prune(ratio=0.1)
    refused = {change.where[0] for change in changes if change.guard == "width_on_grid"}
    assert refused == {"Conv -> 'a'", "Conv -> 'c'", "Conv -> 'e'", "Gemm -> 'h'"}


def test_sizes_that_nobody_knows_are_refused() -> None:
    case = Case("open", "x N,3,H,W | A 16,3,1,1 | B 5,16,1,1", "h = Conv(x, A) y = Conv(h, B)", 0)
    (change,) = pass_class("prune_channels")().run(load(case.model).ir, Context())
    assert change.guard == "sizes_known"
    assert "'x'" in change.reason
