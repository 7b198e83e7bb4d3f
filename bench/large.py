"""How much memory does a model of 2 GB take to rewrite, to verify and to prune?

    python bench/large.py [--gigabytes 2.1] [--folder DIR] [--runs exact,prune,verify]

A chain of residual blocks (LayerNormalization, MatMul, Add, Relu, MatMul, Add; 1,024 wide) with several hundred weights
in external data is written into a temporary folder; of the first block's hidden units one in eight is dead, so that
the exact recipe has something to remove. Then the command line runs over it in processes of its own, and what counts is
the resident memory of each at its highest (mapped pages of files included, as the system counts them), over the size
of the model's files:

- *exact* and *prune* (a quarter of the channels, by their L1 norm) rewrite without comparing answers; the limit is 1.3;
- *verify* is the exact recipe with everything compared in onnxruntime, which maps the model for itself: two models are
  never open at the same time, and ours is let go before.

The results are opened with onnx alone and run in onnxruntime: the exact one must give equal answers, the pruned one
must run and have a quarter fewer weights in its blocks. Writes large.json and large.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from _common import RESULTS, markdown, write_result
from onnx import TensorProto, helper
from scaling import measure

WIDTH, HIDDEN = 1024, 1792
LIMITS = {"exact": 1.3, "prune": 1.3, "verify": 1.3}
OPTIONS = {
    "exact": ("--no-verify", "--no-latency"),
    "prune": ("--no-verify", "--no-latency", "--recipe", "prune.toml"),
    "verify": ("--no-latency",),
}
PRUNE = """version = 1
[[pass]]
name = "prune_channels"
criterion = "l1"
ratio = 0.25
repair = "none"
"""


def build(folder: Path, gigabytes: float) -> Path:
    """Write the model; its weights go to the file one after the other, none stays in memory."""
    blocks = round(gigabytes * 1e9 / (2 * 4 * WIDTH * HIDDEN))
    rng = np.random.default_rng(0)
    up = (rng.standard_normal((WIDTH, HIDDEN)) * WIDTH**-0.5).astype(np.float32)
    down = (rng.standard_normal((HIDDEN, WIDTH)) * (HIDDEN * blocks) ** -0.5).astype(np.float32)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    value = "x"
    with Path(folder, "large.onnx.data").open("wb") as data:

        def weight(name: str, array: np.ndarray) -> str:
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=array.shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, entry in (("location", "large.onnx.data"), ("offset", data.tell()), ("length", array.nbytes)):
                tensor.external_data.add(key=key, value=str(entry))
            data.write(np.ascontiguousarray(array).data)
            weights.append(tensor)
            return name

        def op(op_type: str, *inputs: str) -> str:
            name = f"{op_type}_{len(nodes)}"
            nodes.append(helper.make_node(op_type, inputs, [name + "_out"], name=name))
            return name + "_out"

        for block in range(blocks):
            # the same numbers in another order: no two weights are equal, and none has to be drawn
            first, second = np.roll(up, block, axis=1), np.roll(down, block, axis=1)
            bias = rng.standard_normal(HIDDEN).astype(np.float32) / 10
            if block == 0:
                first, bias = first.copy(), bias.copy()
                first[:, ::8], bias[::8] = 0, 0
            gain, shift = (rng.standard_normal(WIDTH).astype(np.float32) for _ in range(2))
            normed = op("LayerNormalization", value, weight(f"g{block}", gain), weight(f"s{block}", shift))
            inner = op("Add", op("MatMul", normed, weight(f"u{block}", first)), weight(f"b{block}", bias))
            value = op("Add", value, op("MatMul", op("Relu", inner), weight(f"d{block}", second)))
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", WIDTH]) for name in ("x", value)]
    graph = helper.make_graph(nodes, "large", ports[:1], ports[1:], weights)
    path = folder / "large.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def answers(path: Path) -> np.ndarray:
    """What onnxruntime makes of the file, with its optimizer off."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).standard_normal((2, WIDTH)).astype(np.float32)
    return np.asarray(session.run(None, {"x": x})[0])


def size_of(path: Path) -> int:
    """Bytes of a model's files."""
    return sum(each.stat().st_size for each in path.parent.iterdir() if each.name in (path.name, path.name + ".data"))


def one(kind: str, source: Path, timeout: float, expected: np.ndarray) -> dict[str, Any]:
    """Run the command line once and look at what it wrote."""
    with tempfile.TemporaryDirectory(dir=source.parent) as name:
        target, report = Path(name, "out.onnx"), Path(name, "report.json")
        options = [str(source.parent / text) if text.endswith(".toml") else text for text in OPTIONS[kind]]
        command = [sys.executable, "-m", "onnxslim_core", "compress", str(source), "-o", str(target)]
        run = measure([*command, "--quiet", "--report", str(report), *options], timeout)
        size = size_of(source)
        row = {"run": kind, "bytes": size, "peak": run.peak, "over_file": run.peak / size, "limit": LIMITS[kind]}
        if run.seconds is None:
            return row | {"met": False, "note": run.note}
        said = json.loads(report.read_text())
        found = answers(target)
        off = float(np.abs(found - expected).max() / np.abs(expected).max())
        row |= {"seconds": round(run.seconds, 1), "stages": said["seconds"], "outcome": said["outcome"]}
        row |= {"result_bytes": size_of(target), "difference": off, "verified": said["verified"]}
        fits = row["over_file"] <= LIMITS[kind]
        right = row["result_bytes"] < 0.8 * size if kind == "prune" else off <= 1e-5 and row["result_bytes"] < size
        return row | {"met": fits and right}


def main() -> int:
    """Build, run, print, write."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.1)
    parser.add_argument(
        "--folder", type=Path, help="where the model is written; goes again; needs three times its size"
    )
    parser.add_argument("--runs", default=",".join(OPTIONS))
    parser.add_argument("--timeout", type=float, default=600.0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        source = build(Path(name), args.gigabytes)
        Path(name, "prune.toml").write_text(PRUNE)
        weights = len(onnx.load(source, load_external_data=False).graph.initializer)
        expected = answers(source)
        rows = []
        for kind in args.runs.split(","):
            rows.append(one(kind, source, args.timeout, expected))
            print(json.dumps(rows[-1]), flush=True)
    write_result("large", {"weights": weights, "rows": rows}, args.out)
    head = ["run", ">file", ">peak of memory", ">over the file", ">limit", ">seconds", ">result"]
    cells = (
        [
            row["run"],
            f"{row['bytes'] / 1e9:.2f} GB",
            f"{row['peak'] / 1e9:.2f} GB",
            f"{row['over_file']:.2f}",
            row["limit"],
            row.get("seconds", row.get("note", "")),
            f"{row.get('result_bytes', 0) / 1e9:.2f} GB",
        ]
        for row in rows
    )
    (args.out / "large.md").write_text(markdown(head, cells), encoding="utf-8")
    return 0 if all(row["met"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
