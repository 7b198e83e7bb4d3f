"""Recipes and budgets: TOML in, typed data out, every error at once.

A recipe says which passes run, in which order and with which options; a budget says what the result may cost in
answers and must gain in time and size. Both are checked in full before any work begins: an unknown key, a wrong type
and a value out of range are each one line with the nearest valid name, and a file with three mistakes shows three.

The classes of the passes are imported only when a recipe is parsed, so that the command line can name these types
without loading `onnx_ir`.
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal

from onnxslim_core._budget import Budget, OutputBudget, load_budget, read_budget
from onnxslim_core._data import data_with, read_data
from onnxslim_core._options import (
    Errors,
    field_docs,
    fit,
    nearest,
    read_text,
    read_toml,
    shown,
    some,
    take,
    type_words,
)
from onnxslim_core.calibration.spec import DataInput, DataSpec, toml_key
from onnxslim_core.errors import RecipeError

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


# ---------------------------------------------------------------------------------------------------- passes

OVERRIDE = "override"
"""The table of a pass with options of single groups."""
_OF_OVERRIDES = ("match", "keep")


@dataclass(frozen=True, slots=True)
class Step:
    """One `[[pass]]` of a recipe.

    Attributes:
        name: The pass.
        options: As written, of the right types; what is absent has the pass's default.
        loaded: The class of a pass that is the user's code, once it may run; see `Recipe.with_code`.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    loaded: type[Pass] | None = None

    @property
    def is_code(self) -> bool:
        """True for `file.py:function`, which nothing loads unless it is let."""
        return _is_code(self.name)

    @property
    def exact(self) -> bool:
        """True where the pass promises equal answers."""
        from onnxslim_core.passes import pass_class
        from onnxslim_core.rewrite import Kind

        if self.is_code and self.loaded is None:
            return self.options.get("exact") is True
        kind = (self.loaded or pass_class(self.name)).kind
        return kind.exact if isinstance(kind, Kind) else self.build().kind.exact  # a function's is an option

    def build(self) -> Pass:
        """The pass with these options."""
        from onnxslim_core.passes import pass_class

        found: Pass = _made(self.loaded or pass_class(self.name), self.options)
        return found


def _is_code(name: str) -> bool:
    return ".py:" in name


def _made(cls: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    """A pass with options as a recipe writes them."""
    from onnxslim_core.rewrite import Override

    if OVERRIDE not in options:
        return cls(**options)
    overrides = tuple(
        Override(table["match"], table.get("keep", False), {k: v for k, v in table.items() if k not in _OF_OVERRIDES})
        for table in options[OVERRIDE]
    )
    return cls(**{**options, OVERRIDE: overrides})


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
        errors.add(where, "a pass needs a name" if name is None else f"name is {shown(name)}, not text")
        return None
    if _is_code(name):  # its options are checked when it may be loaded
        return Step(name, {key: value for key, value in raw.items() if key != "name"})
    if name not in known and ":" not in name:
        errors.unknown(where, name, "pass", known)
        return None
    try:
        cls = pass_class(name)
    except RecipeError as err:
        errors.add(where, str(err))
        return None
    return _read_options(raw, cls, name, where, errors)


def _read_options(raw: Mapping[str, Any], cls: type[Pass], name: str, where: str, errors: Errors) -> Step:
    """The options of a pass, checked against its class."""
    types_ = _option_types(cls)
    options: dict[str, Any] = {}
    overrides = raw.get(OVERRIDE) if OVERRIDE in types_ else None
    for key, value in raw.items():
        if key == "name" or (key == OVERRIDE and overrides is not None):
            continue
        if key not in types_ and key == OVERRIDE:
            errors.add(where, f"{name} has no options per group, so no [[pass.{OVERRIDE}]]")
        else:
            _take_option(key, value, types_, where, name, errors, options)
    for key in _required(cls):
        if key not in raw:
            meaning = field_docs(cls).get(key) or type_words(types_[key])
            errors.add(where, f"{name}: {key} is missing, {meaning.rstrip('.')}")
    for line in _out_of_range(cls, options):
        errors.add(where, line if name in line else f"{name}: {line}")
    if overrides is not None:
        options[OVERRIDE] = _read_overrides(overrides, cls, options, where, name, errors)
    return Step(name, options)


def _take_option(
    key: str, value: object, types_: Mapping[str, Any], where: str, name: str, errors: Errors, options: dict[str, Any]
) -> None:
    if key not in types_:
        errors.unknown(where, key, "option", [known for known in types_ if known != OVERRIDE], name)
        return
    fits, converted = fit(value, types_[key])
    if fits:
        options[key] = converted
    else:
        errors.add(where, f"option '{key}' of {name} is {shown(value)}, not {type_words(types_[key])}")


def _read_overrides(
    tables: object, cls: type, options: Mapping[str, Any], where: str, name: str, errors: Errors
) -> tuple[dict[str, Any], ...]:
    """`[[pass.override]]`: what the options of a pass are for the groups that a glob fits, as plain tables."""
    if not isinstance(tables, list | tuple) or not all(isinstance(table, Mapping) for table in tables):
        errors.add(where, f"'{OVERRIDE}' is not a list of tables; write [[pass.{OVERRIDE}]]")
        return ()
    per_group: tuple[str, ...] = getattr(cls, "per_group", ())
    types_ = {key: _option_types(cls)[key] for key in per_group}
    complaints = _out_of_range(cls, options)
    found = []
    for number, table in enumerate(tables, 1):
        place = f"{where}: {OVERRIDE} {number}"
        own: dict[str, Any] = {}
        for key, value in table.items():
            if key == "match":
                fits, own[key] = fit([value] if isinstance(value, str) else value, tuple[str, ...])
                if not fits or not own[key]:
                    errors.add(place, f"'match' is {shown(value)}, not a list of globs")
            elif key == "keep":
                own[key] = value
                if not isinstance(value, bool):
                    errors.add(place, f"'keep' is {shown(value)}, not true or false")
            elif key not in types_ and key in _option_types(cls):
                errors.add(place, f"option '{key}' of {name} is one for all groups; per group: {', '.join(per_group)}")
            else:
                _take_option(key, value, {**types_, "match": None, "keep": None}, place, name, errors, own)
        if "match" not in own:
            errors.add(place, "no 'match': give globs over the names of nodes or weights")
        given = {key: own[key] for key in per_group if key in own}
        if own.get("keep") is True and given:
            errors.add(place, f"keep = true leaves nothing for {', '.join(given)}")
        errors.lines += [
            f"{errors.origin}: {place}: {line}"
            for line in _out_of_range(cls, {**options, **given})
            if line not in complaints
        ]
        found.append(own)
    return tuple(found)


def _required(cls: type) -> dict[str, Any]:
    """The options without a default, each with a value that stands in for it."""
    missing = dataclasses.MISSING
    fields = [f for f in dataclasses.fields(cls) if f.default is missing and f.default_factory is missing]
    return {f.name: some(_option_types(cls)[f.name]) for f in fields if f.init}


def _out_of_range(cls: type, options: Mapping[str, Any]) -> list[str]:
    """What `__post_init__` says against the options.

    It stops at its first complaint, so the option whose absence changes the outcome is taken out and the rest tried
    again, until nothing is complained about any more. A complaint that only names an option taken out is our doing.
    One without a default cannot be absent: something harmless stands in for it.
    """
    lines: list[str] = []
    required = _required(cls)
    taken = [key for key in required if key not in options]
    rest = {**required, **options}
    while (complaint := _complaint(cls, rest)) is not None:
        if not any(f"{key}" in complaint for key in taken):
            lines.append(complaint)
        others = {key: _complaint(cls, _without(rest, key, required)) for key in rest}
        guilty = [key for key, outcome in others.items() if outcome is None]
        guilty = guilty or [key for key, outcome in others.items() if outcome != complaint]
        if not guilty:
            break
        taken.append(guilty[0])
        rest = _without(rest, guilty[0], required)
    return lines


def _without(options: Mapping[str, Any], key: str, required: Mapping[str, Any]) -> dict[str, Any]:
    return {**required, **{name: value for name, value in options.items() if name != key}}


def _complaint(cls: Callable[..., object], options: Mapping[str, Any]) -> str | None:
    try:
        cls(**options)
    except RecipeError as err:
        return f"{err}, allowed is {err.hint}" if err.hint else str(err)
    except (ValueError, TypeError) as err:
        return str(err)
    return None


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

    @property
    def named_files(self) -> list[Path]:
        """Files and folders that it reads, the code of its passes too; these as `FILE.py:FUNCTION`."""
        names = (self.data.source, self.data.judging, *(step.name for step in self.steps if step.is_code))
        return [(self.data.folder or Path()) / name for name in names if name]

    @classmethod
    def of(cls, given: object) -> Recipe:
        """What a caller gives as a recipe: one, the path of its file, or the name of a preset.

        A preset's name is taken for one whatever lies in the current folder.

        Raises:
            RecipeError: where it is none of these, or the file is wrong.
        """
        if isinstance(given, Recipe):
            return given
        if isinstance(given, PurePath) or (isinstance(given, str) and _is_file(given)):
            return cls.load(Path(given))
        if isinstance(given, str):
            return cls.preset(given)
        raise RecipeError(f"a {type(given).__name__} is no recipe", "a Recipe, a path, or the name of a preset")

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a recipe file.

        Raises:
            RecipeError: where the file is missing, no TOML, or wrong in any key; all mistakes at once.
        """
        path = Path(path)
        return cls.parse(read_text(path, RecipeError), path.name, folder=path.resolve().parent)

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
        raw = read_toml(text, origin, RecipeError)
        errors = Errors(origin)
        errors.keys("", raw, ("version", "seed", "requires", "data", "inputs", "pass", "budget"))
        found: dict[str, Any] = {"name": origin}
        if raw.get("version", 1) != 1 or isinstance(raw.get("version"), bool):
            errors.add("", f"version is {shown(raw['version'])}, this program reads version 1")
        take(raw, "seed", int, "", errors, found)
        if found.get("seed", 0) < 0:
            errors.add("", f"'seed' is {found['seed']}, allowed is 0 and above")
        take(raw, "requires", Literal["any", "exact"], "", errors, found)
        found["steps"] = _read_steps(raw, found.get("requires", "any"), errors)
        found["data"] = dataclasses.replace(read_data(raw.get("data", {}), errors), folder=folder)
        found["inputs"] = _read_inputs(raw.get("inputs", {}), errors)
        if "budget" in raw:
            found["budget"] = read_budget(raw["budget"], errors)
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
            raise RecipeError(f"unknown preset '{name}'{nearest(name, known)}")
        text = resources.files("onnxslim_core").joinpath("presets", f"{name}.toml").read_text("utf-8")
        return dataclasses.replace(cls.parse(text, f"{name}.toml"), name=f"preset {name}")

    @classmethod
    def exact(cls) -> Recipe:
        """What runs without a recipe: exact passes only."""
        return dataclasses.replace(cls.preset("exact"), name="exact passes (default)")

    def with_settings(self, settings: Iterable[str]) -> Recipe:
        """The recipe with options set from the command line, each `pass.option=value`; the value as in TOML.

        Every step of that name is changed. `data.KEY` and `data.inputs.NAME.KEY` set what `[data]` says. Text needs no
        quotes.

        Raises:
            RecipeError: all mistakes at once.
        """
        errors = Errors("--set")
        raws: list[dict[str, Any]] = [{"name": step.name, **step.options} for step in self.steps]
        changed, data = False, self.data
        for setting in settings:
            key, separator, value = setting.partition("=")
            name, dot, option = key.strip().partition(".")
            names = [step.name for step in self.steps]
            if (own := key.strip().rpartition("."))[0] in names:  # a file's name has a dot of its own
                name, dot, option = own
            if not (separator and dot and option):
                errors.add("", f"'{setting}' is not of the form pass.option=value")
            elif name == "data" and name not in names:
                data = data_with(data, option, _setting_value(value.strip()), errors)
            elif name not in names:
                errors.add("", f"no pass '{name}' in {self.name}{nearest(name, sorted(set(names)))}")
            else:
                changed = True
                for raw in raws:
                    if raw["name"] == name:
                        raw[option] = _setting_value(value.strip())
        steps = [_read_step(raw, "", errors) for raw in raws] if changed else list(self.steps)
        errors.lines = list(dict.fromkeys(errors.lines))
        errors.check(RecipeError)
        return dataclasses.replace(self, steps=tuple(step for step in steps if step is not None), data=data)

    def with_code(self, *, allowed: bool) -> Recipe:
        """The recipe with the passes that are the user's own code loaded, which runs their files.

        Args:
            allowed: Whether it may.

        Raises:
            RecipeError: where it may not, or an option does not fit; all mistakes at once.
            DataError: where there is no such function, or its file fails.
        """
        from onnxslim_core.calibration.code import load_function
        from onnxslim_core.surgeon import as_pass

        errors, steps = Errors(self.name), list[Step]()
        for number, step in enumerate(self.steps, 1):
            if not step.is_code:
                steps.append(step)
                continue
            if not allowed:
                raise RecipeError(f"{self.name}: pass {number}: '{step.name}' is code", "let it run with --allow-code")
            cls = as_pass(step.name, load_function(step.name, self.data.folder or Path.cwd()))
            read = _read_options(step.options, cls, step.name, f"pass {number}", errors)
            steps.append(dataclasses.replace(read, loaded=cls))
        errors.check(RecipeError)
        return dataclasses.replace(self, steps=tuple(steps))


def preset_names() -> list[str]:
    """The recipes that ship with the package."""
    folder = resources.files("onnxslim_core").joinpath("presets")
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def _is_file(text: str) -> bool:
    """True for a path; the name of a preset is none."""
    return text not in preset_names() and (text.endswith(".toml") or os.path.isfile(text))


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


def _read_inputs(table: object, errors: Errors) -> dict[str, InputSpec]:
    if not isinstance(table, Mapping):
        errors.add("inputs", "not a table; write [inputs.NAME]")
        return {}
    specs: dict[str, InputSpec] = {}
    for name, entry in table.items():
        where = f"inputs.{toml_key(name)}"
        if not isinstance(entry, Mapping):
            errors.add(where, "not a table with 'shape' or 'value'")
            continue
        errors.keys(where, entry, ("shape", "value"))
        found: dict[str, Any] = {}
        take(entry, "shape", tuple[int, ...], where, errors, found)
        if "value" in entry:
            found["value"] = entry["value"]
            if isinstance(entry["value"], Mapping):
                errors.add(where, "'value' is a table, not a number, a text or a list of these")
        if any(size < 0 for size in found.get("shape", ())):
            errors.add(where, f"'shape' is {list(found['shape'])}, sizes cannot be negative")
        specs[name] = InputSpec(**found)
    return specs
