"""Allocations: what each promises, on small networks with known scores."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from onnxslim_core.channels.groups import ChannelGraph, Group, analyse
from onnxslim_core.channels.removal import remove_atoms
from onnxslim_core.measure.cost import cost
from onnxslim_core.model import load, wrap
from onnxslim_core.search.widths import Candidate, Limits, Plan, allocate, share_kept
from tests.ops.cases import Case

FREE = Limits(round_to=1, max_ratio=0.999)
NET = Case(
    "net",
    "x 2,3,19,17 | A 24,3,3,3 | D 24,1,3,3 | C 40,24,1,1 | G 32,10,3,3 | E 9,32,1,1 | T 9,8,2,2 | M 8,11",
    "a = Conv<pads=[1,1,1,1]>(x, A) r = Relu(a) d = Conv<group=24>(r, D) c = Conv(d, C) g = Conv<group=4>(c, G)"
    " e = Conv(g, E) t = ConvTranspose<strides=[2,2]>(e, T) p = GlobalAveragePool(t) f = Flatten(p) y = MatMul(f, M)",
    0,
)
FROZEN = Case(
    "half of it cannot be cut",
    "x 2,3,19,17 | x2 12,16,3,3 | A 16,3,3,3 | B 20,12,3,3 | C 5,20,1,1",
    "a = Conv(x, A) q = Conv(a, x2) b = Conv(q, B) y = Conv(b, C)",
    0,
)
PADDED = Case(
    "a stream of 24 channels padded to 48",
    "x 1,3,19,17 | A 24,3,1,1 | B 48,24,1,1 | C 9,48,1,1 | int64 n 8",
    "a = Conv(x, A) b = Conv(a, B) p = Pad(a, n) s = Add(b, p) y = Conv(s, C)",
    0,
    arrays={"n": [0, 0, 0, 0, 0, 24, 0, 0]},
)


@cache
def graph_of(net: str) -> ChannelGraph:
    case = {"net": NET, "frozen": FROZEN, "padded": PADDED}[net]
    return analyse(load(case.model).ir, case.feeds()[0])


def candidates_of(channels: ChannelGraph, seed: int = 0, *, absolute: bool = False) -> list[Candidate]:
    rng = np.random.default_rng(seed)
    free = [group for group in channels.groups if group.free.any()]
    return [Candidate(group, rng.random(group.width) * (n + 1) + 0.01, absolute) for n, group in enumerate(free)]


def widths(candidates: list[Candidate], plan: Plan) -> list[int]:
    return [c.group.width - len(gone) for c, gone in zip(candidates, plan.removed, strict=True)]


# ---------------------------------------------------------------------- limits
def test_a_padded_stream_stays_on_the_grid_as_a_whole() -> None:
    channels, limits = graph_of("padded"), Limits("auto", 0.95)
    groups = [group for group in channels.groups if group.free.any()]
    assert [(group.width, group.beside) for group in groups] == [(24, (24,)), (24, (24,))]
    assert [limits.kept(group, 9) for group in groups] == [24, 24]
    gone = channels.gone(int(root) for group in groups for root in group.classes[: 24 - limits.kept(group, 8)])
    assert [int((~gone[use.labels]).sum()) for use in channels.uses if use.role == "out"] == [8, 16, 9]


def a_group(width: int = 40, unit: int = 1, stuck: int = 0) -> Group:
    group = next(g for g in graph_of("net").groups if g.free.all())
    free = np.arange(width) >= stuck
    return Group(
        **{
            name: getattr(group, name) for name in group.__dataclass_fields__ if name not in ("classes", "free", "unit")
        },
        classes=np.arange(width, dtype=np.int32),
        free=free,
        unit=unit,
    )


@pytest.mark.parametrize(
    ("limits", "unit", "stuck", "wanted", "kept"),
    [
        (Limits(1, 0.9, 1), 1, 0, 0, 4),
        (Limits(1, 0.5, 1), 1, 0, 0, 20),
        (Limits(1, 0.9, 10), 1, 0, 0, 10),
        (Limits(1, 0.9, 10), 4, 0, 0, 4),  # 10 channels are 3 heads of 4, a tenth of the heads are 4
        (Limits(1, 0.9, 30), 4, 0, 0, 8),
        (Limits(1, 0.9, 1), 1, 13, 0, 13),
        (Limits("auto", 0.9, 17), 1, 0, 0, 32),
        (Limits(8, 0.5, 1), 1, 0, 0, 24),
        (Limits(1, 0.0, 1), 1, 0, 0, 40),
    ],
)
def test_limits(limits: Limits, unit: int, stuck: int, wanted: int, kept: int) -> None:
    assert limits.kept(a_group(40, unit, stuck), wanted) == kept


# ---------------------------------------------------------------------- uniform
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.25, 0.5, 0.9])
def test_uniform_takes_the_weakest_share_of_every_group(ratio: float) -> None:
    candidates = candidates_of(graph_of("net"))
    plan = allocate(graph_of("net"), candidates, "uniform", ratio, FREE)
    for candidate, gone in zip(candidates, plan.removed, strict=True):
        assert len(gone) == int(candidate.group.width * ratio + 1e-9)
        lost = np.isin(candidate.group.classes, gone)
        assert not lost.any() or candidate.scores[lost].max() <= candidate.scores[~lost].min()


def test_uniform_is_monotone_in_the_ratio() -> None:
    candidates, before = candidates_of(graph_of("net")), set[int]()
    for ratio in np.linspace(0, 0.95, 20):
        gone = set(allocate(graph_of("net"), candidates, "uniform", float(ratio), Limits(4)).all())
        assert before <= gone
        before = gone


# ---------------------------------------------------------------------- global
@pytest.mark.parametrize("target", [0.2, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("absolute", [True, False])
def test_global_has_one_threshold(target: float, absolute: bool) -> None:
    channels = graph_of("net")
    candidates = candidates_of(channels, absolute=absolute)
    plan = allocate(channels, candidates, "global", target, FREE)
    gone: list[float] = []
    kept: list[float] = []
    for candidate, removed in zip(candidates, plan.removed, strict=True):
        scores = candidate.scores if absolute else candidate.scores / candidate.scores.mean()
        lost = np.isin(candidate.group.classes, removed)
        gone += scores[lost].tolist()
        floor = candidate.group.width - len(removed) <= FREE.kept(candidate.group, 0)
        kept += [] if floor else scores[~lost].tolist()
    assert not gone or not kept or max(gone) <= min(kept)
    groups = [c.group for c in candidates]
    share = share_kept(channels, groups, plan, "global")
    one = max(group.unit for group in groups) / sum(group.width * group.unit for group in groups)
    assert target - one < share <= target


def test_an_absolute_threshold_may_spare_a_whole_group() -> None:
    """Scores of the first group are a tenth of those of the last: over means all groups give, else the weak ones."""
    channels = graph_of("net")
    relative = widths(*_with_plan(channels, absolute=False))
    absolute = widths(*_with_plan(channels, absolute=True))
    full = [c.group.width for c in candidates_of(channels)]
    assert all(kept < width for kept, width in zip(relative, full, strict=True))
    assert absolute[-1] > relative[-1]
    assert absolute[0] < relative[0]


def _with_plan(channels: ChannelGraph, *, absolute: bool) -> tuple[list[Candidate], Plan]:
    candidates = candidates_of(channels, absolute=absolute)
    return candidates, allocate(channels, candidates, "global", 0.6, FREE)


# ---------------------------------------------------------------------- macs
def test_multiply_adds_are_those_that_are_measured() -> None:
    """By the channel graph before a removal and by `measure.cost` after it, node by node counted from shapes."""
    for net in (NET, FROZEN):
        for seed in range(4):
            model = load(net.model)
            channels = analyse(model.ir, net.feeds()[0])
            assert channels.macs() == cost(model, net.feeds()[0]).macs
            candidates = candidates_of(channels, seed)
            gone = channels.gone(allocate(channels, candidates, "uniform", 0.2 * (seed + 1), FREE).all())
            said = channels.macs(gone)
            remove_atoms(channels, gone)
            assert said == pytest.approx(cost(wrap(model.ir), net.feeds()[0]).macs, rel=1e-9)


@pytest.mark.parametrize("target", [0.15, 0.3, 0.5, 0.8, 0.99, 1.0])
@pytest.mark.parametrize("round_to", [1, 4, "auto"])
def test_a_target_of_multiply_adds_is_met_and_not_by_far(target: float, round_to: int | str) -> None:
    channels, limits = graph_of("net"), Limits(round_to)
    candidates = candidates_of(channels)
    groups = [candidate.group for candidate in candidates]
    plan = allocate(channels, candidates, "macs", target, limits)
    share = share_kept(channels, groups, plan, "macs")
    everything = allocate(channels, candidates, "macs", 0.0, limits)
    least = share_kept(channels, groups, everything, "macs")
    if least > target:
        assert plan == everything
        return
    assert share <= target
    for number, gone in enumerate(plan.removed):  # no group could have one step more
        group = groups[number]
        fewer = [r for r in range(len(gone)) if limits.kept(group, group.width - r) == group.width - r]
        if fewer:
            wider = Plan((*plan.removed[:number], gone[: fewer[-1]], *plan.removed[number + 1 :]))
            assert share_kept(channels, groups, wider, "macs") > target


def test_equal_scores_are_no_reason_to_take_everything() -> None:
    channels = graph_of("net")
    candidates = [Candidate(c.group, np.ones(c.group.width)) for c in candidates_of(channels)]
    plan = allocate(channels, candidates, "macs", 0.6, FREE)
    assert 0.5 < share_kept(channels, [c.group for c in candidates], plan, "macs") <= 0.6


def test_a_plan_for_fewer_multiply_adds_keeps_fewer() -> None:
    channels = graph_of("net")
    candidates = candidates_of(channels)
    groups = [candidate.group for candidate in candidates]
    shares = [
        share_kept(channels, groups, allocate(channels, candidates, "macs", float(t), FREE), "macs")
        for t in np.linspace(0.1, 1, 15)
    ]
    assert shares == sorted(shares)


@pytest.mark.parametrize("allocation", ["global", "macs"])
def test_keeping_everything_keeps_what_scores_nothing_too(allocation: str) -> None:
    channels = graph_of("net")
    candidates = [Candidate(c.group, c.scores * (np.arange(c.group.width) > 1)) for c in candidates_of(channels)]
    assert allocate(channels, candidates, allocation, 1.0, FREE).all() == []
