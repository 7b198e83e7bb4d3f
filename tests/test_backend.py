"""A sample of onnx's own backend tests through the exact recipe; `bench/backend.py` runs them all."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.backend import KINDS, Case, cases, judged

EVERY = {"node": 41, "simple": 1, "pytorch-operator": 1, "pytorch-converted": 4}
LEAST = {"node": 25, "simple": 15, "pytorch-operator": 20, "pytorch-converted": 12}
"""Cases of which onnxruntime has to run so many, since nothing is proven by the others."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_every_case_answers_as_before(kind: str) -> None:
    found = {str(case): judged(case) for index, case in enumerate(cases(kind)) if index % EVERY[kind] == 0}
    wrong = {name: verdict for name, verdict in found.items() if verdict.outcome in ("differs", "crash", "refused")}
    assert not wrong
    assert sum(verdict.outcome == "equal" for verdict in found.values()) >= LEAST[kind]


def test_another_answer_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [3]) for name in "xy")
    models = [
        helper.make_model(helper.make_graph([helper.make_node(op, ["x"], ["y"])], "g", [x], [y]), ir_version=8)
        for op in ("Relu", "Abs", "Nonsense")
    ]
    case = Case("node", "relu", models[0], {"x": np.array([-1, 0, 1], np.float32)})
    assert judged(case).outcome == "equal"

    class Given:
        def __init__(self, proto: onnx.ModelProto) -> None:
            self.model = self
            self.proto = proto

        def to_proto(self) -> onnx.ModelProto:
            return self.proto

    for other in models[1:]:
        monkeypatch.setattr("tests.backend.compress", lambda *_, other=other, **__: Given(other))
        assert judged(case).outcome == "differs"
    monkeypatch.setattr("tests.backend.compress", lambda *_, **__: 1 / 0)
    assert judged(case).outcome == "crash"
