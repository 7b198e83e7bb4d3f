"""Recipes and budgets: TOML in, typed data out, every error at once.

A recipe says which passes run, in which order and with which options; a budget says what the result may cost in
answers and must gain in time and size. Both are checked in full before any work begins: an unknown key, a wrong type
and a value out of range are each one line with the nearest valid name, and a file with three mistakes shows three.

The classes of the passes are imported only when a recipe is parsed, so that the command line can name these types
without loading `onnx_ir`.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import math
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from onnxslim_core.calibration.spec import LAYOUTS, DataInput, DataSpec
from onnxslim_core.errors import BudgetError, RecipeError

if TYPE_CHECKING:
    from onnxslim_core.rewrite import Pass

__all__ = [
    "Budget",
    "DataInput",
    "DataSpec",
    "InputSpec",
    "OutputBudget",
    "Recipe",
    "Step",
    "load_budget",
    "preset_names",
]


class Errors:
    """Collects mistakes, one line each, and raises them together."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.lines: list[str] = []

    def add(self, where: str, text: str) -> None:
        """Note one mistake at a place of the file."""
        self.lines.append(": ".join(part for part in (self.origin, where, " ".join(text.split())) if part))

    def unknown(self, where: str, key: str, kind: str, known: Iterable[str], of: str = "") -> None:
        """Note an unknown name, with the nearest one that exists."""
        owner = f" of {of}" if of else ""
        self.add(where, f"unknown {kind} '{key}'{owner}{_nearest(key, list(known))}")

    def keys(self, where: str, table: Mapping[str, object], known: Sequence[str], kind: str = "key") -> None:
        """Note every key of a table that is not known."""
        for key in table:
            if key not in known:
                self.unknown(where, key, kind, known)

    def check(self, kind: type[RecipeError]) -> None:
        """Raise what was noted.

        Raises:
            RecipeError: (or the given kind) with all lines in `errors`.
        """
        if not self.lines:
            return
        if len(self.lines) == 1:
            raise kind(self.lines[0], errors=self.lines)
        raise kind(f"{self.origin}: {len(self.lines)} errors", "\n".join(self.lines), self.lines)


def _nearest(word: str, known: list[str]) -> str:
    """The end of a message about an unknown word: the nearest known one, or all of them."""
    close = difflib.get_close_matches(word, known, 1, 0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(known)}" if known else ""


# ---------------------------------------------------------------------------------------------------- values


def _number(value: object) -> float | None:
    """A finite float, or None where the value is something else (TOML knows nan and inf; no limit may be one)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _fit(value: object, hint: Any) -> tuple[bool, Any]:
    """Whether a TOML value is of a field's type, and the value as that type (list to tuple, text to Enum)."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = (_fit(value, option) for option in typing.get_args(hint))
        return next((found for found in options if found[0]), (False, None))
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in typing.get_args(hint)), value
    if origin is tuple:
        return _fit_tuple(value, typing.get_args(hint))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        found = next((member for member in hint if value in (member.value, member)), None)
        return found is not None, found
    if hint is float:
        number = _number(value)
        return number is not None, number
    if hint is int:
        return _whole(value) is not None, value
    if hint in (bool, str):
        return isinstance(value, hint), value
    return hint in (Any, object), value


def _fit_tuple(value: object, args: tuple[Any, ...]) -> tuple[bool, Any]:
    if not isinstance(value, list | tuple):
        return False, None
    each = [args[0]] * len(value) if args[1:] == (Ellipsis,) else list(args)
    if len(each) != len(value):
        return False, None
    fits = [_fit(item, hint) for item, hint in zip(value, each, strict=True)]
    return all(ok for ok, _ in fits), tuple(item for _, item in fits)


def _type_words(hint: Any) -> str:
    """What a message calls a type: 'a number', 'one of "l1", "l2"'."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_words(option) for option in typing.get_args(hint) if option is not type(None))
    if origin is Literal or (isinstance(hint, type) and issubclass(hint, enum.Enum)):
        choices = typing.get_args(hint) if origin is Literal else [member.value for member in hint]
        words = ", ".join(repr(choice) for choice in choices)
        return words if len(choices) == 1 else f"one of {words}"
    if origin is tuple:
        return f"a list of {_type_words(typing.get_args(hint)[0])}"
    plain = {float: "a number", int: "an integer", bool: "true or false", str: "text"}
    return plain.get(hint, "something else")


def _shown(value: object) -> str:
    return f"'{value}'" if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else repr(value)


# ---------------------------------------------------------------------------------------------------- passes


@dataclass(frozen=True, slots=True)
class Step:
    """One `[[pass]]` of a recipe.

    Attributes:
        name: The pass.
        options: As written, of the right types; what is absent has the pass's default.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def exact(self) -> bool:
        """True where the pass promises equal answers."""
        from onnxslim_core.passes import pass_class

        return bool(pass_class(self.name).kind.exact)

    def build(self) -> Pass:
        """The pass with these options."""
        from onnxslim_core.passes import pass_class

        found: Pass = pass_class(self.name)(**self.options)
        return found


@cache
def _option_types(cls: type) -> dict[str, Any]:
    """The options of a pass class: its dataclass fields and their resolved types."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}


def _read_step(raw: Mapping[str, Any], where: str, errors: Errors) -> Step | None:
    from onnxslim_core.passes import TABLE, pass_class

    name = raw.get("name")
    known = [row.name for row in TABLE]
    if not isinstance(name, str):
        errors.add(where, "a pass needs a name" if name is None else f"name is {_shown(name)}, not text")
        return None
    if name not in known:
        errors.unknown(where, name, "pass", known)
        return None
    cls = pass_class(name)
    types_ = _option_types(cls)
    options: dict[str, Any] = {}
    for key, value in raw.items():
        if key == "name":
            continue
        if key not in types_:
            errors.unknown(where, key, "option", types_, name)
            continue
        fits, converted = _fit(value, types_[key])
        if fits:
            options[key] = converted
        else:
            errors.add(where, f"option '{key}' of {name} is {_shown(value)}, not {_type_words(types_[key])}")
    for line in _out_of_range(cls, options):
        errors.add(where, line if name in line else f"{name}: {line}")
    return Step(name, options)


def _out_of_range(cls: Callable[..., object], options: Mapping[str, Any]) -> list[str]:
    """What `__post_init__` says against the options.

    It stops at its first complaint, so the option whose absence changes the outcome is taken out and the rest tried
    again, until nothing is complained about any more. A complaint that only names an option taken out is our doing.
    """
    lines: list[str] = []
    taken: list[str] = []
    rest = dict(options)
    while (complaint := _complaint(cls, rest)) is not None:
        if not any(f"{key}" in complaint for key in taken):
            lines.append(complaint)
        others = {key: _complaint(cls, {k: v for k, v in rest.items() if k != key}) for key in rest}
        guilty = [key for key, outcome in others.items() if outcome is None]
        guilty = guilty or [key for key, outcome in others.items() if outcome != complaint]
        if not guilty:
            break
        taken.append(guilty[0])
        del rest[guilty[0]]
    return lines


def _complaint(cls: Callable[..., object], options: Mapping[str, Any]) -> str | None:
    try:
        cls(**options)
    except (ValueError, TypeError, RecipeError) as err:
        return str(err)
    return None


# ---------------------------------------------------------------------------------------------------- budgets


@dataclass(frozen=True, slots=True)
class OutputBudget:
    """`[budget.output.NAME]`: limits for one output, and how its columns are judged apart.

    Attributes:
        axis: The axis that `parts` cuts; negative counts from the end.
        parts: Part name to (first, end), end excluded.
    """

    min_cosine: float | None = None
    min_centred_cosine: float | None = None
    max_relative_l2: float | None = None
    max_abs: float | None = None
    min_top1_agreement: float | None = None
    axis: int | None = None
    parts: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Budget:
    """What a result may lose and must gain; None: no limit.

    The limits on answers hold for the worst output, as the mean over the samples; ratios are candidate over
    reference.

    Attributes:
        max_abs: In the units of the output.
        min_metric: Of the user's metric on the candidate.
        max_metric_drop: Reference minus candidate, in the metric's units.
        max_latency_ratio: Median time over median time, interleaved.
        max_size_ratio: Bytes of the files, external data included.
        max_memory_ratio: Peak bytes of activations.
        allowed_domains: Operator domains that may occur; '' is the standard one.
        require_data: Seeded random inputs are not enough for a verdict.
        allow_inconclusive: A timing that stays inconclusive is no failure.
        output: Limits for single outputs.
    """

    min_cosine: float | None = None
    min_centred_cosine: float | None = None
    max_relative_l2: float | None = None
    max_abs: float | None = None
    min_top1_agreement: float | None = None
    min_metric: float | None = None
    max_metric_drop: float | None = None
    max_latency_ratio: float | None = None
    max_size_ratio: float | None = None
    max_params_ratio: float | None = None
    max_macs_ratio: float | None = None
    max_memory_ratio: float | None = None
    allowed_domains: tuple[str, ...] | None = None
    max_opset: int | None = None
    require_data: bool = False
    allow_inconclusive: bool = False
    output: Mapping[str, OutputBudget] = field(default_factory=dict)

    @classmethod
    def parse(cls, table: Mapping[str, Any], origin: str = "budget") -> Budget:
        """A budget from a table of keys.

        Raises:
            BudgetError: with every mistake.
        """
        errors = Errors(origin)
        found = _read_budget(table, errors)
        errors.check(BudgetError)
        return found

    @property
    def judges_answers(self) -> bool:
        """True where any limit needs the two models' answers."""
        limits = [getattr(self, key) for key in (*_ANSWER_RANGES, "min_metric", "max_metric_drop")]
        return any(limit is not None for limit in limits) or any(self.output.values())

    @property
    def parts(self) -> dict[str, tuple[int, dict[str, tuple[int, int]]]]:
        """Output name to (axis, parts) for those outputs whose columns are judged apart."""
        return {
            name: (entry.axis if entry.axis is not None else -1, dict(entry.parts))
            for name, entry in self.output.items()
            if entry.parts
        }


_ANSWER_RANGES: dict[str, tuple[float, float]] = {
    "min_cosine": (-1.0, 1.0),
    "min_centred_cosine": (-1.0, 1.0),
    "max_relative_l2": (0.0, math.inf),
    "max_abs": (0.0, math.inf),
    "min_top1_agreement": (0.0, 1.0),
}
_RATIO_KEYS = ("max_latency_ratio", "max_size_ratio", "max_params_ratio", "max_macs_ratio", "max_memory_ratio")
_RANGES: dict[str, tuple[float, float]] = {
    **_ANSWER_RANGES,
    "min_metric": (-math.inf, math.inf),
    "max_metric_drop": (-math.inf, math.inf),
    **dict.fromkeys(_RATIO_KEYS, (0.0, math.inf)),
}


def _read_limits(
    table: Mapping[str, Any], ranges: Mapping[str, tuple[float, float]], where: str, errors: Errors
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, (low, high) in ranges.items():
        if key not in table:
            continue
        number = _number(table[key])
        if number is None:
            errors.add(where, f"'{key}' is {_shown(table[key])}, not a finite number")
        elif not low <= number <= high or (key in _RATIO_KEYS and number == 0):
            allowed = f"between {low:g} and {high:g}" if high < math.inf else f"above {low:g}"
            errors.add(where, f"'{key}' is {number:g}, allowed is {allowed}")
        else:
            found[key] = number
    return found


def _read_budget(table: object, errors: Errors) -> Budget:
    if not isinstance(table, Mapping):
        errors.add("budget", "not a table")
        return Budget()
    errors.keys("budget", table, [f.name for f in dataclasses.fields(Budget)])
    found = _read_limits(table, _RANGES, "budget", errors)
    for key, hint in (("allowed_domains", tuple[str, ...]), ("max_opset", int)):
        _take(table, key, hint, "budget", errors, found)
    for key in ("require_data", "allow_inconclusive"):
        _take(table, key, bool, "budget", errors, found)
    if found.get("max_opset", 1) < 1:
        errors.add("budget", f"'max_opset' is {found['max_opset']}, allowed is 1 and above")
    outputs = table.get("output", {})
    if not isinstance(outputs, Mapping):
        errors.add("budget.output", "not a table; write [budget.output.NAME]")
        outputs = {}
    found["output"] = {name: _read_output_budget(name, entry, errors) for name, entry in outputs.items()}
    return Budget(**found)


def _take(
    table: Mapping[str, Any], key: str, hint: Any, where: str, errors: Errors, found: dict[str, Any], to: str = ""
) -> None:
    """Copy a key of the right type into `found`, note one of a wrong type."""
    if key not in table:
        return
    fits, value = _fit(table[key], hint)
    if fits:
        found[to or key] = value
    else:
        errors.add(where, f"'{key}' is {_shown(table[key])}, not {_type_words(hint)}")


def _read_output_budget(name: str, table: object, errors: Errors) -> OutputBudget:
    where = f"budget.output.{name}"
    if not isinstance(table, Mapping):
        errors.add(where, "not a table of limits")
        return OutputBudget()
    errors.keys(where, table, [f.name for f in dataclasses.fields(OutputBudget)])
    found = _read_limits(table, _ANSWER_RANGES, where, errors)
    _take(table, "axis", int, where, errors, found)
    parts = table.get("parts", {})
    found["parts"] = {}
    if not isinstance(parts, Mapping):
        errors.add(where, "'parts' is not a table such as {boxes = [0, 4]}")
        parts = {}
    for part, bounds in parts.items():
        fits, pair = _fit(bounds, tuple[int, int])
        if fits and 0 <= pair[0] < pair[1]:
            found["parts"][part] = pair
        else:
            errors.add(where, f"part '{part}' is {_shown(bounds)}, not [first, end] with 0 <= first < end")
    if "axis" in found and not parts:
        errors.add(where, "'axis' has no meaning without 'parts'")
    if parts and "axis" not in table:
        errors.add(where, "'parts' needs 'axis', the axis that they cut")
    return OutputBudget(**found)


def load_budget(path: str | Path) -> Budget:
    """Read a budget file: TOML with one `[budget]` table.

    Raises:
        BudgetError: where the file is missing, no TOML, empty, or wrong in any key.
    """
    path = Path(path)
    raw = _read_toml(_read_text(path, BudgetError), path.name, BudgetError)
    errors = Errors(path.name)
    errors.keys("", raw, ["budget"], "table")
    if "budget" not in raw:
        errors.add("", "a budget file holds one table, [budget]")
    elif not raw["budget"]:
        errors.add("budget", "empty: nothing would be judged")
    budget = _read_budget(raw.get("budget", {}), errors)
    errors.check(BudgetError)
    return budget


def _read_text(path: Path, kind: type[RecipeError]) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as err:
        raise kind(f"no such file: '{path}'") from err
    except (OSError, UnicodeDecodeError) as err:
        raise kind(f"cannot read '{path}': {err}") from err


def _read_toml(text: str, origin: str, kind: type[RecipeError]) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        raise kind(f"{origin}: not TOML: {err}") from err


# ---------------------------------------------------------------------------------------------------- recipes


@dataclass(frozen=True, slots=True)
class InputSpec:
    """`[inputs.NAME]`: at which sizes, and with which value, an input is fed where there is no data."""

    shape: tuple[int, ...] | None = None
    value: object = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is done to a model; see the module's docstring.

    Attributes:
        steps: In the order in which they run.
        requires: "exact" refuses a lossy pass; "any" does not.
        name: Of the file or preset, for the report.
    """

    steps: tuple[Step, ...]
    seed: int = 0
    requires: str = "any"
    data: DataSpec = field(default_factory=DataSpec)
    inputs: Mapping[str, InputSpec] = field(default_factory=dict)
    budget: Budget | None = None
    name: str = "recipe.toml"

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a recipe file.

        Raises:
            RecipeError: where the file is missing, no TOML, or wrong in any key; all mistakes at once.
        """
        path = Path(path)
        return cls.parse(_read_text(path, RecipeError), path.name, folder=path.resolve().parent)

    @classmethod
    def parse(cls, text: str, origin: str = "recipe.toml", *, folder: Path | None = None) -> Recipe:
        """A recipe from its TOML text.

        Args:
            text: The TOML.
            origin: What messages call it.
            folder: Where its relative paths start; the current folder by default.

        Raises:
            RecipeError: all mistakes at once.
        """
        raw = _read_toml(text, origin, RecipeError)
        errors = Errors(origin)
        errors.keys("", raw, ("version", "seed", "requires", "data", "inputs", "pass", "budget"))
        found: dict[str, Any] = {"name": origin}
        if raw.get("version", 1) != 1 or isinstance(raw.get("version"), bool):
            errors.add("", f"version is {_shown(raw['version'])}, this program reads version 1")
        _take(raw, "seed", int, "", errors, found)
        if found.get("seed", 0) < 0:
            errors.add("", f"'seed' is {found['seed']}, allowed is 0 and above")
        _take(raw, "requires", Literal["any", "exact"], "", errors, found)
        found["steps"] = _read_steps(raw, found.get("requires", "any"), errors)
        found["data"] = dataclasses.replace(_read_data(raw.get("data", {}), errors), folder=folder)
        found["inputs"] = _read_inputs(raw.get("inputs", {}), errors)
        if "budget" in raw:
            found["budget"] = _read_budget(raw["budget"], errors)
        errors.check(RecipeError)
        return cls(**found)

    @classmethod
    def preset(cls, name: str) -> Recipe:
        """A recipe that ships with the package.

        Raises:
            RecipeError: if there is no such preset.
        """
        known = preset_names()
        if name not in known:
            raise RecipeError(f"unknown preset '{name}'{_nearest(name, known)}")
        text = resources.files("onnxslim_core").joinpath("presets", f"{name}.toml").read_text("utf-8")
        return dataclasses.replace(cls.parse(text, f"{name}.toml"), name=f"preset {name}")

    @classmethod
    def exact(cls) -> Recipe:
        """What runs without a recipe: exact passes only."""
        return dataclasses.replace(cls.preset("exact"), name="exact passes (default)")

    def with_settings(self, settings: Iterable[str]) -> Recipe:
        """The recipe with options set from the command line, each `pass.option=value`; the value as in TOML.

        Every step of that name is changed. Text needs no quotes.

        Raises:
            RecipeError: all mistakes at once.
        """
        errors = Errors("--set")
        raws: list[dict[str, Any]] = [{"name": step.name, **step.options} for step in self.steps]
        changed = False
        for setting in settings:
            key, separator, value = setting.partition("=")
            name, dot, option = key.strip().partition(".")
            names = [step.name for step in self.steps]
            if not (separator and dot and option):
                errors.add("", f"'{setting}' is not of the form pass.option=value")
            elif name not in names:
                errors.add("", f"no pass '{name}' in {self.name}{_nearest(name, sorted(set(names)))}")
            else:
                changed = True
                for raw in raws:
                    if raw["name"] == name:
                        raw[option] = _setting_value(value.strip())
        steps = [_read_step(raw, "", errors) for raw in raws] if changed else list(self.steps)
        errors.lines = list(dict.fromkeys(errors.lines))
        errors.check(RecipeError)
        return dataclasses.replace(self, steps=tuple(step for step in steps if step is not None))


def preset_names() -> list[str]:
    """The recipes that ship with the package."""
    folder = resources.files("onnxslim_core").joinpath("presets")
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def _setting_value(text: str) -> object:
    """A value as TOML would read it; anything else is text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _read_steps(raw: Mapping[str, Any], requires: str, errors: Errors) -> tuple[Step, ...]:
    tables = raw.get("pass", [])
    if not isinstance(tables, list) or not all(isinstance(table, Mapping) for table in tables):
        errors.add("pass", "not a list of tables; write [[pass]]")
        return ()
    if not tables:
        errors.add("", "no pass: a recipe holds at least one [[pass]]")
    steps = [_read_step(table, f"pass {number}", errors) for number, table in enumerate(tables, 1)]
    for number, step in enumerate(steps, 1):
        if requires == "exact" and step is not None and not step.exact:
            errors.add(f"pass {number}", f'{step.name} is lossy and the recipe says requires = "exact"')
    return tuple(step for step in steps if step is not None)


def _read_data(table: object, errors: Errors) -> DataSpec:
    if not isinstance(table, Mapping):
        errors.add("data", "not a table")
        return DataSpec()
    errors.keys("data", table, ("source", "samples", "labels", "inputs"))
    found: dict[str, Any] = {}
    _take(table, "source", str, "data", errors, found)
    _take(table, "labels", str, "data", errors, found)
    _take(table, "samples", int, "data", errors, found)
    if found.get("samples", 1) < 1:
        errors.add("data", f"'samples' is {found['samples']}, allowed is 1 and above")
    inputs = table.get("inputs", {})
    if not isinstance(inputs, Mapping):
        errors.add("data.inputs", "not a table; write [data.inputs.NAME]")
        inputs = {}
    found["inputs"] = {name: _read_data_input(name, entry, errors) for name, entry in inputs.items()}
    return DataSpec(**found)


def _read_data_input(name: str, table: object, errors: Errors) -> DataInput:
    where = f"data.inputs.{name}"
    if not isinstance(table, Mapping):
        errors.add(where, "not a table")
        return DataInput()
    errors.keys(where, table, ("from", "layout", "scale", "mean", "std"))
    found: dict[str, Any] = {}
    _take(table, "from", str, where, errors, found, "array")
    _take(table, "layout", str, where, errors, found)
    _take(table, "scale", float, where, errors, found)
    for key in ("mean", "std"):
        _take(table, key, tuple[float, ...], where, errors, found)
    layout = found.get("layout")
    if layout is not None and layout not in LAYOUTS:
        errors.unknown(where, layout, "layout", LAYOUTS)
    if found.get("scale", 1.0) == 0 or 0 in found.get("std", ()):
        errors.add(where, "'scale' and 'std' are divided by and cannot be 0")
    lengths = {len(found[key]) for key in ("mean", "std") if found.get(key)}
    if len(lengths) > 1:
        errors.add(where, f"'mean' and 'std' differ in length: {len(found['mean'])} and {len(found['std'])}")
    return DataInput(**found)


def _read_inputs(table: object, errors: Errors) -> dict[str, InputSpec]:
    if not isinstance(table, Mapping):
        errors.add("inputs", "not a table; write [inputs.NAME]")
        return {}
    specs: dict[str, InputSpec] = {}
    for name, entry in table.items():
        where = f"inputs.{name}"
        if not isinstance(entry, Mapping):
            errors.add(where, "not a table with 'shape' or 'value'")
            continue
        errors.keys(where, entry, ("shape", "value"))
        found: dict[str, Any] = {}
        _take(entry, "shape", tuple[int, ...], where, errors, found)
        if "value" in entry:
            found["value"] = entry["value"]
            if isinstance(entry["value"], Mapping):
                errors.add(where, "'value' is a table, not a number, a text or a list of these")
        if any(size < 0 for size in found.get("shape", ())):
            errors.add(where, f"'shape' is {list(found['shape'])}, sizes cannot be negative")
        specs[name] = InputSpec(**found)
    return specs
