"""What `inspect --explain` says: every group, how much of it is free, and for the rest the node and the reason."""

from __future__ import annotations

import json

import numpy as np
import pytest

from onnxslim_core.channels.explain import Explanation, explain
from onnxslim_core.model import load
from onnxslim_core.rewrite import Sample
from tests.ops import test_conv, test_join, test_keep, test_mix, test_move, test_product
from tests.ops.cases import Case

RULES = [
    case for module in (test_conv, test_join, test_keep, test_mix, test_move, test_product) for case in module.CASES
]


def explained(case: Case) -> Explanation:
    feed: Sample = case.feeds()[0]
    return explain(load(case.model).ir, feed)


def net(tensors: str, body: str) -> Case:
    return Case("net", tensors, body, 0)


NET = net(
    "x 2,3,9,8 | A 10,3,3,3 | a 10 | C 6,10,1,1 | D 10,6,1,1 | F 10,4",
    "h = Conv(x, A, a) r = Relu(h) c = Conv(r, C) d = Conv(c, D) s = Add(d, r) p = GlobalAveragePool(s) f = Flatten(p)"
    " y = MatMul(f, F)",
)


def test_groups_come_in_order_with_who_makes_and_who_reads_them() -> None:
    first, second, last = explained(NET).groups
    assert (first.name, first.size, first.free, first.unit) == ("Conv -> 'h'", 10, 10, 1)
    assert first.producers == ("Conv -> 'h'", "Conv -> 'd'")
    assert first.consumers == ("Conv -> 'c'", "MatMul -> 'y'")
    assert (second.name, second.size, second.free) == ("Conv -> 'c'", 6, 6)
    assert second.consumers == ("Conv -> 'd'",)
    assert (last.name, last.size, last.free, last.consumers) == ("MatMul -> 'y'", 4, 0, ())


def test_weights_and_multiply_adds_of_a_group_are_those_that_stand_on_it() -> None:
    first, second, last = explained(NET).groups
    a, c, d, f = 10 * 27, 60, 60, 40
    assert (first.params, second.params, last.params) == (a + 10 + c + d + f, c + d, f)
    places = 2 * 7 * 6
    assert first.macs == places * (a + c + d) + 2 * f
    assert second.macs == places * (c + d)


def test_what_is_free_and_what_stays_add_up() -> None:
    found = explained(NET)
    assert found.labelled_params == found.free_params == 10 * 27 + 10 + 60 + 60 + 40
    frozen = explained(net("x 2,3 | A 3,7 | B 7,4", "a = MatMul(x, A) y = MatMul(a, B) y2 = Relu(a)"))
    assert (frozen.free_params, frozen.labelled_params) == (0, 21 + 28)


@pytest.mark.parametrize(
    ("tensors", "body", "name", "node", "text"),
    [
        ("x 2,3 | A 3,7", "y = MatMul(x, A)", "MatMul -> 'y'", "output 'y'", "keeps its shape"),
        (
            "x 2,3 | A 3,7 | B 7,4",
            "a = MatMul(x, A) u = other.Odd(a) y = MatMul(u, B)",
            "MatMul -> 'a'",
            "Odd",
            "other::Odd is not understood",
        ),
        (
            "x 2,3 | A 3,7 | B 7,4",
            "a = MatMul(x, A) u = Softmax(a) y = MatMul(u, B)",
            "MatMul -> 'a'",
            "Softmax -> 'u'",
            "depend on each other",
        ),
        (
            "x 2,3,5,5 | A 1,3,1,1 | B 4,1,1,1",
            "a = Conv(x, A) y = Conv(a, B)",
            "Conv -> 'a'",
            "Conv -> 'a'",
            "all that a tensor has",
        ),
        ("x 2,7 | A 7,7 | B 7,4", "a = MatMul(x, A) s = Add(a, x) y = MatMul(s, B)", "MatMul -> 'a'", "", ""),
    ],
)
def test_a_frozen_group_names_the_node_and_the_reason(tensors: str, body: str, name: str, node: str, text: str) -> None:
    found = explained(net(tensors, body))
    group = next(group for group in found.groups if group.name == name)
    assert group.free == 0
    assert node in group.node
    assert text in group.reason
    assert f"{group.node}: {group.reason}" in found.obstacles


@pytest.mark.parametrize("case", RULES, ids=str)
def test_whatever_stays_says_why(case: Case) -> None:
    found = explained(case)
    for group in found.groups:
        assert 0 <= group.free <= group.size
        assert bool(group.node and group.reason) == (group.free < group.size), group
    assert sum(found.obstacles.values()) == sum(group.free < group.size for group in found.groups)
    assert 0 <= found.free_params <= found.labelled_params


def test_json_holds_plain_values_only() -> None:
    found = explained(NET)
    read = json.loads(json.dumps(found.to_json()))
    assert [group["name"] for group in read["groups"]] == [group.name for group in found.groups]
    assert read["free_params"] == found.free_params
    assert not any(isinstance(value, np.generic) for group in found.to_json()["groups"] for value in group.values())
