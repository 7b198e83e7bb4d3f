"""Fill the tables of the README from the JSON files in bench/results; nothing there is typed by hand.

    python bench/readme.py            # rewrite README.md
    python bench/readme.py --check    # exit with 1 where it would change

A table stands between `<!-- table: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from _common import RESULTS, markdown
from _zoo_slim_table import fastest

README = Path(__file__).resolve().parent.parent / "README.md"
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
Facts = Mapping[str, Any]


def read(name: str) -> Facts:
    """One result by its name."""
    found: Facts = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def origin(facts: Facts, name: str) -> str:
    """The line below a table: what it was measured on and which script printed it."""
    versions, machine = facts["versions"], facts["machine"]
    return (
        f"\n<sub>{machine['cpu']}, {machine['cores']} cores, onnxruntime {versions['onnxruntime']}, {facts['date']}; "
        f"bench/results/{name}.json, by `{facts['command'].split(' --')[0]}`</sub>\n"
    )


def percent(after: float, before: float) -> str:
    """The change, as -12 %."""
    return f"{100 * (after / before - 1):+.0f} %"


def demo() -> str:
    """The demo's network: accuracy, time, size."""
    facts = read("demo")
    heldout, report = facts["heldout"], facts["report"]
    rows = [
        [
            "right answers on held-out images",
            f"{100 * heldout['right_before'] / heldout['images']:.2f} %",
            f"{100 * heldout['right_after'] / heldout['images']:.2f} %",
            f"{heldout['right_after'] - heldout['right_before']:+d} of {heldout['images']}",
        ]
    ]
    latency = report["latency"]
    rows.append(
        [
            "time of one call, one thread",
            f"{latency['reference_ms']:.2f} ms",
            f"{latency['candidate_ms']:.2f} ms",
            f"x {latency['ratio']:.2f} (95 % interval {latency['low']:.2f} to {latency['high']:.2f})",
        ]
    )
    sizes = report["sizes"]
    rows.append(["file", *(f"{size / 1e3:.0f} KB" for size in sizes), percent(sizes[1], sizes[0])])
    for label, key, unit, name in (("weights", "params", 1e3, "K"), ("MACs", "macs", 1e6, "M")):
        before, after = report["cost_before"][key], report["cost_after"][key]
        rows.append([label, f"{before / unit:.1f} {name}", f"{after / unit:.1f} {name}", percent(after, before)])
    return markdown(["", ">original", ">compressed", ">change"], rows) + origin(facts, "demo")


def coverage() -> str:
    """What each tool leaves of the networks with known answers, and how many files it takes to the ideal."""
    facts = read("coverage")
    rows = facts["rows"]
    tools = [key for key in COVERAGE_TOOLS if key in rows[0]]
    body = []
    for net in dict.fromkeys(row["net"] for row in rows):
        of_net = [row for row in rows if row["net"] == net]
        body.append(
            [net, span([row["ideal"] for row in of_net]), *(left([row[key] for row in of_net]) for key in tools)]
        )
    totals = []
    for key in tools:
        # the PyTorch module is one, whatever it is exported to
        of_tool = rows[:: 4 if key == "torch_pruning" else 1]
        totals.append(f"**{sum(bool(row[key]['done']) for row in of_tool)} of {len(of_tool)}**")
    body.append(["**to the ideal**", "", *totals])
    return markdown(["network", ">ideal", *(f">{COVERAGE_TOOLS[key]}" for key in tools)], body) + origin(
        facts, "coverage"
    )


COVERAGE_TOOLS = {
    "remove_idle": "`remove_idle`",
    "prune_channels": "`prune_channels`",
    "onnxsim": "onnxsim pruning",
    "torch_pruning": "Torch-Pruning",
}


def span(values: Sequence[float]) -> str:
    """The range of some shares in per cent."""
    low, high = f"{min(values):.0f}", f"{max(values):.0f}"
    return f"{low} %" if low == high else f"{low} to {high} %"


def left(results: Sequence[Facts]) -> str:
    """What a tool left of a network's exports, and whether that answers the same."""
    if any("error" in result for result in results):
        return "crash"
    gaps = [result["difference"] for result in results]
    wrong = any(gap is None or gap > 1e-5 for gap in gaps)
    return span([result["share"] for result in results]) + (", other answers" if wrong else "")


def zoo() -> str:
    """Public models through the exact recipe: counts and the models that gained most."""
    facts = read("zoo_exact")
    rows = []
    for row in facts["rows"]:
        if "error" in row or row.get("latency") is None:
            continue
        rows.append(row)
    rows.sort(key=lambda row: row["latency"]["ratio"])
    body = [
        [
            row["model"],
            f"{row['nodes'][0]} to {row['nodes'][1]}",
            percent(row["bytes"][1], row["bytes"][0]),
            f"{row['latency']['ratio']:.2f} ({row['latency']['low']:.2f} to {row['latency']['high']:.2f})",
            f"{row['difference']:.1e}",
            f"{row['noise']:.1e}",
        ]
        for row in rows[:8]
    ]
    columns = ["model", ">nodes", ">file", ">time, result over original", ">difference", ">noise"]
    said = f"{facts['good']} of {len(facts['rows'])} are equal, no bigger and not slower; the {len(body)} fastest:\n\n"
    return said + markdown(columns, body) + origin(facts, "zoo_exact")


def training_free() -> str:
    """A classifier at several costs: chosen and mended on samples, by weights alone, and by other tools."""
    facts = read("training_free")
    rows = [row for row in facts["rows"] if "accuracy" in row]
    body = [
        _classifier(f"`{name}`, {told} {each['target']}", each)
        for part, name, told in CLASSIFIER_PARTS
        for each in sorted(facts["means"], key=lambda e: -e["target"])
        if each["part"] == part
    ]
    body += [_classifier(f"`drop_blocks`, {r['options']['count']}", r) for r in rows if r["part"] == "blocks"]
    plain = [row for row in rows if row["part"] == "half" and row["options"]["repair"] == "none"]
    body += [_classifier("smallest L1 norm, unmended", r) for r in plain if r["options"]["criterion"] == "l1"]
    for row in rows:
        if row["part"] == "rivals" and row["options"]["name"] in FREE_RIVALS:
            body.append(_classifier(FREE_RIVALS[row["options"]["name"]], row))
    columns = ["what", ">MACs left", ">time left", ">right answers", ">points", ">cosine", ">same first answer"]
    return markdown(columns, body) + origin(facts, "training_free")


CLASSIFIER_PARTS = (
    ("slim", "slim", "multiply-adds"),
    ("latency", "slim", "time"),
    ("macs", "prune_channels", "multiply-adds"),
)
FREE_RIVALS = {
    "onnxsim_refit": "onnxsim, with activations and refit",
    "torch_pruning_resnet": "Torch-Pruning, L2 magnitude",
}


def _classifier(name: str, row: Facts) -> list[str]:
    """One cut of a classifier; a row of its own or the mean of several seeds."""
    time = row.get("latency")
    ratio = time["ratio"] if isinstance(time, Mapping) else time
    return [
        name,
        f"{row['macs']:.2f}",
        "" if ratio is None else f"{ratio:.2f}",
        f"{100 * row['accuracy']:.2f} %",
        f"{row['points']:+.2f} \u00b1 {row['plus_minus']:.2f}",
        f"{row['cosine']:.3f}",
        f"{100 * row['agreement']:.1f} %",
    ]


def zoo_slim() -> str:
    """Real models made faster without training, and the mean over all."""
    facts = read("zoo_slim")
    least, total = facts["min_cosine"], facts["total"]
    real = [row for row in facts["rows"].values() if row.get("inputs") not in (None, "random")]
    found = [(row, *chosen) for row in real if (chosen := fastest(row, least)) is not None]
    body = [
        [
            row["model"],
            LEVERS[lever],
            f"{step['latency_to_original']['ratio']:.2f}",
            f"{step['judge']['cosine']:.4f}",
            f"{step['test']['cosine']:.4f}",
        ]
        for row, lever, step in sorted(found, key=lambda each: each[2]["latency_to_original"]["ratio"])
    ]
    held = total["geometric_mean_all_levers_held_on_test"]
    body.append(
        ["**geometric mean**", "", f"**{total['geometric_mean_all_levers']:.2f}**", "", f"{held:.2f} where held"]
    )
    tried = ", ".join(f"{LEVERS[lever]} on {total['measured'][lever]}" for lever in LEVERS)
    said = (
        f"{len(found)} of {total['with_real_samples']} are made faster at a cosine of at least {least} in every part "
        f"of every output\n(measured so far: {tried}); the others count as the exact recipe leaves them:\n\n"
    )
    columns = ["model", "by", ">time, result over original", ">cosine", ">cosine, inputs nobody looked at"]
    return said + markdown(columns, body) + origin(facts, "zoo_slim")


LEVERS = {"int8": "`quantize`", "slim": "`slim`", "plan": "`slim` with int8"}


def int8() -> str:
    """int8 beside other tools: time and cosine of the worst part; those below the budget in brackets."""
    facts = read("int8")
    rows = {name: row for name, row in facts["rows"].items() if "ours" in row and row.get("rivals")}
    tools = ["onnxruntime", "onnxruntime-cnn", "nncf", "nncf-accuracy"]

    def told(each: Facts | None) -> str:
        if each is None or "error" in each:
            return "" if each is None else "none"
        text = f"{each['latency']['ratio']:.2f} at {each['cosine']:.4f}"
        return text if each["cosine"] >= facts["min_cosine"] else f"({text})"

    body = [[name, told(row["ours"]), *(told(row["rivals"].get(tool)) for tool in tools)] for name, row in rows.items()]
    columns = ["model", ">`quantize`", ">onnxruntime's defaults", ">uint8, per channel", ">NNCF", ">NNCF, accuracy"]
    return markdown(columns, body) + origin(facts, "int8")


TABLES: Mapping[str, Callable[[], str]] = {
    "demo": demo,
    "coverage": coverage,
    "training_free": training_free,
    "zoo": zoo,
    "zoo_slim": zoo_slim,
    "int8": int8,
}


def filled(text: str) -> str:
    """The text with every table written anew."""

    def table(match: re.Match[str]) -> str:
        return f"{match[1]}{TABLES[match[2]]()}{match[3]}"

    return BLOCK.sub(table, text)


def main() -> int:
    """Rewrite, or check."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a table is not current")
    args = parser.parse_args()
    old = README.read_text(encoding="utf-8")
    new = filled(old)
    if args.check:
        return int(new != old)
    README.write_text(new, encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
