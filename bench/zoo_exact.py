"""The exact recipe on real models: do the answers stay, does the file shrink, is it not slower?

    python bench/zoo/fetch.py
    python bench/zoo_exact.py [NAME...] [--large] [--keep] [--seconds 20] [--no-latency]

Every model of the zoo (with --large those marked so, too) goes through the recipe that runs by default. Answers are
compared here and not by the program under test: original and result in onnxruntime with its optimizer off, three seeded
inputs, the largest difference over the output's largest value. It must be at most 1e-5 or four times the model's own
noise (what one unit in the last place of the input does to the output), whichever is larger. The file may be at most
1 % bigger.
"Not slower": the 95 % interval of the ratio begins at or below 1.02 and is at most 0.10 wide.
Exits with 1 where one of these fails. Writes zoo_exact.json and zoo_exact.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _common import RESULTS, markdown, write_result
from _zoo import distance, feeds, models, nudged, open_plain, settings

from onnxslim_core.measure.latency import compare_latency
from onnxslim_core.model import load
from onnxslim_core.pipeline import compress_file

FLOOR = 1e-5
NOISE_FACTOR = 4.0


def size_of(path: Path) -> int:
    """Bytes of a model with its external data beside it, in a folder of its own."""
    return sum(file.stat().st_size for file in path.parent.iterdir() if file.is_file())


def answers_of(original: Path, result: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Largest difference and the bound it is held against."""
    a, b = open_plain(original), open_plain(result)
    worst = noise = 0.0
    for seed in range(3):
        inputs = feeds(a, entry, seed)
        expected = a.run(None, inputs)
        worst = max(worst, distance(expected, b.run(None, inputs)))
        noise = max(noise, distance(expected, a.run(None, nudged(inputs, seed))))
    bound = max(FLOOR, NOISE_FACTOR * noise)
    return {"difference": worst, "noise": noise, "equal": worst <= bound}


def measure(name: str, path: Path, entry: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """One model: through the recipe, compared, timed."""
    shapes, values = settings(entry)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "out.onnx")
        start = time.perf_counter()
        result = compress_file(path, target, shapes=shapes, values=values, measure_latency=False)
        row: dict[str, Any] = {"model": name, "seconds": round(time.perf_counter() - start, 2)}
        parts = [path, *([path.parent / Path(entry["data_path"]).name] if "data_path" in entry else [])]
        row["bytes"] = [sum(part.stat().st_size for part in parts), size_of(target)]
        row["nodes"] = list(result.report.nodes)
        row |= answers_of(path, target, entry)
        row["smaller"] = row["bytes"][1] <= 1.01 * row["bytes"][0]
        row["latency"] = None
        if seconds:
            sample = feeds(open_plain(path), entry, 0)
            timing = compare_latency(load(path), load(target), sample, seconds=seconds)
            row["latency"] = {"ratio": timing.ratio, "low": timing.low, "high": timing.high}
            row["not_slower"] = timing.low <= 1.02 and timing.high - timing.low <= 0.10
    return row


def cells(row: Mapping[str, Any]) -> list[str]:
    """One row of the table."""
    if "error" in row:
        return [row["model"], row["error"], "", "", "", ""]
    time_cell = "not measured"
    if row["latency"] is not None:
        latency = row["latency"]
        mark = "" if row["not_slower"] else " (!)"
        time_cell = f"{latency['ratio']:.2f} ({latency['low']:.2f} to {latency['high']:.2f}){mark}"
    return [
        row["model"],
        f"{row['nodes'][0]} to {row['nodes'][1]}",
        f"{100 * (row['bytes'][1] / row['bytes'][0] - 1):+.1f} %{'' if row['smaller'] else ' (!)'}",
        time_cell,
        f"{row['difference']:.1e}{'' if row['equal'] else ' (!)'}",
        f"{row['noise']:.1e}",
    ]


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--large", action="store_true", help="those that are marked large, too")
    parser.add_argument("--seconds", type=float, default=20.0, help="spent on timing each model")
    parser.add_argument("--no-latency", action="store_true")
    parser.add_argument("--keep", action="store_true", help="keep the rows of other models that are there already")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    kept = args.out / "zoo_exact.json"
    old = json.loads(kept.read_text(encoding="utf-8"))["rows"] if args.keep and kept.exists() else []
    rows = []
    for name, path, entry in models(args.names, large=args.large):
        try:
            row = measure(name, path, entry, 0.0 if args.no_latency else args.seconds)
        except Exception as error:  # one broken model must not hide the others
            row = {"model": name, "error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        rows.append(row)
        print(" | ".join(cells(row)), flush=True)
    fresh = {row["model"]: row for row in rows}
    rows = [fresh.pop(row["model"], row) for row in old] + list(fresh.values())
    columns = ["model", ">nodes", ">file", ">time, result over original", ">largest difference", ">noise"]
    good = [r for r in rows if "error" not in r and r["equal"] and r["smaller"] and r.get("not_slower", True)]
    finite = [{k: (None if v == float("inf") else v) for k, v in row.items()} for row in rows]
    write_result("zoo_exact", {"rows": finite, "good": len(good)}, args.out)
    (args.out / "zoo_exact.md").write_text(markdown(columns, map(cells, rows)), encoding="utf-8")
    print(f"{len(good)} of {len(rows)} equal, at most 1 % bigger{'' if args.no_latency else ' and not slower'}")
    return 0 if len(good) == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
