"""Parts of a model timed against each other: how much of its time a part takes with other widths or in another form.

A part is a small model of its own. All its variants are called in turns within one process, in shuffled order, over
freshly built sessions, as whole models are in `latency.py`; what counts is the ratio to the part as it is. A plan wants
the ratios of many variants (`Table.left`), who asks whether one change pays wants an interval (`Table.against`). Both
are kept on disk per CPU, onnxruntime version and threads under a hash of the structure (operators, attributes, shapes;
no names, no weights), so that equal parts are timed once; an interval that says nothing is not kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from onnxslim_core.errors import MeasureError
from onnxslim_core.measure.latency import Call, Interval, student, time_rounds
from onnxslim_core.measure.processor import processor
from onnxslim_core.measure.session import feeds_for, open_piece, run
from onnxslim_core.rewrite import Context, Sample, Timing

__all__ = ["Table", "cache_folder", "settled", "structure"]

Clock = Callable[[ir.Model, ir.Model], Timing]

_SECONDS = 0.08
"""Spent on each variant of a part; a part that takes longer than this is called three times per session."""
_NOISE = 0.01
"""Ratios that agree by chance are not taken to be nearer to the truth than this."""


def settled(latency: Clock, reference: ir.Model, candidate: ir.Model, most: int = 1) -> Interval:
    """Time two models against each other until the interval does not hold 1.

    A short timing has few sessions, and so a wide interval: where it says nothing, further ones are made, and judged
    together: of two the means of what they say, of three and more their ratios (Student's t on the logarithms).

    Args:
        latency: Times them once.
        reference: What the candidate is held against.
        candidate: Takes the same sample.
        most: Timings that are made at most.

    Raises:
        MeasureError: if one of them does not load or run.
    """
    told: list[tuple[float, float, float]] = []
    while True:
        timing = latency(reference, candidate)
        told.append((timing.ratio, timing.low, timing.high))
        with np.errstate(divide="ignore"):  # of one session the interval is all positive numbers
            logs = np.log(told)
        mean, low, high = logs.mean(axis=0)
        if len(told) >= 3:
            spread = max(student(len(told) - 1) * float(logs[:, 0].std(ddof=1)) / len(told) ** 0.5, _NOISE)
            low, high = mean - spread, mean + spread
        if high < 0 or low >= 0 or len(told) >= most:
            return Interval(float(np.exp(mean)), float(np.exp(low)), float(np.exp(high)))


class Table:
    """Seconds of parts and the share of them that each variant takes.

    Args:
        threads: For onnxruntime.
        folder: Where the table is kept; None keeps it in memory.
        latency: Times two models in turns, for `against`; None times nothing.

    Attributes:
        timed: How much was not known and had to be timed.
    """

    def __init__(self, threads: int = 1, folder: Path | None = None, latency: Clock | None = None) -> None:
        self._threads, self._latency = threads, latency
        self._compared: dict[tuple[str, str], Interval | None] = {}
        self._path = None if folder is None else folder / f"latency-{_machine(threads)}.json"
        self._known: dict[str, float] = _read(self._path)
        self.timed = 0

    @classmethod
    def of(cls, context: Context) -> Table:
        """For a pass."""
        return cls(context.threads, context.cache, context.latency)

    def against(
        self,
        reference: ir.Model,
        change: Callable[[ir.Model], bool],
        what: str,
        *,
        most: int = 1,
        fresh: bool = True,
    ) -> Interval | None:
        """The time of what a part might become over its own; None where that is not known and cannot be timed.

        Args:
            reference: The part as it is, at concrete sizes.
            change: Makes of a copy what it might become; False where it cannot.
            what: Names the change: parts that are equal become equal by it.
            most: As in `settled`.
            fresh: False where only what was asked before is told.
        """
        before = structure(ir.to_proto(reference))
        if (before, what) in self._compared:
            return self._compared[before, what]
        if self._latency is None or not fresh:
            return None
        candidate = reference.clone()
        if not change(candidate):
            return None
        key = f"{before}>{structure(ir.to_proto(candidate))}"
        kept = [self._known[name] for end in ("ratio", "low", "high") if (name := f"{key}.{end}") in self._known]
        found = Interval(*kept) if len(kept) == 3 else self._time(key, reference, candidate, most)
        self._compared[before, what] = found
        return found

    def _time(self, key: str, reference: ir.Model, candidate: ir.Model, most: int) -> Interval | None:
        assert self._latency is not None
        self.timed += 1
        try:
            found = settled(self._latency, reference, candidate, most)
        except MeasureError:
            return None
        if found.high < 1 or found.low >= 1:
            self._known |= {f"{key}.ratio": found.ratio, f"{key}.low": found.low, f"{key}.high": found.high}
            self.save()
        return found

    def left(self, part: onnx.ModelProto, variants: Sequence[onnx.ModelProto], sample: Sample) -> list[float]:
        """The seconds of a part, and then of each variant the share of them that it takes.

        Args:
            part: The part as it is.
            variants: What it might become; they take the same inputs.
            sample: One call's inputs.
        """
        full = structure(part)
        keys = [full, *(f"{full}:{structure(variant)}" for variant in variants)]
        if not all(key in self._known for key in keys):
            seconds = self._measure([part, *variants], sample)
            self._known |= dict(zip(keys, [seconds[0], *(each / seconds[0] for each in seconds[1:])], strict=True))
            self.timed += len(keys)
        return [self._known[key] for key in keys]

    def save(self) -> None:
        """Write what was measured, beside what other processes wrote meanwhile."""
        if self._path is None or not self.timed:
            return
        with contextlib.suppress(OSError):  # a cache that cannot be written is no reason to fail
            self._path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps({**_read(self._path), **self._known}, sort_keys=True)
            with tempfile.NamedTemporaryFile("w", dir=self._path.parent, delete=False, encoding="utf-8") as file:
                file.write(text)
            os.replace(file.name, self._path)

    def _measure(self, protos: Sequence[onnx.ModelProto], sample: Sample) -> list[float]:
        def build() -> list[Call]:
            return [self._caller(proto, sample) for proto in protos]

        times = time_rounds(
            build, list, threads=self._threads, seconds=_SECONDS * len(protos), sessions=3, seed=0, progress=None
        )
        logs = np.concatenate(times.logs())
        # a busy machine only ever makes a call longer
        return [float(seconds) for seconds in np.exp(np.quantile(logs, 0.25, axis=0)) / 1e9]

    def _caller(self, proto: onnx.ModelProto, sample: Sample) -> Call:
        session = open_piece(proto, threads=self._threads)
        run(session, sample)
        names, feeds = [output.name for output in session.get_outputs()], dict(feeds_for(session, sample))
        return lambda: session.run(names, feeds)


def structure(proto: onnx.ModelProto) -> str:
    """A hash of operators, attributes, wiring and shapes; equal for parts that differ in names and weights alone."""
    number: dict[str, int] = {"": -1}

    def at(name: str) -> int:
        return number.setdefault(name, len(number))

    told: list[object] = [sorted((each.domain, each.version) for each in proto.opset_import)]
    for info in proto.graph.input:
        kind = info.type.tensor_type
        told.append(("in", at(info.name), kind.elem_type, [dim.dim_value for dim in kind.shape.dim]))
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        for name in node.input:
            if name in weights and name not in number:
                tensor = weights[name]
                told.append(("w", at(name), tensor.data_type, list(tensor.dims), _value(tensor)))
        attributes = sorted(attribute.SerializeToString(deterministic=True).hex() for attribute in node.attribute)
        told.append((node.op_type, node.domain, [at(name) for name in node.input], attributes))
        told.append([at(name) for name in node.output])
    told.append([at(info.name) for info in proto.graph.output])
    return hashlib.sha256(repr(told).encode()).hexdigest()[:32]


def _value(tensor: onnx.TensorProto) -> str:
    """What small constants of integers hold, since shapes and axes decide what is done."""
    if tensor.data_type not in (onnx.TensorProto.INT64, onnx.TensorProto.INT32) or np.prod(list(tensor.dims)) > 64:
        return ""
    return str(onnx.numpy_helper.to_array(tensor).tolist())


def cache_folder() -> Path | None:
    """Where expensive results are kept: `ONNXSLIM_CORE_CACHE`, or the user's cache folder; None where it is `off`."""
    named = os.environ.get("ONNXSLIM_CORE_CACHE", "")
    if named.lower() == "off":
        return None
    if named:
        return Path(named)
    from platformdirs import user_cache_path  # not every command has something to keep

    found = user_cache_path("onnxslim-core", appauthor=False)
    return found if found.is_absolute() else None  # where nobody knows the user's home


def _machine(threads: int) -> str:
    told = f"{processor()[0]} {ort.__version__} {threads}"
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _read(path: Path | None) -> dict[str, float]:
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, Mapping):
        return {}
    return {str(k): float(v) for k, v in found.items() if isinstance(v, int | float) and v > 0}
