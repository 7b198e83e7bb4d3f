"""How much of what can go does go: 44 files with known answers, ours beside two other tools.

    python bench/coverage.py [--nets DIR] [--rivals PYTHON] [--only vgg resnet] [--seconds 3] [--out DIR]

The files are those of coverage_nets.py (made in the cache folder first where DIR is not given; that needs torch). Every
second prunable channel in them is dead, so the ideal size is known and the answers must not change. Per file:

  remove_idle       normalize, fold_constants, remove_idle with round_to = 1
  prune_channels    normalize, fold_constants, prune_channels at ratio 0.5 by l2 with round_to = 1
  onnxsim           simplify, then apply_structured_pruning at 0.5          (with --rivals)
  Torch-Pruning     magnitude importance at 0.5, on the PyTorch module      (with --rivals, once per network)

A share is float weights left over float weights of the original file, in per cent; a file is done when its share is at
most the ideal plus 0.5 points and the largest output difference, relative to the largest output, is at most 1e-5.
With --seconds the time over the original's is taken, too, after merge_convs and remove_idle on their default grid,
calls in turns on one thread: an interval that begins above 1.02 is slower. Exits with 1 where a file of ours is not
done, or slower. Writes coverage.json and coverage.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import rivals
from _common import RESULTS, count_weights, markdown, write_result
from zoo.fetch import default_folder

import onnxslim_core as osc

VARIANTS = ("raw", "folded", "dynamo", "dynamo_raw")
POINTS = 0.5
DIFFERENCE = 1e-5
RECIPES = {
    "remove_idle": 'version = 1\nrequires = "exact"\n[[pass]]\nname = "normalize"\n[[pass]]\nname = "fold_constants"\n'
    '[[pass]]\nname = "remove_idle"\nround_to = 1\n',
    "prune_channels": 'version = 1\n[[pass]]\nname = "normalize"\n[[pass]]\nname = "fold_constants"\n'
    '[[pass]]\nname = "prune_channels"\ncriterion = "l2"\nratio = 0.5\nround_to = 1\n',
}

TIMED = 'version = 1\nrequires = "exact"\n[[pass]]\nname = "merge_convs"\n[[pass]]\nname = "remove_idle"\n'
SLOWER = 1.02


def make_nets() -> Path:
    """The folder with the 44 files, made where they are missing."""
    folder = default_folder() / "coverage"
    try:
        complete = len(json.loads((folder / "ideal.json").read_text(encoding="utf-8"))) == 11
    except (OSError, ValueError):
        complete = False
    if not complete:
        script = Path(__file__).with_name("coverage_nets.py")
        subprocess.run([sys.executable, str(script), "--out", str(folder)], check=True)
    return folder


def answers(model: onnx.ModelProto | Path) -> list[np.ndarray]:
    """The outputs for four fixed inputs, onnxruntime's optimizer off, one thread."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(7)
    inputs = [(rng.standard_normal((1, 3, 32, 32)) + 0.3).astype(np.float32) for _ in range(4)]
    return [output for x in inputs for output in session.run(None, {"x": x})]


def difference(reference: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> float:
    """Largest absolute difference over the largest absolute reference; infinite for another shape or a NaN."""
    if [a.shape for a in reference] != [b.shape for b in other] or not all(np.isfinite(b).all() for b in other):
        return float("inf")
    scale = max(float(np.abs(a).max()) for a in reference)
    worst = max(float(np.abs(a.astype(np.float64) - b).max()) for a, b in zip(reference, other, strict=True))
    return worst / scale


def judged(result: dict[str, Any], ideal: float) -> dict[str, Any]:
    """Add whether a share and a difference are what they should be; JSON has no infinity."""
    if "share" in result:
        result["done"] = result["share"] <= ideal + POINTS and result["difference"] <= DIFFERENCE
        result["share"] = round(result["share"], 2)
        if result["difference"] == float("inf"):
            result["difference"] = None
    return result


def ours(path: Path, recipe: str, weights: int, reference: Sequence[np.ndarray]) -> dict[str, Any]:
    """One recipe of ours on one file."""
    start = time.perf_counter()
    try:
        result = osc.compress(path, recipe=osc.Recipe.parse(recipe, "bench"), measure_latency=False)
    except Exception as error:  # the table shows a crash of ours as it shows one of another tool
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200], "done": False}
    seconds = time.perf_counter() - start
    proto = result.model.to_proto()
    return {
        "share": 100 * count_weights(proto) / weights,
        "difference": difference(reference, answers(proto)),
        "seconds": round(seconds, 2),
    }


def timed(path: Path, seconds: float) -> dict[str, Any]:
    """Time after the exact passes that change layers over the original's, and whether that is slower."""
    steps = osc.Recipe.parse(TIMED, "bench")
    result = osc.compress(path, recipe=steps, measure_latency=False)
    timing = osc.benchmark(str(path), result.model, seconds=seconds)
    found = {key: getattr(timing, key) for key in ("ratio", "low", "high")}
    return {**found, "slower": timing.low > SLOWER}


def onnxsim(path: Path, python: str, weights: int, reference: Sequence[np.ndarray]) -> dict[str, Any]:
    """Simplify and apply_structured_pruning on one file."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "out.onnx")
        outcome = rivals.run("onnxsim_pruning", path, target, python=python, ratio=0.5)
        if not outcome.ok:
            return {"error": outcome.error, "done": False}
        return {
            "share": 100 * count_weights(target) / weights,
            "difference": difference(reference, answers(target)),
            "seconds": round(outcome.seconds, 2),
        }


def torch_pruning(name: str, python: str) -> dict[str, Any]:
    """Torch-Pruning on one network; its share is of the PyTorch module's own weights."""
    outcome = rivals.run("torch_pruning", name, "", python=python, ratio=0.5)
    if not outcome.ok or outcome.facts is None:
        return {"error": outcome.error, "done": False}
    facts = outcome.facts
    return {
        "share": 100 * facts["left"] / facts["weights"],
        "ideal": round(100 * facts["ideal"] / facts["weights"], 2),
        "difference": facts["difference"],
        "seconds": round(outcome.seconds, 2),
    }


def measure(nets: Path, only: Sequence[str], python: str | None, seconds: float) -> list[dict[str, Any]]:
    """One row per file, in the order of the networks."""
    ideals = json.loads((nets / "ideal.json").read_text(encoding="utf-8"))
    rows = []
    for name in only or list(ideals):
        torch_row = None
        if python:
            torch_row = torch_pruning(name, python)
            torch_row = judged(torch_row, torch_row.get("ideal", 0.0))
        for variant in VARIANTS:
            path = nets / variant / f"{name}.onnx"
            weights, reference = count_weights(path), answers(path)
            ideal = 100 * ideals[name][variant]["ideal_params"] / weights
            row: dict[str, Any] = {"net": name, "variant": variant, "weights": weights, "ideal": round(ideal, 2)}
            for key, recipe in RECIPES.items():
                row[key] = judged(ours(path, recipe, weights, reference), ideal)
            if seconds:
                row["time"] = timed(path, seconds)
            if python:
                row["onnxsim"] = judged(onnxsim(path, python, weights, reference), ideal)
                row["torch_pruning"] = torch_row
            rows.append(row)
            shown = {key: cell(row[key]) for key in (*RECIPES, "onnxsim", "torch_pruning") if key in row}
            print(f"{name}/{variant}: ideal {row['ideal']}, {shown}", flush=True)
    return rows


def cell(result: dict[str, Any]) -> str:
    """A share and, where it is not done, why."""
    if "error" in result:
        return "crash"
    if result["difference"] is None:
        return f"{result['share']:.1f}, wrong shape or NaN"
    wrong = f", off by {result['difference']:.1e}" if result["difference"] > DIFFERENCE else ""
    return f"{result['share']:.1f}{wrong}"


def clock(row: dict[str, Any]) -> str:
    """The time over the original's, where it was taken."""
    time_ = row.get("time")
    return "" if time_ is None else f"{time_['ratio']:.2f} ({time_['low']:.2f} to {time_['high']:.2f})"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The Markdown table: shares left in per cent, and how many files each tool takes to the ideal."""
    tools = [key for key in (*RECIPES, "onnxsim", "torch_pruning") if key in rows[0]]
    body = [[r["net"], r["variant"], f"{r['ideal']:.1f}", *(cell(r[key]) for key in tools), clock(r)] for r in rows]
    done = [f"{sum(bool(r[key]['done']) for r in rows)} of {len(rows)}" for key in tools]
    body.append(["**to the ideal**", "", "", *done, ""])
    titles = {"onnxsim": "onnxsim pruning", "torch_pruning": "Torch-Pruning (PyTorch module)"}
    return markdown(["network", "export", ">ideal", *(f">{titles.get(key, key)}" for key in tools), ">time"], body)


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--nets", type=Path, help="folder with raw/, folded/, dynamo/, dynamo_raw/ and ideal.json")
    parser.add_argument("--rivals", metavar="PYTHON", help="interpreter that has the other tools")
    parser.add_argument("--only", nargs="*", default=[], help="names of networks")
    parser.add_argument("--seconds", type=float, default=0.0, help="spent on timing each file; 0 times nothing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows = measure(args.nets or make_nets(), args.only, args.rivals, args.seconds)
    text = table(rows)
    others = rivals.versions(args.rivals) if args.rivals else {}
    write_result("coverage", {"points": POINTS, "difference": DIFFERENCE, "others": others, "rows": rows}, args.out)
    (args.out / "coverage.md").write_text(text, encoding="utf-8")
    print(text)
    slower = any(row["time"]["slower"] for row in rows if "time" in row)
    return 0 if not slower and all(row[key]["done"] for row in rows for key in RECIPES) else 1


if __name__ == "__main__":
    sys.exit(main())
