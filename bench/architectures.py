"""Do thirteen architectures, half of their removable channels dead, lose all that is dead and keep their answers?

    python bench/architectures.py [--only encoder hrnet] [--exports helper torchscript dynamo] [--out DIR]

Needs torch and onnxscript for the two exporters (`helper` alone needs neither). Every network is written from its
paper, once with onnx.helper (tests/architectures) and once in PyTorch, and is drawn twice from one seed: at full width
with dead channels at random places, and at half width without them. `made`: the weights that make a dead channel are
zero; `read`: those that read it. The recipe is normalize, fold_constants and remove_idle with round_to = 1.

A share is float weights left over float weights of the original, in per cent; the ideal is that of the half-width
network after normalize and fold_constants. A file is done when its share is at most the ideal plus 1 point and the
answers are equal to 1e-5 of their scale for two sizes of the inputs, onnxruntime's optimizer off and on. Exits with 1
where one is not. Writes architectures.json and architectures.md.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import sys
import time
import typing
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from _common import RESULTS, VERSIONS, count_weights, header, markdown, write_result

import onnxslim_core as osc
from tests import oracles
from tests.architectures.builder import Net
from tests.architectures.images import NETS as IMAGES
from tests.architectures.sequences import NETS as SEQUENCES
from tests.halved import Draw, How

NETS = IMAGES | SEQUENCES
EXPORTS = ("helper", "torchscript", "dynamo")
POINTS, DIFFERENCE = 1.0, 1e-5
SIZES = ({"N": 2, "H": 32, "W": 24, "T": 9}, {"N": 3, "H": 40, "W": 56, "T": 13})
BATCHES = (2, 3)
HEAD = 'version = 1\nrequires = "exact"\n[[pass]]\nname = "normalize"\n[[pass]]\nname = "fold_constants"\n'
IDEAL, OURS = HEAD, HEAD + '[[pass]]\nname = "remove_idle"\nround_to = 1\n'


def by_helper(name: str, how: How, *, half: bool) -> tuple[onnx.ModelProto, list[dict[str, np.ndarray]]]:
    """A network by onnx.helper, with inputs of two sizes."""
    net = Net(Draw(how, half))
    NETS[name](net)
    model = net.model()
    feeds = []
    for seed, sizes in enumerate(SIZES):
        shapes = {
            v.name: [d.dim_value or sizes[d.dim_param] for d in v.type.tensor_type.shape.dim] for v in model.graph.input
        }
        whole = {v.name: v.type.tensor_type.elem_type != onnx.TensorProto.FLOAT for v in model.graph.input}
        feeds.append(drawn(shapes, whole, seed))
    return model, feeds


def drawn(shapes: dict[str, list[int]], whole: dict[str, bool], seed: int) -> dict[str, np.ndarray]:
    """Seeded inputs: numbers around 0.3, or ids."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.integers(0, 50, shape) if whole[name] else (rng.standard_normal(shape) + 0.3).astype(np.float32)
        for name, shape in shapes.items()
    }


def by_torch(
    name: str, how: How, export: str, *, half: bool
) -> tuple[onnx.ModelProto, list[dict[str, np.ndarray]], list[np.ndarray]]:
    """A network by one of PyTorch's exporters, with inputs of two batches and PyTorch's own answers to them."""
    import torch
    from _architectures_images import NETS as TORCH_IMAGES
    from _architectures_sequences import NETS as TORCH_SEQUENCES
    from _architectures_torch import Net as TorchNet

    body, shapes = (TORCH_IMAGES | TORCH_SEQUENCES)[name]
    net = TorchNet(Draw(how, half), body).eval()
    names = [f"x{i + 1}" if len(shapes) > 1 else "x" for i in range(len(shapes))]
    whole = {n: len(shape) == 1 for n, shape in zip(names, shapes, strict=True)}
    feeds = [
        drawn({n: [batch, *shape] for n, shape in zip(names, shapes, strict=True)}, whole, batch) for batch in BATCHES
    ]
    with torch.no_grad():
        answers = [net(*(torch.from_numpy(feed[n]) for n in names)).numpy() for feed in feeds]
    inputs = tuple(torch.from_numpy(feeds[0][n]) for n in names)
    file, sink = io.BytesIO(), io.StringIO()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        warnings.simplefilter("ignore")
        if export == "torchscript":
            torch.onnx.export(
                net, inputs, file, dynamo=False, opset_version=17, input_names=names, output_names=["y"],
                training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False,
                dynamic_axes={n: {0: "N"} for n in names},
            )  # fmt: skip
            return onnx.load_from_string(file.getvalue()), feeds, answers
        batch = torch.export.Dim.DYNAMIC
        program = torch.onnx.export(
            net, inputs, dynamo=True, optimize=False, input_names=names, output_names=["y"], verbose=False,
            dynamic_shapes=(tuple({0: batch} for _ in names),),
        )  # fmt: skip
        return program.model_proto, feeds, answers


def slimmed(model: onnx.ModelProto, recipe: str) -> onnx.ModelProto:
    """The model after a recipe."""
    result = osc.compress(model, osc.Recipe.parse(recipe, "bench"), measure_latency=False)
    back = [f"{step.name}: {step.reason}" for step in result.report.steps if step.outcome == "rolled back"]
    if back:
        raise AssertionError("; ".join(back))
    return result.model.to_proto()


def off(before: onnx.ModelProto, after: onnx.ModelProto, feeds: list[dict[str, np.ndarray]]) -> float:
    """The largest difference over the scale, for all inputs, the optimizer off and on."""
    worst = 0.0
    for feed in feeds:
        expected = oracles.run(before, feed)
        for optimize in (False, True):
            found = oracles.run(after, feed, optimize=optimize)
            for a, b in zip(expected, found, strict=True):
                if a.shape != b.shape or not np.isfinite(b).all():
                    return float("inf")
                worst = max(worst, float(np.abs(a.astype(np.float64) - b).max() / np.abs(a).max()))
    return worst


def measured(name: str, export: str, how: How) -> dict[str, Any]:
    """One file."""
    start = time.perf_counter()
    row: dict[str, Any] = {"net": name, "export": export, "dead": how, "done": False}
    try:
        if export == "helper":
            (full, feeds), (half, _) = (by_helper(name, how, half=half) for half in (False, True))
        else:
            (full, feeds, answers), (half, _, _) = (by_torch(name, how, export, half=half) for half in (False, True))
            for feed, answer in zip(feeds, answers, strict=True):
                export_off = float(np.abs(oracles.run(full, feed)[0] - answer).max() / np.abs(answer).max())
                assert export_off <= 1e-4, f"the export is off by {export_off:.1e} from PyTorch"
        weights = count_weights(full)
        after, ideal = slimmed(full, OURS), slimmed(half, IDEAL)
        row |= {
            "nodes": [len(full.graph.node), len(after.graph.node)],
            "weights": weights,
            "ideal": round(100 * count_weights(ideal) / weights, 2),
            "share": round(100 * count_weights(after) / weights, 2),
            "half_off": off(full, half, feeds),
            "off": off(full, after, feeds),
        }
        row["done"] = row["share"] <= row["ideal"] + POINTS and row["off"] <= DIFFERENCE
        assert row["half_off"] <= 1e-4, f"the half answers otherwise: {row['half_off']:.1e}"
    except Exception as error:  # the table shows a crash of ours as well
        row["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        row["done"] = False
    row["seconds"] = round(time.perf_counter() - start, 1)
    return row


def kept(folder: Path, measured: list[str]) -> list[dict[str, Any]]:
    """Rows of an earlier run for networks that are not measured now."""
    rows: list[dict[str, Any]] = json.loads((folder / "architectures.json").read_text(encoding="utf-8"))["rows"]
    return [row for row in rows if row["net"] not in measured]


def cell(row: dict[str, Any] | None) -> str:
    """What is left, and why it is not done."""
    if row is None:
        return ""
    if "error" in row:
        return row["error"][:40]
    wrong = f", off by {row['off']:.0e}" if row["off"] > DIFFERENCE else ""
    missed = f" ({row['ideal']:.1f} is ideal)" if row["share"] > row["ideal"] + POINTS else ""
    return f"{row['share']:.1f}{missed}{wrong}"


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(NETS), choices=list(NETS))
    parser.add_argument("--exports", nargs="*", default=list(EXPORTS), choices=EXPORTS)
    parser.add_argument("--keep", action="store_true", help="keep the rows of other networks that are there already")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    hows = typing.get_args(How)
    rows = kept(args.out, args.only) if args.keep else []
    for name in args.only:
        for export in args.exports:
            for how in hows:
                rows.append(measured(name, export, how))
                print(rows[-1], flush=True)
    found = {(row["net"], row["export"], row["dead"]): row for row in rows}
    names = [name for name in NETS if (name, args.exports[0], hows[0]) in found]
    columns = [(export, how) for export in args.exports for how in hows]
    body = [
        [name, f"{found[name, *columns[0]].get('ideal', 0):.1f}", *(cell(found.get((name, *c))) for c in columns)]
        for name in names
    ]
    done = [f"{sum(found[n, *c]['done'] for n in names)} of {len(names)}" for c in columns]
    body.append(["**to the ideal**", "", *done])
    text = markdown(["network", ">ideal", *(f">{export}, {how}" for export, how in columns)], body)
    versions = header((*VERSIONS, "torch", "onnxscript"))["versions"]
    write_result(
        "architectures", {"versions": versions, "points": POINTS, "difference": DIFFERENCE, "rows": rows}, args.out
    )
    (args.out / "architectures.md").write_text(text, encoding="utf-8")
    print(text)
    return 0 if all(row["done"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
