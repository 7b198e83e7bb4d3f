"""Recipes and budgets: what is read, and that every mistake is told, at once and by name."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from onnxslim_core import passes
from onnxslim_core.errors import BudgetError, RecipeError
from onnxslim_core.recipe import Budget, InputSpec, Recipe, load_budget, preset_names
from onnxslim_core.rewrite import Kind


class Norm(enum.Enum):
    L1 = "l1"
    L2 = "l2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Squeeze:
    """A pass with an option of each kind."""

    name: ClassVar[str] = "squeeze"
    kind: ClassVar[Kind] = Kind.LOSSY
    ratio: float = 0.25
    energy: float | None = None
    round_to: int | Literal["auto"] = "auto"
    criterion: Norm = Norm.L2
    ignored: tuple[str, ...] = ()
    deep: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise ValueError(f"ratio is {self.ratio}, allowed is 0 to below 1")
        if isinstance(self.round_to, int) and self.round_to < 1:
            raise RecipeError(f"round_to of squeeze is {self.round_to}, allowed is 1 and above")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ValueError(f"energy is {self.energy}, allowed is above 0 to 1")


@dataclass(frozen=True, slots=True)
class Exact:
    """A pass without options."""

    name: ClassVar[str] = "exact_one"
    kind: ClassVar[Kind] = Kind.ALGEBRAIC


@dataclass(frozen=True, slots=True, kw_only=True)
class Needy:
    """A pass with options that have no default."""

    name: ClassVar[str] = "needy"
    kind: ClassVar[Kind] = Kind.LOSSY
    share: float
    """Of what stays."""
    norm: Norm
    width: int = 8

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise RecipeError(f"share of needy is {self.share}", "a share between 0 and 1")
        if self.width < 1:
            raise RecipeError(f"width of needy is {self.width}", "a number from 1")


@pytest.fixture(autouse=True)
def two_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    make = vars(passes)["Row"]
    rows = (
        make("squeeze", "x", "Squeeze", Kind.LOSSY, "preview"),
        make("exact_one", "x", "Exact", Kind.ALGEBRAIC, "preview"),
        make("needy", "x", "Needy", Kind.LOSSY, "preview"),
    )
    monkeypatch.setattr(passes, "TABLE", rows)
    monkeypatch.setattr(
        passes, "pass_class", lambda name: {"squeeze": Squeeze, "exact_one": Exact, "needy": Needy}[name]
    )


def complaints(text: str) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(text)
    assert caught.value.exit_code == 2
    return caught.value.errors


def test_reads_everything() -> None:
    recipe = Recipe.parse(
        """
version = 1
seed = 7
requires = "any"
[data]
source = "calibration.npz"
samples = 512
[data.inputs.image]
from = "pixels"
layout = "NHWC"
scale = 255
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
[inputs.image]
shape = [1, 3, 320, 320]
[inputs.sr]
value = 16000
[[pass]]
name = "exact_one"
[[pass]]
name = "squeeze"
ratio = 0
round_to = 8
criterion = "l1"
ignored = ["/head/*"]
[budget]
min_cosine = 0.99
max_latency_ratio = 0.8
[budget.output.boxes]
max_abs = 2
axis = -1
parts = {boxes = [0, 4], scores = [4, 22]}
"""
    )
    assert recipe.seed == 7
    assert recipe.steps[1].options == {"ratio": 0.0, "round_to": 8, "criterion": Norm.L1, "ignored": ("/head/*",)}
    built: object = recipe.steps[1].build()
    assert built == Squeeze(ratio=0.0, round_to=8, criterion=Norm.L1, ignored=("/head/*",))
    assert [step.exact for step in recipe.steps] == [True, False]
    assert recipe.inputs == {"image": InputSpec((1, 3, 320, 320)), "sr": InputSpec(None, 16000)}
    pixels = recipe.data.inputs["image"]
    assert (pixels.array, pixels.layout, pixels.scale, pixels.std) == ("pixels", "NHWC", 255.0, (0.229, 0.224, 0.225))
    assert recipe.budget is not None
    assert recipe.budget.parts == {"boxes": (-1, {"boxes": (0, 4), "scores": (4, 22)})}
    assert recipe.budget.judges_answers


def test_names_the_nearest_option() -> None:
    found = complaints('[[pass]]\nname = "exact_one"\n[[pass]]\nname = "squeeze"\nenregy = 0.9\n')
    assert found == ("recipe.toml: pass 2: unknown option 'enregy' of squeeze; did you mean 'energy'?",)


def test_tells_every_mistake_at_once() -> None:
    found = complaints(
        """
version = 2
sed = 1
requires = "exact"
[data]
samples = 0
[data.inputs.image]
layout = "NCWH"
std = [0.2, 0.0]
[inputs.image]
shape = [1, "three"]
[[pass]]
name = "squeze"
[[pass]]
name = "squeeze"
ratio = "a lot"
deep = 1
criterion = "l3"
[[pass]]
ratio = 1
[budget]
min_cosin = 0.9
min_cosine = 1.5
max_latency_ratio = 0
max_abs = nan
[budget.output.y]
parts = {a = [3, 1]}
"""
    )
    expected = [
        "recipe.toml: unknown key 'sed'; did you mean 'seed'?",
        "recipe.toml: version is 2, this program reads version 1",
        "recipe.toml: pass 1: unknown pass 'squeze'; did you mean 'squeeze'?",
        "recipe.toml: pass 2: option 'ratio' of squeeze is 'a lot', not a number",
        "recipe.toml: pass 2: option 'deep' of squeeze is 1, not true or false",
        "recipe.toml: pass 2: option 'criterion' of squeeze is 'l3', not one of 'l1', 'l2'",
        "recipe.toml: pass 3: a pass needs a name",
        'recipe.toml: pass 2: squeeze is lossy and the recipe says requires = "exact"',
        "recipe.toml: data: 'samples' is 0, allowed is 1 and above",
        "recipe.toml: data.inputs.image: unknown layout 'NCWH'; did you mean 'NCHW'?",
        "recipe.toml: data.inputs.image: 'scale' and 'std' are divided by and cannot be 0",
        "recipe.toml: inputs.image: 'shape' is [1, 'three'], not a list of an integer",
        "recipe.toml: budget: unknown key 'min_cosin'; did you mean 'min_cosine'?",
        "recipe.toml: budget: 'min_cosine' is 1.5, allowed is between -1 and 1",
        "recipe.toml: budget: 'max_abs' is nan, not a finite number",
        "recipe.toml: budget: 'max_latency_ratio' is 0, allowed is above 0",
        "recipe.toml: budget.output.y: part 'a' is [3, 1], not [first, end] with 0 <= first < end",
        "recipe.toml: budget.output.y: 'parts' needs 'axis', the axis that they cut",
    ]
    assert sorted(found) == sorted(expected)


def test_tells_every_option_out_of_range() -> None:
    found = complaints('[[pass]]\nname = "squeeze"\nratio = 1.5\nround_to = 0\nenergy = 2\n')
    assert sorted(found) == [
        "recipe.toml: pass 1: round_to of squeeze is 0, allowed is 1 and above",
        "recipe.toml: pass 1: squeeze: energy is 2.0, allowed is above 0 to 1",
        "recipe.toml: pass 1: squeeze: ratio is 1.5, allowed is 0 to below 1",
    ]


def test_an_option_without_a_default_is_asked_for_and_hides_no_other_mistake() -> None:
    where = "recipe.toml: pass 1"
    assert complaints('[[pass]]\nname = "needy"\nwidth = 0\n') == (
        f"{where}: needy: share is missing, Of what stays",
        f"{where}: needy: norm is missing, one of 'l1', 'l2'",
        f"{where}: width of needy is 0, allowed is a number from 1",
    )
    assert complaints('[[pass]]\nname = "needy"\nshare = 2.0\nnorm = "l1"\nwidth = 0\n') == (
        f"{where}: share of needy is 2.0, allowed is a share between 0 and 1",
        f"{where}: width of needy is 0, allowed is a number from 1",
    )
    assert complaints('[[pass]]\nname = "needy"\nshare = "x"\nnorm = "l1"\n') == (
        f"{where}: option 'share' of needy is 'x', not a number",
    )


@pytest.mark.parametrize(
    ("text", "needle"),
    [
        ("", "a recipe holds at least one [[pass]]"),
        ("pass = 3", "write [[pass]]"),
        ('pass = ["squeeze"]', "write [[pass]]"),
        ('[[pass]]\nname = "squeeze"\nratio = true', "is true, not a number"),
        ('[[pass]]\nname = "squeeze"\nratio = nan', "is nan, not a number"),
        ('[[pass]]\nname = "squeeze"\nround_to = "grid"', "is 'grid', not an integer or 'auto'"),
        ('[[pass]]\nname = "squeeze"\nignored = "/head"', "is '/head', not a list of text"),
        ("[[pass]]\nname = 5", "name is 5, not text"),
        ('seed = -1\n[[pass]]\nname = "exact_one"', "'seed' is -1"),
        ('data = 1\n[[pass]]\nname = "exact_one"', "data: not a table"),
        ('budget = 1\n[[pass]]\nname = "exact_one"', "budget: not a table"),
        ('[[pass]\nname = "exact_one"', "not TOML"),
    ],
)
def test_refuses(text: str, needle: str) -> None:
    found = complaints(text)
    assert len(found) == 1
    assert needle in found[0]


def test_settings_change_every_step_of_the_name() -> None:
    recipe = Recipe.parse('[[pass]]\nname = "squeeze"\n[[pass]]\nname = "squeeze"\ndeep = true\n')
    changed = recipe.with_settings(["squeeze.ratio=0.5", "squeeze.criterion=l1", 'squeeze.ignored=["a", "b"]'])
    built: list[object] = [step.build() for step in changed.steps]
    assert built == [
        Squeeze(ratio=0.5, criterion=Norm.L1, ignored=("a", "b")),
        Squeeze(ratio=0.5, criterion=Norm.L1, ignored=("a", "b"), deep=True),
    ]
    assert recipe.steps[0].options == {}
    assert recipe.with_settings([]) == recipe


def test_settings_tell_every_mistake() -> None:
    recipe = Recipe.parse('[[pass]]\nname = "squeeze"\n')
    with pytest.raises(RecipeError) as caught:
        recipe.with_settings(["squeeze.ratoi=0.5", "squeze.ratio=0.5", "ratio=1", "squeeze.deep=yes"])
    assert caught.value.errors == (
        "--set: no pass 'squeze' in recipe.toml; did you mean 'squeeze'?",
        "--set: 'ratio=1' is not of the form pass.option=value",
        "--set: unknown option 'ratoi' of squeeze; did you mean 'ratio'?",
        "--set: option 'deep' of squeeze is 'yes', not true or false",
    )


def test_missing_file_and_preset(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such file"):
        Recipe.load(tmp_path / "no.toml")
    with pytest.raises(RecipeError, match="did you mean 'balanced'"):
        Recipe.preset("balance")
    (tmp_path / "r.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="cannot read"):
        Recipe.load(tmp_path / "r.toml")


def test_relative_data_starts_at_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('[data]\nsource = "d.npz"\n[[pass]]\nname = "exact_one"\n')
    assert Recipe.load(tmp_path / "r.toml").data.folder == tmp_path.resolve()


def test_budget_file(tmp_path: Path) -> None:
    path = tmp_path / "b.toml"
    path.write_text('[budget]\nmin_cosine = 1\nallowed_domains = ["", "ai.onnx.ml"]\nmax_opset = 17\n')
    assert load_budget(path) == Budget(min_cosine=1.0, allowed_domains=("", "ai.onnx.ml"), max_opset=17)
    for text, needle in [
        ("", "holds one table"),
        ("[budget]", "nothing would be judged"),
        ("[budget]\nmin_cosine = 0.9\n[other]\nx = 1", "unknown table 'other'"),
        ("[budget]\nmin_cosine = '0.9'", "not a finite number"),
        ("[budget]\nrequire_data = 1", "not true or false"),
        ("[budget]\nmax_opset = 0", "allowed is 1 and above"),
        ("[budget.output.y]\naxis = 1\nmax_abs = 1", "no meaning without 'parts'"),
        ("[budget]\noutput = 1", "[budget.output.NAME]"),
    ]:
        path.write_text(text)
        with pytest.raises(BudgetError) as caught:
            load_budget(path)
        assert needle in caught.value.errors[0], text
        assert caught.value.exit_code == 2


def test_errors_are_one_line_each() -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse("a = 1\nb = 2")
    assert "\n" not in str(caught.value)
    assert caught.value.hint is not None
    assert caught.value.hint.splitlines() == list(caught.value.errors)


def test_presets_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert preset_names() == ["aggressive", "balanced", "exact", "int8"]
    for name in preset_names():
        recipe = Recipe.preset(name)
        assert [step.build().name for step in recipe.steps] == [step.name for step in recipe.steps]
        assert all(step.exact for step in recipe.steps) == (name == "exact")
        assert (recipe.budget is None) == (name == "exact")
    assert Recipe.exact().steps == Recipe.preset("exact").steps
