"""Sessions and their failures."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import parser

from onnxslim_core.errors import MeasureError
from onnxslim_core.measure.session import open_session, run, run_only
from onnxslim_core.model import Model, load

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[n, 2] x, float[n, 2] z) => (float[n, 2] a, float[n, 2] b) { a = Add(x, z)\n b = Mul(x, z) }"""


def _model() -> Model:
    return load(parser.parse_model(TEXT))


def test_outputs_come_by_name_and_surplus_inputs_are_ignored() -> None:
    x = np.full((1, 2), 3, np.float32)
    found = run(open_session(_model()), {"x": x, "z": x, "other": x})
    assert list(found) == ["a", "b"]
    assert (found["a"] == 6).all()
    assert list(run_only(open_session(_model()), {"x": x, "z": x}, ["b"])) == ["b"]


def test_a_missing_input_is_named() -> None:
    with pytest.raises(MeasureError, match="'z'"):
        run(open_session(_model()), {"x": np.ones((1, 2), np.float32)})


def test_failures_are_one_line() -> None:
    x = np.ones((1, 2), np.float32)
    with pytest.raises(MeasureError) as caught:
        run(open_session(_model()), {"x": x, "z": np.ones((5, 3), np.float32)})
    assert "\n" not in str(caught.value)
    with pytest.raises(MeasureError, match="type"):
        run(open_session(_model()), {"x": x, "z": x.astype(np.float64)})


def test_a_model_that_onnxruntime_does_not_take_is_a_measure_error(capfd: pytest.CaptureFixture[str]) -> None:
    class Broken:
        @contextlib.contextmanager
        def session_source(self) -> Iterator[bytes]:
            yield b"no model"

    with pytest.raises(MeasureError, match="cannot load"):
        open_session(Broken())  # type: ignore[arg-type]
    out, err = capfd.readouterr()
    assert not out
    assert not err


def test_threads_and_optimization_are_what_was_asked() -> None:
    plain, fused = open_session(_model(), threads=2, optimize=False), open_session(_model())
    options = plain.get_session_options(), fused.get_session_options()
    assert [o.intra_op_num_threads for o in options] == [2, 1]
    assert options[0].graph_optimization_level != options[1].graph_optimization_level
    assert options[0].get_session_config_entry("session.intra_op.allow_spinning") == "0"
    with pytest.raises(MeasureError, match="threads"):
        open_session(_model(), threads=0)


def test_a_profile_is_written_where_it_was_asked_for(tmp_path: Path) -> None:
    session = open_session(_model(), profile=tmp_path / "p")
    x = np.ones((1, 2), np.float32)
    run(session, {"x": x, "z": x})
    path = Path(session.end_profiling())
    assert path.parent == tmp_path
    assert json.loads(path.read_text())
