"""`[[pass.override]]`: other options for some groups of channels."""

from __future__ import annotations

import io
import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from rich.console import Console

from onnxslim_core.errors import RecipeError
from onnxslim_core.model import load
from onnxslim_core.pipeline import compress
from onnxslim_core.recipe import Recipe
from onnxslim_core.rewrite import Context

WIDTHS = {"stem": (24, 3), "mid": (24, 24), "late": (24, 24), "head": (4, 24)}


def net() -> onnx.ModelProto:
    """Four Convs in a row; half of the channels of the first three are zero."""
    body = "".join(
        f" [{name}_node] {name}_c = Conv({source}, {name}.weight) {name} = Relu({name}_c)"
        for name, source in zip(list(WIDTHS)[:3], ["x", "stem", "mid"], strict=True)
    )
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1,3,6,6] x) => (float[1,4,6,6] y)'
        f" {{ {body} [head_node] y = Conv(late, head.weight) }}".replace(".weight", "_weight")
    )
    rng = np.random.default_rng(0)
    for name, shape in WIDTHS.items():
        weight = rng.standard_normal((*shape, 1, 1)).astype(np.float32)
        if name != "head":
            weight[1::2] = 0
        model.graph.initializer.append(numpy_helper.from_array(weight, f"{name}_weight"))
    return model


def widths(model: onnx.ModelProto) -> list[int]:
    """Output channels of the Convs, in order."""
    found = {t.name: t.dims[0] for t in model.graph.initializer}
    return [found[f"{name}_weight"] for name in list(WIDTHS)[:3]]


def recipe(name: str, options: str, *overrides: str) -> Recipe:
    text = f'version = 1\n[[pass]]\nname = "{name}"\n{options}\n'
    return Recipe.parse(text + "".join(f"[[pass.override]]\n{o}\n" for o in overrides), "r.toml")


def pruned(name: str, options: str, *overrides: str) -> tuple[list[int], list[str]]:
    """Widths afterwards, and the reasons of refusals."""
    model = load(net())
    changes = recipe(name, options, *overrides).steps[0].build().run(model.ir, Context())
    return widths(model.to_proto()), [change.reason for change in changes if not change.applied]


@pytest.mark.parametrize(
    ("options", "overrides", "expected"),
    [
        ("ratio = 0.25\nround_to = 1", (), [18, 18, 18]),
        ("ratio = 0.25\nround_to = 1", ('match = ["mid_*"]\nratio = 0.5',), [18, 12, 18]),
        ("ratio = 0.25\nround_to = 1", ('match = "mid_node"\nkeep = true',), [18, 24, 18]),
        ("ratio = 0.25\nround_to = 1", ('match = ["stem_weight", "late_*"]\nround_to = 8',), [24, 18, 24]),
        ("ratio = 0.75\nround_to = 1", ('match = ["late_*"]\nmax_ratio = 0.5',), [6, 6, 12]),
        ("ratio = 0.75\nround_to = 1", ('match = ["stem_weight"]\nmin_width = 11',), [11, 6, 6]),
        # later ones win, option by option
        (
            "ratio = 0.25\nround_to = 1",
            ('match = ["mid_*"]\nratio = 0.5\nmin_width = 15', 'match = ["mid_*"]\nratio = 0.75'),
            [18, 15, 18],
        ),
        (
            "ratio = 0.25\nround_to = 1",
            ('match = ["mid_*"]\nkeep = true', 'match = ["mid_*"]\nratio = 0.5'),
            [18, 12, 18],
        ),
        ('allocation = "macs"\ntarget = 0.6\nround_to = 1', ('match = ["mid_*"]\nkeep = true',), None),
    ],
)
def test_a_group_has_options_of_its_own(options: str, overrides: tuple[str, ...], expected: list[int] | None) -> None:
    found, _ = pruned("prune_channels", options, *overrides)
    if expected is None:
        assert found[1] == 24
        assert min(found) < 24
    else:
        assert found == expected


def test_idle_channels_of_a_group_can_stay() -> None:
    assert pruned("remove_idle", "round_to = 1")[0] == [12, 12, 12]
    found, reasons = pruned("remove_idle", "round_to = 1", 'match = ["mid_weight"]\nkeep = true')
    assert found == [12, 24, 12]
    assert "an override keeps 'mid_weight'" in reasons
    assert pruned("remove_idle", "round_to = 1", 'match = ["late_node"]\nround_to = 16')[0] == [12, 12, 16]


@pytest.mark.parametrize("name", ["prune_channels", "remove_idle"])
def test_a_glob_that_fits_nothing_is_told(name: str) -> None:
    _, reasons = pruned(name, "round_to = 1", 'match = ["layer9/*"]\nround_to = 4')
    assert "no node or weight that makes channels is called like that" in reasons


def test_the_answers_are_those_of_the_network_and_the_report_holds_the_override() -> None:
    chosen = recipe("remove_idle", "round_to = 1", 'match = ["mid_*"]\nkeep = true')
    result = compress(net(), recipe=chosen, measure_latency=False)
    assert result.report.outcome == "exact"
    assert widths(result.model.to_proto()) == [12, 24, 12]
    told = json.loads(result.report.to_json())
    assert [s["options"].get("override") for s in told["steps"] if s["name"] == "remove_idle"] == [
        [{"match": ["mid_*"], "keep": True}]
    ]


@pytest.mark.parametrize(
    ("name", "override", "expected"),
    [
        ("prune_channels", "ratio = 0.5", "no 'match': give globs over the names of nodes or weights"),
        ("prune_channels", "match = 3", "'match' is 3, not a list of globs"),
        ("prune_channels", "match = []", "'match' is [], not a list of globs"),
        (
            "prune_channels",
            'match = "a"\nraito = 0.5',
            "unknown option 'raito' of prune_channels; did you mean 'ratio'?",
        ),
        ("prune_channels", 'match = "a"\nratio = "x"', "option 'ratio' of prune_channels is 'x', not a number"),
        (
            "prune_channels",
            'match = "a"\nratio = 1.5',
            "ratio of prune_channels is 1.5, allowed is a share from 0 to 1",
        ),
        (
            "prune_channels",
            'match = "a"\nrepair = "bias"',
            "option 'repair' of prune_channels is one for all groups; per group: ratio, round_to, max_ratio, min_width",
        ),
        ("prune_channels", 'match = "a"\nkeep = 1', "'keep' is 1, not true or false"),
        ("prune_channels", 'match = "a"\nkeep = true\nratio = 0.5', "keep = true leaves nothing for ratio"),
        (
            "remove_idle",
            'match = "a"\nround_to = 0',
            "round_to of remove_idle is '0', allowed is 'auto' or a number of channels from 1",
        ),
    ],
)
def test_a_mistake_is_one_line(name: str, override: str, expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(name, "", override)
    assert caught.value.errors == (f"r.toml: pass 1: override 1: {expected}",)


def test_a_ratio_needs_the_allocation_that_takes_one() -> None:
    with pytest.raises(RecipeError, match="override 1: allocation 'macs' of prune_channels takes target, not ratio"):
        recipe("prune_channels", 'allocation = "macs"\ntarget = 0.5', 'match = "a"\nratio = 0.5')


def test_a_pass_without_groups_takes_none() -> None:
    with pytest.raises(RecipeError, match=r"pass 1: normalize has no options per group, so no \[\[pass.override\]\]"):
        recipe("normalize", "", 'match = "a"')
    with pytest.raises(RecipeError, match=r"'override' is not a list of tables; write \[\[pass.override\]\]"):
        Recipe.parse('version = 1\n[[pass]]\nname = "remove_idle"\noverride = 3\n')


def test_settings_of_the_command_line_keep_overrides() -> None:
    before = recipe("prune_channels", "ratio = 0.25", 'match = ["mid_*"]\nkeep = true')
    after = before.with_settings(["prune_channels.ratio=0.5"])
    assert after.steps[0].options["override"] == ({"match": ("mid_*",), "keep": True},)
    assert after.steps[0].build() != before.steps[0].build()


def test_a_glob_that_fits_nothing_is_shown_on_the_console() -> None:
    """Among forty refusals in a report nobody sees that a name is misspelled."""
    overrides = 'match = ["stem_weight", "mdi_*"]\nkeep = true'
    result = compress(net(), recipe("remove_idle", "", overrides), measure_latency=False)
    told = "remove_idle: override of 'mdi_*': no node or weight that makes channels is called like that"
    assert result.report.warnings == (*result.report.data.warnings, told)
    console = Console(file=io.StringIO(), width=200)
    result.report.print_console(console)
    assert f"! {told}" in console.file.getvalue()  # type: ignore[attr-defined]
