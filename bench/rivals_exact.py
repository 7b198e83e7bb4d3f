"""The exact recipe beside three other tools on real models: equal answers, how small, how fast?

    python bench/zoo/fetch.py
    python bench/rivals_exact.py --rivals rivals/bin/python [NAME...] [--seconds 8]

Each tool reads the same file with its defaults (rivals.py says how each is called); ours is the command line without a
recipe and without its timing, the sizes of symbolic inputs given, since it runs what it writes. Answers are compared
here: original and result in onnxruntime with its optimizer off, three seeded inputs, as zoo_exact.py does, with its
bound. Sizes count external data; nodes count bodies and leave Constant nodes out, so that moving a constant into the
weights is no gain. Time is the result over the original, one thread, all of onnxruntime's optimizations on, with the
95 % interval. Seconds: ours from starting the interpreter to the verified file; of the others what the tool took in a
process of its own, its import included. Writes rivals_exact.json and rivals_exact.md; nothing here is a test.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import onnx
import rivals
from _common import RESULTS, markdown, write_result
from _zoo import feeds, models, open_plain, settings
from zoo_exact import answers_of, size_of

from onnxslim_core.errors import SlimError
from onnxslim_core.measure.latency import compare_latency
from onnxslim_core.model import load

NAMES = (
    *("nudenet-yolov8n", "ppocrv4-rec", "ppocrv4-det", "malware-resnet18", "nsfw-resnet50-tf", "layout-picodet"),
    *("seizure-lstm", "light-shufflenet", "u2netp", "minilm-l3", "minilm-int8", "silero-vad"),
)
OTHERS = ("onnxsim", "onnxslim", "onnxoptimizer")
ROOT = Path(__file__).resolve().parent.parent
Facts = dict[str, Any]


def count_nodes(path: Path) -> int:
    """Nodes without Constants, bodies included."""
    total, graphs = 0, [onnx.load(str(path), load_external_data=False).graph]
    while graphs:
        graph = graphs.pop()
        total += sum(node.op_type != "Constant" for node in graph.node)
        graphs.extend(a.g for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH)
    return total


def ours(source: Path, target: Path, *, entry: Mapping[str, Any]) -> Facts:
    """The command line in a process of its own."""
    shapes, values = settings(entry)
    command = [sys.executable, "-m", "onnxslim_core", "compress", str(source), "-o", str(target), "--no-latency"]
    for name, shape in shapes.items():
        if shape:
            command += ["--shape", f"{name}={'x'.join(map(str, shape))}"]
    for name, value in values.items():
        command += ["--value", f"{name}={value}"]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    facts: Facts = {"seconds": round(time.perf_counter() - start, 2)}
    return facts if done.returncode == 0 else facts | {"error": (done.stderr.strip() or "no message").splitlines()[-1]}


def other(source: Path, target: Path, *, tool: str, python: str) -> Facts:
    """One of the other tools."""
    outcome = rivals.run(tool, source, target, python=python)
    facts: Facts = {"seconds": round(outcome.seconds, 2)}
    return facts if outcome.ok else facts | {"error": outcome.error}


def judge(tool: Callable[[Path, Path], Facts], original: Path, entry: Mapping[str, Any], seconds: float) -> Facts:
    """Run one tool on one model and look at what it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "out.onnx")
        facts = tool(original, target)
        if "error" in facts:
            return facts
        parts = [original, *([original.parent / Path(entry["data_path"]).name] if "data_path" in entry else [])]
        facts["size"] = size_of(target) / sum(part.stat().st_size for part in parts)
        facts["nodes"] = count_nodes(target) / count_nodes(original)
        try:
            facts |= answers_of(original, target, entry)
        except Exception as error:  # a result that does not run is an outcome
            return facts | {"error": f"does not run: {type(error).__name__}: {error}".splitlines()[0][:200]}
        if seconds:
            sample = feeds(open_plain(original), entry, 0)
            try:
                timing = compare_latency(load(original), load(target), sample, seconds=seconds)
                facts["latency"] = {"ratio": timing.ratio, "low": timing.low, "high": timing.high}
            except SlimError as error:  # it runs, and our own reader of models does not take it
                facts["not_timed"] = str(error)[:200]
    if facts.get("difference") == float("inf"):
        facts["difference"] = None
    return facts


def cells(model: str, tool: str, facts: Mapping[str, Any]) -> list[str]:
    """One row of the table."""
    if "error" in facts:
        return [model, tool, facts["error"][:80].replace("|", "/"), "", "", "", f"{facts['seconds']:.1f}"]
    difference = "not comparable" if facts["difference"] is None else f"{facts['difference']:.1e}"
    timing = facts.get("latency")
    return [
        model,
        tool,
        f"{'yes' if facts['equal'] else 'NO'} ({difference})",
        f"{facts['size']:.3f}",
        f"{facts['nodes']:.2f}",
        facts.get("not_timed", "")[:80]
        if timing is None
        else f"{timing['ratio']:.2f} ({timing['low']:.2f} to {timing['high']:.2f})",
        f"{facts['seconds']:.1f}",
    ]


def summary(rows: list[Facts]) -> list[Facts]:
    """Per tool: how often it works and answers equally, and medians over the models where it does."""
    found = []
    for tool in rows[0]["tools"]:
        all_of = [row["tools"][tool] for row in rows]
        good = [facts for facts in all_of if facts.get("equal") and "error" not in facts]
        times = [facts["latency"]["ratio"] for facts in good if "latency" in facts]
        found.append(
            {
                "tool": tool,
                "models": len(all_of),
                "equal": len(good),
                "bigger": sum(facts["size"] > 1.01 for facts in good),
                "size": round(median(facts["size"] for facts in good), 3) if good else None,
                "nodes": round(median(facts["nodes"] for facts in good), 3) if good else None,
                "time": round(median(times), 3) if times else None,
                "slower": sum(facts["latency"]["low"] > 1.02 for facts in good if "latency" in facts),
                "seconds": round(median(facts["seconds"] for facts in all_of), 2),
            }
        )
    return found


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--rivals", required=True, metavar="PYTHON", help="interpreter that has the other tools")
    parser.add_argument("--seconds", type=float, default=8.0, help="spent on timing each result; 0 times nothing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows: list[Facts] = []
    table = []
    for name, path, entry in models(args.names or NAMES):
        tools: dict[str, Callable[[Path, Path], Facts]] = {"onnxslim-core": partial(ours, entry=entry)}
        tools |= {tool: partial(other, tool=tool, python=args.rivals) for tool in OTHERS}
        row: Facts = {"model": name, "tools": {}}
        for tool, run in tools.items():
            row["tools"][tool] = judge(run, path, entry, args.seconds)
            table.append(cells(name, tool, row["tools"][tool]))
            print(" | ".join(table[-1]), flush=True)
        rows.append(row)
    totals = summary(rows)
    write_result("rivals_exact", {"rivals": rivals.versions(args.rivals), "total": totals, "rows": rows}, args.out)
    head = markdown(
        ["tool", ">models", ">equal answers", ">bigger file", ">size", ">nodes", ">time", ">slower", ">seconds"],
        (one.values() for one in totals),
    )
    columns = ["model", "tool", "equal answers", ">size", ">nodes", ">time, result over original", ">seconds"]
    note = "Size, nodes and time are medians over the models with equal answers, each over the original.\n"
    (args.out / "rivals_exact.md").write_text(f"{head}\n{note}\n{markdown(columns, table)}", encoding="utf-8")
    print(head)
    return 0


if __name__ == "__main__":
    sys.exit(main())
