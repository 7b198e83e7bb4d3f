"""How much faster do real models get without training, and does mending pay? `slim` and `prune_channels` on the zoo.

    python bench/zoo/fetch.py
    python bench/zoo/fetch.py --data photos photos-sklearn imagenet-20 cifar10-20 cifar100-20 speech
    python bench/zoo_slim.py [NAME...] [--samples 256] [--patience 1500]

Every model of the zoo with a Conv in it that is not marked large, and the seven of the issue first. Each goes through
the exact recipe, and from there

    int8    `quantize`, which looks for the layers that may be int8 by itself
    slim    `allocation = "latency"`: of a few shares of the time the least, found by bisection, whose answers are not
            below --min-cosine on the samples for judging and that a plan meets
    plan    the same with "int8" among the `forms`, at shares of what `quantize` reached
    macs    `prune_channels` with `criterion = "obs"`, `allocation = "macs"` and `round_to = "auto"`, likewise
    mend    an eighth of every group (a quarter where that cuts nothing) by the L2 norm, mended by least squares and
            not at all: the same channels go

Samples (see `_zoo_inputs.py`) are in three parts with no photo in common: a pass decides with the first, the second
chooses the share, and the third is what nobody has looked at. The cosine is that of the worst output, or of the worst
part of one (boxes and scores), mean over samples, taken here from what onnxruntime says to the files. Time is one
thread, calls in turns, over the exact result's, and over the original's for the last model that holds.

The geometric means are over models with real samples, at the fastest step whose cosine holds; one that stays as it is
counts 1. *All levers* takes the fastest step of int8, slim and plan over the original, or the exact result. Widths that
layers got must be on the grid: blocks of 16, or 4, 8 and 12 where they had no more than 32.
Models are measured in a process each, which is stopped after --patience seconds; what was measured by then counts.
Rows are merged into zoo_slim.json part by part, with what was asked of each, so single models can be measured again.
Exits with 1 where a model crashes, a result is slower than what went in, or a width is off the grid.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from _common import RESULTS, count_weights, write_result
from _zoo import PLAN, models, open_plain, settings
from _zoo_inputs import PARTS, RECIPES, Inputs, draw
from _zoo_slim_table import cells, holds, page, summary, told_mend, told_step
from zoo.fetch import table

import onnxslim_core as osc

FIRST = (
    *("tiny-resnet8", "mobilenetv2-dogs", "efficientnet-lite0", "ppocrv4-rec", "nudenet-yolov8n", "minilm-l3"),
    "tumor-vgg16",
)
SHARES = {"slim": (0.95, 0.85, 0.75, 0.65, 0.5), "plan": (0.95, 0.85, 0.7), "macs": (0.9, 0.75, 0.6)}
"""Shares to keep that are tried by bisection; it begins with the one in the middle."""
PARTS_OF_A_ROW = ("int8", "slim", "plan", "macs", "mend")
ASKED = ("samples", "least", "pass_seconds", "judge", "seconds", "patience")
"""Options that a part of a row is kept with, as rows are measured one by one."""
STRICTER = (1.0, 0.5)
"""Shares of what may be lost that `quantize` is allowed; the next one where answers do not hold on other samples."""
MEND_RATIOS = (0.125, 0.25)
BLOCK, SMALL, SMALL_UNTIL = 16, (4, 8, 12), 32
"""The CPU's grid: blocks of 16; of layers that had 32 channels or fewer also quarters of a block."""
Row = dict[str, Any]


def recipe_text(name: str, options: Mapping[str, Any], folder: Path, *, random: bool) -> str:
    """One lossy pass, the samples, and the parts of outputs that count apart."""
    lines = ["version = 1", "[data]", f"judging = {json.dumps(str(folder / 'judge.npz'))}", 'origins = "origin"']
    if random:
        lines.append("force_random = true")
    lines += ["[[pass]]", *(f"{key} = {json.dumps(value)}" for key, value in options.items())]
    for output, axis, parts in RECIPES[name].parts if name in RECIPES else ():
        told = ", ".join(f"{part} = [{first}, {end}]" for part, first, end in parts)
        lines += [f'[budget.output."{output}"]', f"axis = {axis}", f"parts = {{{told}}}"]
    return "\n".join(lines) + "\n"


class Judge:
    """What the original says to the samples of two parts, and how far another file is from it."""

    def __init__(self, name: str, path: Path, entry: Mapping[str, Any], parts: Mapping[str, Inputs]) -> None:
        self.name, self.entry, self.parts = name, entry, parts
        self.expected = {part: self._answers(path, part) for part in parts}

    def _answers(self, path: Path, part: str) -> list[dict[str, np.ndarray]]:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        feeds = self.parts[part].each(session, self.entry)
        return [dict(zip(names, session.run(None, each), strict=True)) for each in feeds]

    def compare(self, path: Path) -> Row:
        """Per part of the samples the cosine of every piece of the answers, and of the worst."""
        found: Row = {}
        for part, expected in self.expected.items():
            pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
            for before, after in zip(expected, self._answers(path, part), strict=True):
                for piece, a, b in self._pieces(before, after):
                    pairs.setdefault(piece, []).append((a, b))
            each = {piece: float(np.mean([_cosine(a, b) for a, b in both])) for piece, both in pairs.items()}
            found[part] = {"cosine": min(each.values()), "pieces": each, "error": _error(pairs)}
        return found

    def _pieces(
        self, before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]
    ) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        split = (
            {output: (axis, parts) for output, axis, parts in RECIPES[self.name].parts} if self.name in RECIPES else {}
        )
        for output, a in before.items():
            if not isinstance(a, np.ndarray) or a.dtype.kind != "f":
                continue
            if output not in split:
                yield output, a, after[output]
                continue
            axis, parts = split[output]
            for part, first, end in parts:
                index = np.arange(first, end)
                yield f"{output}.{part}", np.take(a, index, axis), np.take(after[output], index, axis)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape:
        return float("-inf")
    x, y = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    length = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / length if length else float(np.array_equal(x, y))


def _error(pairs: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]]) -> float:
    """Squared error over the variance of the answers, of the worst piece."""
    worst = 0.0
    for both in pairs.values():
        a, b = (np.stack([pair[i].ravel() for pair in both]).astype(np.float64) for i in (0, 1))
        worst = max(worst, float(((a - b) ** 2).sum() / max(float(((a - a.mean(0)) ** 2).sum()), 1e-30)))
    return worst


def widths(path: Path) -> dict[str, int]:
    """Outputs of every Conv with weights in the file, by name of the node; depthwise ones are as wide as they read."""
    graph = onnx.load(str(path)).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:  # weights in int8
        if node.op_type == "DequantizeLinear" and node.input[0] in shapes:
            shapes[node.output[0]] = shapes[node.input[0]]
    return {n.name: shapes[n.input[1]][0] for n in graph.node if n.op_type == "Conv" and n.input[1] in shapes}


def off_grid(before: Path, after: Path) -> list[str]:
    """Convs that got a width that is not on the grid; of new ones (of low rank) one that is no multiple of four."""
    old, new = widths(before), widths(after)
    found = []
    for node, width in new.items():
        had = old.get(node)
        if had is None:
            fits = width % SMALL[0] == 0 or width in old.values()
        else:
            fits = width in (had, *(SMALL if had <= SMALL_UNTIL else ())) or width % BLOCK == 0
        if not fits:
            found.append(f"{node}: {'new' if had is None else had} to {width}")
    return found


class Run:
    """One model in a process of its own; `row` is written after every measurement."""

    def __init__(self, args: argparse.Namespace, name: str, path: Path, entry: Mapping[str, Any], folder: Path) -> None:
        self.args, self.name, self.path, self.entry, self.folder = args, name, path, entry, folder
        self.shapes, self.values = settings(entry)
        enough = int(1000 * args.pass_seconds / max(float(entry.get("cpu_ms") or 1.0), 0.01))
        count = min(args.samples, max(enough, args.least))
        drawn = {part: draw(name, path, entry, part, count if part == "decide" else args.judge) for part in PARTS}
        for part, inputs in drawn.items():
            np.savez(folder / f"{part}.npz", origin=inputs.origins, **inputs.arrays)
        self.kind = drawn["decide"].kind
        self.row: Row = {"model": name, "inputs": self.kind, "samples": count}
        self.row["origins"] = len(set(drawn["decide"].origins.tolist()))
        self.exact = folder / "exact.onnx"
        self.compress(None).save(self.exact)
        self.judge = Judge(name, path, entry, {part: drawn[part] for part in ("judge", "test")})
        self.row["exact"] = self.judge.compare(self.exact)["test"]["cosine"]
        self.row["exact_latency"] = self.time(self.path, self.exact)
        self.write()

    def write(self) -> None:
        """Keep what is known so far."""
        part = self.args.child.with_suffix(".part")
        part.write_text(json.dumps(self.row), encoding="utf-8")
        part.replace(self.args.child)

    def compress(self, options: Mapping[str, Any] | None, *, timed: bool = False) -> osc.Result:
        """The exact recipe on the original, or one lossy pass on what that gave."""
        given: dict[str, Any] = {"shapes": self.shapes, "values": self.values, "measure_latency": timed}
        if options is None:
            return osc.compress(self.path, **given)
        text = recipe_text(self.name, options, self.folder, random=self.kind == "random")
        told = self.name in RECIPES and bool(RECIPES[self.name].parts)  # what is declared has to be looked at
        given |= {"data": self.folder / "decide.npz", "latency_seconds": self.args.seconds, "verify": told}
        return osc.compress(self.exact, osc.Recipe.parse(text, folder=self.folder), **given)

    def step(self, options: Mapping[str, Any], *, timed: bool) -> Row:
        """One cut: what was done, how it answers, how fast it is."""
        start = time.perf_counter()
        result = self.compress(options, timed=timed)
        (told,) = (step for step in result.report.steps if step.name == options["name"])
        seconds = round(time.perf_counter() - start, 1)
        row: Row = {
            "options": dict(options),
            "outcome": told.outcome,
            "whole": result.report.outcome,
            "seconds": seconds,
        }
        done = [change for change in told.applied if len(change.where) != 1]  # of the whole, not of one group
        row["did"] = "; ".join(change.action for change in done if change.pass_name == options["name"])
        row["solved"] = sum(int(change.details.get("nodes_solved", 0)) for change in done)
        if told.outcome != "done":
            whole = [change.reason for change in told.refused if not change.where]
            return row | {"reason": (told.reason or "; ".join(whole) or "no group can be cut")[:300]}
        target = self.folder / "out.onnx"
        result.save(target)
        row |= self.judge.compare(target)
        row["off_grid"] = off_grid(self.exact, target)
        row["weights"] = count_weights(target) / max(count_weights(self.exact), 1)
        before, after = result.report.cost_before, result.report.cost_after
        if before is not None and after is not None and before.macs:
            row["macs"] = after.macs / before.macs
        if timed:
            row["latency"] = self.time(self.exact, target)
            row["latency_to_original"] = self.time(self.path, target)
        return row

    def time(self, reference: Path, candidate: Path) -> Row:
        """Calls in turns, with the first sample of the test."""
        sample = next(self.judge.parts["test"].each(open_plain(self.path), self.entry))
        timing = osc.benchmark(str(reference), str(candidate), data=[sample], seconds=self.args.seconds)
        return {key: getattr(timing, key) for key in ("ratio", "low", "high")}

    def bisect(self, part: str, options: Mapping[str, Any], *, of: float = 1.0) -> None:
        """The least share (of that much) whose answers hold; each that was tried is kept."""
        rows: list[Row] = self.row.setdefault(part, [])
        shares = SHARES[part]
        while shares:
            middle = len(shares) // 2
            share = round(shares[middle] * of, 3)
            rows.append(self.guarded({**options, "target": share}, timed=True))
            self.write()
            print(f"  {part} {share}: {told_step(rows[-1])}", flush=True)
            shares = shares[middle + 1 :] if holds(rows[-1], self.args.min_cosine) else shares[:middle]

    def guarded(self, options: Mapping[str, Any], *, timed: bool) -> Row:
        """A step; a crash of the program under test is a result."""
        try:
            return self.step(options, timed=timed)
        except Exception as error:
            traceback.print_exc()
            return {"options": dict(options), "error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}

    def run(self) -> None:
        """Every part that was asked for."""
        if "mend" in self.args.parts:
            cut = {"name": "prune_channels", "criterion": "l2"}
            for ratio in MEND_RATIOS:  # the first is too little for narrow layers, whose widths are rounded up
                self.row["mend"] = {
                    repair: self.guarded({**cut, "ratio": ratio, "repair": repair}, timed=False)
                    for repair in ("least_squares", "none")
                }
                if "test" in self.row["mend"]["none"]:
                    break
            self.write()
            print(f"  mend: {told_mend(self.row['mend'])}", flush=True)
        narrow = 1.0
        if "int8" in self.args.parts:
            for share in STRICTER:
                least = round(1 - share * (1 - self.args.min_cosine), 4)
                step = self.guarded({"name": "quantize", "min_cosine": least}, timed=True)
                self.row.setdefault("int8", []).append(step)
                self.write()
                print(f"  int8 {least}: {told_step(step)}", flush=True)
                if "judge" not in step or holds(step, self.args.min_cosine):
                    break
            narrow = step["latency"]["ratio"] if "latency" in step else 1.0
        if "slim" in self.args.parts:
            self.bisect("slim", {"name": "slim", "allocation": "latency"})
        if "plan" in self.args.parts:
            self.bisect("plan", PLAN, of=narrow)
        if "macs" in self.args.parts:
            self.bisect("macs", {"name": "prune_channels", "criterion": "obs", "allocation": "macs"})


def child(args: argparse.Namespace) -> int:
    """Measure one model here."""
    ((name, path, entry),) = models(args.names)
    with tempfile.TemporaryDirectory() as folder:
        Run(args, name, path, entry, Path(folder)).run()
    return 0


def measured(args: argparse.Namespace, name: str) -> Row:
    """One model in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder, "row.json")
        given = [a for a in sys.argv[1:] if a not in args.names]
        command = [sys.executable, __file__, name, *given, "--child", str(kept)]
        start = time.perf_counter()
        try:
            code, why = subprocess.run(command, timeout=args.patience, check=False).returncode, ""
        except subprocess.TimeoutExpired:
            code, why = 0, f"stopped after {args.patience:.0f} s"
        row: Row = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {"model": name}
        row["seconds"] = round(time.perf_counter() - start)
        asked = {key: getattr(args, key) for key in ASKED} | {"stopped": bool(why)}
        row["asked"] = {part: asked for part in args.parts if part in row}
        if why or not kept.exists() or code:
            row["error"] = why or f"ended with status {code}"
            row["stopped"] = bool(why)
        return row


def merged(old: Row, new: Row) -> Row:
    """The row measured now, with those parts of the one before that were not measured again."""
    kept = {part: old[part] for part in PARTS_OF_A_ROW if part in old}
    return {**kept, **new, "asked": {**old.get("asked", {}), **new["asked"]}}


def write(args: argparse.Namespace, rows: Mapping[str, Row]) -> Row:
    """The two files."""
    every = list(rows.values())
    total = summary(every, args.min_cosine)
    write_result("zoo_slim", {"min_cosine": args.min_cosine, "total": total, "rows": rows}, args.out)
    (args.out / "zoo_slim.md").write_text(page(every, total, args.min_cosine), encoding="utf-8")
    return total


def names_of(args: argparse.Namespace) -> list[str]:
    """Those asked for; else the seven of the issue and every one with a Conv that is not large."""
    if args.names:
        return list(args.names)
    others = [n for n, e in table().items() if "Conv" in e["ops"] and e.get("size") != "large"]
    return [*FIRST, *(name for name in others if name not in FIRST)]


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--samples", type=int, default=256, help="to decide with, at most")
    parser.add_argument("--least", type=int, default=32, help="to decide with, at least")
    parser.add_argument("--pass-seconds", type=float, default=20.0, help="of a model's own time for all samples")
    parser.add_argument("--judge", type=int, default=24, help="samples to judge with, and as many for the test")
    parser.add_argument("--min-cosine", type=float, default=0.99)
    parser.add_argument("--seconds", type=float, default=10.0, help="bound on one timing")
    parser.add_argument("--patience", type=float, default=1500.0, help="seconds that a model gets")
    parser.add_argument("--parts", nargs="*", default=PARTS_OF_A_ROW, choices=PARTS_OF_A_ROW)
    parser.add_argument("--missing", action="store_true", help="only models that have no row yet")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.child is not None:
        return child(args)
    kept = args.out / "zoo_slim.json"
    rows: dict[str, Row] = json.loads(kept.read_text(encoding="utf-8"))["rows"] if kept.exists() else {}
    for name in names_of(args):
        if args.missing and name in rows:
            continue
        print(name, flush=True)
        row = measured(args, name)
        rows[name] = merged(rows.get(name, {}), row)
        total = write(args, rows)
        print(" | ".join(cells(rows[name], args.min_cosine)), flush=True)
    total = write(args, rows)
    print(json.dumps(total, indent=1))
    return int(bool(total["slower"] or total["off_grid"] or total["crashed"]))


if __name__ == "__main__":
    sys.exit(main())
