"""A user's own function over an onnx-graphsurgeon graph as a pass of a recipe."""

from __future__ import annotations

import importlib
import logging
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxslim_core.passes import GROUP, pass_class

from onnxslim_core.cli import main
from onnxslim_core.errors import DataError, InvalidModel, RecipeError
from onnxslim_core.model import load
from onnxslim_core.pipeline import compress
from onnxslim_core.recipe import Recipe
from onnxslim_core.rewrite import Change, Context, Kind
from onnxslim_core.surgeon import as_pass
from onnxslim_core.verify import Interface, verify
from tests.oracles import assert_equal

CODE = '''
import numpy as np
import onnx_graphsurgeon as gs


def fuse_negs(graph: gs.Graph) -> gs.Graph:
    """Two Negs in a row are none."""
    for node in list(graph.nodes):
        if node.op == "Neg" and node.i().op == "Neg":
            source = node.i().inputs[0]
            for user in list(node.outputs[0].outputs):
                user.inputs = [source if tensor is node.outputs[0] else tensor for tensor in user.inputs]
            node.outputs.clear()
    return graph.cleanup()


def scale(graph: gs.Graph, *, factor: float = 2.0, suffix: str = "") -> None:
    """Change the weights, and so the answers."""
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Constant) and tensor.dtype == np.float32:
            tensor.values = np.asarray(tensor.values * factor, np.float32)


def idle(graph):
    return graph


def names_of(graph, *, names: list[str] = [], sizes: tuple[int, ...] = ()) -> gs.Graph:
    names.append("mine")  # it is its own list, in every run
    graph.nodes[0].name = "+".join(names)
    return graph


def breaks(graph):
    raise SystemExit(0)


def wrong(graph):
    return 3


def cuts(graph):
    graph.nodes.pop(1)


def ties(graph):
    graph.nodes[1].inputs = [graph.nodes[2].outputs[0]]


def unset(graph, *, width: int):
    return graph


def table(graph, *, widths: dict[str, int] = {}):
    return graph


def odd(graph, *, width: int = []):
    return graph


def named(graph, *, name: str = ""):
    return graph
'''


def model(**extra: Any) -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "matmul", doc_string="of the node"),
        helper.make_node("Neg", ["a"], ["b"], "neg1"),
        helper.make_node("Neg", ["b"], ["c"], "neg2"),
        helper.make_node("Tanh", ["c"], ["y"], "tanh"),
    ]
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32), "w")
    x, y = (
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", s], f"{n} of the user")
        for n, s in (("x", 6), ("y", 5))
    )
    made = helper.make_model(
        helper.make_graph(nodes, "net", [x], [y], [weight], doc_string="of the graph"),
        opset_imports=[helper.make_opsetid("", 17)], ir_version=8, doc_string="of the model", domain="org.example",
    )  # fmt: skip
    helper.set_model_props(made, {"author": "us"})
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(CODE)
    onnx.save(model(), tmp_path / "in.onnx")
    return tmp_path


def recipe(folder: Path, name: str, options: str = "", head: str = "") -> Recipe:
    path = folder / "r.toml"
    path.write_text(f'version = 1\n{head}\n[[pass]]\nname = "{name}"\n{options}\n')
    return Recipe.load(path)


def steps(result: Any) -> dict[str, Any]:
    return {step.name: step for step in result.report.steps}


def test_a_function_runs_in_a_recipe_and_its_losses_are_on_record(folder: Path) -> None:
    result = compress(
        model(), recipe(folder, "mine.py:fuse_negs", "exact = true"), allow_code=True, measure_latency=False
    )
    step = steps(result)["mine.py:fuse_negs"]
    assert (step.outcome, step.exact, result.report.outcome) == ("done", True, "exact")
    own = [change for change in step.changes if change.pass_name == "mine.py:fuse_negs"]
    assert [change.action for change in own] == ["ran: 4 to 2 nodes", "onnx-graphsurgeon dropped doc strings"]
    proto = result.model.to_proto()
    assert [node.op_type for node in proto.graph.node] == ["MatMul", "Tanh"]
    assert_equal(model(), proto, Kind.ALGEBRAIC)


def test_what_the_model_says_of_itself_goes_around_that_library(folder: Path) -> None:
    result = compress(
        model(), recipe(folder, "mine.py:fuse_negs", "exact = true"), allow_code=True, measure_latency=False
    )
    before, after = model(), result.model.to_proto()
    assert (after.doc_string, after.domain, after.metadata_props) == (
        before.doc_string,
        before.domain,
        before.metadata_props,
    )
    assert (after.graph.name, after.graph.doc_string) == ("net", "of the graph")
    assert [after.graph.input[0], after.graph.output[0]] == [before.graph.input[0], before.graph.output[0]]


def test_a_function_that_changes_nothing_loses_nothing(folder: Path) -> None:
    result = compress(model(), recipe(folder, "mine.py:idle"), allow_code=True, measure_latency=False)
    assert steps(result)["mine.py:idle"].outcome == "nothing to do"
    assert result.model.to_proto().graph.node[0].doc_string == "of the node"


def test_it_is_lossy_unless_declared_exact_and_judged_by_the_budget(folder: Path) -> None:
    budget = "[budget]\nmin_cosine = 0.999"
    result = compress(model(), recipe(folder, "mine.py:scale", head=budget), allow_code=True, measure_latency=False)
    step = steps(result)["mine.py:scale"]
    assert (step.exact, step.outcome) == (False, "rolled back")
    assert "cosine" in step.reason
    np.testing.assert_array_equal(
        numpy_helper.to_array(result.model.to_proto().graph.initializer[0]),
        numpy_helper.to_array(model().graph.initializer[0]),
    )


def test_one_declared_exact_that_is_not_is_taken_back(folder: Path) -> None:
    result = compress(model(), recipe(folder, "mine.py:scale", "exact = true"), allow_code=True, measure_latency=False)
    step = steps(result)["mine.py:scale"]
    assert step.outcome == "rolled back"
    assert "changed the answers" in step.reason


def test_options_are_the_keyword_only_parameters(folder: Path) -> None:
    result = compress(
        model(),
        recipe(folder, "mine.py:scale", "factor = 1.0001\nexact = false", "[budget]\nmin_cosine = 0.9"),
        allow_code=True, measure_latency=False,
    )  # fmt: skip
    assert steps(result)["mine.py:scale"].options == {"factor": 1.0001, "exact": False}
    for options, expected in {
        "factr = 3.0": "unknown option 'factr' of mine.py:scale; did you mean 'factor'?",
        'factor = "x"': "option 'factor' of mine.py:scale is 'x', not a number",
    }.items():
        with pytest.raises(RecipeError) as caught:
            compress(model(), recipe(folder, "mine.py:scale", options), allow_code=True)
        assert caught.value.errors == (f"r.toml: pass 1: {expected}",)


@pytest.mark.parametrize(("options", "expected"), [("", "mine"), ('names = ["a", "b"]', "a+b+mine")])
def test_a_list_is_an_option_even_one_that_is_a_mutable_default(folder: Path, options: str, expected: str) -> None:
    found = recipe(folder, "mine.py:names_of", f"exact = true\n{options}")
    for _ in range(2):
        result = compress(model(), found, allow_code=True, measure_latency=False)
        assert result.model.to_proto().graph.node[0].name == expected


def test_nothing_of_it_runs_unless_it_may(folder: Path) -> None:
    (folder / "mine.py").write_text("open('ran', 'w')\n" + CODE)
    found = recipe(folder, "mine.py:fuse_negs")
    with pytest.raises(RecipeError, match=r"r.toml: pass 1: 'mine.py:fuse_negs' is code"):
        compress(model(), found)
    with pytest.raises(RecipeError, match=r"mine.py:fuse_negs is lossy and the recipe says"):
        recipe(folder, "mine.py:fuse_negs", head='requires = "exact"')
    assert not (folder / "ran").exists()
    assert recipe(folder, "mine.py:fuse_negs", "exact = true", 'requires = "exact"').steps[0].exact


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("mine.py:breaks", DataError, "'mine.py:breaks' fails when it is run: SystemExit: 0"),
        ("mine.py:wrong", DataError, "'mine.py:wrong' returned a int, not an onnx_graphsurgeon.Graph"),
        ("mine.py:cuts", InvalidModel, "'mine.py:cuts' left a broken graph: Neg 'neg2' reads 'b', which nothing makes"),
        ("mine.py:ties", InvalidModel, "'mine.py:ties' left a broken graph: nodes form a cycle"),
        ("mine.py:nobody", DataError, "'mine.py' has no function 'nobody'"),
        ("nobody.py:f", DataError, "no such Python file"),
        ("mine.py:unset", RecipeError, "option 'width' of 'mine.py:unset' needs a type and a default"),
        ("mine.py:table", RecipeError, "option 'widths' of 'mine.py:table' needs a type and a default"),
        ("mine.py:odd", RecipeError, "option 'width' of 'mine.py:odd' needs a type and a default"),
        ("mine.py:named", RecipeError, "an option of 'mine.py:named' is called 'name', which every pass has"),
    ],
)
def test_a_failure_is_one_line(folder: Path, name: str, kind: type[Exception], expected: str) -> None:
    with pytest.raises(kind, match=expected):
        compress(model(), recipe(folder, name), allow_code=True)


def test_a_model_that_library_cannot_hold_is_refused_by_name() -> None:
    tensor = helper.make_tensor("w", TensorProto.INT4, [2], [1, 2])
    node = helper.make_node("DequantizeLinear", ["w", "s"], ["y"], "dq")
    scale = numpy_helper.from_array(np.array(1, np.float32), "s")
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    made = helper.make_model(helper.make_graph([node], "g", [], [y], [tensor, scale]), ir_version=10)
    (refused,) = as_pass("mine", lambda graph: graph)().run(load(made).ir, Context())
    assert refused == Change(
        "mine", (), "run", "onnx-graphsurgeon cannot hold initializer 'w' of type INT4", "surgeon_can_hold_it"
    )


def test_a_package_brings_a_function_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "elsewhere-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\nnegs = elsewhere_surgery:fuse_negs\n")
    module = types.ModuleType("elsewhere_surgery")
    exec(CODE, module.__dict__)
    monkeypatch.setattr(module.fuse_negs, "exact", True, raising=False)
    monkeypatch.setitem(sys.modules, "elsewhere_surgery", module)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    found = Recipe.parse('version = 1\nrequires = "exact"\n[[pass]]\nname = "elsewhere:negs"\n')
    held = load(model())
    interface = Interface.of(held.ir)
    assert found.steps[0].build().run(held.ir, Context())[0].action == "ran: 4 to 2 nodes"
    assert verify(held.ir, interface) == []
    with pytest.raises(RecipeError, match="elsewhere:negs is lossy"):
        Recipe.parse('version = 1\nrequires = "exact"\n[[pass]]\nname = "elsewhere:negs"\nexact = false\n')
    assert pass_class("elsewhere:negs").__doc__ == "Two Negs in a row are none."


def test_from_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe(folder, "mine.py:scale", "factor = 3.0")
    call = ["compress", str(folder / "in.onnx"), "-o", str(folder / "out.onnx"), "--recipe", str(folder / "r.toml"),
            "--no-latency", "--quiet"]  # fmt: skip
    assert main(call) == 2
    assert "'mine.py:scale' is code" in capsys.readouterr().err
    assert main([*call, "--allow-code", "--set", "mine.py:scale.factor=1.0"]) == 0
    np.testing.assert_array_equal(
        numpy_helper.to_array(onnx.load(folder / "out.onnx").graph.initializer[0]),
        numpy_helper.to_array(model().graph.initializer[0]),
    )


def test_a_graph_of_that_library_is_not_warned_about_where_a_pass_says_it(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    compress(model(), recipe(folder, "mine.py:fuse_negs", "exact = true"), allow_code=True, measure_latency=False)
    assert not [record for record in caplog.records if "graphsurgeon" in record.getMessage()]


def test_positional_parameters_are_no_options() -> None:
    def two(graph: gs.Graph, other: int) -> gs.Graph:
        return graph

    with pytest.raises(RecipeError, match="'mine' is no pass"):
        as_pass("mine", two)
