"""The table of zoo_slim.py and what it comes to: which step of a model counts, means, and what must not be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from _common import markdown

Row = dict[str, Any]
LADDERS = ("slim", "macs", "plan", "int8")
LEVERS = ("int8", "slim", "plan")
NOT_SLOWER = 1.02
"""The lower end of an interval above this is slower (DESIGN 7)."""


def holds(step: Mapping[str, Any], least: float) -> bool:
    """Whether a step did something and answers well enough on the samples for judging."""
    return "judge" in step and step["judge"]["cosine"] >= least


def best(steps: Sequence[Mapping[str, Any]], least: float) -> Mapping[str, Any] | None:
    """The fastest step that holds and that is not slower than what went in."""
    good = [step for step in steps if holds(step, least) and step["latency"]["high"] < 1]
    return min(good, key=lambda step: float(step["latency"]["ratio"]), default=None)


def fastest(row: Mapping[str, Any], least: float) -> tuple[str, Mapping[str, Any]] | None:
    """Of all levers the step that takes least of the original's time, and its name."""
    found = [(lever, step) for lever in LEVERS if (step := best(row.get(lever, ()), least)) is not None]
    return min(found, key=lambda each: float(each[1]["latency_to_original"]["ratio"]), default=None)


def ratio_of(row: Mapping[str, Any], least: float, key: str) -> float:
    """Time over the original's: of the fastest lever whose answers hold on these samples, else of the exact result."""
    found = fastest(row, least)
    if found is None or found[1][key]["cosine"] < least:
        return float(row["exact_latency"]["ratio"]) if "exact_latency" in row else 1.0
    return float(found[1]["latency_to_original"]["ratio"])


def told_step(step: Mapping[str, Any]) -> str:
    """One step in a line."""
    if "latency" not in step:
        return str(step.get("error") or f"{step['outcome']}: {step.get('reason')}")
    time_ = step["latency"]
    return (
        f"time {time_['ratio']:.2f} ({time_['low']:.2f} to {time_['high']:.2f}), cosine {step['judge']['cosine']:.4f}, "
        f"test {step['test']['cosine']:.4f}, {step['seconds']:.0f} s"
    )


def told_mend(both: Mapping[str, Mapping[str, Any]]) -> str:
    """Error with and without repair."""
    mended, plain = both["least_squares"], both["none"]
    if "test" not in mended or "test" not in plain:
        return str(mended.get("error") or mended.get("reason") or plain.get("error") or plain.get("reason"))
    if not mended["solved"]:
        return f"nothing to mend / {plain['test']['error']:.4f}"
    return f"{mended['test']['error']:.4f} / {plain['test']['error']:.4f}"


def cells(row: Mapping[str, Any], least: float) -> list[str]:
    """A row of the table."""
    chosen = fastest(row, least)
    line = [row["model"], row.get("inputs", "")]
    if chosen is None:
        steps = [step for lever in LEVERS for step in row.get(lever, ())]
        why = told_step(steps[0]) if steps else f"not measured: {row.get('error', '')}"
        line += [f"{ratio_of(row, least, 'judge'):.2f}", "exact", "", "", why]
    else:
        lever, step = chosen
        time_, pieces = step["latency_to_original"], step["test"]["pieces"]
        told = [f"{key.rpartition('.')[2]} {value:.3f}" for key, value in pieces.items()] if len(pieces) < 4 else []
        line += [f"{time_['ratio']:.2f} ({time_['low']:.2f} to {time_['high']:.2f})", lever]
        line += [f"{step['judge']['cosine']:.4f}", f"{step['test']['cosine']:.4f}"]
        line.append(f"{step['did']} ({', '.join(told)})" if len(told) > 1 else step["did"])
    for lever in LEVERS:
        found = best(row.get(lever, ()), least)
        line.append("" if lever not in row else "1" if found is None else f"{found['latency']['ratio']:.2f}")
    counted = best(row.get("macs", ()), least)
    line.append("" if counted is None else f"{counted['latency']['ratio']:.2f} at {counted['macs']:.2f}")
    line.append(told_mend(row["mend"]) if "mend" in row else "")
    return [cell.replace("|", "/").replace("\n", " ") for cell in line]


def summary(rows: Sequence[Mapping[str, Any]], least: float) -> Row:
    """What the issue asks of all models together."""
    real = [row for row in rows if row.get("inputs") not in (None, "random")]

    def mean(part: str, key: str) -> float | None:
        found = [best(row[part], least) for row in real if row.get(part)]
        kept = [each if each is not None and each[key]["cosine"] >= least else None for each in found]
        logs = [0.0 if e is None else float(np.log(e["latency"]["ratio"])) for e in kept]
        return float(np.exp(np.mean(logs))) if logs else None

    steps = [(row["model"], step) for row in rows for part in LADDERS for step in row.get(part, ())]
    timed = [(name, step) for name, step in steps if "latency" in step]
    mends = [row["mend"] for row in real if "mend" in row]
    both = [m for m in mends if all("test" in m[repair] for repair in ("least_squares", "none"))]
    unsolved, both = (
        [m for m in both if not m["least_squares"]["solved"]],
        [m for m in both if m["least_squares"]["solved"]],
    )
    slower = [step for step in timed if step[1]["latency"]["low"] > NOT_SLOWER and step[1]["whole"] == "compressed"]

    def all_levers(key: str) -> float:
        return float(np.exp(np.mean([np.log(ratio_of(row, least, key)) for row in real] or [0.0])))

    return {
        "models": len(rows),
        "with_real_samples": len(real),
        "measured": {part: sum(bool(row.get(part)) for row in real) for part in LADDERS},
        "geometric_mean_slim": mean("slim", "judge"),
        "geometric_mean_slim_held_on_test": mean("slim", "test"),
        "geometric_mean_macs": mean("macs", "judge"),
        "geometric_mean_int8": mean("int8", "judge"),
        "geometric_mean_all_levers": all_levers("judge"),
        "geometric_mean_all_levers_held_on_test": all_levers("test"),
        "made_faster": sum(fastest(row, least) is not None for row in real),
        "slower": [f"{name} {step['options']}" for name, step in slower],
        "off_grid": [f"{name} {where}" for name, step in timed for where in step["off_grid"]],
        "mended_and_cut": len(both),
        "cut_without_a_reader_to_mend": len(unsolved),
        "mended_better": sum(m["least_squares"]["test"]["error"] < m["none"]["test"]["error"] for m in both),
        "crashed": [f"{name}: {step['error']}" for name, step in steps if "error" in step]
        + [f"{row['model']}: {row['error']}" for row in rows if "error" in row and not row.get("stopped")],
        "stopped": [row["model"] for row in rows if was_stopped(row)],
    }


def was_stopped(row: Mapping[str, Any]) -> bool:
    """Whether the bench lost its patience with a part that counts."""
    return bool(row.get("stopped")) or any(asked["stopped"] for asked in row.get("asked", {}).values())


def _told_mean(total: Mapping[str, Any], part: str) -> str:
    mean = total[f"geometric_mean_{part}"]
    return "not measured" if mean is None else f"{mean:.3f} ({total['measured'][part]} models)"


def page(rows: Sequence[Mapping[str, Any]], total: Mapping[str, Any], least: float) -> str:
    """The Markdown."""
    columns = ["model", "inputs", ">time over the original", "by", ">cosine, judged", ">cosine, others", "what"]
    columns += [">`quantize`", ">`slim`", ">`slim` with int8", ">time at multiply-adds, `macs`", ">error mended / not"]
    words = (
        f"Geometric mean of the time of {total['with_real_samples']} models with real samples, at a cosine of at least "
        f"{least} in every part: {total['geometric_mean_all_levers']:.3f} of the original's by all levers that were "
        f"measured ({total['geometric_mean_all_levers_held_on_test']:.3f} where it must hold on other samples too). "
        f"Over the exact result: {_told_mean(total, 'int8')} by `quantize`, {_told_mean(total, 'slim')} by `slim` in "
        f"float, {_told_mean(total, 'macs')} by `macs`. {len(total['slower'])} results are slower than what went in, "
        f"{len(total['off_grid'])} widths off the grid. Mending is better in {total['mended_better']} of "
        f"{total['mended_and_cut']} models that were cut; in {total['cut_without_a_reader_to_mend']} more no reader "
        f"has constant weights."
    )
    return markdown(columns, [cells(row, least) for row in rows]) + f"\n{words}\n"
