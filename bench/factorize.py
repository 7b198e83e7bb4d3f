"""Is one big layer cut in two without losing more than it must, and is it faster?

    python bench/zoo/fetch.py tumor-vgg16 ppocrv4-rec minilm-l3
    python bench/factorize.py [NAME...] [--ratio 0.5] [--seconds 20]

The largest MatMul or Gemm of each model is split at half its multiply-adds (`factorize` with `largest = 1`), after the
exact passes. What the pass says of its error is not believed here: weight and factors are read from the two files with
onnx alone, W - A B is decomposed anew by numpy, and its spectral norm is held against the first singular value of W
that was left out (the smallest error that any two factors of that rank can have). The layer's time is what the pass
measured, the layer alone against its two halves.
Done means: split, the spectral norm at most the first one left out (to 1e-4 of it, since factors are stored in
float32), and the whole interval of the layer's time below 1. Exits with 1 where fewer than two models are done.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from _common import RESULTS, markdown, write_result
from _zoo import models, settings
from onnx import numpy_helper

import onnxslim_core as osc

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


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--ratio", type=float, default=0.5, help="share of the layer's multiply-adds to remove")
    parser.add_argument("--seconds", type=float, default=20.0, help="spent on timing each whole model")
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
    done = sum(row["done"] for row in rows)
    columns = ["model", ">largest layer", ">rank", ">MACs", ">spectral norm of W - AB", ">first dropped singular value"]
    write_result("factorize", {"ratio": args.ratio, "rows": rows, "done": done}, args.out)
    table = markdown([*columns, ">layer's time", "done"], map(cells, rows))
    (args.out / "factorize.md").write_text(table, encoding="utf-8")
    print(f"{done} of {len(rows)} done")
    return 0 if done >= min(2, len(rows)) else 1


if __name__ == "__main__":
    sys.exit(main())
