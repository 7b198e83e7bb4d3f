"""Passes that other packages bring along, by entry points."""

from __future__ import annotations

import importlib
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxslim_core.passes import GROUP, pass_class

from onnxslim_core.cli import main
from onnxslim_core.cli.catalogue import one_pass
from onnxslim_core.errors import RecipeError
from onnxslim_core.pipeline import compress
from onnxslim_core.recipe import Recipe
from onnxslim_core.rewrite import Change, Context, Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """Write a word into the doc string."""

    name: ClassVar[str] = "stamp"
    kind: ClassVar[Kind] = Kind.BITWISE
    word: str = "seen"

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        model.doc_string = self.word
        return [Change(self.name, (), "stamped")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Silent:
    """Double every weight, or note who was here, and say nothing of it."""

    name: ClassVar[str] = "silent"
    kind: ClassVar[Kind] = Kind.BITWISE
    only_note: bool = False

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        if self.only_note:
            model.producer_name = self.name
            return []
        for value in model.graph.initializers.values():
            assert value.const_value is not None
            value.const_value = ir.tensor(2 * value.const_value.numpy(), name=value.name)
        return []


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """Does not work."""

    name: ClassVar[str] = "broken"
    kind: ClassVar[Kind] = Kind.BITWISE

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        raise KeyError("mistake")


def tidy(graph: Any, *, limit: float = 1.0) -> Any:
    """Tidy up.

    And no more.
    """
    return graph


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "elsewhere-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(
        f"[{GROUP}]\nstamp = elsewhere_passes:Stamp\nsilent = elsewhere_passes:Silent\nodd = elsewhere_passes:ODD\n"
        "broken = elsewhere_passes:Broken\ntidy = elsewhere_passes:tidy\n"
        "gone = nowhere_at_all:f\nabsent = elsewhere_passes:absent\nboom = elsewhere_boom:f\nleaves = elsewhere_leaves:f\n"
    )
    (tmp_path / "elsewhere_boom.py").write_text("raise ValueError('at\\nimport')")
    (tmp_path / "elsewhere_leaves.py").write_text("raise SystemExit(0)")
    module = types.ModuleType("elsewhere_passes")
    module.__dict__.update(Stamp=Stamp, Silent=Silent, Broken=Broken, ODD=3, tidy=tidy)
    monkeypatch.setitem(sys.modules, "elsewhere_passes", module)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()


@pytest.mark.usefixtures("elsewhere")
def test_a_foreign_pass_runs_by_its_full_name_with_checked_options() -> None:
    recipe = Recipe.parse('version = 1\n[[pass]]\nname = "elsewhere:stamp"\nword = "here"\n')
    model = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 17}), ir_version=8)
    recipe.steps[0].build().run(model, Context())
    assert model.doc_string == "here"
    with pytest.raises(RecipeError, match="unknown option 'wrod'"):
        Recipe.parse('version = 1\n[[pass]]\nname = "elsewhere:stamp"\nwrod = "here"\n')


@pytest.mark.usefixtures("elsewhere")
def test_what_is_no_pass_is_refused() -> None:
    with pytest.raises(RecipeError, match="'elsewhere:odd' is no pass"):
        pass_class("elsewhere:odd")


@pytest.mark.usefixtures("elsewhere")
def test_a_foreign_pass_has_no_short_name() -> None:
    with pytest.raises(RecipeError, match="stamp"):
        Recipe.parse('version = 1\n[[pass]]\nname = "stamp"\n')
    with pytest.raises(RecipeError, match="nobody:stamp"):
        Recipe.parse('version = 1\n[[pass]]\nname = "nobody:stamp"\n')


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("gone", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("absent", "AttributeError: "),
        ("boom", "ValueError: at import"),
        ("leaves", "SystemExit: 0"),
    ],
)
@pytest.mark.usefixtures("elsewhere")
def test_one_that_cannot_be_loaded_is_a_line_of_its_name(
    name: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(f'[[pass]]\nname = "elsewhere:{name}"\n')
    assert str(caught.value).startswith(f"recipe.toml: pass 1: 'elsewhere:{name}' cannot be loaded: {told}")
    assert main(["passes", f"elsewhere:{name}"]) == 2
    assert capsys.readouterr().err.startswith(f"onnxslim-core: 'elsewhere:{name}' cannot be loaded: {told}")


@pytest.mark.usefixtures("elsewhere")
def test_they_are_listed_without_being_loaded_and_shown_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["passes"]) == 0
    listed = capsys.readouterr().out
    assert "elsewhere:tidy" in listed and "elsewhere:boom" in listed and "elsewhere_boom" not in sys.modules
    assert main(["passes", "elsewhere:tidy"]) == 0
    assert "And no more." in capsys.readouterr().out
    page, stamp = one_pass("elsewhere:tidy"), one_pass("elsewhere:stamp")
    assert (page.kind, page.status, page.summary) == ("lossy", "foreign", "Tidy up.")
    assert [option.name for option in page.options] == ["exact", "limit"]
    assert (stamp.kind, stamp.summary) == ("bitwise", "Write a word into the doc string.")


def dense() -> onnx.ModelProto:
    """A MatMul, an Identity for the cleanup to take out, and an Add."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal(size).astype(np.float32), name)
        for name, size in (("w", (4, 4)), ("b", (4,)))
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
        helper.make_node("Identity", ["h"], ["i"], name="idle"),
        helper.make_node("Add", ["i", "b"], ["y"], name="sum"),
    ]
    inputs, outputs = ([helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 4])] for name in "xy")
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.usefixtures("elsewhere")
def test_what_a_pass_does_and_does_not_tell_is_not_in_the_result() -> None:
    recipe = Recipe.parse('version = 1\n[[pass]]\nname = "normalize"\n[[pass]]\nname = "elsewhere:silent"\n')
    result = compress(dense(), recipe, measure_latency=False)
    x = np.ones((2, 4), np.float32)
    (a,), (b,) = (
        ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})
        for proto in (dense(), result.model.to_proto())
    )
    np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.usefixtures("elsewhere")
def test_what_a_pass_does_not_tell_is_not_handed_on_to_the_next_pass() -> None:
    steps = ("normalize", 'elsewhere:silent"\nonly_note = true\n#"', "elsewhere:stamp")
    recipe = Recipe.parse("version = 1\n" + "".join(f'[[pass]]\nname = "{step}"\n' for step in steps))
    made = compress(dense(), recipe, measure_latency=False).model.to_proto()
    assert made.doc_string == "seen" and made.producer_name != "silent"


@pytest.mark.usefixtures("elsewhere")
def test_a_pass_that_fails_is_told_of_where_not_all_of_the_model_was_seen_to_run() -> None:
    """It is the mistake of the pass, not of the model."""
    model = dense()
    branch = [
        helper.make_graph([helper.make_node("Neg", ["x"], ["t"])], name, [], [onnx.ValueInfoProto(name="t")])
        for name in ("then", "else")
    ]
    model.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=branch[0], else_branch=branch[1]))
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [2, 4]))
    with pytest.raises(KeyError, match="mistake"):
        compress(model, Recipe.parse('version = 1\n[[pass]]\nname = "elsewhere:broken"\n'), measure_latency=False)
