"""The Python interface: what is promised is there, loads late, and does what the README shows."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

import onnxslim_core as osc
from onnxslim_core.rewrite import Override, glob_for

ROOT = Path(__file__).resolve().parent.parent


def net(scale: float = 1.0) -> onnx.ModelProto:
    weight = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32) * np.float32(scale)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["logits"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_every_public_name_is_there() -> None:
    for name in osc.__all__:
        assert getattr(osc, name) is not None
        assert name in dir(osc)
    with pytest.raises(AttributeError, match="has no attribute 'compres'"):
        getattr(osc, "compres")  # noqa: B009


def test_the_import_is_light() -> None:
    script = "import sys, onnxslim_core\nprint(sorted({'onnx', 'onnx_ir', 'onnxruntime', 'numpy', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_recipes_can_be_named_without_onnx() -> None:
    script = "import sys\nfrom onnxslim_core.recipe import Budget, Recipe\nprint('onnx_ir' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_example(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(net(), path)
    data = {"x": np.random.default_rng(1).standard_normal((20, 8)).astype(np.float32)}
    model = osc.load(path)
    assert osc.inspect(model, explain=False).cost.params == 32
    result = osc.compress(model, recipe=osc.Recipe.preset("exact"), data=data, latency_seconds=1.0)
    assert result.report.fidelity is not None
    assert result.report.fidelity["logits"].cosine == pytest.approx(1.0)
    result.save(tmp_path / "small.onnx")
    found = osc.compare(model, result.model, data=data)
    assert found.equal() and found.samples == 20
    assert not osc.compare(path, net(2.0)).equal()
    assert osc.benchmark(model, result.model, threads=1, seconds=1.0).ratio > 0
    assert osc.benchmark(path, seconds=0.5).ms > 0


def test_gate(tmp_path: Path) -> None:
    (tmp_path / "budget.toml").write_text("[budget]\nmax_abs = 0.001\n")
    for name, scale in (("net", 1.0), ("same", 1.0), ("off", 1.5)):
        onnx.save(net(scale), tmp_path / f"{name}.onnx")
    budget = tmp_path / "budget.toml"
    assert osc.gate(tmp_path / "net.onnx", tmp_path / "same.onnx", budget=budget).passed
    assert not osc.gate(tmp_path / "net.onnx", tmp_path / "off.onnx", budget=budget).passed


def test_nothing_is_left_in_a_home_folder_but_what_we_keep(tmp_path: Path) -> None:
    """Such as events of the telemetry that onnxruntime brings along."""
    path = tmp_path / "net.onnx"
    text = '<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y) { y = Neg(x) }'
    onnx.save(parser.parse_model(text), path)
    home = tmp_path / "home"
    home.mkdir()
    command = [sys.executable, "-m", "onnxslim_core", "bench", str(path), "--seconds", "1"]
    told = {key: value for key, value in os.environ.items() if not key.startswith(("ORT_", "XDG_"))}
    subprocess.run(command, env={**told, "HOME": str(home), "TMPDIR": str(home)}, check=True, capture_output=True)
    assert [found for found in home.rglob("*") if found.is_file() and "onnxslim" not in str(found)] == []


def test_no_module_takes_the_place_of_a_function() -> None:
    """The import system puts a module where the function of its name is to be: `osc.Front` hid `osc.pareto`."""
    modules = {path.stem for path in (ROOT / "onnxslim_core").iterdir()}
    assert not modules & {*osc.__all__}


RECIPE = '[[pass]]\nname = "normalize"\n'


def test_a_recipe_may_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a preset's name or a path, wherever a recipe goes; a file does not hide a preset."""
    monkeypatch.chdir(tmp_path)
    for name in ("r.toml", "plain", "exact"):
        (tmp_path / name).write_text(RECIPE)
    cases: dict[str | Path | None, str] = {
        "exact": "preset exact",
        "r.toml": "r.toml",
        "plain": "plain",
        tmp_path / "exact": "exact",
        None: "exact passes (default)",
    }
    for recipe, expected in cases.items():
        assert osc.compress(net(), recipe, measure_latency=False).report.asked.recipe == expected
    assert osc.gate(net(), net(), osc.Budget(max_abs=0.001), recipe="r.toml").passed
    with pytest.raises(osc.RecipeError, match="has no pass with a target"):
        osc.pareto(net(), "r.toml")


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ("balancd", "unknown preset 'balancd'; did you mean 'balanced'?"),
        ("", "unknown preset ''; known: "),
        ("gone.toml", "no such file: 'gone.toml'"),
        ("a\0.toml", "cannot read 'a"),
        (Path(), "cannot read '.'"),
        ({}, "a dict is no recipe"),
        (["normalize"], "a list is no recipe"),
        (3, "a int is no recipe"),
    ],
)
def test_what_is_no_recipe_is_told_in_a_line(recipe: Any, told: str) -> None:
    with pytest.raises(osc.RecipeError) as caught:
        osc.compress(net(), recipe)
    assert str(caught.value).startswith(told)


@pytest.mark.parametrize("budget", [{"min_cosine": 0.9}, {}, 0.9])
def test_what_is_no_budget_is_told_in_a_line(budget: Any) -> None:
    with pytest.raises(osc.BudgetError, match=f"a {type(budget).__name__} is no budget"):
        osc.compress(net(), budget=budget)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda o, m: o.gate(m, m, o.Budget(max_abs=1.0), samples=0), "samples is 0"),
        (lambda o, m: o.gate(m, m, o.Budget(max_abs=1.0), samples=True), "samples is True"),
        (lambda o, m: o.gate(m, m, o.Budget(max_abs=1.0), max_seconds=float("nan")), "max_seconds is nan"),
        (lambda o, m: o.benchmark(m, seconds=float("nan")), "seconds is nan"),
        (lambda o, m: o.benchmark(m, seconds=0), "seconds is 0"),
        (lambda o, m: o.benchmark(m, threads=0), "threads is 0"),
        (lambda o, m: o.benchmark(m, shapes={"x": 3}), "the shape of input 'x' is 3"),
        (lambda o, m: o.compare(m, m, seed=-1), "seed is -1"),
        (lambda o, m: o.inspect(m, seed="1"), "seed is '1'"),
        (lambda o, m: o.compress(m, threads="2"), "threads is '2'"),
        (lambda o, m: o.compress(m, seed=-1), "seed is -1"),
        (lambda o, m: o.compress(m, latency_seconds=-1), "latency_seconds is -1"),
        (lambda o, m: o.compress(m, shapes=[3]), "shapes is a list"),
        (lambda o, m: o.compress(m, shapes={"x": (1.5, 8)}), "a size of input 'x' is 1.5"),
        (lambda o, m: o.compress(m, values="x"), "values is a str"),
        (lambda o, m: o.compress(m, values={"x": [[1], [2, 3]]}), "value of input 'x' is no array"),
        (lambda o, m: o.compress(m, metric=3), "a int is no metric"),
        (lambda o, m: o.sensitivity(m, only=[3]), "only is [3]"),
        (lambda o, m: o.sensitivity(m, ratios=0.5), "ratios is 0.5"),
        (lambda o, m: o.sensitivity(m, probes="4"), "probes is '4'"),
        (lambda o, m: o.pareto(m, "balanced", targets="0.5"), "targets is '0.5'"),
    ],
)
def test_a_wrong_argument_is_told_in_a_line(call: Callable[[Any, onnx.ModelProto], object], told: str) -> None:
    with pytest.raises(osc.RecipeError) as caught:
        call(osc, net())
    assert str(caught.value).startswith(told)


def test_a_text_is_one_glob() -> None:
    assert Override("conv1").match == ("conv1",)  # type: ignore[arg-type]
    assert glob_for(["conv1"], "conv*") == "conv*"
    with pytest.raises(osc.RecipeError, match="called like 'nope'"):
        osc.sensitivity(net(), only="nope", data={"x": np.random.default_rng(1).random((20, 8), np.float32)})


def test_save_takes_what_load_takes(tmp_path: Path) -> None:
    for number, model in enumerate((net(), osc.load(net()).ir, osc.load(net()), net().SerializeToString())):
        osc.save(model, tmp_path / f"{number}.onnx")
        assert osc.compare(net(), tmp_path / f"{number}.onnx").equal()
    with pytest.raises(osc.ModelError, match="a int is not a model"):
        osc.save(3, tmp_path / "no.onnx")


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + "/a", "", "a\0b"])
def test_a_name_that_no_file_can_have_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    result = osc.compress(net(), measure_latency=False)
    for save in (result.save, result.lock().save, result.report.save):
        with pytest.raises(osc.SlimError):
            save(name)
    assert not list(tmp_path.iterdir())


def test_results_and_locks_can_be_copied_and_sent(tmp_path: Path) -> None:
    onnx.save(net(), tmp_path / "net.onnx")
    result = osc.compress(tmp_path / "net.onnx", measure_latency=False)
    result.lock().save(tmp_path / "l.lock")
    for again in (copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert again.report == result.report
        again.save(tmp_path / "again.onnx")
        assert osc.compare(net(), tmp_path / "again.onnx").equal()
        assert again.lock().record == result.lock().record
    for lock in (result.lock(), osc.Lock.open(tmp_path / "l.lock")):
        for again in (copy.deepcopy(lock), pickle.loads(pickle.dumps(lock))):
            assert again == lock
