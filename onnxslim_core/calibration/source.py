"""Samples from files and iterables, brought to the names, types and layouts of a model's inputs.

    x = (from_layout(a) / scale - mean) / std          per channel, in float32

A source is checked against the model when it is opened: a missing array, a size that does not fit, an empty file are
one line each. Samples used to decide are never those used to judge: `split` cuts a source into two halves that
interleave, so that both see every part of a file that is sorted by class.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np

from onnxslim_core.calibration.spec import DataInput, DataSpec
from onnxslim_core.errors import DataError
from onnxslim_core.measure.inputs import InputSpec, input_specs
from onnxslim_core.rewrite import Sample

if TYPE_CHECKING:
    from onnxslim_core.model import Model

__all__ = ["DEFAULT_SAMPLES", "Data", "Source", "call_source", "load_function", "open_source"]

DEFAULT_SAMPLES = 512
"""At most so many samples are read where nobody says how many."""

Data: TypeAlias = "str | Path | Source | Mapping[str, np.ndarray] | Iterable[Sample]"
"""What is taken as data: a .npz file, arrays with a leading sample axis by name, or samples one by one."""


_Array: TypeAlias = "np.ndarray | list[np.ndarray]"


@dataclass(frozen=True, slots=True)
class Source(Sequence[Sample]):
    """Samples that fit a model: a sequence of feeds, cut lazily from the arrays.

    Attributes:
        name: Of the file, or "given in memory".
        columns: Per input: a function of the sample's number, as arrays and how to cut them.
        indices: Which samples of the arrays this source gives, in order.
        all_labels: An array of labels, for every sample that the arrays hold, or None.
        digest: sha256 over names, types, shapes and bytes of the arrays, and how they are prepared.
    """

    name: str
    columns: Mapping[str, _Column]
    indices: tuple[int, ...]
    all_labels: np.ndarray | None = None
    digest: str = ""

    def __len__(self) -> int:
        """How many samples."""
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> Source: ...

    def __getitem__(self, index: int | slice) -> Sample | Source:
        """A sample, or a source of some of them."""
        if isinstance(index, slice):
            return replace(self, indices=self.indices[index])
        number = self.indices[index]
        return {name: column.take(number) for name, column in self.columns.items()}

    def __iter__(self) -> Iterator[Sample]:
        """The samples in order."""
        return (self[i] for i in range(len(self)))

    @property
    def labels(self) -> list[np.ndarray] | None:
        """The labels of the samples of this source, an array of as many as a sample has rows."""
        if self.all_labels is None:
            return None
        per = max(1, len(self.all_labels) // self.total)
        return [self.all_labels[i * per : (i + 1) * per] for i in self.indices]

    @property
    def total(self) -> int:
        """How many samples the arrays hold."""
        return max((column.count for column in self.columns.values()), default=1)

    def split(self) -> tuple[Source, Source]:
        """Two halves without a common sample: to decide with, to judge with. The second is the larger one."""
        return replace(self, indices=self.indices[1::2]), replace(self, indices=self.indices[::2])

    def first(self, count: int) -> Source:
        """At most so many samples, evenly spread over the source."""
        if count >= len(self):
            return self
        places = np.linspace(0, len(self) - 1, max(count, 1)).round().astype(int)
        return replace(self, indices=tuple(self.indices[i] for i in dict.fromkeys(places.tolist())))


@dataclass(frozen=True, slots=True)
class _Column:
    """One input's array and how a sample is cut from it.

    Attributes:
        array: [samples * batch, ...], or [samples, ...] of whole inputs, or a list of inputs that differ in size.
        batch: Rows that make one sample; 0: the leading axis counts samples and is dropped.
        dtype: What the model takes.
        spec: Scale, mean, std.
        transpose: Axes for one sample, or None.
        channel: The axis of `mean` and `std` in the model's layout.
    """

    array: np.ndarray | list[np.ndarray]
    batch: int
    dtype: np.dtype[Any]
    spec: DataInput = field(default_factory=DataInput)
    transpose: tuple[int, ...] | None = None
    channel: int = 1

    @property
    def count(self) -> int:
        """Samples in the array."""
        return len(self.array) // max(self.batch, 1)

    def take(self, number: int) -> np.ndarray:
        """The input of one sample; an array that holds one input serves all samples."""
        number = 0 if self.count == 1 else number
        if isinstance(self.array, list) or self.batch == 0:
            part = np.asarray(self.array[number])
        else:
            part = self.array[number * self.batch : (number + 1) * self.batch]
        if self.transpose is not None:
            part = part.transpose(self.transpose)
        part = self._prepare(part)
        if self.dtype.kind in "iu" and part.dtype.kind in "iu" and part.size:
            limits = np.iinfo(self.dtype)
            if part.min() < limits.min or part.max() > limits.max:
                raise DataError(f"sample {number} has {part.min()} to {part.max()}, which {self.dtype} does not hold")
        return np.array(part, dtype=self.dtype, order="C")

    def _prepare(self, part: np.ndarray) -> np.ndarray:
        spec = self.spec
        if spec.scale is None and not spec.mean and not spec.std:
            return part
        # float32 like every preprocessing that made such models, not float64: the model sees the same bits
        values = part.astype(np.float32)
        if spec.scale is not None:
            values /= np.float32(spec.scale)
        for numbers, operate in ((spec.mean, np.subtract), (spec.std, np.divide)):
            if numbers:
                sizes = [1] * values.ndim
                if len(numbers) > 1:
                    sizes[self.channel] = len(numbers)
                operate(values, np.asarray(numbers, np.float32).reshape(sizes), out=values)
        return values


def open_source(
    data: Data, model: Model | Sequence[InputSpec], spec: DataSpec | None = None, *, limit: int | None = None
) -> Source:
    """Open data for a model.

    Args:
        data: See `Data`. An iterable is read at once, up to the limit.
        model: The model, or what it takes.
        spec: The recipe's `[data]`: names, layout, scaling, number of samples.
        limit: At most so many samples where the spec does not say; `DEFAULT_SAMPLES` by default.

    Returns:
        The samples, evenly spread over the data where there are more than asked for.

    Raises:
        DataError: if the data is missing, broken, empty or does not fit.
    """
    if isinstance(data, Source):
        return data
    inputs = model if isinstance(model, Sequence) else input_specs(model)
    spec = spec or DataSpec()
    count = spec.samples or limit or DEFAULT_SAMPLES
    if isinstance(data, str | Path):
        name, arrays = Path(data).name, _read_npz(Path(data))
    elif isinstance(data, Mapping):
        name, arrays = "given in memory", {key: np.asarray(value) for key, value in data.items()}
    else:
        name, arrays = "given in memory", _stack(data, count)
        return _build(name, arrays, inputs, spec, count, whole=True)
    return _build(name, arrays, inputs, spec, count, whole=False)


def _read_npz(path: Path) -> dict[str, _Array]:
    if path.suffix.lower() != ".npz":
        kind = "a folder" if path.is_dir() else f"'{path.suffix}'" if path.suffix else "a file without an ending"
        raise DataError(f"data '{path}' is {kind}, only .npz files are read", "save arrays by input name: numpy.savez")
    if path.is_file() and not zipfile.is_zipfile(path):
        raise DataError(f"cannot read data '{path}': broken, or no .npz file", "save arrays by input name: numpy.savez")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError as err:
        raise DataError(f"no such data file: '{path}'") from err
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, MemoryError, AttributeError) as err:
        raise DataError(f"cannot read data '{path}': {err}") from err


def _stack(samples: Iterable[Sample], count: int) -> dict[str, _Array]:
    """Arrays [samples, ...] of whole inputs, lists where the sizes differ."""
    rows: list[Sample] = []
    for number, sample in enumerate(islice(iter(samples), count)):
        if not isinstance(sample, Mapping):
            raise DataError(f"sample {number} is a {type(sample).__name__}, not a dict of arrays by input name")
        if rows and set(sample) != set(rows[0]):
            raise DataError(f"sample {number} has {sorted(sample)}, the first has {sorted(rows[0])}")
        rows.append(sample)
    if not rows:
        raise DataError("the data gives no sample")
    arrays: dict[str, _Array] = {}
    for name in rows[0]:
        values = [np.asarray(row[name]) for row in rows]
        if len({value.dtype for value in values}) > 1:
            raise DataError(f"array '{name}' is of one type in some samples and of another in others")
        arrays[name] = np.stack(values) if len({value.shape for value in values}) == 1 else values
    return arrays


def _build(
    name: str, arrays: Mapping[str, _Array], inputs: Sequence[InputSpec], spec: DataSpec, count: int, *, whole: bool
) -> Source:
    for wanted in spec.inputs:
        if wanted not in [entry.name for entry in inputs]:
            raise DataError(f"[data.inputs.{wanted}]: the model has no such input{_close(wanted, inputs)}")
    columns = {
        entry.name: _column(_pick(entry, arrays, spec, name), entry, spec.inputs.get(entry.name, DataInput()), whole)
        for entry in inputs
        if entry.kind != "optional" or entry.name in arrays or entry.name in spec.inputs
    }
    counts = {key: column.count for key, column in columns.items() if column.count != 1}
    if len(set(counts.values())) > 1:
        raise DataError(f"{name}: inputs differ in their number of samples: {counts}")
    total = next(iter(counts.values()), 1)
    if total == 0:
        raise DataError(f"{name}: empty, there is no sample in it")
    labels = _labels(arrays, spec, name, total)
    source = Source(name, columns, tuple(range(total)), labels, _digest(columns))
    return source.first(count)


def _pick(entry: InputSpec, arrays: Mapping[str, _Array], spec: DataSpec, name: str) -> _Array:
    wanted = spec.inputs[entry.name].array if entry.name in spec.inputs else None
    wanted = wanted or entry.name
    if wanted in arrays:
        return arrays[wanted]
    close = difflib.get_close_matches(wanted, list(arrays), 1, 0.6)
    hint = f'say which array it is: [data.inputs.{entry.name}] from = "{close[0] if close else "ARRAY"}"'
    raise DataError(f"{name}: no array '{wanted}' for the model's input, it has {', '.join(arrays) or 'none'}", hint)


def _close(name: str, inputs: Sequence[InputSpec]) -> str:
    close = difflib.get_close_matches(name, [entry.name for entry in inputs], 1, 0.6)
    return f"; did you mean '{close[0]}'?" if close else f"; it has {', '.join(entry.name for entry in inputs)}"


def _column(array: _Array, entry: InputSpec, spec: DataInput, whole: bool) -> _Column:
    """How samples of one input are cut from its array."""
    dtype = _dtype(array[0].dtype if isinstance(array, list) else array.dtype, entry, spec)
    if entry.shape is None:
        return _Column(array, 0 if whole else 1, dtype, spec)
    declared = [size if isinstance(size, int) else None for size in entry.shape]
    if isinstance(array, list):
        for value in array:
            _check_sizes(value.shape, declared, entry.name)
        if spec.layout is not None or max(len(spec.mean), len(spec.std)) > 1:
            raise DataError(f"input '{entry.name}': samples of different sizes cannot be given a layout or channels")
        return _Column(array, 0, dtype, spec)
    rank = len(declared)
    if array.ndim == rank + 1:
        return _with_layout(_Column(array, 0, dtype, spec), declared, entry.name)
    if whole or array.ndim != rank:
        raise _misfit(entry.name, array.shape[1:] if whole else array.shape, declared)
    if rank == 0:
        return _Column(array[np.newaxis], 0, dtype, spec)
    batch = declared[0] or 1
    if len(array) % batch:
        text = f"input '{entry.name}' takes {batch} rows at a time, the array has {len(array)}"
        raise DataError(text, "leave rows out so that the batches are full")
    return _with_layout(_Column(array, batch, dtype, spec), declared, entry.name)


def _with_layout(column: _Column, declared: list[int | None], name: str) -> _Column:
    """Add the transposition into the model's layout, and the channel axis; check the sizes."""
    shape = np.shape(column.array)
    sizes = list(shape[1:] if column.batch == 0 else (column.batch, *shape[1:]))
    layout = column.spec.layout
    if layout is None:
        _check_sizes(sizes, declared, name)
        channel = _channel(column.spec, sizes, name)
        return replace(column, channel=channel)
    if len(sizes) != 4:
        raise DataError(f"input '{name}': layout '{layout}' is for 4 axes, the model takes {len(sizes)}")
    choices = {layout: (0, 1, 2, 3), _other(layout): (0, 3, 1, 2) if layout == "NHWC" else (0, 2, 3, 1)}
    fitting = [key for key, axes in choices.items() if _fits([sizes[a] for a in axes], declared)]
    if not fitting:
        raise _misfit(name, sizes, declared)
    # both fit where all sizes are symbolic: then the channels first, which is how ONNX images are
    target = fitting[0] if len(fitting) == 1 else _agreeing(fitting, sizes, layout, declared)
    transpose = None if target == layout else choices[target]
    channel = target.index("C")
    _check_numbers(column.spec, sizes[layout.index("C")], name)
    return replace(column, transpose=transpose, channel=channel)


def _agreeing(fitting: list[str], sizes: list[int], layout: str, declared: list[int | None]) -> str:
    channels = sizes[layout.index("C")]
    sure = [key for key in fitting if declared[key.index("C")] == channels]
    return sure[0] if len(sure) == 1 else "NCHW"


def _other(layout: str) -> str:
    return "NCHW" if layout == "NHWC" else "NHWC"


def _channel(spec: DataInput, sizes: list[int], name: str) -> int:
    """The axis that `mean` and `std` run along where no layout is given."""
    length = max(len(spec.mean), len(spec.std))
    if length <= 1:
        return 0
    axes = [axis for axis in (1, len(sizes) - 1) if 0 < axis < len(sizes) and sizes[axis] == length]
    if len(set(axes)) != 1:
        raise DataError(f"input '{name}': which axis has the {length} channels of 'mean' and 'std'?", "give 'layout'")
    return axes[0]


def _check_numbers(spec: DataInput, channels: int, name: str) -> None:
    for key, numbers in (("mean", spec.mean), ("std", spec.std)):
        if len(numbers) > 1 and len(numbers) != channels:
            raise DataError(f"input '{name}': '{key}' has {len(numbers)} numbers for {channels} channels")


def _fits(sizes: Sequence[int], declared: Sequence[int | None]) -> bool:
    return len(sizes) == len(declared) and all(want in (None, have) for have, want in zip(sizes, declared, strict=True))


def _check_sizes(sizes: Sequence[int], declared: Sequence[int | None], name: str) -> None:
    if not _fits(sizes, declared):
        raise _misfit(name, sizes, declared)


def _misfit(name: str, sizes: Sequence[int], declared: Sequence[int | None]) -> DataError:
    want = "x".join("?" if size is None else str(size) for size in declared) or "a scalar"
    have = "x".join(map(str, sizes)) or "a scalar"
    return DataError(f"input '{name}' is {want}, a sample of the data is {have}", "'layout' in [data.inputs] may help")


def _dtype(have: np.dtype[Any], entry: InputSpec, spec: DataInput) -> np.dtype[Any]:
    """The model's type, where the array's values can be given in it without loss of kind."""
    if entry.kind == "string":
        if have.kind not in "USO":
            raise DataError(f"input '{entry.name}' takes text, the data has {have}")
        return np.dtype(object)
    if entry.dtype is None:
        raise DataError(f"input '{entry.name}' is a {entry.kind}; such inputs take no data")
    if spec.scale is not None or spec.mean or spec.std:
        have = np.dtype(np.float32) if have.kind in "fiub" else have
    kinds = {"f": "fiub", "i": "iub", "u": "iub", "b": "b", "V": "fiubV", "c": "cfiub"}
    if have.kind not in kinds.get(entry.dtype.kind, ""):
        raise DataError(f"input '{entry.name}' takes {entry.dtype}, the data has {have}")
    return entry.dtype


def _labels(arrays: Mapping[str, _Array], spec: DataSpec, name: str, total: int) -> np.ndarray | None:
    if spec.labels is None:
        return None
    if spec.labels not in arrays:
        raise DataError(f"{name}: no array '{spec.labels}' of labels, it has {', '.join(arrays)}")
    labels = np.asarray(arrays[spec.labels])
    if labels.ndim == 0 or len(labels) % total:
        raise DataError(f"{name}: {labels.shape} labels for {total} samples")
    return labels


def _digest(columns: Mapping[str, _Column]) -> str:
    state = hashlib.sha256()
    for name, column in sorted(columns.items()):
        state.update(repr((name, column.batch, column.spec, column.transpose, str(column.dtype))).encode())
        for part in column.array if isinstance(column.array, list) else [column.array]:
            state.update(repr((part.dtype.str, part.shape)).encode())
            state.update(repr(part.tolist()).encode() if part.dtype == object else np.ascontiguousarray(part).data)
    return state.hexdigest()


def call_source(named: str, folder: Path) -> Data:
    """What the function of `file.py:function` returns, called without an argument; see `load_function`."""
    found: Data = load_function(named, folder)()
    return found


def load_function(named: str, folder: Path) -> Callable[..., Any]:
    """The function of `file.py:function`. The file is run: the caller has made sure that it may.

    Args:
        named: The file, relative to the folder, and the function in it.
        folder: Where relative paths start.

    Raises:
        DataError: if there is no such file or function.
    """
    file, _, function = named.rpartition(":")
    path = folder / file
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise DataError(f"no such Python file: '{path}'")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = getattr(module, function, None)
    if not callable(found):
        raise DataError(f"'{path.name}' has no function '{function}'")
    checked: Callable[..., Any] = found
    return checked
