"""What a model can be fed: its inputs, and seeded random samples that run.

Where a size is symbolic, the first rung of a short ladder that runs in onnxruntime is taken: a batch of 1, images of
224, 320, 64 ..., sequences of 16, 128 ..., the same size wherever the same symbol stands. Guesses are made from what
the graph says (ids stay below the rows of the table they index) and from names (`mask`, `length`, `sr`), and every
guess is proven by a run. Where nothing runs, the error names the input and says how to set it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from onnxslim_core.errors import MeasureError, RecipeError
from onnxslim_core.graph import is_op
from onnxslim_core.measure.session import open_session, run

if TYPE_CHECKING:
    import onnxruntime as ort

    from onnxslim_core.model import Model

__all__ = [
    "InputSpec",
    "indexed_tables",
    "input_specs",
    "likely_sample",
    "parse_shape",
    "parse_value",
    "random_samples",
]

_MAX_ELEMENTS = 2**27
_SECONDS = 20.0
_HINT = "set it by --shape NAME=1x3x320x320 or --value NAME=16000"

_LADDERS: dict[str, tuple[int, ...]] = {
    "batch": (1,),
    "height": (224, 320, 64, 48, 48, 32, 256, 128, 512, 640, 16, 1),
    "width": (224, 320, 64, 320, 192, 32, 256, 128, 512, 640, 16, 1),
    "sequence": (16, 128, 64, 32, 256, 100, 512, 384, 8, 4, 2, 1),
    "signal": (16000, 512, 576, 1024, 4096, 17280, 32000, 48000, 160, 64, 16, 1),
    "size": (1, 16, 64, 128, 224, 32, 256, 320, 512, 8, 4, 2),
}
"""Sizes that are tried for each kind of symbolic axis, in step: the n-th of each kind together."""

_SCALARS = {"sr": 16000, "sample_rate": 16000, "sampling_rate": 16000, "samplerate": 16000, "fs": 16000}


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input that must be fed.

    Attributes:
        name: As in the graph.
        dtype: The numpy type; None for strings and for what is not a tensor.
        kind: "tensor", "string", "sequence", "optional" or "other".
        shape: A size, a symbol or None (unknown) per axis; the whole is None where not even the rank is known.
    """

    name: str
    dtype: np.dtype[Any] | None
    kind: str
    shape: tuple[int | str | None, ...] | None

    @property
    def is_static(self) -> bool:
        """True where every size is known."""
        return self.shape is not None and all(isinstance(size, int) for size in self.shape)


def input_specs(model: Model) -> list[InputSpec]:
    """The inputs that have no default, in order. A size below zero (some exporters' -1) counts as unknown."""
    return [_spec(v) for v in model.ir.graph.inputs if v.name not in model.ir.graph.initializers]


def _spec(value: ir.Value) -> InputSpec:
    kinds = {ir.SequenceType: "sequence", ir.OptionalType: "optional", ir.TensorType: "tensor"}
    kind = kinds.get(type(value.type), "other") if value.type is not None else "tensor"
    dtype: np.dtype[Any] | None = None
    if kind == "tensor" and value.dtype == ir.DataType.STRING:
        kind = "string"
    elif kind == "tensor":
        dtype = np.dtype((value.dtype or ir.DataType.FLOAT).numpy())
    shape = None if value.shape is None else tuple(_size(dim) for dim in value.shape)
    return InputSpec(str(value.name), dtype, kind, shape)


def _size(dim: int | ir.SymbolicDim) -> int | str | None:
    if isinstance(dim, int):
        return dim if dim >= 0 else None
    return dim.value if dim.value not in ("", "?") else None


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Read `image=1x3x320x320`; `NAME=scalar` is the shape of a single number.

    Raises:
        RecipeError: if it is not a name and sizes.
    """
    name, equals, sizes = text.rpartition("=")
    problem = RecipeError(f"shape '{text}' is not of the form NAME=1x3x320x320")
    if not equals or not name.strip():
        raise problem
    if sizes.strip() in ("scalar", "()"):
        return name.strip(), ()
    parts = sizes.strip().replace(",", "x").split("x")
    if not all(part.strip().isascii() and part.strip().isdigit() for part in parts):
        raise problem
    shape = tuple(int(part) for part in parts)
    if math.prod(shape) > _MAX_ELEMENTS:
        raise RecipeError(f"shape '{text}' has more than {_MAX_ELEMENTS} elements")
    return name.strip(), shape


def parse_value(text: str) -> tuple[str, object]:
    """Read `sr=16000`: a number, true, false, a quoted text, or a list of these.

    Raises:
        RecipeError: if it is not a name and such a value.
    """
    name, equals, raw = text.partition("=")
    problem = RecipeError(f"value '{text}' is not of the form NAME=16000", 'a text is quoted: NAME="some words"')
    if not equals or not name.strip():
        raise problem
    try:
        value = json.loads(raw)
        array = np.asarray(value)
    except ValueError as err:
        raise problem from err
    if array.dtype.kind not in "biufU" or (array.dtype.kind == "f" and not np.isfinite(array).all()):
        raise problem
    return name.strip(), value


def random_samples(
    model: Model,
    *,
    count: int = 1,
    seed: int = 0,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    values: Mapping[str, object] | None = None,
    session: ort.InferenceSession | None = None,
) -> list[dict[str, np.ndarray]]:
    """Seeded random inputs at sizes that run; every sample has been run.

    Args:
        model: Its inputs are asked for.
        count: How many samples; fewer come where most contents do not run (a divisor of 0, a k that is too large).
        seed: The same seed gives the same samples.
        shapes: Sizes for inputs, by name.
        values: A number to fill an input with, or its whole content.
        session: Of the model, where one is open.

    Raises:
        RecipeError: if a shape or value names no input or does not fit it.
        MeasureError: if nothing of what is tried runs, or an input is not a tensor.
    """
    shapes, values = dict(shapes or {}), dict(values or {})
    specs = input_specs(model)
    _check(specs, shapes, values)
    rows = _rows_of_tables(model.ir)
    session = session or open_session(model, optimize=False)
    fallback: list[dict[str, np.ndarray]] | None = None
    error: MeasureError | None = None
    give_up = time.monotonic() + _SECONDS
    for sizes, style in itertools.product(_rungs(specs, shapes, values), ("random", "ones")):
        draw = _Draw(np.random.default_rng(seed), rows, sizes, values, style)
        sample = draw.sample(specs)
        try:
            outputs = run(session, sample)
        except MeasureError as err:
            error = error or err
        else:
            has_content = all(not isinstance(v, np.ndarray) or v.size for v in outputs.values())
            if has_content or fallback is None:
                samples = [sample, *_more(session, draw, specs, count - 1)]
                if has_content:
                    return samples
                fallback = samples
        if time.monotonic() > give_up:
            break
    if fallback is not None:
        return fallback
    open_names = [s.name for s in specs if not s.is_static and s.name not in shapes]
    blamed = ", ".join(f"'{n}'" for n in (open_names or [s.name for s in specs]))
    raise MeasureError(f"no random input runs, tried sizes for {blamed}: {error}", _HINT) from error


def likely_sample(
    model: Model,
    *,
    seed: int = 0,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    values: Mapping[str, object] | None = None,
) -> dict[str, np.ndarray]:
    """What `random_samples` tries first, without a run: the same sample where that runs.

    Args:
        model: Its inputs are asked for.
        seed: As in `random_samples`.
        shapes: As in `random_samples`.
        values: As in `random_samples`.

    Raises:
        RecipeError: if a shape or value names no input or does not fit it.
        MeasureError: if an input is not a tensor.
    """
    shapes, values = dict(shapes or {}), dict(values or {})
    specs = input_specs(model)
    _check(specs, shapes, values)
    sizes = next(_rungs(specs, shapes, values))
    return _Draw(np.random.default_rng(seed), _rows_of_tables(model.ir), sizes, values, "random").sample(specs)


def _more(
    session: ort.InferenceSession, draw: _Draw, specs: Sequence[InputSpec], count: int
) -> list[dict[str, np.ndarray]]:
    """More samples that run; up to four draws for each."""
    found: list[dict[str, np.ndarray]] = []
    for _ in range(4 * count):
        if len(found) == count:
            break
        sample = draw.sample(specs)
        with contextlib.suppress(MeasureError):
            run(session, sample)
            found.append(sample)
    return found


def _check(specs: Sequence[InputSpec], shapes: Mapping[str, tuple[int, ...]], values: Mapping[str, object]) -> None:
    known = {s.name: s for s in specs}
    for name in (*shapes, *values):
        if name not in known:
            raise RecipeError(f"no input is called '{name}'", f"inputs: {', '.join(known) or 'none'}")
    whole = {name: _shape(name, value) for name, value in values.items()}
    for name, shape in {**{name: shape for name, shape in whole.items() if shape}, **shapes}.items():
        declared = known[name].shape
        if declared is None:
            continue
        if len(declared) != len(shape):
            raise RecipeError(f"input '{name}' has {len(declared)} axes, the shape given has {len(shape)}")
        if any(isinstance(d, int) and d != s for d, s in zip(declared, shape, strict=True)):
            raise RecipeError(f"input '{name}' is declared {_text(declared)}, the shape given is {_text(shape)}")
    for spec in specs:
        if spec.kind not in ("tensor", "string", "optional"):
            raise MeasureError(f"input '{spec.name}' is a {spec.kind}, random data is drawn for tensors only")


def _shape(name: str, value: object) -> tuple[int, ...]:
    """Of a value as an array."""
    try:
        return np.shape(np.asarray(value))
    except ValueError as err:
        raise RecipeError(f"value of input '{name}' is no array: its rows differ in length") from err


def _text(shape: Iterable[int | str | None]) -> str:
    return "x".join("?" if size is None else str(size) for size in shape) or "scalar"


# --- sizes


def _rungs(
    specs: Sequence[InputSpec], shapes: Mapping[str, tuple[int, ...]], values: Mapping[str, object]
) -> Iterator[dict[str, tuple[int, ...]]]:
    """Concrete shapes of all inputs, likely ones first."""
    arrays = {name: np.asarray(value) for name, value in values.items()}
    fixed = {**{name: array.shape for name, array in arrays.items() if array.ndim}, **shapes}
    symbols = _bound(specs, fixed)
    kinds = {key: kind for spec in specs if spec.name not in fixed for key, kind in _axes(spec) if key not in symbols}
    seen: set[tuple[int, ...]] = set()
    for sizes in _assignments(kinds):
        key = tuple(sizes.values())
        if key in seen:
            continue
        seen.add(key)
        known = {**symbols, **sizes}
        yield {s.name: fixed[s.name] if s.name in fixed else _resolve(s, known) for s in specs}


def _bound(specs: Sequence[InputSpec], fixed: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The sizes of symbols that a given shape settles."""
    found: dict[str, int] = {}
    for spec in specs:
        if spec.name in fixed and spec.shape is not None:
            pairs = zip(spec.shape, fixed[spec.name], strict=False)
            found.update({dim: size for dim, size in pairs if isinstance(dim, str)})
    return found


def _resolve(spec: InputSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    if spec.shape is None:
        return ()
    return tuple(d if isinstance(d, int) else sizes[_key(spec, i)] for i, d in enumerate(spec.shape))


def _key(spec: InputSpec, axis: int) -> str:
    dim = spec.shape[axis] if spec.shape is not None else None
    return dim if isinstance(dim, str) else f"{spec.name}#{axis}"


def _axes(spec: InputSpec) -> list[tuple[str, str]]:
    """(symbol, kind) of every open axis of an input."""
    shape = spec.shape or ()
    return [(_key(spec, i), _kind(spec, shape, i)) for i, d in enumerate(shape) if not isinstance(d, int)]


def _kind(spec: InputSpec, shape: tuple[int | str | None, ...], axis: int) -> str:
    dim, name = shape[axis], spec.name.lower()
    word = dim.lower() if isinstance(dim, str) else ""
    if word in ("n", "b", "bs") or "batch" in word:
        return "batch"
    for kind, hints in (
        ("height", ("height", "rows")),
        ("width", ("width", "cols")),
        ("signal", ("samples", "audio", "wave")),
        ("sequence", ("seq", "len", "token", "time", "frame", "step")),
    ):
        if any(hint in word for hint in hints):
            return "signal" if kind == "sequence" and _is_signal(spec, name) else kind
    if axis == 0 or any(hint in name for hint in ("state", "hidden", "cell")) or name in ("h", "c", "h0", "c0"):
        return "batch"
    if len(shape) == 4:
        first = 2 if shape[1] in (1, 3, 4) or shape[3] not in (1, 3, 4) else 1
        return {first: "height", first + 1: "width"}.get(axis, "size")
    if len(shape) == 5:
        return {1: "size", 2: "sequence", 3: "height", 4: "width"}[axis]
    if _is_signal(spec, name):
        return "signal" if axis == len(shape) - 1 else "batch"
    return "sequence" if axis == len(shape) - 1 or len(shape) == 3 else "batch"


def _is_signal(spec: InputSpec, name: str) -> bool:
    words = ("audio", "wav", "signal", "pcm", "speech", "sound", "input")
    is_real = spec.dtype is not None and spec.dtype.kind == "f"
    return is_real and len(spec.shape or ()) == 2 and any(word in name for word in words)


def _assignments(kinds: Mapping[str, str]) -> Iterator[dict[str, int]]:
    """The ladders in step; then with one step between the kinds; then everything at one size."""
    if not kinds:
        yield {}
        return
    depth = max(len(_LADDERS[kind]) for kind in kinds.values())
    for rung in range(depth):
        yield {key: _LADDERS[kind][min(rung, len(_LADDERS[kind]) - 1)] for key, kind in kinds.items()}
    present = sorted(set(kinds.values()) - {"batch"})
    if len(present) > 1:
        for picks in itertools.product(range(4), repeat=len(present)):
            chosen = {kind: _LADDERS[kind][i] for kind, i in zip(present, picks, strict=True)} | {"batch": 1}
            yield {key: chosen[kind] for key, kind in kinds.items()}
    for size in (1, 2, 16):
        yield dict.fromkeys(kinds, size)


# --- contents


def indexed_tables(model: ir.Model) -> Iterator[tuple[ir.Value, ir.Value, int]]:
    """(input, table, axis): the initializers that an input, through casts and reshapes, picks rows of."""
    follow = ("Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Slice", "Expand")
    for start in model.graph.inputs:
        pending, seen = [start], {start}
        while pending:
            value = pending.pop()
            for node, index in value.uses():
                table = node.inputs[0] if node.inputs else None
                if is_op(node, "Gather") and index == 1 and table is not None and table.producer() is None:
                    yield start, table, node.attributes.get_int("axis", 0)
                elif index == 0 and is_op(node, *follow) and node.outputs[0] not in seen:
                    seen.add(node.outputs[0])
                    pending.append(node.outputs[0])


def _rows_of_tables(model: ir.Model) -> dict[str, int]:
    """For each input that indexes tables: the rows of the smallest."""
    rows: dict[str, int] = {}
    for start, table, axis in indexed_tables(model):
        size = table.shape[axis] if table.shape is not None and len(table.shape) else None
        if isinstance(size, int) and size > 0:
            rows[str(start.name)] = min(size, rows.get(str(start.name), size))
    return rows


@dataclass(frozen=True, slots=True)
class _Draw:
    """Draws the contents of inputs at settled sizes."""

    rng: np.random.Generator
    rows: Mapping[str, int]
    sizes: Mapping[str, tuple[int, ...]]
    values: Mapping[str, object]
    style: str

    def sample(self, specs: Sequence[InputSpec]) -> dict[str, np.ndarray]:
        """One sample; optional inputs stay absent."""
        return {s.name: self._array(s) for s in specs if s.kind != "optional" or s.name in self.values}

    def _array(self, spec: InputSpec) -> np.ndarray:
        shape = self.sizes[spec.name]
        if math.prod(shape) > _MAX_ELEMENTS:
            raise MeasureError(f"input '{spec.name}' would have more than {_MAX_ELEMENTS} elements", _HINT)
        dtype = spec.dtype if spec.dtype is not None else np.dtype(object)
        if spec.name in self.values:
            return _filled(spec.name, self.values[spec.name], shape, dtype)
        if spec.kind == "string":
            words = np.array(["a", "one", "some words", "Text 123"], dtype=object)
            return np.asarray(self.rng.choice(words, size=shape), dtype=object)
        if dtype.kind == "b":
            return np.asarray(np.ones(shape) if "mask" in spec.name.lower() else self.rng.random(shape) < 0.5, dtype)
        if dtype.kind in "iu":
            return np.asarray(self._integers(spec, shape, dtype), dtype)
        if "mask" in spec.name.lower():
            return np.ones(shape, dtype)
        if dtype.kind == "c":
            return np.asarray(self.rng.standard_normal(shape) + 1j * self.rng.standard_normal(shape), dtype)
        return np.asarray(self.rng.standard_normal(shape), dtype)

    def _integers(self, spec: InputSpec, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        name = spec.name.lower()
        if spec.name in self.rows:
            high = min(self.rows[spec.name], int(np.iinfo(dtype).max))
            return np.ones(shape) * min(1, high - 1) if self.style == "ones" else self.rng.integers(0, high, shape)
        if name in _SCALARS:
            return np.full(shape, _SCALARS[name])
        if "mask" in name or self.style == "ones":
            return np.ones(shape)
        if "type" in name or "segment" in name:
            return np.zeros(shape)
        if "position" in name and shape:
            return np.broadcast_to(np.arange(shape[-1]), shape)
        if "len" in name and len(shape) <= 1:
            # how much of the other inputs is filled: all of it
            return np.full(
                shape, max((s[1] for n, s in self.sizes.items() if n != spec.name and len(s) > 1), default=1)
            )
        if dtype.itemsize == 1:
            limits = np.iinfo(dtype)
            return self.rng.integers(limits.min, limits.max, shape, endpoint=True)
        return self.rng.integers(0, 10, shape)


def _filled(name: str, value: object, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """A number for all elements, or the whole content."""
    try:
        given = np.asarray(value, dtype=object if dtype.kind == "O" else None)
        if dtype.kind in "iub" and given.dtype.kind == "f" and (given != np.round(given)).any():
            raise RecipeError(f"value of input '{name}' is {value}, its type is {dtype}")
        return np.array(np.broadcast_to(given, shape), dtype=dtype)
    except (ValueError, TypeError, OverflowError) as err:
        raise RecipeError(f"value of input '{name}' does not fit {dtype} of shape {_text(shape)}") from err
