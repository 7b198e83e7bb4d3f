"""What a reference answers, found out once however many candidates are held against it.

Sessions are opened when they are needed and closed where memory is scarce: a large model is never open beside another.
Answers stream through: what is kept is of the size of one answer, and what there is room for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from onnxslim_core.errors import MeasureError
from onnxslim_core.measure.inputs import indexed_tables
from onnxslim_core.measure.scores import OutputFidelity, Parts, Tally, as_array, columns_of
from onnxslim_core.measure.session import open_session, run
from onnxslim_core.model import LARGE
from onnxslim_core.rewrite import Sample

if TYPE_CHECKING:
    import onnxruntime as ort

    from onnxslim_core.model import Model

__all__ = ["Answers", "Plain", "Tallies", "Truth"]

Answers = dict[str, Any]
"""The outputs of one call, by name."""

_NOISE_SAMPLES = 4
_DEFAULT_SAMPLES = 32
_TRUTH_BYTES = 2**28
"""Answers of the reference that are kept for the comparisons that follow, at least one."""
_BLOCK = 2**20
"""Elements that are moved at a time."""


class Plain:
    """The session of a model without onnxruntime's rewrites, open from when it is asked for until it is closed."""

    def __init__(self, model: Model, threads: int) -> None:
        self.model = model
        self.threads = threads
        self._session: ort.InferenceSession | None = None

    @property
    def session(self) -> ort.InferenceSession:
        """The open session."""
        if self._session is None:
            self._session = open_session(self.model, threads=self.threads, optimize=False)
        return self._session

    def close(self) -> None:
        """Let go of the session and its memory."""
        self._session = None


class Truth:
    """What a reference answers, found out once, however many candidates are held against it.

    Answers are kept as far as there is room and else asked for again. A large model is never open at the same time as
    another one.

    Args:
        model: The reference; it must not change any more.
        samples: At least one.
        parts: As in `compare`.
        threads: As in `compare`.
        seed: Of the noise.
        plain: A session of the model, where the caller has one.

    Raises:
        MeasureError: if there is no sample, the model does not run, or parts are given for what is no output.
    """

    def __init__(
        self,
        model: Model,
        samples: Sequence[Sample],
        parts: Mapping[str, Parts] | None = None,
        threads: int = 1,
        seed: int = 0,
        plain: Plain | None = None,
    ) -> None:
        if not samples:
            raise MeasureError("no samples to compare on")
        self.samples = samples
        self.parts = parts or {}
        self.threads = threads
        self.is_large = model.nbytes >= LARGE
        self.plain = plain or Plain(model, threads)
        self.names = [output.name for output in self.plain.session.get_outputs()]
        for name in self.parts:
            if name not in self.names:
                raise MeasureError(
                    f"parts are given for '{name}', which is no output", f"outputs: {', '.join(self.names)}"
                )
        self._model = model
        self._seed = seed
        self._answers: list[Answers] = []
        self._room = _TRUTH_BYTES
        self.latest: tuple[Model, Answers] | None = None
        """The candidate that was asked last, and what it answered to the first sample."""
        self._noise: dict[str, OutputFidelity] | None = None
        self._own: dict[str, OutputFidelity] | None = None

    def beside(self, other: Plain) -> Iterator[tuple[Sample, Answers, Answers]]:
        """Each sample with the answers of the reference and of another model."""
        index = 0
        while index < len(self.samples):
            answers = self._answers[index:]
            if not answers:
                if self.is_large:
                    other.close()
                answers = self._ask(index)
            if self.is_large:
                self.plain.close()
            for sample, ours in zip(self.samples[index : index + len(answers)], answers, strict=True):
                theirs = run(other.session, sample)
                if sample is self.samples[0]:
                    self.latest = other.model, theirs
                yield sample, ours, theirs
            index += len(answers)

    def _ask(self, index: int) -> list[Answers]:
        """The reference's answers from a sample on: one, or of a large model as many as may be held."""
        found: list[Answers] = []
        room = _TRUTH_BYTES
        for sample in self.samples[index:]:
            ours = run(self.plain.session, sample)
            size = sum(as_array(value).nbytes for value in ours.values())
            found.append(ours)
            room -= size
            if index == 0 or (len(self._answers) == index and self._room > 0 and index < _DEFAULT_SAMPLES):
                self._answers.append(ours)
                self._room -= size
            index += 1
            if not self.is_large or room <= 0:
                break
        return found

    @property
    def kept(self) -> Sequence[Answers]:
        """Answers to the first samples, at least to one."""
        if not self._answers:
            self._ask(0)
        return self._answers

    def noise(self) -> dict[str, OutputFidelity]:
        """The reference against itself with every float of the input moved by one unit in its last place."""
        if self._noise is None:
            tally = Tallies(self.names, self.parts)
            few = self.samples[: min(_NOISE_SAMPLES, len(self.kept))]
            self._noise = _noise(self._model, self.plain, few, self.kept, tally, self._seed)
            if self.is_large or len(self._answers) == len(self.samples):
                self.plain.close()  # nothing is left to ask
        return self._noise

    def deployed(self, model: Model) -> dict[str, OutputFidelity]:
        """A model's default session against the reference as it is written, over the first samples.

        Raises:
            MeasureError: if it does not run there, though the reference does.
        """
        if self.is_large:
            self.plain.close()
        tally = Tallies(self.names, self.parts)
        session = open_session(model, threads=self.threads)
        for sample, truth in zip(self.samples, self.kept, strict=False):
            tally.add(truth, run(session, sample), sample)
        return tally.results({})

    def own_deployed(self) -> dict[str, OutputFidelity]:
        """The same of the reference itself: what onnxruntime's optimizer does to it."""
        if self._own is None:
            self._own = self.deployed(self._model)
        return self._own


class Tallies:
    """One tally per output and per part of one."""

    def __init__(self, names: Sequence[str], parts: Mapping[str, Parts]) -> None:
        self._names, self._parts = names, parts
        self._tallies: dict[str, Tally] = {}
        for name in names:
            self._tallies[name] = Tally()
            columns = parts[name][1] if name in parts else ()
            self._tallies.update({f"{name}.{part}": Tally() for part in columns})

    def add(self, ours: Answers, theirs: Answers, sample: Sample) -> None:
        """The outputs of one call of each model."""
        batch = _batch(sample)
        for name in self._names:
            self._tallies[name].add(ours[name], theirs[name], batch)
            if name not in self._parts:
                continue
            pair = [columns_of(answers[name], self._parts[name]) for answers in (ours, theirs)]
            for part in self._parts[name][1]:
                self._tallies[f"{name}.{part}"].add(pair[0][part], pair[1][part], batch)

    def results(self, noise: Mapping[str, OutputFidelity]) -> dict[str, OutputFidelity]:
        """The figures, each beside its noise floor."""
        return {name: tally.result(noise.get(name)) for name, tally in self._tallies.items()}


def _noise(
    model: Model, plain: Plain, samples: Sequence[Sample], truths: Sequence[Answers], tally: Tallies, seed: int
) -> dict[str, OutputFidelity]:
    """The reference against itself, its input moved; where inputs are ids and no floats, the rows that they pick."""
    rng = np.random.default_rng(seed)
    is_real = any(array.dtype.kind == "f" for array in samples[0].values() if isinstance(array, np.ndarray))
    if not is_real:
        moved = _with_moved_tables(model, rng)
        if moved is None:
            return {}
        plain.close()
        plain = Plain(moved, plain.threads)
    for sample, truth in zip(samples, truths, strict=False):
        shaken = {name: _shaken(array, rng) for name, array in sample.items()}
        tally.add(truth, run(plain.session, shaken), sample)
    return tally.results({})


def _with_moved_tables(model: Model, rng: np.random.Generator) -> Model | None:
    """A copy whose float tables that inputs index are moved by one unit in the last place; None where none is."""
    copy = model.copy()
    tables = {table for _, table, _ in indexed_tables(copy.ir) if table.const_value is not None}
    moved = False
    for table in tables:
        tensor = table.const_value
        if tensor is None or tensor.numpy().dtype.kind != "f":
            continue
        table.const_value = ir.tensor(_shaken(tensor.numpy(), rng), name=table.name)
        moved = True
    return copy if moved else None


def _shaken(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or not array.size:
        return array
    moved = np.array(array)
    flat = moved.reshape(-1)
    for start in range(0, flat.size, _BLOCK):  # a large table is not spelled out several times over
        part = flat[start : start + _BLOCK]
        towards = np.where(rng.random(part.shape) < 0.5, np.inf, -np.inf).astype(array.dtype)
        part[:] = np.where(np.isfinite(part) & (part != 0), np.nextafter(part, towards), part)
    return moved


def _batch(sample: Sample) -> int:
    """How many answers a call holds: the first axis that all inputs share, else 1."""
    sizes = {array.shape[0] for array in sample.values() if getattr(array, "ndim", 0) > 1}
    return int(sizes.pop()) if len(sizes) == 1 else 1
