"""How do time and memory grow with the number of nodes, beside other tools?

    python bench/scaling.py [--rivals rivals/bin/python] [--sizes 1000,4000,16000,64000] [--busy]

Three shapes of graph (see _scaling_graphs.py) at each size; every run is a process of its own, timed from its start to
its end, so that imports count. Ours is the command line without a recipe: *checked* verifies the graph, compares the
answers and runs what it wrote (`--no-latency`: how long timing takes is set by the user, not by the graph), *unchecked*
compares nothing (`--no-verify --no-latency`). onnxruntime is its offline optimization (a session that writes the
optimized model), the others are called as rivals.py says. Tools run in turn, `--repeat` rounds, the best of each
counts; whoever takes longer than `--timeout` is put down as such and not asked for larger graphs of that shape. The
exponent is the slope between two neighbouring sizes on a log-log scale; peak memory is that of the process. Checked
results must say that they were verified. Bytecode is kept, as it is of an installed package: ours is not compiled anew
by every process (.2 s). Writes scaling.json and scaling.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
import rivals
from _common import RESULTS, markdown, write_result
from _scaling_graphs import SHAPES

ROOT = Path(__file__).resolve().parent.parent
SIZES = (1_000, 4_000, 16_000, 64_000)
OURS = {"checked": ("--no-latency", "--no-lock"), "unchecked": ("--no-verify", "--no-latency", "--no-lock")}
OTHERS = ("onnxsim", "onnxslim", "onnxoptimizer")
LIMITS = {"checked": 4.0, "unchecked": 2.0}
"""Times of onnxruntime's offline optimization, at 16,000 nodes."""
EXPONENT = 1.1


@dataclass(frozen=True, slots=True)
class Run:
    """One process.

    Attributes:
        seconds: From its start to its end, or of processor time; None where it did not come to a result.
        peak: Resident memory at its highest, in bytes.
        note: What went wrong, else empty.
    """

    seconds: float | None
    peak: int
    note: str = ""


def ours(source: Path, folder: Path, options: tuple[str, ...]) -> tuple[list[str], Path]:
    """The command line, and the report that it writes."""
    report = folder / "report.json"
    command = [sys.executable, "-m", "onnxslim_core", "compress", str(source), "-o", str(folder / "out.onnx")]
    return [*command, "--quiet", "--report", str(report), *options], report


def measure(command: list[str], timeout: float, *, busy: bool = False) -> Run:
    """Run a command and wait for its end; on a busy machine its processor time counts, not the clock on the wall.

    Its peak of memory is asked for while it runs: in what the system says at its end, Linux counts in what this process
    had at its highest, because the command was started from it.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said, env=environment)
        peak = 0
        while True:
            peak = max(peak, _peak(process.pid))
            done, status, usage = os.wait4(process.pid, os.WNOHANG)
            if done:
                break
            if time.perf_counter() - start > timeout:
                process.kill()
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = status
                return Run(None, peak, f"more than {timeout:.0f} s")
            time.sleep(0.005)
        seconds = time.perf_counter() - start
        process.returncode = code = os.waitstatus_to_exitcode(status)
        said.seek(0)
        lines = said.read().decode(errors="replace").strip().splitlines()
    failed = [line for line in lines if line.startswith('{"tool"') and not json.loads(line)["ok"]]
    if code or failed:
        note = json.loads(failed[-1])["error"] if failed else f"status {code}: {(lines or ['no message'])[-1]}"
        return Run(None, peak, note[:200])
    return Run(usage.ru_utime + usage.ru_stime if busy else seconds, peak)


def _peak(pid: int) -> int:
    """The resident memory of a running process at its highest, in bytes; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def once(tool: str, source: Path, python: str, timeout: float, busy: bool) -> Run:
    """One tool on one model."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if tool in OURS:
            command, report = ours(source, folder, OURS[tool])
            found = measure(command, timeout, busy=busy)
            if found.seconds is not None and json.loads(report.read_text())["verified"] is not (tool == "checked"):
                return Run(None, found.peak, "the report does not say what was asked")
            return found
        interpreter = sys.executable if tool == "onnxruntime" else python
        command = [interpreter, rivals.__file__, tool, str(source), str(folder / "out.onnx")]
        found = measure(command, timeout, busy=busy)
        if found.seconds is not None and not (folder / "out.onnx").exists():
            return Run(None, found.peak, "wrote nothing")
        return found


def best(runs: list[Run]) -> Run:
    """The fastest; a failure where every run failed."""
    return min(runs, key=lambda run: math.inf if run.seconds is None else run.seconds)


def sweep(shape: str, sizes: list[int], tools: list[str], args: argparse.Namespace) -> list[dict[str, Any]]:
    """All tools over all sizes of one shape, in turn."""
    rows: list[dict[str, Any]] = []
    late: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            source = Path(folder, f"{shape}.onnx")
            model = SHAPES[shape](size, 0)
            onnx.save(model, source)
            runs: dict[str, list[Run]] = {tool: [] for tool in tools}
            for number in range(args.repeat):
                for tool in tools:
                    if tool in late or (number and (runs[tool][0].seconds or math.inf) > args.once_from):
                        continue
                    runs[tool].append(once(tool, source, args.rivals, args.timeout, args.busy))
            found = {tool: best(done) for tool, done in runs.items() if done}
            late |= {tool: run.note for tool, run in found.items() if run.seconds is None}
            row = {"shape": shape, "nodes": len(model.graph.node), "bytes": source.stat().st_size}
            row["tools"] = {tool: asdict(found[tool]) if tool in found else None for tool in tools}
            rows.append(row)
            print(" | ".join(cells(row, rows)), flush=True)
    return rows


def exponent(tool: str, small: Mapping[str, Any], large: Mapping[str, Any]) -> float | None:
    """The slope between two sizes; None where either has no time."""
    times = [(row["tools"][tool] or {}).get("seconds") for row in (small, large)]
    if None in times:
        return None
    return math.log(times[1] / times[0]) / math.log(large["nodes"] / small["nodes"])


def cells(row: Mapping[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """One row of the table: seconds, and the exponent from the size before."""
    same = [other for other in rows if other["shape"] == row["shape"]]
    before = same[same.index(row) - 1] if same.index(row) else None
    found = [row["shape"], f"{row['nodes']:,}"]
    for tool, run in row["tools"].items():
        if run is None or run["seconds"] is None:
            found.append("" if run is None else run["note"][:60].replace("|", "/"))
            continue
        slope = None if before is None else exponent(tool, before, row)
        found.append(f"{run['seconds']:.2f} s" + ("" if slope is None else f" ({slope:.2f})"))
    return found


def verdict(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What was asked for, and what was found: exponents of ours, ratios at 16,000 nodes."""
    slopes: list[dict[str, Any]] = []
    ratios: list[dict[str, Any]] = []
    for small, large in itertools.pairwise(rows):
        if small["shape"] != large["shape"]:
            continue
        for tool in OURS:
            slope = exponent(tool, small, large)
            where = {"shape": large["shape"], "tool": tool, "from": small["nodes"], "to": large["nodes"]}
            slopes.append({**where, "exponent": slope, "met": slope is not None and slope <= EXPONENT})
    for row in rows:
        if not 12_000 <= row["nodes"] <= 20_000:
            continue
        seconds = {tool: (run or {}).get("seconds") for tool, run in row["tools"].items()}
        for tool, limit in LIMITS.items():
            if None in (seconds[tool], seconds["onnxruntime"]):
                continue
            ratio = seconds[tool] / seconds["onnxruntime"]
            faster = None
            if row["tools"].get("onnxsim") is not None:
                faster = seconds["onnxsim"] is None or seconds[tool] < seconds["onnxsim"]
            where = {"shape": row["shape"], "tool": tool, "over_onnxruntime": ratio, "limit": limit}
            ratios.append({**where, "met": ratio <= limit, "faster_than_onnxsim": faster})
    return {"exponents": slopes, "ratios": ratios}


def main() -> int:
    """Generate, run, print, write."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rivals", default="", metavar="PYTHON", help="interpreter that has the other tools")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--repeat", type=int, default=3, help="rounds; the best of each tool counts")
    parser.add_argument("--once-from", type=float, default=20.0, help="seconds from which a run is not repeated")
    parser.add_argument("--busy", action="store_true", help="count processor time, where others use the machine, too")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds, of one run")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    tools = [*OURS, "onnxruntime", *(OTHERS if args.rivals else ())]
    sizes = [int(size) for size in args.sizes.split(",")]
    rows = [row for shape in args.shapes.split(",") for row in sweep(shape, sizes, tools, args)]
    found = verdict(rows)
    counted = "processor time" if args.busy else "time"
    payload = {"counted": counted, "repeat": args.repeat, "timeout": args.timeout, "rows": rows, **found}
    write_result("scaling", payload | ({"rivals": rivals.versions(args.rivals)} if args.rivals else {}), args.out)
    head = ["shape", ">nodes", *(f">{tool}" for tool in ("ours, checked", "ours, unchecked", *tools[2:]))]
    note = f"Seconds of {counted} of a whole process, imports included; in brackets the exponent from the size above.\n"
    table = markdown(head, (cells(row, rows) for row in rows))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "scaling.md").write_text(f"{table}\n{note}", encoding="utf-8")
    for ratio in found["ratios"]:
        print(
            f"{ratio['shape']}: {ratio['tool']} {ratio['over_onnxruntime']:.2f} of onnxruntime, limit {ratio['limit']}"
        )
    return 0 if all(entry["met"] for entry in (*found["exponents"], *found["ratios"])) else 1


if __name__ == "__main__":
    sys.exit(main())
