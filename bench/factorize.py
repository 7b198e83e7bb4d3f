"""Is one big layer cut in two without losing more than it must, and is it faster?

    python bench/zoo/fetch.py tumor-vgg16 ppocrv4-rec minilm-l3
    python bench/zoo/fetch.py --data photos photos-sklearn imagenet-20
    python bench/factorize.py [NAME...] [--ratio 0.5] [--seconds 20] [--photos FOLDER]

Without samples: the largest MatMul or Gemm of each model is split at half its multiply-adds (`factorize` with
`largest = 1`), after the exact passes. What the pass says of its error is not believed here: weight and factors are
read from the two files with onnx alone, W - A B is decomposed anew by numpy, and its spectral norm is held against
the first singular value of W that was left out (the smallest error that any two factors of that rank can have). The
layer's time is what the pass measured, the layer alone against its two halves. Done means: split, the spectral norm
at most the first one left out (to 1e-4 of it, since factors are stored in float32), and the whole interval of the
layer's time below 1.

With samples: the head of ppocrv4-rec (MatMul 120 x 6625, rendered lines of text) at half its multiply-adds, and the
Conv of 64 to 128 channels of tumor-vgg16 (crops of photos) at a quarter. Judged by onnxruntime alone: the layer's own
answers (with the Add behind a MatMul) in the two files, on inputs that had no part in the choice (other lines; crops
of other photos): squared error over the variance of each output, summed. Beside it the same layer split without
samples at the same multiply-adds. Done means: at most .004 in at most .5 of the layer's time; at most .002 in .35.

Exits with 1 where fewer than two models, or not all layers with samples, are done.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from _common import RESULTS, markdown, write_result
from _pictures import crops, lines, photos
from _zoo import models, settings
from onnx import numpy_helper
from onnxslim_core.passes import pass_class

import onnxslim_core as osc
from onnxslim_core.rewrite import Context

NAMES = ("tumor-vgg16", "ppocrv4-rec", "minilm-l3")
RECIPE = """
version = 1
[[pass]]
name = "factorize"
largest = 1
"""
ROUNDING = 1e-4
"""Of the first dropped singular value: the factors are rounded to the weight's own type."""


class File:
    """A model file, read with onnx alone: who makes a value, and the constants."""

    def __init__(self, path: Path) -> None:
        graph = onnx.load(str(path)).graph
        self.maker = {name: node for node in graph.node for name in node.output}
        self.called = {f"{node.op_type} '{node.name}'": node for node in graph.node}
        self.constants = {tensor.name: tensor for tensor in graph.initializer}

    def matrix(self, name: str) -> np.ndarray | None:
        """A constant, also behind Identity and Transpose, in float64; None for what depends on the input."""
        if name in self.constants:
            return numpy_helper.to_array(self.constants[name]).astype(np.float64)
        node = self.maker.get(name)
        if node is None:
            return None
        if node.op_type == "Constant":
            found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            return numpy_helper.to_array(found["value"]).astype(np.float64)
        if node.op_type not in ("Identity", "Transpose"):
            return None
        inner = self.matrix(node.input[0])
        return inner.T if inner is not None and node.op_type == "Transpose" else inner

    def factor(self, node: onnx.NodeProto) -> tuple[np.ndarray, str, bool]:
        """Of a MatMul or Gemm: the matrix as its formula uses it, the other input, whether the matrix stands left."""
        parts = [self.matrix(name) for name in node.input[:2]]
        left = parts[0] is not None
        found = parts[0] if left else parts[1]
        assert found is not None, f"{node.name} has no constant weight"
        turned = any(a.name == ("transA" if left else "transB") and a.i for a in node.attribute)
        return (found.T if turned else found), node.input[1 if left else 0], left


def error_of(before: Path, after: Path, name: str) -> dict[str, Any]:
    """What the split cost, by numpy: the node of that name stays as the second of the two."""
    old, new = File(before), File(after)
    weight, _, _ = old.factor(old.called[name])
    second, between, left = new.factor(new.called[name])
    first, _, _ = new.factor(new.maker[between])
    product = second @ first if left else first @ second
    rank = first.shape[0] if left else first.shape[1]
    values = np.linalg.svd(weight, compute_uv=False)
    error = float(np.linalg.svd(weight - product, compute_uv=False)[0])
    return {
        "weight": list(weight.shape),
        "weights": [weight.size, first.size + second.size],
        "rank": rank,
        "largest_singular_value": float(values[0]),
        "first_dropped": float(values[rank]),
        "spectral_error": error,
        "energy_kept": float((values[:rank] ** 2).sum() / (values**2).sum()),
    }


def measure(name: str, path: Path, entry: Mapping[str, Any], ratio: float, seconds: float) -> dict[str, Any]:
    """One model: the exact passes, then the split, then the look at both files."""
    shapes, values = settings(entry)
    recipe = osc.Recipe.parse(RECIPE + f"ratio = {ratio}\n")
    row: dict[str, Any] = {"model": name, "done": False}
    with tempfile.TemporaryDirectory() as folder:
        exact, target = Path(folder, "exact.onnx"), Path(folder, "out.onnx")
        first = osc.compress(path, shapes=shapes, values=values, measure_latency=False)
        first.save(exact)
        result = osc.compress(exact, recipe, shapes=shapes, values=values, latency_seconds=seconds)
        step = next(step for step in result.report.steps if step.name == "factorize")
        row |= {"outcome": step.outcome, "reason": step.reason or "; ".join(c.reason for c in step.refused)}
        if not step.applied:
            return row
        change = next(change for change in step.applied if change.pass_name == "factorize")
        row |= {"layer": change.where[0], "macs": [change.details["macs_before"], change.details["macs_after"]]}
        row["layer_latency"] = change.details["latency"]
        if step.outcome != "done":
            return row
        result.save(target)
        row |= error_of(exact, target, change.where[0])
    report = result.report
    if report.latency is not None:
        row["model_latency"] = {key: getattr(report.latency, key) for key in ("ratio", "low", "high")}
    if report.fidelity is not None:
        row["cosine_on_random_inputs"] = {key: out.cosine for key, out in report.fidelity.outputs.items()}
    row["at_its_least"] = row["spectral_error"] <= row["first_dropped"] * (1 + ROUNDING)
    row["faster"] = isinstance(row["layer_latency"], Mapping) and row["layer_latency"]["high"] < 1
    row["done"] = row["at_its_least"] and row["faster"]
    return row


def cells(row: Mapping[str, Any]) -> list[str]:
    """One row of the table."""
    if "rank" not in row:
        return [row["model"], row.get("error") or f"{row['outcome']}: {row['reason']}", "", "", "", "", "", "no"]
    return [
        row["model"],
        f"{row['weight'][0]} x {row['weight'][1]}",
        str(row["rank"]),
        f"{row['macs'][0] / 1e6:.1f} to {row['macs'][1] / 1e6:.1f} M",
        f"{row['spectral_error']:.6g}",
        f"{row['first_dropped']:.6g}",
        spread(row["layer_latency"]),
        "yes" if row["done"] else "no",
    ]


def spread(timing: object) -> str:
    """A ratio with its interval."""
    if not isinstance(timing, Mapping):
        return "not measured"
    return f"{timing['ratio']:.2f} ({timing['low']:.2f} to {timing['high']:.2f})"


@dataclass(frozen=True)
class Case:
    """A layer that is split with samples.

    Attributes:
        model: In the zoo.
        shape: Of the weight in the file, which says which layer it is.
        ratio: Share of its multiply-adds to remove.
        round_to: Of the rank.
        error: The most that may be lost.
        latency: The most of the layer's time.
        draw: (photos to learn from or None, True for the inputs that judge) -> inputs by name.
    """

    model: str
    shape: tuple[int, ...]
    ratio: float
    round_to: str
    error: float
    latency: float
    draw: Callable[[Path | None, bool], dict[str, np.ndarray]]


def text_lines(folder: Path | None, judging: bool) -> dict[str, np.ndarray]:
    """Lines as ppocrv4-rec reads them: BGR, (x / 255 - .5) / .5, NCHW."""
    drawn = lines(80, (48, 320), 1, judging=True) if judging else lines(400, (48, 320), 0)
    return {"x": np.ascontiguousarray((drawn[..., ::-1].astype(np.float32) / 127.5 - 1).transpose(0, 3, 1, 2))}


def pictures(folder: Path | None, judging: bool) -> dict[str, np.ndarray]:
    """Crops as tumor-vgg16 reads them: RGB / 255, NHWC."""
    if judging:
        drawn = crops(photos("imagenet-20"), 20, (240, 240), 1)
    else:
        drawn = crops(photos("photos", "photos-sklearn", folder=folder), 36, (240, 240), 0)
    return {"input": drawn.astype(np.float32) / 255}


CASES = (
    Case("ppocrv4-rec", (120, 6625), 0.5, "2", 0.004, 0.5, text_lines),
    Case("tumor-vgg16", (128, 64, 3, 3), 0.75, '"auto"', 0.002, 0.35, pictures),
)


def answers(path: Path, name: str, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    """What a layer answers to every input, with the Add behind a MatMul, by onnxruntime with its optimizer off."""
    model = onnx.load(str(path))
    node = next(node for node in model.graph.node if f"{node.op_type} '{node.name}'" == name)
    behind = [other for other in model.graph.node if node.output[0] in other.input]
    if node.op_type == "MatMul" and [other.op_type for other in behind] == ["Add"]:
        node = behind[0]
    model.graph.output.add(name=node.output[0])
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    count = len(next(iter(feeds.values())))
    found = [session.run([node.output[0]], {k: v[i : i + 1] for k, v in feeds.items()})[0] for i in range(count)]
    together = np.concatenate(found)
    return together if node.op_type != "Conv" else np.moveaxis(together, 1, -1)


def lost(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """Squared error over the variance, and over the squares; the last axis is the outputs."""
    axes = tuple(range(before.ndim - 1))
    error = np.square(before - after, dtype=np.float64).sum()
    return {
        "error_over_variance": float(error / (np.var(before, axis=axes, dtype=np.float64).sum() * before[..., 0].size)),
        "error_over_squares": float(error / np.square(before, dtype=np.float64).sum()),
    }


def with_samples(
    case: Case, path: Path, entry: Mapping[str, Any], seconds: float, folder: Path | None
) -> dict[str, Any]:
    """One layer with samples and without, judged on inputs that nobody has seen."""
    shapes, values = settings(entry)
    row: dict[str, Any] = {"model": case.model, "weight": list(case.shape), "ratio": case.ratio, "done": False}
    row |= {"most_error": case.error, "most_latency": case.latency}
    with tempfile.TemporaryDirectory() as place:
        exact, data = Path(place, "exact.onnx"), Path(place, "samples.npz")
        osc.compress(path, shapes=shapes, values=values, measure_latency=False).save(exact)
        file = File(exact)
        where = next(name for name, node in file.called.items() if case.shape in shapes_of(file, node))
        np.savez(data, **case.draw(folder, False))
        fresh = case.draw(folder, True)
        before = answers(exact, where, fresh)
        layer = where.split("'")[1]
        told = f'only = ["{layer}"]\ncriterion = "output"\nlayers = ["Conv", "MatMul"]\nmin_size = 1\n'
        told += f"ratio = {case.ratio}\nround_to = {case.round_to}\n"
        recipe = osc.Recipe.parse(RECIPE + told)
        result = osc.compress(exact, recipe, data=data, shapes=shapes, values=values, latency_seconds=seconds)
        step = next(step for step in result.report.steps if step.name == "factorize")
        change = next((change for change in step.applied if change.where == (where,)), None)
        if change is None or step.outcome != "done":
            return row | {"error": f"{step.outcome} {step.reason or '; '.join(c.reason for c in step.refused)}"}
        target, plain = Path(place, "output.onnx"), Path(place, "weight.onnx")
        result.save(target)
        keys = ("form", "ranks", "macs_before", "macs_after")
        row |= {"layer": where, "layer_latency": change.details["latency"]}
        row |= {key: change.details[key] for key in keys} | {"told_error": change.details["error"]}
        row |= lost(before, answers(target, where, fresh))
        without_samples(exact, plain, layer, row)
        row["without_samples"] = lost(before, answers(plain, where, fresh))
        row["done"] = row["error_over_variance"] <= case.error and _ratio(row) <= case.latency
        row["cosine"] = {key: out.cosine for key, out in result.report.fidelity.outputs.items()}
        row["model_latency"] = {key: getattr(result.report.latency, key) for key in ("ratio", "low", "high")}
    return row


def without_samples(exact: Path, target: Path, layer: str, row: Mapping[str, Any]) -> None:
    """The same layer in the same form at the same multiply-adds, from its weight alone."""
    model = osc.load(exact)
    share = 1 - row["macs_after"] / row["macs_before"] - 1e-6
    options = {"form": row["form"], "ratio": share, "round_to": 1, "min_size": 1, "measure": "never"}
    pass_class("factorize")(only=(layer,), criterion="weight", **options).run(model.ir, Context())
    onnx.save(model.to_proto(), str(target))


def shapes_of(file: File, node: onnx.NodeProto) -> list[tuple[int, ...]]:
    """Of the constants that a node reads."""
    return [tuple(file.constants[name].dims) for name in node.input if name in file.constants]


def _ratio(row: Mapping[str, Any]) -> float:
    timing = row["layer_latency"]
    return float(timing["ratio"]) if isinstance(timing, Mapping) else float("inf")


def sampled_cells(row: Mapping[str, Any]) -> list[str]:
    """One row of the second table."""
    if "form" not in row or "without_samples" not in row:
        return [row["model"], row.get("error", "?"), *[""] * 5, "no"]
    return [
        row["model"],
        " x ".join(str(size) for size in row["weight"]),
        f"{row['form']} {' and '.join(str(rank) for rank in row['ranks'])}",
        f"{row['macs_after'] / row['macs_before']:.2f}",
        f"{row['error_over_variance']:.4f} (at most {row['most_error']})",
        f"{row['without_samples']['error_over_variance']:.4f}",
        spread(row["layer_latency"]),
        "yes" if row["done"] else "no",
    ]


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--ratio", type=float, default=0.5, help="share of the layer's multiply-adds to remove")
    parser.add_argument("--seconds", type=float, default=20.0, help="spent on timing each whole model")
    parser.add_argument("--photos", type=Path, help="images to learn from, in the place of the zoo's")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows = []
    for name, path, entry in models(args.names or NAMES):
        try:
            row = measure(name, path, entry, args.ratio, args.seconds)
        except Exception as error:  # one broken model must not hide the others
            row = {"model": name, "done": False, "error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        rows.append(row)
        print(" | ".join(cells(row)), flush=True)
    sampled = []
    for case in CASES:
        if args.names and case.model not in args.names:
            continue
        ((_, path, entry),) = models([case.model])
        sampled.append(with_samples(case, path, entry, args.seconds, args.photos))
        print(" | ".join(sampled_cells(sampled[-1])), flush=True)
    done, good = (sum(row["done"] for row in part) for part in (rows, sampled))
    columns = ["model", ">largest layer", ">rank", ">MACs", ">spectral norm of W - AB", ">first dropped singular value"]
    result = {"ratio": args.ratio, "rows": rows, "done": done, "with_samples": sampled, "done_with_samples": good}
    write_result("factorize", result, args.out)
    table = markdown([*columns, ">layer's time", "done"], map(cells, rows))
    columns = ["model", ">layer", ">form and rank", ">MACs", ">error on other inputs", ">the same without samples"]
    other = markdown([*columns, ">layer's time", "done"], map(sampled_cells, sampled))
    text = f"Without samples:\n\n{table}\nWith samples; errors are squares over the variance of the answers:\n\n{other}"
    (args.out / "factorize.md").write_text(text, encoding="utf-8")
    print(f"{done} of {len(rows)} done without samples, {good} of {len(sampled)} with")
    return 0 if done >= min(2, len(rows)) and good == len(sampled) else 1


if __name__ == "__main__":
    sys.exit(main())
