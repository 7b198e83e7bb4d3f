"""Image files as samples of a model's image input.

What a recipe does not say of the preprocessing is taken from the input's shape or assumed, and every assumption is told
in the report. Images are decoded when they are first asked for; what comes out is kept as bytes, up to a limit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxslim_core.calibration.columns import as_type, check_dtype, constant, fits, misfit, normalised
from onnxslim_core.calibration.folders import Found
from onnxslim_core.calibration.pixels import Geometry, Pixels, check_header, decode, require_pillow
from onnxslim_core.calibration.spec import DataInput, DataSpec, table_of
from onnxslim_core.errors import DataError
from onnxslim_core.measure.inputs import InputSpec

if TYPE_CHECKING:
    from PIL.Image import Image

    from onnxslim_core.calibration.columns import Column

__all__ = ["ImageColumn", "folder_labels", "image_columns", "image_input"]

KEPT = 2**29
"""Bytes of prepared pixels that are kept; what is beyond is decoded again each time."""


CROPS_PER_IMAGE, MOST_CROPS = 1_000, 1_000_000
"""More random parts of an image are nearly the same again, and even the numbers of so many take memory and time."""


@dataclass(slots=True)
class _Memory:
    """Prepared pixels by number, and the last image that was decoded, for the crops beside each other."""

    pixels: dict[int, Pixels] = field(default_factory=dict)
    prints: dict[int, str] = field(default_factory=dict)
    bytes: int = 0
    last: tuple[int, Image | None] = (-1, None)


@dataclass(frozen=True, slots=True)
class ImageColumn:
    """Image files that feed one input.

    Attributes:
        files: Where they are.
        numbers: For every sample the files in its rows, one after the other; a file may stand in several samples.
        batch: Rows of a sample.
        name: Of the input.
        dtype: What the model takes.
        layout: The model's, NCHW or NHWC.
        channels: RGB, BGR or gray.
        geometry: How images are brought to a size.
        spec: With scale, mean and std settled.
        seed: Of random crops.
        random_parts: Samples are random parts of the images.
        flips: Every second of them is mirrored.
    """

    files: Found
    numbers: tuple[int, ...]
    batch: int
    name: str
    dtype: np.dtype[Any]
    layout: str
    channels: str
    geometry: Geometry
    spec: DataInput
    seed: int
    random_parts: bool = False
    flips: bool = True
    _memory: _Memory = field(default_factory=_Memory, compare=False, repr=False)

    @property
    def count(self) -> int:
        """Samples."""
        return len(self.numbers) // self.batch

    @property
    def preparation(self) -> str:
        """All that makes an input of a file."""
        drawn = (self.seed, self.random_parts, self.flips)
        return repr((self.batch, str(self.dtype), self.layout, self.channels, self.geometry, self.spec, drawn))

    def chosen(self, numbers: Sequence[int]) -> ImageColumn:
        """Itself: nothing is read before it is asked for."""
        return self

    def print_of(self, number: int) -> str:
        """Hash of the files of a sample, with the number of the crop; whatever cannot be an image is refused here."""
        state = hashlib.sha256()
        for row in self._rows(number):
            state.update(self.file_print(self.numbers[row]).encode())
            state.update(b"" if not self._is_drawn else str(row).encode())
        return state.hexdigest()

    def origin_of(self, number: int) -> str:
        """What samples of the same images have in common."""
        return " ".join(self.file_print(self.numbers[row]) for row in self._rows(number))

    def file_print(self, number: int) -> str:
        """Hash of a file's bytes."""
        known = self._memory.prints
        if number not in known:
            data = self.files.read(number)
            check_header(data, self.files.names[number])
            known[number] = hashlib.sha256(data).hexdigest()
        return known[number]

    def take(self, number: int) -> np.ndarray:
        """The input of one sample."""
        rows = [self._pixels(row) for row in self._rows(number)]
        if len({row.shape for row in rows}) > 1:
            raise DataError(f"input '{self.name}': the images of one call differ in size", "give 'size'")
        pixels = np.stack(rows)
        if self.channels == "BGR":
            pixels = pixels[..., ::-1]
        if self.layout == "NCHW":
            pixels = pixels.transpose(0, 3, 1, 2)
        values = normalised(pixels, self.spec, self.layout.index("C"))
        return as_type(values, self.dtype, self.name, number, self.spec)

    @property
    def _is_drawn(self) -> bool:
        return self.random_parts or self.geometry.crop == "random"

    def _rows(self, number: int) -> range:
        return range(number * self.batch, (number + 1) * self.batch)

    def _pixels(self, row: int) -> Pixels:
        memory = self._memory
        if row in memory.pixels:
            return memory.pixels[row]
        file = self.numbers[row]
        if memory.last[0] != file:
            name = self.files.names[file]
            memory.last = file, decode(self.files.read(file), name, self.channels == "gray")
        image, rng = memory.last[1], np.random.default_rng((self.seed, row))
        assert image is not None
        if self.random_parts:
            found = self.geometry.cut(image, rng, self.flips)
        else:
            found = self.geometry.apply(image, rng, self.files.names[file])
            memory.last = -1, None
        if memory.bytes + found.nbytes <= KEPT:
            memory.pixels[row] = found
            memory.bytes += found.nbytes
        return found


def image_input(inputs: Sequence[InputSpec], spec: DataSpec, fixed: Mapping[str, object]) -> InputSpec:
    """The input that takes images.

    Args:
        inputs: Of the model.
        spec: The recipe's `[data]`.
        fixed: Inputs that are fed a value, by name.

    Raises:
        DataError: if there is none, or several.
    """
    open_ones = [entry for entry in inputs if entry.name not in fixed and entry.kind != "optional"]
    fitting = [e for e in open_ones if e.kind == "tensor" and e.shape is not None and len(e.shape) == 4]
    if not fitting:
        raise DataError(
            "the model has no input with 4 axes that images could be", "give a .npz with arrays by input name"
        )
    if len(fitting) > 1:
        names = ", ".join(entry.name for entry in fitting)
        raise DataError(f"the model has several inputs with 4 axes: {names}", "give a .npz with arrays by input name")
    for entry in open_ones:
        if entry is not fitting[0]:
            hint = f"set it by {table_of(entry.name)} value = ..., or give a .npz with arrays by input name"
            raise DataError(f"images feed input '{fitting[0].name}'; input '{entry.name}' is fed by nothing", hint)
    return fitting[0]


def image_columns(
    files: Found,
    inputs: Sequence[InputSpec],
    spec: DataSpec,
    *,
    seed: int,
    shapes: Mapping[str, tuple[int, ...]],
    fixed: Mapping[str, object],
) -> tuple[dict[str, Column], tuple[str, ...]]:
    """Columns for all inputs of a model that sees images, and what was assumed.

    Args:
        files: The images.
        inputs: Of the model.
        spec: The recipe's `[data]`.
        seed: Of random crops.
        shapes: Sizes of inputs where the model leaves them open.
        fixed: Values of the other inputs.

    Raises:
        DataError: if the images cannot feed the model.
    """
    require_pillow()
    entry = image_input(inputs, spec, fixed)
    given = spec.inputs.get(entry.name, DataInput())
    if given.array is not None:
        raise DataError(f"{table_of(entry.name)} from = '{given.array}' names an array, the data is image files")
    settled = _Settled(entry, given, shapes.get(entry.name))
    batch = settled.shape[0] or 1
    column = settled.column(files, batch, seed, random_parts=spec.crops is not None)
    if spec.crops is not None and column.geometry.size is None:
        raise DataError(f"random crops need a size for input '{entry.name}'", f"{table_of(entry.name)} size = [H, W]")
    column = replace(column, numbers=_numbers(len(files.names), batch, spec.crops), flips=spec.flips)
    columns: dict[str, Column] = {entry.name: column}
    columns |= {each.name: constant(each, fixed[each.name]) for each in inputs if each.name in fixed}
    return columns, tuple(settled.assumed)


def _numbers(files: int, batch: int, crops: int | None) -> tuple[int, ...]:
    """Files of all rows: each once, or each as often as it takes for so many crops; those of one file together.

    Where the model takes several images at a time, those of one sample stand together in every sample, so that no image
    is on both sides of a split.
    """
    if files < batch:
        raise DataError(f"the model takes {batch} images at a time, there are {files}", "give more images")
    groups = files // batch
    if crops is None:
        return tuple(range(groups * batch))
    if crops > (most := min(CROPS_PER_IMAGE * files, MOST_CROPS)):
        text = f"{crops} crops are asked for, of {files} images at most {most} are taken"
        raise DataError(text, f"ask for crops = {min(most, 1024)}, or give more images")
    samples = -(-crops // batch)
    each, rest = divmod(samples, groups)
    order = [group for group in range(groups) for _ in range(each + (group < rest))]
    return tuple(group * batch + row for group in order for row in range(batch))


class _Settled:
    """Preprocessing with nothing left open; notes what was assumed."""

    def __init__(self, entry: InputSpec, given: DataInput, shape: tuple[int, ...] | None) -> None:
        self.entry, self.given, self.assumed = entry, given, list[str]()
        declared = [size if isinstance(size, int) else None for size in entry.shape or ()]
        if shape is not None and not fits(shape, declared):
            raise misfit(entry.name, shape, declared)
        self.shape = declared if shape is None else list(shape)
        self.layout = self._layout()
        self.channels = self._channels()
        self.size = self._size()

    def column(self, files: Found, batch: int, seed: int, *, random_parts: bool) -> ImageColumn:
        """The column, without its samples; random parts stand in for resizing and cropping."""
        entry, given = self.entry, self.given
        check_dtype(entry, given)
        assert entry.dtype is not None
        geometry = Geometry(self.size, interpolation=given.interpolation or "bilinear")
        if not random_parts:
            geometry = replace(
                geometry,
                resize=self._or("resize", given.resize, "none" if self.size is None else "shorter"),
                resize_to=given.resize_to,
                crop=self._or("crop", given.crop, "none" if self.size is None else "center"),
                fill=114 if given.fill is None else given.fill,
            )
        return ImageColumn(
            files,
            (),
            batch,
            entry.name,
            entry.dtype,
            self.layout,
            self.channels,
            geometry,
            self._scaled(),
            seed,
            random_parts,
        )

    def _or(self, key: str, value: str | None, otherwise: str) -> str:
        if value is None:
            self.assumed.append(f'{key} = "{otherwise}"')
        return otherwise if value is None else value

    def _layout(self) -> str:
        """Where the channels are, by the sizes of the input."""
        name, colours = self.entry.name, (1, 3)
        choices = [(key, self.shape[key.index("C")]) for key in ("NCHW", "NHWC")]
        sure = [key for key, size in choices if size in colours]
        if self.given.layout is not None:
            size = self.shape[self.given.layout.index("C")]
            if size not in (None, *colours):
                text = f"input '{name}' has {size} channels in layout {self.given.layout}, images have 1 or 3"
                raise DataError(text, "for images 'layout' is the model's")
            return self.given.layout
        if len(sure) == 1:
            return sure[0]
        possible = [key for key, size in choices if size in (None, *colours)]
        if not possible:
            sizes = "x".join("?" if size is None else str(size) for size in self.shape)
            raise DataError(f"input '{name}' is {sizes}: images have 1 or 3 channels", "give a .npz of arrays")
        if sure:
            raise DataError(f"input '{name}': which axis has the channels?", f"{table_of(name)} layout")
        self.assumed.append(f'layout = "{possible[0]}"')
        return possible[0]

    def _channels(self) -> str:
        size = self.shape[self.layout.index("C")]
        given = self.given.channels
        if given is not None:
            if size not in (None, 1 if given == "gray" else 3):
                raise DataError(f"input '{self.entry.name}' has {size} channels, channels = '{given}' gives others")
            return given
        return "gray" if size == 1 else self._or("channels", None, "RGB")

    def _size(self) -> tuple[int, int] | None:
        """Height and width; None where images keep theirs."""
        name, given = self.entry.name, self.given
        declared = self.shape[self.layout.index("H")], self.shape[self.layout.index("W")]
        if given.size is not None:
            if any(want not in (None, have) for have, want in zip(given.size, declared, strict=True)):
                wanted = " x ".join("?" if each is None else str(each) for each in declared)
                raise DataError(f"input '{name}' takes images of {wanted}, size is {list(given.size)}")
            return given.size
        if declared[0] is not None and declared[1] is not None:
            return declared[0], declared[1]
        if given.resize == "none" or (given.resize == "shorter" and given.resize_to and given.crop == "none"):
            return None
        usual = dict(zip("NCHW", (1, 1 if self.channels == "gray" else 3, 224, 224), strict=True))
        sizes = {axis: size or usual[axis] for axis, size in zip(self.layout, self.shape, strict=True)}
        hint = f"--shape {name}={'x'.join(map(str, sizes.values()))}, "
        hint += f"or size = [{sizes['H']}, {sizes['W']}] in {table_of(name)}"
        raise DataError(f"input '{name}' takes images of any size, and none is given", hint)

    def _scaled(self) -> DataInput:
        """Scale, mean and std; without any, real numbers from 0 to 1, and bytes as they are."""
        name, given, dtype = self.entry.name, self.given, self.entry.dtype
        numbers = 1 if self.channels == "gray" else 3
        for key, values in (("mean", given.mean), ("std", given.std)):
            if len(values) > 1 and len(values) != numbers:
                raise DataError(f"input '{name}': '{key}' has {len(values)} numbers for {numbers} channels")
        if given.scale is None and (given.mean or given.std):
            hint = "scale = 255 brings pixels to 0..1 first, scale = 1 leaves them at 0..255"
            raise DataError(f"{table_of(name)} has 'mean' or 'std' and no 'scale'", hint)
        if given.scale is not None:
            if dtype is not None and dtype.kind in "iu" and given.dtype is None:
                hint = f'dtype = "{dtype}" rounds'
                raise DataError(f"input '{name}' takes {dtype}, {table_of(name)} scales to real numbers", hint)
            return given
        if dtype == np.dtype(np.uint8):
            return given
        if dtype is None or dtype.kind not in "fV":
            raise DataError(
                f"input '{name}' takes {dtype}: how pixels become that is not said", "give scale, mean, dtype"
            )
        self.assumed.append("scale = 255 (pixels from 0 to 1), no mean and std")
        return replace(given, scale=255.0)


def folder_labels(files: Found, numbers: Sequence[int], batch: int) -> list[np.ndarray]:
    """The number of its folder, in the order of names, for every image; an array of `batch` per sample.

    Raises:
        DataError: if the images are in one folder.
    """
    folders = [name.rpartition("/")[0] for name in files.names]
    classes = {folder: number for number, folder in enumerate(sorted(set(folders)))}
    if len(classes) < 2:
        raise DataError(f'{files.name}: labels = "folder" needs a folder for each class, the images are in one')
    rows = np.array([classes[folders[number]] for number in numbers], np.int64)
    return [rows[start : start + batch] for start in range(0, len(rows), batch)]
