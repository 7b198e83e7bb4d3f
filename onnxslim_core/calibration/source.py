"""Samples from files and iterables, brought to the names, types and layouts of a model's inputs.

A source is checked against the model when it is opened: a missing array, a size that does not fit, a NaN, an empty file
are one line each. Samples used to decide are never those used to judge: `split` cuts a source into two halves that
interleave, so that both see every part of a file that is sorted by class, and that share no image or recording.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast, overload

import numpy as np

from onnxslim_core.calibration.arrays import read_npy, read_npz
from onnxslim_core.calibration.columns import Array, Chain, Column, Constant, array_column, as_array, constant
from onnxslim_core.calibration.diversity import halves
from onnxslim_core.calibration.folders import Found, look
from onnxslim_core.calibration.images import ImageColumn, folder_labels, image_columns
from onnxslim_core.calibration.spec import DataInput, DataSpec, table_of
from onnxslim_core.errors import DataError
from onnxslim_core.measure.inputs import InputSpec, input_specs
from onnxslim_core.rewrite import Sample

if TYPE_CHECKING:
    from onnxslim_core.model import Model

__all__ = ["DEFAULT_SAMPLES", "Data", "Source", "open_source"]

DEFAULT_SAMPLES = 512
"""At most so many samples are read where nobody says how many."""

Data: TypeAlias = "str | Path | Source | Mapping[str, np.ndarray] | Iterable[Sample] | Callable[[], Any]"
"""What is taken as data: a path (see `folders.look`), arrays with a leading sample axis by name, samples one by one, or
a function that returns one of these."""


@dataclass(frozen=True, slots=True)
class Source(Sequence[Sample]):
    """Samples that fit a model: a sequence of feeds, made when they are asked for.

    Attributes:
        name: Of the file or folder, or "given in memory".
        columns: Per input: what feeds it, by the sample's number.
        indices: Which samples of the columns this source gives, in order.
        prints: By number: hash of what a sample is made from.
        contents: By number: hash of the image that a sample was taken from, or of the sample itself.
        numbers_of_origin: By number: which image, recording or row a sample was taken from.
        all_labels: By number: its labels; None where there are none.
        assumed: What was assumed of the preprocessing, in words.
    """

    name: str
    columns: Mapping[str, Column]
    indices: tuple[int, ...]
    prints: Mapping[int, str]
    contents: Mapping[int, str]
    numbers_of_origin: Mapping[int, int]
    all_labels: Sequence[np.ndarray] | None = None
    assumed: tuple[str, ...] = ()

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
        return None if self.all_labels is None else [self.all_labels[i] for i in self.indices]

    @property
    def origins(self) -> list[int]:
        """Which image, recording or row each sample was taken from, by number; equal samples are of one origin."""
        return [self.numbers_of_origin[i] for i in self.indices]

    def uses(self, name: str) -> bool:
        """True where the size or the value of an input was left to the caller: images, and inputs with one value."""
        return isinstance(self.columns.get(name), ImageColumn | Constant)

    @property
    def digest(self) -> str:
        """sha256 over the contents of these samples, in order, and how they are prepared; for caches and lock files."""
        state = hashlib.sha256()
        for name, column in sorted(self.columns.items()):
            state.update(f"{name} {column.preparation}\n".encode())
        for index in self.indices:
            state.update(self.prints[index].encode())
        return state.hexdigest()

    def split(self, held_out: float = 0.5) -> tuple[Source, Source]:
        """Two parts without a common sample or origin: to decide with, and to judge with so large a share."""
        deciding, judging = halves(self.origins, held_out)
        return self.pick(deciding), self.pick(judging)

    def common(self, other: Source) -> int:
        """How many of the samples, or of the images they were cut from, another source has too."""
        known = {other.contents[i] for i in other.indices}
        return sum(self.contents[i] in known for i in self.indices)

    def pick(self, places: Iterable[int]) -> Source:
        """The samples at these places of the source."""
        return replace(self, indices=tuple(self.indices[place] for place in places))

    def first(self, count: int) -> Source:
        """At most so many samples, evenly spread over the source."""
        return self if count >= len(self) else self.pick(_spread(len(self), count))


def _spread(total: int, count: int) -> list[int]:
    """At most so many of the numbers below the total, evenly spread."""
    if count >= total:
        return list(range(total))
    places = np.linspace(0, total - 1, max(count, 1)).round().astype(int)
    return list(dict.fromkeys(places.tolist()))


def open_source(
    data: Data,
    model: Model | Sequence[InputSpec],
    spec: DataSpec | None = None,
    *,
    limit: int | None = None,
    seed: int = 0,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    values: Mapping[str, object] | None = None,
) -> Source:
    """Open data for a model.

    Args:
        data: See `Data`. Of a sequence evenly spread samples are read, of another iterable the first ones.
        model: The model, or what it takes.
        spec: The recipe's `[data]`: names, layout, scaling, number of samples.
        limit: At most so many samples where the spec does not say; `DEFAULT_SAMPLES` by default.
        seed: Of random crops.
        shapes: Sizes of image inputs that the model leaves open.
        values: What inputs are fed for which the data has nothing.

    Returns:
        The samples, evenly spread over the data where there are more than asked for.

    Raises:
        DataError: if the data is missing, broken, empty, too little or does not fit.
    """
    if isinstance(data, Source):
        return data
    if data == "":  # as a path that is the current folder
        raise DataError("data is an empty text, not a path", "leave it out for random inputs")
    if callable(data) and not isinstance(data, Iterable):
        return open_source(data(), model, spec, limit=limit, seed=seed, shapes=shapes, values=values)
    inputs = model if isinstance(model, Sequence) else input_specs(model)
    spec = spec or DataSpec()
    for wanted in spec.inputs:
        if wanted not in [entry.name for entry in inputs]:
            raise DataError(f"{table_of(wanted)}: the model has no such input{_close(wanted, inputs)}")
    fixed = {**(values or {}), **{name: each.value for name, each in spec.inputs.items() if each.value is not None}}
    count = spec.crops or spec.samples or spec.max_samples or limit or DEFAULT_SAMPLES
    if not isinstance(data, str | Path):
        opened = _in_memory(data, inputs, spec, fixed, count)
    elif (found := look(Path(data))).kind == "images":
        opened = _images(found, inputs, spec, seed, shapes or {}, fixed)
    else:
        opened = _files(found, inputs, spec, fixed, count)
    if spec.crops is not None and not opened.is_images:
        raise DataError(
            f"{opened.name}: crops are cut out of image files", "give a folder or zip of images, or no 'crops'"
        )
    return _settle(opened, spec, count)


@dataclass(frozen=True, slots=True)
class _Opened:
    """Data before samples are chosen.

    Attributes:
        name: Of the source.
        columns: Per input.
        total: Samples that there are.
        labels: One array per sample.
        origins: One number per sample; None: to be told by content.
        assumed: In words.
        is_images: Made from image files.
    """

    name: str
    columns: dict[str, Column]
    total: int
    labels: list[np.ndarray] | None = None
    origins: list[int] | None = None
    assumed: tuple[str, ...] = ()
    is_images: bool = False


def _settle(opened: _Opened, spec: DataSpec, count: int) -> Source:
    """Choose samples, read what they need, and tell their origins."""
    if opened.total == 0:
        raise DataError(f"{opened.name}: empty, there is no sample in it", "give data with at least two samples")
    if spec.samples is not None and opened.total < spec.samples:
        hint = f"ask for samples = {opened.total} or fewer"
        hint += ", or for random 'crops' of the images" if opened.is_images and spec.crops is None else ""
        raise DataError(f"{opened.name}: {spec.samples} samples are asked for, it has {opened.total}", hint)
    indices = tuple(_spread(opened.total, count))
    columns = {name: column.chosen(indices) for name, column in opened.columns.items()}
    alone = "".join(column.print_of(0) for column in columns.values() if column.count == 1)
    many = [column for column in columns.values() if column.count != 1] or list(columns.values())
    prints = {index: _joined([column.print_of(index) for column in many], alone) for index in indices}
    images = next((column for column in columns.values() if isinstance(column, ImageColumn)), None)
    contents = prints if images is None else {index: images.origin_of(index) for index in indices}
    told: list[Any] = [(opened.origins or contents)[index] for index in indices]
    known: dict[Any, int] = {}
    origins = {index: known.setdefault(each, len(known)) for index, each in zip(indices, told, strict=True)}
    return Source(opened.name, columns, indices, prints, contents, origins, opened.labels, opened.assumed)


def _joined(prints: list[str], alone: str) -> str:
    return (
        prints[0] if len(prints) == 1 and not alone else hashlib.sha256("".join([*prints, alone]).encode()).hexdigest()
    )


def _images(
    found: Found,
    inputs: Sequence[InputSpec],
    spec: DataSpec,
    seed: int,
    shapes: Mapping[str, tuple[int, ...]],
    fixed: Mapping[str, object],
) -> _Opened:
    columns, assumed = image_columns(found, inputs, spec, seed=seed, shapes=shapes, fixed=fixed)
    column = next(each for each in columns.values() if isinstance(each, ImageColumn))
    if spec.labels not in (None, "folder"):
        raise DataError(f"{found.name}: labels = '{spec.labels}' names an array", 'of images: labels = "folder"')
    labels = folder_labels(found, column.numbers, column.batch) if spec.labels else None
    if spec.origins not in (None, "file"):
        raise DataError(f"{found.name}: origins = '{spec.origins}' names an array", "of images the file is the origin")
    return _Opened(found.name, columns, column.count, labels, None, assumed, is_images=True)


def _files(
    found: Found, inputs: Sequence[InputSpec], spec: DataSpec, fixed: Mapping[str, object], count: int
) -> _Opened:
    """Samples of a .npz or .npy, or of a folder of them."""
    by_name = [entry.name for entry in inputs] + [entry.array for entry in spec.inputs.values() if entry.array]
    stems = [name.rpartition("/")[2].removesuffix(".npy") for name in found.names]
    if found.kind == "npy" and found.is_folder and any(stem in by_name for stem in stems):
        # an unpacked .npz: a file for each input
        arrays = {stem: cast("Array", read_npy(found.path(number))) for number, stem in enumerate(stems)}
        return _table(found.name, arrays, inputs, spec, fixed)
    open_ones = [entry.name for entry in inputs if entry.name not in fixed and entry.kind != "optional"]
    if found.kind == "npy" and len(open_ones) != 1:
        hint = "save a .npz with arrays by input name, or a folder with a NAME.npy for each"
        raise DataError(f"{found.name}: a .npy holds one array, the model takes {', '.join(open_ones) or 'none'}", hint)
    tables = []
    for number in _spread(len(found.names), count):
        path = found.path(number)
        name = found.names[number] if found.is_folder else found.name
        arrays = read_npz(path) if found.kind == "npz" else {_wanted(open_ones[0], spec): read_npy(path)}
        tables.append(_table(name, arrays, inputs, spec, fixed))
    return tables[0] if not found.is_folder else _chained(found.name, tables, spec)


def _chained(name: str, tables: Sequence[_Opened], spec: DataSpec) -> _Opened:
    """The samples of several files, one file after the other."""
    counts = tuple(table.total for table in tables)
    for table in tables:
        if set(table.columns) != set(tables[0].columns):
            raise DataError(f"{name}: {table.name} feeds {sorted(table.columns)}, others {sorted(tables[0].columns)}")
    columns: dict[str, Column] = {
        key: Chain(tuple(table.columns[key] for table in tables), counts) for key in tables[0].columns
    }
    labels = None
    if spec.labels is not None:
        labels = [label for table in tables for label in table.labels or ()]
    origins = None
    if spec.origins == "file":
        origins = [number for number, count in enumerate(counts) for _ in range(count)]
    elif spec.origins is not None:
        origins = [origin for table in tables for origin in table.origins or ()]
    return _Opened(name, columns, sum(counts), labels, origins)


def _in_memory(
    data: Mapping[str, np.ndarray] | Iterable[Sample],
    inputs: Sequence[InputSpec],
    spec: DataSpec,
    fixed: Mapping[str, object],
    count: int,
) -> _Opened:
    if isinstance(data, Mapping):
        return _table("given in memory", _arrays(data, "the data"), inputs, spec, fixed)
    return _table("given in memory", _stack(data, count), inputs, spec, fixed, whole=True)


def _arrays(given: Mapping[str, Any], whose: str) -> dict[str, np.ndarray]:
    """Arrays by name.

    Raises:
        DataError: where a name is no text, or a value no array.
    """
    for name in given:
        if not isinstance(name, str):
            raise DataError(f"{whose} has {name!r} for the name of an input, which is no text")
    return {name: as_array(value, f"'{name}' of {whose}") for name, value in given.items()}


def _stack(samples: Iterable[Sample], count: int) -> dict[str, Array]:
    """Arrays [samples, ...] of whole inputs, lists where the sizes differ."""
    if not isinstance(samples, Iterable):
        raise DataError(f"data is a {type(samples).__name__}, not a path, arrays by name or samples")
    if isinstance(samples, Sequence):
        samples = [samples[place] for place in _spread(len(samples), count)]
    rows: list[dict[str, np.ndarray]] = []
    for number, sample in enumerate(islice(iter(samples), count)):
        if not isinstance(sample, Mapping):
            raise DataError(f"sample {number} is a {type(sample).__name__}, not a dict of arrays by input name")
        row = _arrays(sample, f"sample {number}")
        if rows and set(row) != set(rows[0]):
            raise DataError(f"sample {number} has {sorted(row)}, the first has {sorted(rows[0])}")
        rows.append(row)
    if not rows:
        raise DataError("the data gives no sample")
    arrays: dict[str, Array] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if len({value.dtype if value.dtype.kind not in "US" else value.dtype.kind for value in values}) > 1:
            raise DataError(f"array '{name}' is of one type in some samples and of another in others")
        arrays[name] = np.stack(values) if len({value.shape for value in values}) == 1 else values
    return arrays


def _table(
    name: str,
    arrays: Mapping[str, Array],
    inputs: Sequence[InputSpec],
    spec: DataSpec,
    fixed: Mapping[str, object],
    *,
    whole: bool = False,
) -> _Opened:
    """The samples of one set of arrays."""
    columns: dict[str, Column] = {}
    for entry in inputs:
        key = _wanted(entry.name, spec)
        if key not in arrays and entry.name in fixed:
            columns[entry.name] = constant(entry, fixed[entry.name])
        elif key in arrays or entry.kind != "optional" or entry.name in spec.inputs:
            given = spec.inputs.get(entry.name, DataInput())
            columns[entry.name] = array_column(_pick(entry.name, key, arrays, name), entry, given, whole=whole)
    counts = {key: column.count for key, column in columns.items() if column.count != 1}
    if len(set(counts.values())) > 1:
        raise DataError(f"{name}: inputs differ in their number of samples: {counts}")
    total = next(iter(counts.values()), 1)
    if total == 0:
        return _Opened(name, columns, 0)
    labels = _per_sample("labels", spec.labels, arrays, name, total) if spec.labels is not None else None
    origins = None
    if spec.origins is not None and spec.origins != "file":
        origins = [int(each.reshape(-1)[0]) for each in _per_sample("origins", spec.origins, arrays, name, total)]
    return _Opened(name, columns, total, labels, origins)


def _wanted(name: str, spec: DataSpec) -> str:
    """The array of an input."""
    entry = spec.inputs.get(name)
    return name if entry is None or entry.array is None else entry.array


def _pick(name: str, wanted: str, arrays: Mapping[str, Array], source: str) -> Array:
    if wanted in arrays:
        return arrays[wanted]
    close = difflib.get_close_matches(wanted, list(arrays), 1, 0.6)
    hint = f'say which array it is: {table_of(name)} from = "{close[0] if close else "ARRAY"}"'
    raise DataError(f"{source}: no array '{wanted}' for the model's input, it has {', '.join(arrays) or 'none'}", hint)


def _close(name: str, inputs: Sequence[InputSpec]) -> str:
    close = difflib.get_close_matches(name, [entry.name for entry in inputs], 1, 0.6)
    return f"; did you mean '{close[0]}'?" if close else f"; it has {', '.join(entry.name for entry in inputs)}"


def _per_sample(what: str, key: str, arrays: Mapping[str, Array], name: str, total: int) -> list[np.ndarray]:
    """An array that is no input (of labels, of origins), as many rows of it per sample as there are."""
    if key not in arrays:
        raise DataError(f"{name}: no array '{key}' of {what}, it has {', '.join(arrays)}")
    array = arrays[key]
    values = np.asarray(array if isinstance(array, list | np.ndarray) else array.whole())
    if values.ndim == 0 or len(values) % total:
        raise DataError(f"{name}: {values.shape} {what} for {total} samples")
    per = len(values) // total
    return [values[i * per : (i + 1) * per] for i in range(total)]
