"""Real models with a quarter of every group of channels gone: do they run, what do they lose, and why not more?

    python bench/zoo/fetch.py
    python bench/zoo_prune.py [NAME...] [--large] [--ratio 0.25]

Every model of the zoo (with --large those marked so, too) goes through the exact recipe and is written; from that file
`prune_channels` takes a quarter by the L2 norm, with its default grid of widths. The result must run in onnxruntime
with its optimizer off and on, and answer with the types and ranks of the original. Nothing is said here about how good
the answers are: inputs are random and nothing is mended from samples.
Parameters are counted here and not by the program under test: floats, and integers of at most 8 bits that are
matrices or larger, in initializers and Constant nodes, bodies included. The share lost is against the exact result, so
that only pruning counts. A group is frozen where none of its channels can go; it must name the node, input or output
that keeps it, which must be in the file. A group that is left whole since a quarter less is rounded up to its own
width on the grid is counted apart; cut are those that the pass cut, also where `compress` took that back since the file
got no smaller and nothing was timed. Exits with 1 where a model does not run or a frozen group does not say why.
Writes zoo_prune.json and zoo_prune.md.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from _common import RESULTS, count_weights, markdown, write_result
from _zoo import feeds, models, open_plain, settings

import onnxslim_core as osc

RECIPE = """
version = 1
[[pass]]
name = "prune_channels"
criterion = "l2"
"""
ENOUGH = 0.2
"""Share of the parameters that most models should lose."""
WHOLE = ("width_on_grid", "worth_cutting")
"""Guards of groups that could be cut and that the plan leaves whole."""
EMPTY = ("", "stays")
"""Reasons that say nothing."""
_T = onnx.TensorProto
NARROW = (_T.INT8, _T.UINT8, _T.INT4, _T.UINT4)
PLACE = re.compile(r"^(?P<kind>\S+) (?:-> )?'(?P<name>.*?)': (?P<text>.*)$", re.DOTALL)


def graphs_of(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The main graph and every body."""
    todo = [model.graph]
    while todo:
        graph = todo.pop()
        yield graph
        todo.extend(a.g for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH)


def count_parameters(path: Path) -> int:
    """Floats, and weights kept as narrow integers."""
    model = onnx.load(str(path), load_external_data=False)
    total = count_weights(model)
    for graph in graphs_of(model):
        tensors = [*graph.initializer, *(a.t for n in graph.node if n.op_type == "Constant" for a in n.attribute)]
        narrow = [t for t in tensors if t.data_type in NARROW and len(t.dims) >= 2]
        total += sum(int(np.prod(t.dims, dtype=np.int64)) for t in narrow)
    return total


def in_bodies(path: Path) -> int:
    """Float weights inside If, Loop and Scan, where no channels are looked for."""
    main = onnx.load(str(path), load_external_data=False).graph
    bodies = [a.g for node in main.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return sum(count_weights(onnx.helper.make_model(body)) for body in bodies)


def names_in(path: Path) -> set[str]:
    """Names of all nodes and values of a file."""
    found: set[str] = set()
    for graph in graphs_of(onnx.load(str(path), load_external_data=False)):
        found.update(value.name for value in (*graph.input, *graph.output))
        for node in graph.node:
            found.update((node.name, *node.output))
    return found


def runs(original: Path, result: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    """What onnxruntime says to the result, with its optimizer off and on."""
    session = open_plain(original)
    inputs = feeds(session, entry, 0)
    expected = session.run(None, inputs)
    quiet = ort.SessionOptions()
    quiet.log_severity_level, quiet.intra_op_num_threads = 4, 1
    default = ort.InferenceSession(str(result), quiet, providers=["CPUExecutionProvider"])
    plain, optimized = (each.run(None, inputs) for each in (open_plain(result), default))
    fits = all(_alike(a, b) and _alike(a, c) for a, b, c in zip(expected, plain, optimized, strict=True))
    return {"runs": fits}


def _alike(a: Any, b: Any) -> bool:
    if not isinstance(a, np.ndarray):
        return type(a) is type(b)
    return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.ndim == b.ndim


def explained(steps: Sequence[Any], known: set[str]) -> dict[str, Any]:
    """Groups cut, left whole by the grid, and frozen; the reasons of the frozen, and those that name nothing real."""
    found = [c for step in steps for c in step.changes if c.pass_name == "prune_channels"]
    groups = [c for c in found if c.where]
    frozen = [c for c in groups if not c.applied and c.guard not in WHOLE]
    reasons: Counter[str] = Counter()
    nameless = []
    for change in frozen:
        place = PLACE.match(change.reason)
        if place is None or place["name"] not in known:
            nameless.append(f"{change.where[0]}: {change.reason}")
            reasons[change.reason] += 1
        else:
            reasons[f"{place['kind']}: {place['text']}"] += 1
    return {
        "groups": len(groups),
        "cut": sum(c.applied for c in groups),
        "rounded_up": sum(c.guard in WHOLE for c in groups),
        "frozen": len(frozen),
        "without_reason": sum(c.reason in EMPTY for c in frozen),
        "without_node": nameless,
        "reasons": dict(reasons.most_common()),
        "refused_whole": [c.reason for c in found if not c.where and not c.applied],
    }


def measure(path: Path, entry: Mapping[str, Any], ratio: float) -> dict[str, Any]:
    """One model: exact, pruned, run, counted."""
    shapes, values = settings(entry)
    recipe = osc.Recipe.parse(RECIPE + f"ratio = {ratio}\n")
    with tempfile.TemporaryDirectory() as folder:
        exact, target = Path(folder, "exact.onnx"), Path(folder, "pruned.onnx")
        osc.compress(path, shapes=shapes, values=values, measure_latency=False).save(exact)
        start = time.perf_counter()
        result = osc.compress(exact, recipe, shapes=shapes, values=values, measure_latency=False)
        seconds = time.perf_counter() - start
        result.save(target)
        row: dict[str, Any] = {"outcome": result.report.outcome, "seconds": round(seconds, 2)}
        row["outcomes"] = {step.name: step.outcome for step in result.report.steps}
        row["parameters"] = [count_parameters(file) for file in (path, exact, target)]
        row["lost"] = 1 - row["parameters"][2] / row["parameters"][1] if row["parameters"][1] else 0.0
        before, after = result.report.cost_before, result.report.cost_after
        row["macs"] = [before.macs, after.macs] if before is not None and after is not None else None
        row["parameters_in_bodies"] = in_bodies(exact)
        row["explained"] = explained(result.report.steps, names_in(exact))
        row |= runs(path, target, entry)
        seen = osc.inspect(exact, shapes=shapes, values=values).explanation
        if seen is not None and row["parameters"][1]:
            # weights that the graph computes from a few numbers are in no file, but on an axis they are
            row["share_on_a_free_axis"] = seen.free_params / max(seen.labelled_params, row["parameters"][1])
    return row


def cells(row: Mapping[str, Any]) -> list[str]:
    """One row of the table."""
    if "error" in row:
        return [row["model"], "no", row["error"], "", "", "", ""]
    _, before, after = row["parameters"]
    told = row["explained"]
    main = next(iter(told["reasons"]), "") or "; ".join(told["refused_whole"])
    if row["outcomes"].get("prune_channels") == "rolled back":
        main = "the pass is taken back, since the file gets no smaller"
    elif not told["groups"] and row["parameters"][1]:
        main = "no channels are found in the main graph"
        if row["parameters_in_bodies"]:
            main += f", {row['parameters_in_bodies'] / 1e6:.2f} M are inside bodies"
    return [
        row["model"],
        "yes" if row["runs"] else "no",
        f"{before / 1e6:.2f} to {after / 1e6:.2f} M",
        f"{100 * row['lost']:.1f} %",
        f"{100 * row['share_on_a_free_axis']:.0f} %" if "share_on_a_free_axis" in row else "",
        f"{told['cut']} / {told['rounded_up']} / {told['frozen']}",
        main.replace("|", "/"),
    ]


def write_table(facts: Mapping[str, Any], folder: Path) -> str:
    """Write zoo_prune.md; gives the sentence that sums it up."""
    columns = ["model", "runs", ">parameters", ">lost", ">on an axis that can be cut"]
    columns += [">groups cut / rounded up / frozen", "what freezes most of them"]
    total = facts["total"]
    words = (
        f"{total['run']} of {total['models']} run; {total['lose_a_fifth']} lose at least {ENOUGH:.0%} of their "
        f"parameters; {total['frozen']} of {total['groups']} groups are frozen, "
        f"{total['frozen_without_reason']} of them without a reason, {total['frozen_without_node']} name no node."
    )
    common = markdown([">groups", "what freezes them"], ([n, text] for text, n in facts["reasons"].items()))
    text = f"{markdown(columns, map(cells, facts['rows']))}\n{words}\n\n{common}"
    (folder / "zoo_prune.md").write_text(text, encoding="utf-8")
    return words


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--large", action="store_true", help="those that are marked large, too")
    parser.add_argument("--ratio", type=float, default=0.25, help="share of every group that goes")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name, path, entry in models(args.names, large=args.large):
        try:
            row = {"model": name, **measure(path, entry, args.ratio)}
        except Exception as error:  # one broken model must not hide the others
            row = {"model": name, "runs": False, "error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        rows.append(row)
        print(" | ".join(cells(row)), flush=True)
    good = [row for row in rows if "error" not in row]
    reasons: Counter[str] = Counter()
    for row in good:
        reasons.update(row["explained"]["reasons"])
    total = {
        "models": len(rows),
        "run": sum(row["runs"] for row in rows),
        "lose_a_fifth": sum(row["lost"] >= ENOUGH for row in good),
        **{key: sum(row["explained"][key] for row in good) for key in ("groups", "cut", "rounded_up", "frozen")},
        "frozen_without_reason": sum(row["explained"]["without_reason"] for row in good),
        "frozen_without_node": sum(len(row["explained"]["without_node"]) for row in good),
    }
    facts = {"ratio": args.ratio, "total": total, "reasons": dict(reasons.most_common(20)), "rows": rows}
    write_result("zoo_prune", facts, args.out)
    words = write_table(facts, args.out)
    print(words)
    return 0 if total["run"] == len(rows) and not total["frozen_without_reason"] else 1


if __name__ == "__main__":
    sys.exit(main())
