"""`[data]` of a recipe: TOML in, `DataSpec` out, every mistake as one line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from onnxslim_core._options import Errors, take
from onnxslim_core.calibration.spec import (
    CHANNELS,
    CROPS,
    INTERPOLATIONS,
    LAYOUTS,
    RESIZES,
    DataInput,
    DataSpec,
    toml_key,
)

__all__ = ["data_with", "read_data"]

_HOW_MANY = ("samples", "max_samples", "crops")


def data_with(data: DataSpec, option: str, value: object, errors: Errors) -> DataSpec:
    """`[data]` with one key set.

    Args:
        data: As it was.
        option: `crops`, or `inputs.NAME.size`; names may hold dots.
        value: As TOML gives it.
        errors: Takes what is wrong.
    """
    of_input, _, key = option.removeprefix("inputs.").rpartition(".")
    if not option.startswith("inputs.") or not of_input:
        read = read_data({option: value}, errors)
        if option not in _DATA_KEYS:
            return data
        # each of these says how many samples: the new one takes the place of the others
        others = dict.fromkeys(_HOW_MANY) if option in _HOW_MANY else {}
        return dataclasses.replace(data, **{**others, option: getattr(read, option)})
    entry = _read_data_input(of_input, {key: value}, errors)
    default = DataInput()
    told = {f.name: getattr(entry, f.name) for f in dataclasses.fields(entry)}
    changes = {name: each for name, each in told.items() if each != getattr(default, name)}
    old = data.inputs.get(of_input, default)
    return dataclasses.replace(data, inputs={**data.inputs, of_input: dataclasses.replace(old, **changes)})


def read_data(table: object, errors: Errors) -> DataSpec:
    """The table as a record, without the folder."""
    if not isinstance(table, Mapping):
        errors.add("data", "not a table")
        return DataSpec()
    errors.keys("data", table, ("inputs", *_DATA_KEYS))
    found: dict[str, Any] = {}
    for key, hint in _DATA_KEYS.items():
        take(table, key, hint, "data", errors, found)
    for key, value in found.items():
        if value == "":
            errors.add("data", f"'{key}' is empty")
    for key in _HOW_MANY:
        if found.get(key, 1) < 1:
            errors.add("data", f"'{key}' is {found[key]}, allowed is 1 and above")
    if len(also := [key for key in _HOW_MANY if key in found]) > 1:
        errors.add("data", f"{' and '.join(repr(key) for key in also)} exclude each other: each says how many samples")
    if not 0 < found.get("held_out", 0.5) < 1:
        errors.add("data", f"'held_out' is {found['held_out']:g}, a share between 0 and 1")
    inputs = table.get("inputs", {})
    if not isinstance(inputs, Mapping):
        errors.add("data.inputs", "not a table; write [data.inputs.NAME]")
        inputs = {}
    found["inputs"] = {name: _read_data_input(name, entry, errors) for name, entry in inputs.items()}
    return DataSpec(**found)


_DATA_KEYS: dict[str, Any] = {
    "source": str,
    "samples": int,
    "max_samples": int,
    "labels": str,
    "origins": str,
    "crops": int,
    "flips": bool,
    "held_out": float,
    "judging": str,
    "force_random": bool,
}

_INPUT_KEYS: dict[str, Any] = {
    "from": str,
    "layout": str,
    "scale": float,
    "mean": tuple[float, ...],
    "std": tuple[float, ...],
    "range": tuple[float, float],
    "dtype": str,
    "value": object,
    "size": int | tuple[int, int],
    "resize": str,
    "resize_to": int,
    "interpolation": str,
    "crop": str,
    "channels": str,
    "fill": int,
}


_CHOICES = {
    "layout": LAYOUTS,
    "resize": RESIZES,
    "interpolation": INTERPOLATIONS,
    "crop": CROPS,
    "channels": CHANNELS,
}


def _read_data_input(name: str, table: object, errors: Errors) -> DataInput:
    where = f"data.inputs.{toml_key(name)}"
    if not isinstance(table, Mapping):
        errors.add(where, "not a table")
        return DataInput()
    errors.keys(where, table, tuple(_INPUT_KEYS))
    found: dict[str, Any] = {}
    for key, hint in _INPUT_KEYS.items():
        take(table, key, hint, where, errors, found, {"from": "array"}.get(key, key))
    for key, choices in _CHOICES.items():
        if key in found and found[key] not in choices:
            errors.unknown(where, found.pop(key), key, choices)
    if found.get("scale", 1.0) == 0 or 0 in found.get("std", ()):
        errors.add(where, "'scale' and 'std' are divided by and cannot be 0")
    lengths = {len(found[key]) for key in ("mean", "std") if found.get(key)}
    if len(lengths) > 1:
        errors.add(where, f"'mean' and 'std' differ in length: {len(found['mean'])} and {len(found['std'])}")
    if "size" in found and isinstance(found["size"], int):
        found["size"] = (found["size"], found["size"])
    if min(*found.get("size", (1, 1)), found.get("resize_to", 1)) < 1:
        errors.add(where, "'size' and 'resize_to' are numbers of pixels from 1")
    if not 0 <= found.get("fill", 0) <= 255:
        errors.add(where, f"'fill' is {found['fill']}, a grey level from 0 to 255")
    if isinstance(found.get("value"), Mapping):
        errors.add(where, "'value' is a table, not a number, a text or a list of these")
    if "range" in found:
        _from_range(found, where, errors)
    return DataInput(**found)


def _from_range(found: dict[str, Any], where: str, errors: Errors) -> None:
    """`range = [low, high]` of 8-bit pixels as the scale, mean and std that it stands for."""
    low, high = found.pop("range")
    if also := [key for key in ("scale", "mean", "std") if key in found]:
        errors.add(where, f"'range' says what {', '.join(also)} would say: give one or the other")
    elif low >= high:
        errors.add(where, f"'range' is [{low:g}, {high:g}], the second is to be larger")
    else:
        found["scale"] = 255.0
        found["mean"], found["std"] = (-low / (high - low),), (1 / (high - low),)
