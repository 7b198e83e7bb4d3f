"""The oracle must notice when a rule is wrong: every row of the table is spoiled in several ways.

A mutant is a rule with one thing switched off or turned round. It is caught when on one of the operator's own cases
the oracle, onnxruntime or the removal itself says no; what the case says about free channels does not count. Mutants
without effect on any case are not run.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxslim_core.errors import InternalError
from onnxslim_core.ops import join, mix, norms, sizes
from onnxslim_core.ops.atoms import Labels
from onnxslim_core.ops.flow import Flow, Rule
from onnxslim_core.ops.table import RULES
from tests.channels.masks import prove
from tests.ops import (
    test_attention,
    test_bodies,
    test_conv,
    test_einsum,
    test_join,
    test_keep,
    test_mix,
    test_move,
    test_norms,
    test_product,
    test_quantized,
    test_recurrent,
    test_sizes,
)
from tests.ops.cases import SEEDS, SHARE, VIEWS, Case

ALL: list[Case] = [
    *test_conv.CASES,
    *test_product.CASES,
    *test_einsum.CASES,
    *test_recurrent.CASES,
    *test_join.CASES,
    *test_keep.CASES,
    *test_mix.CASES,
    *test_move.CASES,
    *test_norms.CASES,
    *test_attention.CASES,
    *test_sizes.CASES,
    *test_quantized.CASES,
    *test_bodies.CASES,
]
CASES = {op: [case for case in ALL if re.search(rf"= {op}\b", case.body)] for op in RULES}
"""For every operator the cases that have it."""

Label = Callable[[Flow, ir.Node], None]


class Mutant:
    """One way to spoil the labels of a rule; `effect` tells whether that ever made a difference."""

    def __init__(self, kind: str, rule: Rule) -> None:
        self.kind = kind
        self.true = rule
        self.effect = kind == "uncut"

    @property
    def rule(self) -> Rule:
        """The spoiled rule."""
        if self.kind == "uncut":
            return Rule(self.true.label, None, self.true.value)
        return Rule(self._label, self.true.cut, self.true.value)

    def _label(self, flow: Flow, node: ir.Node) -> None:
        if self.kind in _STUBS:
            setattr(flow.atoms, self.kind.removeprefix("no "), self._stub)
            try:
                self.true.label(flow, node)
            finally:
                delattr(flow.atoms, self.kind.removeprefix("no "))
            return
        before = len(flow.sinks)
        self.true.label(flow, node)
        if self.kind == "no sink":
            self.effect |= len(flow.sinks) > before
            del flow.sinks[before:]
            return
        for value in node.outputs:
            labels = flow.table.get(value)
            if labels is None or labels.size == 1:
                continue
            self.effect = True
            fresh = flow.atoms.fresh(labels.size).reshape(labels.shape)
            flow.set(value, fresh if self.kind == "untied" else np.flip(labels))

    def _stub(self, left: Labels, right: Any, *why: str) -> Labels:
        if self.kind == "no mix":
            self.effect |= any(left.shape[axis] > 1 for axis in right)
        else:
            self.effect |= left.size > 1 or right.size > 1
        return left


_STUBS = ("no mix", "no unite", "no rel")
KINDS = ("uncut", "untied", "reversed", "no sink", *_STUBS)
"""The node is not cut; its results have channels of their own, or in the opposite order; sums are not on record;
values do not depend on each other; nothing is the same as anything else; coarse and fine channels go on their own."""

CREATE = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN")
ATTENTION = ("Attention", "com.microsoft.MultiHeadAttention")
QUANTIZED = (
    *("ConvInteger", "QLinearConv", "MatMulInteger", "QLinearMatMul"),
    *(f"com.microsoft.{op}" for op in ("FusedConv", "FusedMatMul", "FusedGemm", "QGemm", "DynamicQuantizeLSTM")),
    *(f"com.microsoft.{op}" for op in ("DynamicQuantizeMatMul", "MatMulIntegerToFloat")),
)
MUST: dict[str, tuple[str, ...]] = {
    "uncut": tuple(op for op, rule in RULES.items() if rule.cut is not None),
    "untied": tuple(op for op in RULES if op not in (*sizes.RULES, "LRN")),
    "reversed": tuple(op for op in RULES if op not in (*sizes.RULES, "LRN")),
    "no sink": (
        *CREATE,
        *QUANTIZED,
        "DynamicQuantizeLinear",
        "LpNormalization",
        "ReduceSum",
        "ReduceL1",
        "ReduceL2",
        "ReduceSumSquare",
    ),
    "no mix": tuple(
        op
        for op in (
            *join.RULES,
            *mix.RULES,
            *norms.RULES,
            "RotaryEmbedding",
            "com.microsoft.RotaryEmbedding",
            "Conv",
            "ConvTranspose",
            "Pad",
            "DepthToSpace",
        )
        if op not in ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare", "LpNormalization")
    ),
    "no unite": (
        "com.microsoft.QLinearAdd",
        "com.microsoft.FusedConv",
        "Add",
        "Mul",
        "Where",
        "MatMul",
        "Einsum",
        "Concat",
    ),
    "no rel": (
        "Conv",
        "ConvTranspose",
        "MatMul",
        "Einsum",
        "Mul",
        "ReduceSum",
        "ReduceL1",
        "ReduceL2",
        "ReduceSumSquare",
    ),
}
"""For each kind the operators on which it makes a difference; of a Concat what is mixed is united as well."""


def caught(op: str) -> bool:
    """True where one of the cases of an operator says no."""
    for case, view, seed in itertools.product(CASES[op], VIEWS.values(), SEEDS):
        try:
            prove(case.model, case.feeds(), view, seed, SHARE, widths=case.widths)
        except (AssertionError, InternalError, ValueError, LookupError):
            return True
        except Exception as err:  # onnxruntime's own exception classes are not public
            if type(err).__module__.startswith("onnxruntime"):
                return True
            raise
    return False


def test_every_rule_has_cases() -> None:
    assert not [op for op, cases in CASES.items() if not cases]


@pytest.mark.parametrize(("op", "kind"), [(op, kind) for kind in KINDS for op in MUST[kind]])
def test_spoiled_rule_is_caught(op: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant = Mutant(kind, RULES[op])
    monkeypatch.setitem(RULES, op, mutant.rule)
    noticed = caught(op)
    assert mutant.effect, "no case on which this makes a difference"
    assert noticed
