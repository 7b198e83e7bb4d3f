"""onnx's own backend tests as inputs: every operator in every variant, and small models of other exporters.

The data comes with the onnx package: single nodes are made by code, the rest are files. A case is judged where
onnxruntime runs it: what comes out of the exact recipe has to answer as the case does, and nothing may crash.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import numpy_helper

from onnxslim_core.errors import SlimError
from onnxslim_core.pipeline import compress
from tests import oracles

__all__ = ["KINDS", "Case", "Verdict", "cases", "judged"]

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")
Outcome = Literal["equal", "random", "refused", "not run", "differs", "crash"]


@dataclass(frozen=True)
class Case:
    """One test of onnx.

    Attributes:
        kind: Of `KINDS`.
        name: As onnx calls it.
        model: The model.
        feeds: What it is fed, by input.
    """

    kind: str
    name: str
    model: onnx.ModelProto
    feeds: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"


@dataclass(frozen=True)
class Verdict:
    """What became of a case.

    Attributes:
        outcome: `equal`; `random` where the model differs from itself; `refused` in one line; `not run` by onnxruntime;
            or one of the two that must not be: `differs`, `crash`.
        note: Why.
        nodes: Before and after.
    """

    outcome: Outcome
    note: str = ""
    nodes: tuple[int, int] = (0, 0)


def cases(kind: str) -> Iterator[Case]:
    """All cases of a kind, by name."""
    for name, model, inputs in sorted(
        _node_cases() if kind == "node" else _file_cases(kind), key=lambda found: found[0]
    ):
        fed = [value.name for value in model.graph.input]
        arrays = [np.asarray(array) if isinstance(array, np.generic) else array for array in inputs]
        yield Case(kind, name, model, dict(zip(fed, arrays, strict=False)))


@cache
def _node_cases() -> list[tuple[str, onnx.ModelProto, Sequence[Any]]]:
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
        found = load_model_tests(kind="node")
    return [(case.name, case.model, case.data_sets[0][0]) for case in found if case.model and case.data_sets]


def _file_cases(kind: str) -> Iterator[tuple[str, onnx.ModelProto, Sequence[Any]]]:
    from onnx.backend.test import loader

    for folder in (Path(loader.DATA_DIR) / kind).iterdir():
        if not (folder / "model.onnx").is_file():
            continue
        model = onnx.load(str(folder / "model.onnx"))
        inputs = []
        for index, value in enumerate(model.graph.input):
            file = folder / "test_data_set_0" / f"input_{index}.pb"
            if file.is_file():
                inputs.append(_read(file.read_bytes(), value))
        yield folder.name, model, inputs


def _read(data: bytes, value: onnx.ValueInfoProto) -> Any:
    kind = value.type.WhichOneof("value")
    if kind == "sequence_type":
        return numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    if kind == "optional_type":
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
    return numpy_helper.to_array(onnx.TensorProto.FromString(data))


def judged(case: Case) -> Verdict:
    """Run a case through the exact recipe and hold the answers against its own."""
    try:
        own = oracles.session(case.model)
        expected, again = (own.run(None, dict(case.feeds)) for _ in range(2))
    except Exception as err:  # onnxruntime's own exception classes are not public, and it raises others on odd feeds
        return Verdict("not run", str(err).splitlines()[0][:160])
    before = len(case.model.graph.node)
    try:
        result = compress(case.model, measure_latency=False)
        proto = result.model.to_proto()
    except SlimError as err:
        return Verdict("refused", str(err), (before, before))
    except Exception as err:  # whatever it is: that is what this looks for
        return Verdict("crash", f"{type(err).__name__}: {err}".splitlines()[0], (before, before))
    nodes = before, len(proto.graph.node)
    try:
        found = oracles.run(proto, case.feeds)
        oracles.assert_same_interface(case.model, proto)
        oracles.compare(case.model, expected, found, max(oracles.RELATIVE, 4 * _precision(expected)))
    except Exception as err:  # a result that does not load or run included
        try:
            oracles.compare(case.model, expected, again, None)
        except AssertionError:
            return Verdict("random", "differs from itself", nodes)
        return Verdict("differs", f"{type(err).__name__}: {err}".splitlines()[0][:200], nodes)
    return Verdict("equal", "", nodes)


def _precision(answers: Sequence[Any]) -> float:
    """The coarsest step of the float answers, relative to 1: half precision cannot keep 1e-5."""
    kinds = [a.dtype for a in answers if isinstance(a, np.ndarray) and a.dtype.kind == "f"]
    return max((float(np.finfo(kind).eps) for kind in kinds), default=0.0)
