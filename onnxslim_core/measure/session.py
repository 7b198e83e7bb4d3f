"""onnxruntime sessions, opened the same way everywhere and failing in one line.

Every figure of this package comes out of a session of this module: on the CPU, nodes one after the other, no thread
that spins while it waits (a spinning pool would be charged to whoever runs next), and no log on the console.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as _state

from onnxslim_core.errors import MeasureError
from onnxslim_core.rewrite import Sample

if TYPE_CHECKING:
    from onnxslim_core.model import Model

__all__ = ["RUNTIME_ERRORS", "feeds_for", "open_file", "open_piece", "open_session", "run", "run_only"]


def _error_types() -> tuple[type[Exception], ...]:
    # onnxruntime's exceptions have no common base but Exception
    found = [t for t in vars(_state).values() if isinstance(t, type) and issubclass(t, Exception)]
    return (*found, RuntimeError, ValueError, TypeError, OSError, MemoryError)


RUNTIME_ERRORS = _error_types()
"""What onnxruntime raises when it cannot load or run a model."""


def open_session(
    model: Model, *, threads: int = 1, optimize: bool = True, profile: str | os.PathLike[str] | None = None
) -> ort.InferenceSession:
    """Open a model on the CPU.

    Args:
        model: What to open.
        threads: Threads within one operator; with 1, all work is done on the calling thread.
        optimize: False switches all of onnxruntime's own graph rewrites off: the graph as it is written.
        profile: Path prefix; where given, onnxruntime writes its per-operator profile there.

    Raises:
        MeasureError: if onnxruntime cannot load the model.
    """
    options = _options(threads, optimize)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = os.fspath(profile)
    with model.session_source() as source:
        if isinstance(source, str) and not optimize:
            _read_in_place(options)
        return _open(source, options)


def open_file(path: str | os.PathLike[str], *, threads: int = 1, large: bool = False) -> ort.InferenceSession:
    """Open a file as it lies there, graph as it is written; as `open_session`. A large one is read in place."""
    options = _options(threads, False)
    if large:
        _read_in_place(options)
    return _open(os.fspath(path), options)


def _read_in_place(options: ort.SessionOptions) -> None:
    """Let weights be read where the file is mapped: a large model that runs a few times is not copied first."""
    options.add_session_config_entry("session.disable_prepacking", "1")


def open_piece(proto: onnx.ModelProto, *, threads: int = 1) -> ort.InferenceSession:
    """Open a part of a model that was cut out of it; as `open_session`."""
    return _open(proto.SerializeToString(), _options(threads, True))


def _options(threads: int, optimize: bool) -> ort.SessionOptions:
    if threads < 1:
        raise MeasureError(f"threads is {threads}, at least 1 is needed")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = optimize  # what runs a few times gives its memory back at once
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def _open(source: bytes | str, options: ort.SessionOptions) -> ort.InferenceSession:
    try:
        # without the fallback, which prints what failed and tries the same again
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except RUNTIME_ERRORS as err:
        raise MeasureError(f"onnxruntime cannot load the model: {_one_line(err)}") from err


def run(session: ort.InferenceSession, feeds: Sample) -> dict[str, Any]:
    """One call of a model.

    Args:
        session: From `open_session`.
        feeds: An array per input; inputs of other names are ignored, so that one sample serves two models.

    Returns:
        The outputs by name: arrays, lists (sequences) or dicts (maps).

    Raises:
        MeasureError: if an input is missing or onnxruntime fails.
    """
    return run_only(session, feeds, [output.name for output in session.get_outputs()])


def run_only(session: ort.InferenceSession, feeds: Sample, names: Sequence[str]) -> dict[str, Any]:
    """Like `run`, for some of the outputs."""
    try:
        values = session.run(list(names), feeds_for(session, feeds))
    except RUNTIME_ERRORS as err:
        raise MeasureError(f"onnxruntime cannot run the model: {_one_line(err)}") from err
    return dict(zip(names, values, strict=True))


def feeds_for(session: ort.InferenceSession, feeds: Sample) -> Mapping[str, np.ndarray]:
    """What of a sample this session takes.

    Raises:
        MeasureError: if an input that has no default is missing.
    """
    missing = [i.name for i in session.get_inputs() if i.name not in feeds and not i.type.startswith("optional")]
    if missing:
        raise MeasureError(f"no value for input '{missing[0]}'", f"the sample has {', '.join(sorted(feeds)) or 'none'}")
    wanted = {i.name for i in (*session.get_inputs(), *session.get_overridable_initializers())}
    return {name: value for name, value in feeds.items() if name in wanted}


def _one_line(err: BaseException) -> str:
    text = " ".join(str(err).split()) or type(err).__name__
    text = text.removeprefix("[ONNXRuntimeError] : ")
    return text if len(text) <= 300 else text[:297] + "..."
