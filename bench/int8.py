"""How near and how fast is int8, beside onnxruntime's own quantization and NNCF, on the same images in the same run?

    python bench/int8.py [NAME ...] [--rivals PYTHON] [--classifier MODEL CALIBRATION.npz TEST.npz] [--plan SHARE]

Each model of the zoo gets inputs made from photos and rendered text (`_int8_data.py`), half of which the pass sees;
figures are from others, drawn from another seed. Latency is one thread, calls in turns with the float original.
`--rivals` names a Python that has onnxruntime and, if it is to take part, nncf. `--classifier` is an image classifier
with its own images (`image`, uint8 NHWC, and `label`). With `--plan` also one plan of widths, blocks, ranks and int8 is
made, which is to take that share of the time. Rows are kept in int8.json from run to run, so that single
models can be measured again.

A model counts as good where every part of every output has a cosine of at least --min-cosine on images that nobody has
seen, and it is faster; where the pass hands the model back as it was, the row says why.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from _common import RESULTS, markdown, write_result
from _int8_data import RECIPES, Recipe, draw
from _zoo import PLAN, models, settings

import onnxslim_core as osc

TOOLS = ("onnxruntime", "onnxruntime-cnn", "nncf", "nncf-accuracy")
BATCHES = 100


def recipe_text(recipe: Recipe | None, last: Mapping[str, Any], data: str = "") -> str:
    """The exact passes of the preset int8 and one that loses something; parts of outputs are declared in the budget."""
    lines = ["version = 1", data]
    for step in osc.Recipe.preset("int8").steps[:-1]:
        lines += ["[[pass]]", f'name = "{step.name}"']
    lines += ["[[pass]]", *(f"{key} = {json.dumps(value)}" for key, value in last.items())]
    for output, axis, parts in recipe.parts if recipe is not None else ():
        told = ", ".join(f"{name} = [{first}, {end}]" for name, first, end in parts)
        lines += [f'[budget.output."{output}"]', f"axis = {axis}", f"parts = {{{told}}}"]
    return "\n".join(line for line in lines if line) + "\n"


def ask(path: Path, name: str, inputs: np.ndarray, size: int) -> dict[str, np.ndarray]:
    """What a model answers, by output; the session is onnxruntime's default on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(inputs), size):
        answers = session.run(None, {name: inputs[start : start + size]})
        for output, answer in zip(session.get_outputs(), answers, strict=True):
            found.setdefault(output.name, []).append(np.asarray(answer))
    return {output: np.concatenate(answers) for output, answers in found.items()}


def fidelity(
    before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], recipe: Recipe | None
) -> dict[str, Any]:
    """Mean and worst cosine of every part, and the share of equal first answers, in plain numpy."""
    parts = {name: (before[name], after[name]) for name in before if before[name].dtype.kind == "f"}
    for output, axis, columns in recipe.parts if recipe is not None else ():
        for part, first, end in columns:
            index = np.arange(first, end)
            parts[f"{output}.{part}"] = tuple(np.take(each[output], index, axis) for each in (before, after))  # type: ignore[assignment]
    cosines, agreement = {}, []
    for name, (ours, theirs) in parts.items():
        a, b = (each.reshape(len(each), -1).astype(np.float64) for each in (ours, theirs))
        each = np.sum(a * b, 1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-30)
        cosines[name] = [float(each.mean()), float(each.min())]
        is_scores = ours.ndim == 2 or (ours.ndim == 3 and ours.min() >= 0 and np.allclose(ours.sum(-1), 1, atol=1e-3))
        if is_scores and ours.shape[-1] > 1:
            agreement.append(float((ours.argmax(-1) == theirs.argmax(-1)).mean()))
    worst = min(mean for mean, _ in cosines.values())
    return {"cosine": worst, "parts": cosines, "agreement": min(agreement, default=None)}


def judged(
    original: Path, candidate: Path, name: str, inputs: np.ndarray, recipe: Recipe | None, args: argparse.Namespace
) -> dict[str, Any]:
    """Answers, time and size of a candidate."""
    size = BATCHES if recipe is None else 1
    row = fidelity(ask(original, name, inputs, size), ask(candidate, name, inputs, size), recipe)
    timing = osc.benchmark(str(original), str(candidate), data={name: inputs[:1]}, seconds=args.seconds)
    row["latency"] = {"ratio": timing.ratio, "low": timing.low, "high": timing.high}
    row["size"] = candidate.stat().st_size / original.stat().st_size
    return row


def measure(path: Path, name: str, recipe: Recipe | None, args: argparse.Namespace, **given: Any) -> dict[str, Any]:
    """One model: ours, and every rival that runs."""
    calibration, test, labels = given.pop("calibration"), given.pop("test"), given.pop("labels", None)
    wanted: dict[str, Any] = {"name": "quantize", "min_cosine": args.min_cosine}
    if args.min_agreement is not None:
        wanted["min_agreement"] = args.min_agreement

    with tempfile.TemporaryDirectory() as folder:

        def made(last: Mapping[str, Any]) -> dict[str, Any]:
            target = Path(folder, "ours.onnx")
            start = time.perf_counter()
            plan = osc.Recipe.parse(recipe_text(recipe, last))
            result = osc.compress(path, plan, data={name: calibration}, latency_seconds=args.seconds, **given)
            seconds = time.perf_counter() - start
            result.save(target)
            (step,) = (step for step in result.report.steps if step.name == last["name"])
            told = [change for change in step.changes if change.pass_name == step.name]
            if step.name == "slim":  # of the whole, not of one group
                told = [change for change in told if len(change.where) != 1]
            row: dict[str, Any] = {"outcome": step.outcome, "seconds": round(seconds, 1)}
            row["why"] = step.reason or "; ".join(change.reason for change in told if change.reason)
            row["did"] = "; ".join(change.action for change in told if change.applied)
            row["ours"] = judged(path, target, name, test, recipe, args)
            if labels is not None:
                both = [next(iter(ask(file, name, test, BATCHES).values())).argmax(1) for file in (path, target)]
                row["accuracy"] = [float((each == labels).mean()) for each in both]
            return row

        row = made(wanted)
        if args.plan is not None:
            row["plan"] = made({**PLAN, "target": args.plan})
        if args.rivals:
            # the same images as ours saw, in files that a rival's Python reads
            samples = Path(folder, "samples.npz")
            np.savez(samples, **{name: calibration})
            row["rivals"] = {tool: rival(tool, path, samples, folder, name, test, recipe, args) for tool in args.tools}
    return row


def rival(
    tool: str,
    path: Path,
    samples: Path,
    folder: str,
    name: str,
    test: np.ndarray,
    recipe: Recipe | None,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """What another tool makes of the model."""
    target = Path(folder, f"{tool}.onnx")
    script = Path(__file__).with_name("_int8_rivals.py")
    start = time.perf_counter()
    try:
        done = subprocess.run(
            [args.rivals, str(script), tool, str(path), str(samples), str(target)],
            capture_output=True,
            text=True,
            check=False,
            timeout=args.patience,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {args.patience} s"}
    if done.returncode or not target.exists():
        return {"error": (done.stderr.strip().splitlines() or ["no result"])[-1][:200]}
    seconds = round(time.perf_counter() - start, 1)
    try:
        return {**judged(path, target, name, test, recipe, args), "seconds": seconds}
    except Exception as error:  # a rival's result may not run
        told = f"{type(error).__name__}: {error}".replace(str(target), target.name)
        return {"error": told.splitlines()[0][:200]}


def classifier(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The row of an image classifier with images and labels of its own."""
    path, *files = (Path(each) for each in args.classifier)
    name = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).get_inputs()[0].name
    arrays = []
    for file in files:
        with np.load(file) as found:
            pixels = found["image"].astype(np.float32) / np.float32(255)
            labels = found["label"]
        mean, std = (np.asarray(each, np.float32) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        arrays.append(np.ascontiguousarray(((pixels - mean) / std).transpose(0, 3, 1, 2)))
    return path.stem, measure(path, name, None, args, calibration=arrays[0], test=arrays[1], labels=labels)


def cells(name: str, row: Mapping[str, Any]) -> list[list[str]]:
    """The rows of the table for one model."""
    if "error" in row:
        return [[name, "ours", "", "", "", "", row["error"]]]
    lines = [[name, "onnxslim-core", *_figures(row["ours"]), _told(row)]]
    if "plan" in row:
        lines.append(["", "onnxslim-core, `slim` with int8", *_figures(row["plan"]["ours"]), _told(row["plan"])])
    for tool, each in row.get("rivals", {}).items():
        lines.append(["", tool, *(_figures(each) if "error" not in each else ["", "", "", ""]), each.get("error", "")])
    return [[cell.replace("|", "/") for cell in line] for line in lines]


def _told(row: Mapping[str, Any]) -> str:
    """What was done, or why nothing was; and the accuracy where there are labels."""
    text = str(row["did"] if row["outcome"] == "done" else row["why"])
    if "accuracy" in row:
        before, after = row["accuracy"]
        text += f"; accuracy {100 * before:.2f} to {100 * after:.2f} %"
    return text


def _figures(row: Mapping[str, Any]) -> list[str]:
    time_, agreement = row["latency"], row["agreement"]
    told = f"{time_['ratio']:.2f} ({time_['low']:.2f} to {time_['high']:.2f})"
    return [told, f"{row['size']:.2f}", f"{row['cosine']:.4f}", "" if agreement is None else f"{100 * agreement:.1f} %"]


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RECIPES)}")
    parser.add_argument("--classifier", nargs=3, metavar="FILE")
    parser.add_argument("--plan", type=float, metavar="SHARE", help="of the time that one plan of all forms is to take")
    parser.add_argument("--rivals", metavar="PYTHON")
    parser.add_argument("--tools", nargs="*", default=TOOLS, choices=TOOLS)
    parser.add_argument("--patience", type=float, default=900.0, help="seconds that a rival gets")
    parser.add_argument("--min-cosine", type=float, default=0.99)
    parser.add_argument("--min-agreement", type=float)
    parser.add_argument("--calibrate", type=int, default=128, help="inputs of which half decide")
    parser.add_argument("--judge", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10.0, help="bound on one timing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    kept = args.out / "int8.json"
    rows: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))["rows"] if kept.exists() else {}
    measured: dict[str, Any] = {}
    if args.classifier:
        name, row = classifier(args)
        measured[name] = row
    chosen: Sequence[str] = args.names or ([] if args.classifier else list(RECIPES))
    for name, path, entry in models(chosen) if chosen else ():
        shapes, values = settings(entry)
        (feed,) = entry["example_shape"]
        data = {"calibration": draw(name, args.calibrate, 0), "test": draw(name, args.judge, 1000)}
        try:
            measured[name] = measure(path, feed, RECIPES[name], args, shapes=shapes, values=values, **data)
        except Exception as error:  # one broken model must not hide the others
            measured[name] = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        for line in cells(name, measured[name]):
            print(" | ".join(line), flush=True)
    asked = {key: getattr(args, key) for key in ("calibrate", "judge", "min_cosine", "min_agreement", "seconds")}
    rows |= {name: {"asked": asked, **row} for name, row in measured.items()}
    write_result("int8", {"min_cosine": args.min_cosine, "rows": rows}, args.out)
    columns = ["model", "tool", ">time", ">file", ">cosine, worst part", ">same first answer", "what"]
    table = markdown(columns, [line for name in rows for line in cells(name, rows[name])])
    (args.out / "int8.md").write_text(table, encoding="utf-8")
    return 1 if any("error" in row for row in measured.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
