"""Fronts: what is dominated goes, what stays is written with its figures, and wrong calls are one line."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime as ort
import pytest

import onnxslim_core as osc
from onnxslim_core.cli import main
from onnxslim_core.demo import FOLDER
from onnxslim_core.errors import RecipeError
from onnxslim_core.front import Front, Point, _front, pareto
from onnxslim_core.lock import apply
from onnxslim_core.recipe import Recipe

DIGITS = FOLDER / "digits.onnx"
PRUNE = 'name = "prune_channels"\ncriterion = "l2"\nallocation = "macs"\ntarget = 0.7\n'


def recipe(*passes: str, budget: str = "") -> Recipe:
    text = "version = 1\n" + "".join(f"[[pass]]\n{table}\n" for table in passes)
    return Recipe.parse(text + (f"[budget]\n{budget}\n" if budget else ""), folder=FOLDER)


def images() -> dict[str, np.ndarray]:
    """A quarter of the demo's images, for speed."""
    with np.load(FOLDER / "calibration.npz") as file:
        return {"image": file["image"][:128]}


def run(how: Recipe, targets: tuple[float, ...] = (0.7,), **options: Any) -> Front:
    given: dict[str, Any] = {"data": images(), "measure_latency": False, **options}
    return pareto(DIGITS, how, targets, **given)


@dataclass(frozen=True)
class Outcome:
    """As much of a result as the front looks at."""

    name: str


def points(*figures: tuple[float, float | None, float | None, float]) -> list[Point]:
    """Points of (loss, time, MACs, size)."""
    return [
        Point(target, cast("Any", Outcome("x")), *figure)
        for target, figure in zip((None, 0.9, 0.8, 0.7, 0.6), figures, strict=False)
    ]


# ---------------------------------------------------------------------------------------------------- domination


def test_what_another_point_beats_goes() -> None:
    front = _front(
        points((0, 0.9, 1, 1), (0.01, 0.8, 0.8, 1), (0.02, 0.85, 0.7, 1), (0.03, 0.6, 0.6, 1), (0.03, 0.7, 0.1, 1))
    )
    assert front.counted == "latency"
    assert [point.target for point in front.best] == [None, 0.9, 0.7]
    assert [point.why for point in front.points if point.why] == [
        "target 0.9 loses no more and takes no more time",
        "target 0.7 loses no more and takes no more time",
    ]


def test_of_equal_points_one_stays() -> None:
    front = _front(points((0.5, 1.0, 1, 1), (0.1, 0.5, 1, 1), (0.1, 0.5, 1, 1)))
    assert [point.target for point in front.best] == [0.9]


def test_without_times_multiply_adds_count_and_without_those_bytes() -> None:
    counted = _front(points((0, None, 1.0, 1), (0.1, None, 0.5, 1), (0.2, None, 0.6, 0.1)))
    assert counted.counted == "macs" and [point.target for point in counted.best] == [None, 0.9]
    assert "multiply-adds" in counted.points[2].why
    bytes_ = _front(points((0, None, None, 1), (0.1, None, 0.5, 1), (0.2, None, 0.6, 0.1)))
    assert bytes_.counted == "size" and [point.target for point in bytes_.best] == [None, 0.8]


def test_a_loss_that_is_not_known_beats_nothing() -> None:
    front = _front(points((math.nan, 0.1, 1, 1), (0.1, 0.5, 1, 1)))
    assert len(front.best) == 2


def test_random_fronts_hold_what_no_other_point_beats() -> None:
    """Against the definition, on coarse figures, so that many are equal."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        drawn = rng.integers(0, 4, (5, 2)) + 1.0
        front = _front(points(*((loss, time, 1.0, 1.0) for loss, time in drawn)))
        kept = {(point.loss, cast("float", point.time)) for point in front.best}
        every = {(float(loss), float(time)) for loss, time in drawn}
        undominated = {a for a in every if not any(b != a and b[0] <= a[0] and b[1] <= a[1] for b in every)}
        assert kept == undominated and len(front.best) == len(kept)


# ---------------------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def front() -> Front:
    return run(recipe('name = "fuse_batchnorm"', PRUNE), (0.3, 0.8), latency_seconds=1.0)


def test_points_are_measured_and_ordered(front: Front) -> None:
    assert front.counted == "macs" and [point.target for point in front.points] == [None, 0.8, 0.3]
    best = front.best
    assert [point.target for point in best] == [None, 0.8, 0.3]
    assert best[0].loss == 0 and 0 < best[1].loss < best[2].loss
    for point in best:
        if point.target is not None:
            assert cast("float", point.macs) <= point.target
        report = point.result.report
        assert report.fidelity is not None
        if point.target is not None:
            assert point.loss == 1 - cast("float", report.fidelity["logits"].cosine)
    assert cast("float", best[0].macs) > cast("float", best[1].macs) > cast("float", best[2].macs)


def test_files_hold_what_the_figures_say(front: Front, tmp_path: Path) -> None:
    paths = front.save(tmp_path / "out.onnx", locks=True)
    assert [path.name for path in paths] == ["out-1.onnx", "out-2.onnx", "out-3.onnx"]
    rows = [row for row in front.document(tmp_path / "out.onnx")["pareto"] if row["file"]]
    with np.load(FOLDER / "heldout.npz") as file:
        unseen = file["image"]

    def answers(path: Path) -> np.ndarray:
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, {"image": unseen})[0], np.float64)

    first = answers(DIGITS)
    for path, row in zip(paths, rows, strict=True):
        assert path.name == row["file"]
        found = answers(path)
        cosine = np.sum(first * found, 1) / np.linalg.norm(first, axis=1) / np.linalg.norm(found, axis=1)
        loss = 1 - cosine.mean()  # on other images than the front was judged on
        assert loss < 1e-11 if row["target"] is None else row["loss"] / 10 < loss < 10 * row["loss"]
        made = apply(f"{path}.lock", DIGITS).model
        assert b"".join(made.pieces()) == path.read_bytes()


def test_time_counts_where_it_is_measured() -> None:
    found = run(recipe('name = "fuse_batchnorm"', PRUNE), (0.3,), measure_latency=True, latency_seconds=1.0)
    assert found.counted == "latency"
    for point in found.points:
        assert point.result.report.latency is not None and point.time == point.result.report.latency.ratio


def test_a_metric_is_the_loss() -> None:
    def metric(outputs: dict[str, np.ndarray], labels: object) -> float:
        return -float(np.abs(outputs["logits"]).mean())

    found = run(recipe(PRUNE), (0.3,), metric=metric)
    for point in found.points:
        fidelity = point.result.report.fidelity
        assert fidelity is not None and fidelity.metric is not None
        assert point.loss == fidelity.metric[0] - fidelity.metric[1]


def test_a_target_over_budget_is_told_and_not_written() -> None:
    found = run(recipe(PRUNE, budget="min_cosine = 0.9999"), (0.3,))
    assert [point.target for point in found.best] == [None]
    assert "no more than exact" in found.points[1].why and "cosine" in found.points[1].why


# ---------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("how", "targets", "options", "message"),
    [
        (recipe('name = "fuse_batchnorm"'), (0.5,), {}, "no pass with a target"),
        (recipe('name = "prune_channels"\nratio = 0.5'), (0.5,), {}, "no pass with a target"),
        (recipe(PRUNE), (0.5, 1.5), {}, "target 1.5 of a front"),
        (recipe(PRUNE), (math.nan,), {}, "target nan of a front"),
        (recipe(PRUNE), (), {}, "no targets"),
        (recipe(PRUNE), (0.5,), {"verify": False}, "compares no answers"),
    ],
)
def test_what_makes_no_front(how: Recipe, targets: tuple[float, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        run(how, targets, **options)


def test_the_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.toml").write_text(f"version = 1\n[[pass]]\n{PRUNE}")
    np.savez("d.npz", image=images()["image"])
    call = ["compress", str(DIGITS), "-o", "o.onnx", "--recipe", "r.toml", "--data", "d.npz"]
    call += ["--pareto", "--no-latency"]
    (tmp_path / "o-3.onnx").write_text("of an earlier front")
    assert main([*call, "--targets", "0.5", "--json", "--report", "f.json"]) == 0
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert "o-3.onnx: left by an earlier run" in said.err
    assert document == json.loads((tmp_path / "f.json").read_text())
    assert [row["file"] for row in document["pareto"]] == ["o-1.onnx", "o-2.onnx"]
    assert {path.name for path in tmp_path.iterdir()} == {
        *("r.toml", "d.npz", "f.json", "o-1.onnx", "o-1.onnx.lock", "o-2.onnx", "o-2.onnx.lock", "o-3.onnx"),
    }
    budget = tmp_path / "b.toml"
    budget.write_text("[budget]\nmax_size_ratio = 0.001\n")
    assert main([*call, "--targets", "0.5", "-o", "p.onnx", "--budget", str(budget), "-q"]) == 1
    assert not list(tmp_path.glob("p*"))


@pytest.mark.parametrize(
    "options",
    [["--targets", "0.5"], ["--pareto", "--targets", "much"], ["--pareto", "--lock", "x.lock"], ["--pareto"]],
)
def test_wrong_calls(tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]) -> None:
    assert main(["compress", str(DIGITS), "-o", str(tmp_path / "o.onnx"), *options]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("onnxslim-core: ") and all(line.startswith("  hint: ") for line in lines[1:])
    assert not list(tmp_path.iterdir())


def test_a_source_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "o-1.onnx"
    source.write_bytes(DIGITS.read_bytes())
    assert main(["compress", str(source), "-o", str(tmp_path / "o.onnx"), "--pareto", "--preset", "balanced"]) == 2
    assert "would overwrite" in capsys.readouterr().err
    assert osc.load(source).digest()
