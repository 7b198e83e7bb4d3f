"""sensitivity: a curve says what cutting and running the model says; what was found is kept; nothing is guessed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxslim_core.passes import pass_class

import onnxslim_core as osc
from onnxslim_core.calibration.source import open_source
from onnxslim_core.channels.branches import branches_of, drop
from onnxslim_core.cli import main
from onnxslim_core.errors import DataError, RecipeError, SlimError
from onnxslim_core.measure.shapes import concrete_shapes
from onnxslim_core.rewrite import Context, Override
from onnxslim_core.search.grid import admissible
from onnxslim_core.search.memory import Memory, key_of

ROOT = Path(__file__).resolve().parent.parent
Floats = NDArray[np.floating[Any]]

RIDGE = 1e-2 * 10 ** ((4 - 30 / 20) / (4 - 1))
"""What `advised_ridge` says of 30 different images and a widest group of 20 channels."""


def network(seed: int = 0, size: tuple[int, int] = (10, 8)) -> onnx.ModelProto:
    """A stem, two residual blocks of 3x3 Convs, a 1x1 Conv, and a Gemm on the mean."""
    rng = np.random.default_rng(seed)
    weights: list[Any] = []

    def conv(x: str, y: str, out: int, into: int, size: int = 3) -> Any:
        array = rng.normal(0, (2 / (size * size * into)) ** 0.5, (out, into, size, size))
        weights.append(numpy_helper.from_array(array.astype(np.float32), f"{y}.w"))
        weights.append(numpy_helper.from_array(rng.normal(0, 0.1, out).astype(np.float32), f"{y}.b"))
        pads = [size // 2] * 4
        return helper.make_node("Conv", [x, f"{y}.w", f"{y}.b"], [y], name=y, pads=pads)

    nodes = [conv("x", "stem", 8, 3), helper.make_node("Relu", ["stem"], ["s0"], name="s0")]
    for n in range(2):
        nodes += [
            conv(f"s{n}", f"a{n}", 20, 8),
            helper.make_node("Relu", [f"a{n}"], [f"r{n}"], name=f"r{n}"),
            conv(f"r{n}", f"b{n}", 8, 20),
            helper.make_node("Add", [f"b{n}", f"s{n}"], [f"t{n}"], name=f"t{n}"),
            helper.make_node("Relu", [f"t{n}"], [f"s{n + 1}"], name=f"s{n + 1}"),
        ]
    nodes += [
        conv("s2", "last", 12, 8, 1),
        helper.make_node("Relu", ["last"], ["l"], name="l"),
        helper.make_node("GlobalAveragePool", ["l"], ["p"], name="p"),
        helper.make_node("Flatten", ["p"], ["f"], name="f"),
        helper.make_node("Gemm", ["f", "fc", "fb"], ["y"], name="head"),
    ]
    weights.append(numpy_helper.from_array(rng.normal(0, 0.3, (12, 7)).astype(np.float32), "fc"))
    weights.append(numpy_helper.from_array(rng.normal(0, 0.3, 7).astype(np.float32), "fb"))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, *size])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 7])
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def images(count: int = 60, seed: int = 1) -> Floats:
    rng = np.random.default_rng(seed)
    smooth = rng.normal(size=(count, 3, 5, 4)).repeat(2, axis=2).repeat(2, axis=3)
    return (smooth + 0.3 * rng.normal(size=smooth.shape)).astype(np.float32)


def halves() -> tuple[Floats, Floats]:
    """What decides and what measures, of all images."""
    source = open_source({"x": images()}, osc.load(network()))
    deciding, judging = source.split()
    return tuple(np.concatenate([each["x"] for each in part]) for part in (deciding, judging))  # type: ignore[return-value]


def answers(model: onnx.ModelProto, x: Floats, output: str = "y") -> Floats:
    if output != "y":
        model = onnx.ModelProto.FromString(model.SerializeToString())
        model.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: Floats = session.run([output], {"x": x})[0].astype(np.float64)
    return found


def lost(found: Floats, expected: Floats) -> float:
    return float(np.square(found - expected).sum() / np.square(expected - expected.mean(axis=0)).sum())


def cut(ratio: float, keep: Sequence[str]) -> onnx.ModelProto:
    """The network with this share of the channels of the shortest filters gone; groups of the named nodes stay."""
    model = ir.from_proto(network())
    step = pass_class("prune_channels")(
        criterion="l2", ratio=ratio, round_to=1, repair="none", override=(Override(match=tuple(keep), keep=True),)
    )
    step.run(model, Context(samples=[{"x": images(1)}]))
    return ir.to_proto(model)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONNXSLIM_CORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def ask(**options: Any) -> osc.Sensitivity:
    return osc.sensitivity(network(), **{"data": {"x": images()}, "ratios": (0.25, 0.5, 0.75), **options})


# ---------------------------------------------------------------------------------------------------- the figures


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("Conv 'stem'", ("a0", "a1", "last")),
        ("Conv 'a0'", ("stem", "a1", "last")),
        ("Conv 'last'", ("stem", "a0", "a1")),
    ],
)
def test_a_curve_without_repair_says_what_the_cut_model_answers(name: str, others: Sequence[str]) -> None:
    found = ask(criterion="l2", repair="none")[name]
    _, probes = halves()
    expected = answers(network(), probes)
    for point in found.points:
        small = cut(point.ratio, others)
        assert sum(np.prod(w.dims) for w in small.graph.initializer) < sum(
            np.prod(w.dims) for w in network().graph.initializer
        )
        by_hand = answers(small, probes)
        assert point.loss == pytest.approx(lost(by_hand, expected), rel=1e-3)
        assert point.loss > 1e-3, "a cut that does not show proves nothing"
        rows = zip(by_hand, expected, strict=True)
        cosine = np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in rows])
        assert point.cosine == pytest.approx(cosine, abs=1e-5)
        assert point.top1 == pytest.approx(np.mean(by_hand.argmax(1) == expected.argmax(1)))


def test_the_share_of_multiply_adds_is_that_of_the_cut_model() -> None:
    from onnxslim_core.measure.cost import cost

    sample = {"x": images(1)}
    whole = cost(osc.load(network()), sample).macs
    for point in ask(criterion="l2", repair="none", only=("a0",))["Conv 'a0'"].points:
        assert point.macs == pytest.approx(
            cost(osc.load(cut(point.ratio, ("stem", "a1", "last"))), sample).macs / whole
        )
        assert (point.removed, point.kept) == (round(20 * point.ratio), 20 - round(20 * point.ratio))


def test_a_curve_with_repair_says_what_solving_by_hand_says() -> None:
    """The head reads one vector per image, so that its least squares can be written down here."""
    found = ask(criterion="l2", only=("last",), blocks=False)["Conv 'last'"]
    fit, probes = halves()
    expected = answers(network(), probes)
    weights, bias = (numpy_helper.to_array(t).astype(np.float64) for t in network().graph.initializer[-2:])
    for point in found.points:
        small = cut(point.ratio, ("stem", "a0", "a1"))
        kept_rows = next(numpy_helper.to_array(t) for t in small.graph.initializer if t.name == "fc")
        kept = [int(np.flatnonzero((weights.astype(np.float32) == row).all(axis=1))[0]) for row in kept_rows]
        features = answers(network(), fit, "f")
        x, y = features[:, kept], features @ weights + bias
        centred, wanted = x - x.mean(axis=0), y - y.mean(axis=0)
        h, c = centred.T @ centred / len(x), centred.T @ wanted / len(x)
        penalty = RIDGE * np.trace(h) / len(h)
        solved = np.linalg.solve(h + penalty * np.eye(len(h)), c + penalty * weights[kept])
        shift = y.mean(axis=0) - x.mean(axis=0) @ solved
        by_hand = answers(small, probes, "f") @ solved + shift
        assert point.loss == pytest.approx(lost(by_hand, expected), rel=1e-3)
    plain = ask(criterion="l2", repair="none", only=("last",), blocks=False)["Conv 'last'"]
    assert all(a.loss < b.loss for a, b in zip(found.points, plain.points, strict=True))


def test_a_mended_bias_alone_keeps_the_mean_answer() -> None:
    """The head is linear in its features, so what the bias mends can be written down."""
    found = ask(criterion="l2", repair="bias", only=("last",), blocks=False)["Conv 'last'"]
    fit, probes = halves()
    for point in found.points:
        small = cut(point.ratio, ("stem", "a0", "a1"))
        shift = (answers(network(), fit) - answers(small, fit)).mean(axis=0)
        assert point.loss == pytest.approx(lost(answers(small, probes) + shift, answers(network(), probes)), rel=1e-3)


def test_readers_that_cannot_be_solved_for_are_cut(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    """Zeros in the readers and the cut of the whole model are two ways to one figure."""
    expected = ask(criterion="l2", repair="none", blocks=False)
    monkeypatch.setenv("ONNXSLIM_CORE_CACHE", "off")
    monkeypatch.setattr("onnxslim_core.calibration.study.LARGEST", 0)
    for asked in ({"criterion": "l2", "repair": "none"}, {"criterion": "obs", "repair": "least_squares"}):
        found = ask(**asked, blocks=False)
        assert [curve.name for curve in found.curves] == [curve.name for curve in expected.curves]
        for one, other in zip(found.curves, expected.curves, strict=True):
            assert (one.criterion, one.mended) == ("l2", False)
            assert [p.loss for p in one.points] == pytest.approx([p.loss for p in other.points], rel=1e-3)
            assert [p.macs for p in one.points] == [p.macs for p in other.points]


def test_a_block_that_is_gone_says_what_dropping_it_says() -> None:
    found = ask(repair="none", only=("t0", "t1"))
    _, probes = halves()
    for number in (0, 1):
        model = ir.from_proto(network())
        branches = branches_of(model, dict(concrete_shapes(model, {"x": images(1)}).shape))
        drop(model, branches[number])
        (point,) = found[f"Add 't{number}'"].points
        by_hand = lost(answers(ir.to_proto(model), probes), answers(network(), probes))
        assert point.loss == pytest.approx(by_hand, rel=1e-3)
        assert by_hand > 1e-3


def patches(x: Floats) -> Floats:
    """What a 3x3 Conv with padding 1 reads at every place of [n, c, h, w]: (n * h * w, c * 9)."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, x.shape[1] * 9)


@pytest.mark.parametrize(("number", "maker", "source"), [(0, "stem", "x"), (1, "b0", "r0")])
def test_the_layer_before_a_block_makes_up_for_it(number: int, maker: str, source: str) -> None:
    """On maps of 4x4 every position is seen, so that the least squares can be written down here."""
    net, small = network(size=(4, 4)), images()[:, :, :4, :4]
    found = osc.sensitivity(net, data={"x": small}, ratios=(0.5,), only=("t0", "t1"))[f"Add 't{number}'"]
    deciding, judging = open_source({"x": small}, osc.load(net)).split()
    fit, probes = (np.concatenate([each["x"] for each in part]) for part in (deciding, judging))

    inputs = fit.astype(np.float64) if source == "x" else answers(net, fit, source)
    x, y = patches(inputs), answers(net, fit, f"t{number}")
    y = y if number == 0 else y - answers(net, fit, "s0")  # the stream is the sum of the maker and what was there
    y = y.transpose(0, 2, 3, 1).reshape(len(x), -1)
    tensors = {tensor.name: tensor for tensor in net.graph.initializer}
    start = numpy_helper.to_array(tensors[f"{maker}.w"]).astype(np.float64).reshape(8, -1).T
    h = np.cov(x.T, bias=True)
    c = (x - x.mean(axis=0)).T @ (y - y.mean(axis=0)) / len(x)
    penalty = RIDGE * np.trace(h) / len(h)
    solved = np.linalg.solve(h + penalty * np.eye(len(h)), c + penalty * start)
    shift = y.mean(axis=0) - x.mean(axis=0) @ solved
    shape = tuple(tensors[f"{maker}.w"].dims)
    for name, array in ((f"{maker}.w", solved.T.reshape(shape)), (f"{maker}.b", shift)):
        tensors[name].CopyFrom(numpy_helper.from_array(array.astype(np.float32), name))
    model = ir.from_proto(net)
    branch = branches_of(model, dict(concrete_shapes(model, {"x": small[:1]}).shape))[number]
    drop(model, branch)
    expected = answers(network(size=(4, 4)), probes)
    by_hand = lost(answers(ir.to_proto(model), probes), expected)
    assert found.mended
    assert found.points[0].loss == pytest.approx(by_hand, rel=2e-3)
    bare = osc.sensitivity(network(size=(4, 4)), data={"x": small}, ratios=(0.5,), only=("t0", "t1"), repair="none")
    assert by_hand < bare[f"Add 't{number}'"].points[0].loss
    assert not bare[f"Add 't{number}'"].mended


def test_widths_on_the_grid() -> None:
    found = ask(round_to=4, ratios=(0.1, 0.3, 0.5))["Conv 'a0'"]
    assert [point.kept for point in found.points] == [20, 16, 12]
    assert all(admissible(point.kept, 20, 4) for point in found.points)
    assert found.points[0].loss < 1e-9


def test_the_users_metric_is_that_of_the_cut_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    labels = np.random.default_rng(5).integers(0, 7, 60)
    np.savez(tmp_path / "d.npz", x=images(), target=labels)
    (tmp_path / "m.py").write_text(
        "import numpy as np\n"
        "def right(outputs, labels):\n"
        "    return float(np.mean(outputs['y'].argmax(1) == np.concatenate([np.ravel(l) for l in labels])))\n"
    )
    options: dict[str, Any] = {"metric": "m.py:right", "labels": "target", "criterion": "l2", "repair": "none"}
    found = ask(data="d.npz", **options)
    judged = open_source("d.npz", osc.load(network()), None).split()[1]
    places = list(judged.indices)
    assert found.baseline == pytest.approx(np.mean(answers(network(), images()[places]).argmax(1) == labels[places]))
    for point in found["Conv 'a0'"].points:
        by_hand = answers(cut(point.ratio, ("stem", "a1", "last")), images()[places]).argmax(1)
        assert point.metric == pytest.approx(np.mean(by_hand == labels[places]))
    again = ask(data="d.npz", **options)
    assert again.from_cache == len(again.curves)
    assert again.baseline == found.baseline
    (tmp_path / "m.py").write_text("def right(outputs, labels):\n    return 0.25\n")
    assert ask(data="d.npz", **options).baseline == 0.25


def test_largest_stops_at_the_first_step_that_loses_more() -> None:
    found = ask(only=("a0",), blocks=False)
    points = found["Conv 'a0'"].points
    assert found.largest(points[1].loss) == {"Conv 'a0'": 0.5}
    assert found.largest(points[0].loss / 2) == {"Conv 'a0'": 0.0}
    assert found.largest(1e9) == {"Conv 'a0'": 0.75}


# ---------------------------------------------------------------------------------------------------- what is kept


def figures(found: osc.Sensitivity) -> list[tuple[object, ...]]:
    return [(c.name, p.ratio, p.removed, p.loss, p.cosine, p.top1) for c in found.curves for p in c.points]


def test_what_is_known_opens_no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    first = ask()
    assert first.from_cache == 0

    def closed(*_: object, **__: object) -> None:
        raise AssertionError("a session was opened")

    monkeypatch.setattr(ort, "InferenceSession", closed)
    again = ask()
    assert again.from_cache == len(again.curves) == 6
    assert again.curves == first.curves
    assert again.document()["curves"] == first.document()["curves"]
    with pytest.raises(AssertionError, match="session"):
        ask(repair="none")


@pytest.mark.parametrize(
    "options", [{"repair": "none"}, {"criterion": "l1"}, {"seed": 1}, {"ratios": (0.5,)}, {"data": {"x": images(58)}}]
)
def test_another_question_is_asked_anew(options: dict[str, Any]) -> None:
    ask()
    assert ask(**options).from_cache == 0


def test_another_model_is_asked_anew() -> None:
    options: dict[str, Any] = {"data": {"x": images()}, "ratios": (0.5,)}
    osc.sensitivity(network(), **options)
    assert osc.sensitivity(network(seed=1), **options).from_cache == 0
    assert osc.sensitivity(network(), **options).from_cache == 6


def stopping(after: int) -> Callable[[str, int, int], None]:
    def tell(step: str, done: int, total: int) -> None:
        if step == "curves" and done == after:
            raise KeyboardInterrupt

    return tell


def test_an_interrupted_run_goes_on_where_it_stopped(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        ask(progress=stopping(4))
    steps: list[str] = []
    found = ask(progress=lambda step, done, total: steps.append(step))
    assert found.from_cache == 4
    assert steps.count("curves") == 2
    monkeypatch.setenv("ONNXSLIM_CORE_CACHE", "off")
    assert figures(found) == figures(ask())


def test_torn_and_foreign_lines_are_not_read(own_cache: Path) -> None:
    first = ask()
    (file,) = own_cache.glob("sensitivity-*.jsonl")
    lines = [line for line in file.read_text().splitlines() if line]
    assert len(lines) == 7
    changed = lines[3].replace('"macs": 0.', '"macs": 9.')
    assert changed != lines[3]
    file.write_text("\n".join([*lines[:3], changed, lines[4][: len(lines[4]) // 2], "\x00\ufffd", "{}", *lines[5:]]))
    found = ask()
    assert found.from_cache == 4
    assert figures(found) == figures(first)
    assert ask().from_cache == 6


def test_a_memory_reads_only_what_is_its_own(tmp_path: Path) -> None:
    ours, other = Memory("k", key_of(["a"]), tmp_path), Memory("k", key_of(["b"]), tmp_path)
    ours.put("x", {"v": float("nan")})
    other.put("x", {"v": 2})
    (file,) = [path for path in tmp_path.iterdir() if key_of(["a"])[:32] in path.name]
    (foreign,) = [path for path in tmp_path.iterdir() if path != file]
    with file.open("a") as out:
        out.write(foreign.read_text())
    again = Memory("k", key_of(["a"]), tmp_path)
    found = again.get("x")
    assert found is not None
    assert np.isnan(found["v"])
    assert Memory("k", key_of(["a"]), None).get("x") is None


def test_a_folder_that_cannot_be_written_is_no_reason_to_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ONNXSLIM_CORE_CACHE", str(tmp_path / "file"))
    assert len(ask(only=("a0",)).curves) == 2


# ---------------------------------------------------------------------------------------------------- refusals


def test_without_data_it_refuses() -> None:
    with pytest.raises(DataError, match="no data is given") as caught:
        osc.sensitivity(network())
    assert "--data" in str(caught.value.hint)


def test_random_numbers_only_by_force() -> None:
    forced = osc.Recipe.exact().with_settings(["data.force_random=true"])
    found = osc.sensitivity(network(), recipe=forced, ratios=(0.5,), only=("a0",))
    assert "random" in found.data
    noise = {"x": np.random.default_rng(0).normal(size=(20, 3, 10, 8)).astype(np.float32)}
    with pytest.raises(DataError, match="noise"):
        osc.sensitivity(network(), data=noise)
    assert osc.sensitivity(network(), data=noise, recipe=forced, ratios=(0.5,), only=("a0",)).curves


def test_one_sample_is_not_enough() -> None:
    with pytest.raises(DataError, match="nothing is left to decide with"):
        ask(data={"x": images(1)})


@pytest.mark.parametrize(
    "options",
    [
        {"ratios": ()},
        {"ratios": (0.5, 1.0)},
        {"ratios": (float("nan"),)},
        {"criterion": "best"},
        {"repair": "magic"},
        {"round_to": "some"},
        {"round_to": 0},
        {"probes": 0},
        {"only": ("nobody",)},
    ],
)
def test_bad_options_are_one_line(options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError) as caught:
        ask(**options)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_a_metric_that_fails_is_the_users() -> None:
    def broken(outputs: object, labels: object) -> float:
        raise ValueError("no")

    with pytest.raises(SlimError, match="the metric fails"):
        ask(metric=broken)
    with pytest.raises(SlimError, match="a number is needed"):
        ask(metric=lambda outputs, labels: "good")


# ---------------------------------------------------------------------------------------------------- command line


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    onnx.save(network(), tmp_path / "net.onnx")
    np.savez(tmp_path / "d.npz", x=images())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


def test_the_table_and_the_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sensitivity", "net.onnx", "--data", "d.npz", "--ratios", "0.5,0.25"]) == 0
    out = capsys.readouterr().out
    for name in ("stem", "a0", "a1", "last", "t0", "t1"):
        assert f"'{name}'" in out
    assert "-25 %" in out
    assert "-50 %" in out
    assert main(["sensitivity", "net.onnx", "--data", "d.npz", "--ratios", "0.25,0.5", "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert (found["schema"], found["verb"], found["model"]) == (1, "sensitivity", "net.onnx")
    assert found["question"]["ratios"] == [0.25, 0.5]
    assert [curve["kind"] for curve in found["curves"]].count("block") == 2
    point = found["curves"][0]["points"][0]
    assert set(point) == {"ratio", "removed", "kept", "macs", "loss", "cosine", "top1", "metric"}
    assert found["skipped"].keys() == {"Gemm 'head'"}
    assert found["from_cache"] == 6
    assert found["decided_on"] + found["measured_on"] == 60
    assert "6 of 6 known from before" in captured.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["net.onnx"], 3, "no data is given"),
        (["net.onnx", "--data", "d.npz", "--ratios", "a,b"], 2, "--ratios is 'a,b'"),
        (["net.onnx", "--data", "d.npz", "--ratios", "1.5"], 2, "ratios are 1.5"),
        (["net.onnx", "--data", "d.npz", "--repair", "glue"], 2, "repair is 'glue'"),
        (["net.onnx", "--data", "d.npz", "--show", "metric"], 2, "--show metric needs a metric"),
        (["net.onnx", "--data", "d.npz", "--plot", "p.txt"], 2, "no name for a plot"),
        (["net.onnx", "--data", "d.npz", "--plot", "no/p.png"], 2, "no such folder"),
        (["net.onnx", "--data", "d.npz", "--round-to", "0"], 2, "round_to is '0'"),
        (["net.onnx", "--data", "d.npz", "--metric", "gone.py:f"], 3, "no such Python file"),
        (["net.onnx", "--data", "d.npz", "--set", "data.sample=3"], 2, "unknown key 'sample'"),
        (["gone.onnx", "--data", "d.npz"], 3, "gone.onnx"),
        (["net.onnx", "--data", "gone.npz"], 3, "gone.npz"),
    ],
)
def test_misuse_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    assert main(["sensitivity", *arguments]) == code
    captured = capsys.readouterr()
    assert said in captured.err.splitlines()[0]
    assert captured.out == ""
    assert all(line.startswith(("onnxslim-core: ", "  hint: ")) for line in captured.err.splitlines())


def test_a_plot_without_matplotlib_is_refused_before_the_work(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["sensitivity", "net.onnx", "--data", "d.npz", "--plot", "p.png"]) == 2
    err = capsys.readouterr().err.splitlines()
    assert err == [
        "onnxslim-core: plots need matplotlib, which is not installed",
        "  hint: pip install 'onnxslim-core[plot]'",
    ]
    assert not (folder / "cache").exists()


def test_a_plot(folder: Path) -> None:
    pytest.importorskip("matplotlib")
    assert main(["sensitivity", "net.onnx", "--data", "d.npz", "--ratios", "0.5", "--plot", "p.png", "--quiet"]) == 0
    assert (folder / "p.png").read_bytes().startswith(b"\x89PNG")


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys\nfrom onnxslim_core.cli import main\nassert main(['sensitivity', '--help']) == 0\n"
        "print(sorted({'onnx', 'onnx_ir', 'onnxruntime', 'numpy', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("cache", ["off", "file", "folder"])
def test_an_interrupt_promises_what_is_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache: str
) -> None:
    (folder / "file").write_text("a file, where a folder should be")
    monkeypatch.setenv("ONNXSLIM_CORE_CACHE", cache if cache == "off" else str(folder / cache))
    put = Memory.put

    def interrupted(memory: Memory, name: str, found: Any) -> None:
        put(memory, name, found)
        if name == "1":
            raise KeyboardInterrupt

    monkeypatch.setattr(Memory, "put", interrupted)
    assert main(["sensitivity", "net.onnx", "--data", "d.npz", "--ratios", "0.5"]) == 130
    assert ("are kept" in capsys.readouterr().err) == (cache == "folder")


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_keeps_what_is_done(folder: Path, own_cache: Path) -> None:
    (folder / "slow.py").write_text("import time\ndef score(outputs, labels):\n    time.sleep(0.3)\n    return 1.0\n")
    command = [sys.executable, "-m", "onnxslim_core", "sensitivity", "net.onnx", "--data", "d.npz"]
    command += ["--ratios", "0.5", "--metric", "slow.py:score"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    until = time.monotonic() + 60
    while time.monotonic() < until and sum(len(p.read_text().split("\n\n")) for p in own_cache.glob("*")) < 3:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    assert out == ""
    assert [line for line in err.splitlines() if line] == [
        "onnxslim-core: interrupted",
        "  hint: the curves found so far are kept; the same command goes on from there",
    ]
    done = subprocess.run([*command, "--json", "-q"], text=True, capture_output=True, env=environment, check=True)
    assert 1 <= json.loads(done.stdout)["from_cache"] < 6
