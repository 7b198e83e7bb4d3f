"""One input of the model and what feeds it: how samples are cut from arrays, and how they are prepared.

x = (from_layout(a) / scale - mean) / std          per channel, in float32
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias

import numpy as np

from onnxslim_core.calibration.spec import DataInput, table_of
from onnxslim_core.errors import DataError, told
from onnxslim_core.measure.inputs import InputSpec

__all__ = [
    "Array",
    "ArrayColumn",
    "Chain",
    "Column",
    "Constant",
    "Lazy",
    "array_column",
    "as_array",
    "constant",
    "fits",
    "misfit",
]


class Lazy(Protocol):
    """An array in a file, of which only some rows may be read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Its type."""

    def rows(self, starts: Sequence[int], length: int) -> np.ndarray:
        """Blocks of so many rows from these starts on, one after the other; starts ascend."""

    def whole(self) -> np.ndarray:
        """All of it."""


Array: TypeAlias = "np.ndarray | list[np.ndarray] | Lazy"


class Column(Protocol):
    """Feeds one input."""

    @property
    def count(self) -> int:
        """Samples that there are; 1 where the one serves all."""

    def take(self, number: int) -> np.ndarray:
        """The input of one sample, as the model takes it."""

    def print_of(self, number: int) -> str:
        """Hash of what the sample is made from."""

    def chosen(self, numbers: Sequence[int]) -> Column:
        """The same column once it is settled that no other samples will be asked for."""

    @property
    def preparation(self) -> str:
        """What is done to every sample, as text."""


@dataclass(frozen=True, slots=True)
class ArrayColumn:
    """One input's array and how a sample is cut from it.

    Attributes:
        array: [samples * batch, ...], or [samples, ...] of whole inputs, or a list of inputs that differ in size.
        batch: Rows that make one sample; 0: the leading axis counts samples and is dropped.
        dtype: What the model takes.
        name: Of the input, for messages.
        spec: Scale, mean, std.
        transpose: Axes for one sample, or None.
        channel: The axis of `mean` and `std` in the model's layout.
        places: Where samples lie in the array, of which only these were read; empty: all are there.
    """

    array: Array
    batch: int
    dtype: np.dtype[Any]
    name: str
    spec: DataInput = field(default_factory=DataInput)
    transpose: tuple[int, ...] | None = None
    channel: int = 1
    places: tuple[int, ...] = ()
    total: int = -1

    @property
    def count(self) -> int:
        """Samples in the array."""
        if self.total >= 0:
            return self.total
        length = len(self.array) if isinstance(self.array, list) else self.array.shape[0]
        return length // max(self.batch, 1)

    @property
    def preparation(self) -> str:
        """Batch, layout, scale and the like."""
        return repr((self.batch, self.spec, self.transpose, str(self.dtype)))

    def chosen(self, numbers: Sequence[int]) -> ArrayColumn:
        """The column with only these samples read; one sample that serves all is read whole."""
        if isinstance(self.array, list | np.ndarray):
            return self
        if self.count == 1:
            return replace(self, array=self.array.whole())
        step, places = max(self.batch, 1), tuple(sorted(set(numbers)))
        part = self.array.rows([place * step for place in places], step)
        return replace(self, array=part, places=places, total=self.count)

    def print_of(self, number: int) -> str:
        """Hash of type, shape and bytes of the sample as it is in the array.

        Raises:
            DataError: if it holds a NaN.
        """
        part = self._part(number)
        state = hashlib.sha256(repr((part.dtype.str, part.shape)).encode())
        if part.dtype == object:
            state.update(repr(part.tolist()).encode())
            return state.hexdigest()
        if part.dtype.kind in "fcV" and np.isnan(part.astype(np.float32) if part.dtype.kind == "V" else part).any():
            hint = "leave the sample out, or mend what made it"
            raise DataError(f"input '{self.name}': sample {number} of the data holds NaN", hint)
        state.update(np.ascontiguousarray(part).tobytes())
        return state.hexdigest()

    def take(self, number: int) -> np.ndarray:
        """The input of one sample; an array that holds one input serves all samples."""
        part = self._part(number)
        if self.transpose is not None:
            part = part.transpose(self.transpose)
        return as_type(normalised(part, self.spec, self.channel), self.dtype, self.name, number, self.spec)

    def _part(self, number: int) -> np.ndarray:
        number = 0 if self.count == 1 else number
        if self.places:
            number = bisect.bisect_left(self.places, number)
        array = self.array
        assert isinstance(array, list | np.ndarray)
        if isinstance(array, list) or self.batch == 0:
            return np.asarray(array[number])
        return np.asarray(array[number * self.batch : (number + 1) * self.batch])


@dataclass(frozen=True, slots=True)
class Chain:
    """Columns of several files, one after the other."""

    parts: tuple[Column, ...]
    counts: tuple[int, ...]
    """Samples of each file, which is more than its column has where one array serves all samples of the file."""

    @property
    def count(self) -> int:
        """Samples in all."""
        return sum(self.counts)

    @property
    def preparation(self) -> str:
        """That of the files; they may differ in it."""
        return repr(sorted({part.preparation for part in self.parts}))

    def chosen(self, numbers: Sequence[int]) -> Chain:
        """Each file's column with what is asked for of it."""
        wanted: list[list[int]] = [[] for _ in self.parts]
        for number in numbers:
            file, place = self._find(number)
            wanted[file].append(place)
        parts = [part.chosen(few) if few else part for part, few in zip(self.parts, wanted, strict=True)]
        return Chain(tuple(parts), self.counts)

    def print_of(self, number: int) -> str:
        """Hash of the sample in its file."""
        file, place = self._find(number)
        return self.parts[file].print_of(place)

    def take(self, number: int) -> np.ndarray:
        """The input of one sample."""
        file, place = self._find(number)
        return self.parts[file].take(place)

    def _find(self, number: int) -> tuple[int, int]:
        for file, count in enumerate(self.counts):
            if number < count:
                return file, number
            number -= count
        raise IndexError(number)


@dataclass(frozen=True, slots=True)
class Constant:
    """The same for every sample."""

    array: np.ndarray

    @property
    def count(self) -> int:
        """One, which serves all."""
        return 1

    @property
    def preparation(self) -> str:
        """What it is."""
        return repr((self.array.dtype.str, self.array.tolist()))

    def chosen(self, numbers: Sequence[int]) -> Constant:
        """Itself."""
        return self

    def print_of(self, number: int) -> str:
        """Nothing that tells samples apart."""
        return ""

    def take(self, number: int) -> np.ndarray:
        """The value."""
        return self.array


def as_array(value: Any, what: str) -> np.ndarray:
    """Whatever a user gives as an array: lists, and tensors of PyTorch that are trained or of a type numpy lacks.

    Args:
        value: What is given.
        what: What messages call it.

    Raises:
        DataError: if it is none.
    """
    try:
        if isinstance(value, list | tuple) and any(hasattr(each, "detach") for each in value):
            return np.stack([as_array(each, what) for each in value])
        if hasattr(value, "detach"):
            value = value.detach().cpu()
            value = value.float() if str(value.dtype) == "torch.bfloat16" else value
        found = np.asarray(value)
        # float32 holds every bfloat16, and is brought to what the model takes like any other
        return found.astype(np.float32) if found.dtype.name == "bfloat16" else found
    except DataError:
        raise
    except Exception as err:  # lists of different lengths, and whatever a class of somebody else's does
        hint = "the rows of an array are of one size; samples of different sizes are given one by one, as dicts"
        raise DataError(f"{what} is no array: {told(err)}", hint) from err


def constant(entry: InputSpec, value: object) -> Constant:
    """What an input is fed for every sample.

    Raises:
        DataError: if the value does not fit the input.
    """
    given = as_array(value, f"the value of input '{entry.name}'")
    declared = [size if isinstance(size, int) else None for size in entry.shape or ()]
    if given.ndim == 0 and declared:
        given = np.full([1 if size is None else size for size in declared], given)
    if entry.shape is not None and not fits(given.shape, declared):
        raise misfit(entry.name, given.shape, declared)
    dtype = entry.dtype if entry.dtype is not None else np.dtype(object)
    try:
        found = np.asarray(given, dtype)
        suits = dtype.kind not in "iub" or given.dtype.kind in "iub" or bool((found == given).all())
    except (ValueError, TypeError, OverflowError):
        suits = False
    if not suits:
        raise DataError(f"input '{entry.name}' takes {dtype}, its value is {value!r}")
    return Constant(found)


def normalised(part: np.ndarray, spec: DataInput, channel: int) -> np.ndarray:
    """Scale, mean and std in float32; the part itself where none is asked for."""
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
                sizes[channel] = len(numbers)
            operate(values, np.asarray(numbers, np.float32).reshape(sizes), out=values)
    return values


def as_type(part: np.ndarray, dtype: np.dtype[Any], name: str, number: int, spec: DataInput) -> np.ndarray:
    """The values in the model's type, C-contiguous.

    Raises:
        DataError: if a whole number does not fit it.
    """
    if dtype.kind in "iu" and part.dtype.kind == "f" and spec.dtype is not None:
        part = np.rint(part)
    if dtype.kind in "iu" and part.dtype.kind in "iuf" and part.size:
        limits = np.iinfo(dtype)
        if part.min() < limits.min or part.max() > limits.max:
            text = f"input '{name}': sample {number} has {part.min()} to {part.max()}, which {dtype} does not hold"
            raise DataError(text, "see 'scale', 'mean' and 'std' in [data.inputs]")
    return np.array(part, dtype=dtype, order="C")


def array_column(array: Array, entry: InputSpec, spec: DataInput, *, whole: bool) -> ArrayColumn:
    """How samples of one input are cut from its array.

    Args:
        array: Of samples, or of rows.
        entry: The model's input.
        spec: Layout and scaling.
        whole: Every element of the array is a whole input, the batch axis included.

    Raises:
        DataError: if type, axes or sizes do not fit the input.
    """
    if spec.is_for_images:
        raise DataError(
            f"input '{entry.name}': the data holds arrays, 'size', 'resize', 'crop' ... are for image files"
        )
    dtype = _dtype(array[0].dtype if isinstance(array, list) else array.dtype, entry, spec)
    if entry.shape is None:
        return ArrayColumn(array, 0 if whole else 1, dtype, entry.name, spec)
    declared = [size if isinstance(size, int) else None for size in entry.shape]
    if isinstance(array, list):
        for value in array:
            _check_sizes(value.shape, declared, entry.name)
        if spec.layout is not None or max(len(spec.mean), len(spec.std)) > 1:
            raise DataError(f"input '{entry.name}': samples of different sizes cannot be given a layout or channels")
        return ArrayColumn(array, 0, dtype, entry.name, spec)
    rank, have = len(declared), len(array.shape)
    if have == rank + 1:
        return _with_layout(ArrayColumn(array, 0, dtype, entry.name, spec), declared)
    if have == rank - 1 and not whole and declared[0] in (None, 1):
        one = array if isinstance(array, np.ndarray) else array.whole()
        return _with_layout(ArrayColumn(one[np.newaxis], 1, dtype, entry.name, spec), declared)
    if whole or have != rank:
        raise misfit(entry.name, array.shape[1:] if whole else array.shape, declared)
    if rank == 0:
        one = array if isinstance(array, np.ndarray) else array.whole()
        return ArrayColumn(one[np.newaxis], 0, dtype, entry.name, spec)
    batch = declared[0] or 1
    if array.shape[0] % batch:
        text = f"input '{entry.name}' takes {batch} rows at a time, the array has {array.shape[0]}"
        raise DataError(text, "leave rows out so that the batches are full")
    return _with_layout(ArrayColumn(array, batch, dtype, entry.name, spec), declared)


def _with_layout(column: ArrayColumn, declared: list[int | None]) -> ArrayColumn:
    """Add the transposition into the model's layout, and the channel axis; check the sizes."""
    assert not isinstance(column.array, list)
    shape, name = column.array.shape, column.name
    sizes = list(shape[1:] if column.batch == 0 else (column.batch, *shape[1:]))
    layout = column.spec.layout
    if layout is None:
        _check_sizes(sizes, declared, name)
        return replace(column, channel=_channel(column.spec, sizes, name))
    if len(sizes) != 4:
        raise DataError(f"input '{name}': layout '{layout}' is for 4 axes, the model takes {len(sizes)}")
    choices = {layout: (0, 1, 2, 3), _other(layout): (0, 3, 1, 2) if layout == "NHWC" else (0, 2, 3, 1)}
    fitting = [key for key, axes in choices.items() if fits([sizes[a] for a in axes], declared)]
    if not fitting:
        raise misfit(name, sizes, declared)
    # both fit where all sizes are symbolic: then the channels first, which is how ONNX images are
    target = fitting[0] if len(fitting) == 1 else _agreeing(fitting, sizes, layout, declared)
    transpose = None if target == layout else choices[target]
    _check_numbers(column.spec, sizes[layout.index("C")], name)
    return replace(column, transpose=transpose, channel=target.index("C"))


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


def fits(sizes: Sequence[int], declared: Sequence[int | None]) -> bool:
    """True where every size is the declared one, or none is declared."""
    return len(sizes) == len(declared) and all(want in (None, have) for have, want in zip(sizes, declared, strict=True))


def _check_sizes(sizes: Sequence[int], declared: Sequence[int | None], name: str) -> None:
    if not fits(sizes, declared):
        raise misfit(name, sizes, declared)


def misfit(name: str, sizes: Sequence[int], declared: Sequence[int | None]) -> DataError:
    """The error for a sample of other sizes than the input's."""
    want = "x".join("?" if size is None else str(size) for size in declared) or "a scalar"
    have = "x".join(map(str, sizes)) or "a scalar"
    hint = (
        "'layout' in [data.inputs] may help" if len(sizes) == len(declared) == 4 else "bring the arrays to that shape"
    )
    return DataError(f"input '{name}' is {want}, a sample of the data is {have}", hint)


def _dtype(have: np.dtype[Any], entry: InputSpec, spec: DataInput) -> np.dtype[Any]:
    """The model's type, where the array's values can be given in it without loss of kind."""
    if entry.kind == "string":
        if have.kind not in "USO":
            raise DataError(f"input '{entry.name}' takes text, the data has {have}")
        return np.dtype(object)
    if entry.dtype is None:
        raise DataError(f"input '{entry.name}' is a {entry.kind}; such inputs take no data")
    if check_dtype(entry, spec):
        return entry.dtype
    if spec.scale is not None or spec.mean or spec.std:
        have = np.dtype(np.float32) if have.kind in "fiub" else have
    kinds = {"f": "fiub", "i": "iub", "u": "iub", "b": "b", "V": "fiubV", "c": "cfiub"}
    if have.kind not in kinds.get(entry.dtype.kind, ""):
        hint = f'dtype = "{entry.dtype}" in {table_of(entry.name)} rounds' if have.kind == "f" else None
        raise DataError(f"input '{entry.name}' takes {entry.dtype}, the data has {have}", hint)
    return entry.dtype


def check_dtype(entry: InputSpec, spec: DataInput) -> bool:
    """Whether a type was asked for, which can only be the model's.

    Raises:
        DataError: if it is another.
    """
    if spec.dtype is not None and spec.dtype != str(entry.dtype):
        raise DataError(f"input '{entry.name}' takes {entry.dtype}, {table_of(entry.name)} says {spec.dtype}")
    return spec.dtype is not None
