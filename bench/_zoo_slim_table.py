"""The table of zoo_slim.py and what it comes to: which step of a model counts, means, and what must not be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from _common import markdown

Row = dict[str, Any]
LADDERS = ("slim", "macs")


def holds(step: Mapping[str, Any], least: float) -> bool:
    """Whether a step did something and answers well enough on the samples for judging."""
    return "judge" in step and step["judge"]["cosine"] >= least


def best(steps: Sequence[Mapping[str, Any]], least: float) -> Mapping[str, Any] | None:
    """The fastest step that holds and that is not slower than what went in."""
    good = [step for step in steps if holds(step, least) and step["latency"]["high"] < 1]
    return min(good, key=lambda step: float(step["latency"]["ratio"]), default=None)


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
    first = [row["model"], row.get("inputs", "")]
    found = best(row.get("slim", ()), least)
    if found is None:
        steps = row.get("slim") or [{"outcome": "not measured", "reason": row.get("error", "")}]
        text = told_step(steps[-1]) if "latency" not in steps[-1] else told_step(steps[-1]) + ": too far or no faster"
        middle = ["1", "", "", "", text]
    else:
        pieces = found["test"]["pieces"]
        apart = (
            ", ".join(f"{key.rpartition('.')[2]} {value:.3f}" for key, value in pieces.items())
            if len(pieces) < 4
            else ""
        )
        middle = [f"{found['latency']['ratio']:.2f} ({found['latency']['low']:.2f} to {found['latency']['high']:.2f})"]
        middle += [f"{found['latency_to_original']['ratio']:.2f}", f"{found['judge']['cosine']:.4f}"]
        middle += [f"{found['test']['cosine']:.4f}", f"{found['did']} {apart}".strip()]
    counted = best(row.get("macs", ()), least)
    macs = "" if counted is None else f"{counted['latency']['ratio']:.2f} at {counted['macs']:.2f}"
    mend = told_mend(row["mend"]) if "mend" in row else ""
    line = [*first, *middle, macs, mend]
    return [cell.replace("|", "/").replace("\n", " ") for cell in line]


def summary(rows: Sequence[Mapping[str, Any]], least: float) -> Row:
    """What the issue asks of all models together."""
    real = [row for row in rows if row.get("inputs") not in (None, "random")]

    def mean(part: str, key: str) -> float:
        found = [best(row.get(part, ()), least) for row in real]
        kept = [each if each is not None and each[key]["cosine"] >= least else None for each in found]
        return float(np.exp(np.mean([0.0 if e is None else np.log(e["latency"]["ratio"]) for e in kept] or [0.0])))

    steps = [(row["model"], step) for row in rows for part in LADDERS for step in row.get(part, ())]
    timed = [(name, step) for name, step in steps if "latency" in step]
    mends = [row["mend"] for row in real if "mend" in row]
    both = [m for m in mends if all("test" in m[repair] for repair in ("least_squares", "none"))]
    unsolved, both = (
        [m for m in both if not m["least_squares"]["solved"]],
        [m for m in both if m["least_squares"]["solved"]],
    )
    slower = [step for step in timed if step[1]["latency"]["low"] > 1 and step[1]["whole"] == "compressed"]
    return {
        "models": len(rows),
        "with_real_samples": len(real),
        "geometric_mean_slim": mean("slim", "judge"),
        "geometric_mean_slim_held_on_test": mean("slim", "test"),
        "geometric_mean_macs": mean("macs", "judge"),
        "made_faster": sum(best(row.get("slim", ()), least) is not None for row in real),
        "slower": [f"{name} {step['options']}" for name, step in slower],
        "off_grid": [f"{name} {where}" for name, step in timed for where in step["off_grid"]],
        "mended_and_cut": len(both),
        "cut_without_a_reader_to_mend": len(unsolved),
        "mended_better": sum(m["least_squares"]["test"]["error"] < m["none"]["test"]["error"] for m in both),
        "crashed": [f"{name}: {step['error']}" for name, step in steps if "error" in step]
        + [f"{row['model']}: {row['error']}" for row in rows if "error" in row and not row.get("stopped")],
        "stopped": [row["model"] for row in rows if row.get("stopped")],
    }


def page(rows: Sequence[Mapping[str, Any]], total: Mapping[str, Any], least: float) -> str:
    """The Markdown."""
    columns = ["model", "inputs", ">time, `slim`", ">over the original", ">cosine, judged", ">cosine, others", "what"]
    columns += [">time at multiply-adds, `macs`", ">error mended / not"]
    words = (
        f"Geometric mean of the time of {total['with_real_samples']} models with real samples, at a cosine of at least "
        f"{least}: {total['geometric_mean_slim']:.3f} by `slim` ({total['geometric_mean_slim_held_on_test']:.3f} where "
        f"it must hold on the others too), {total['geometric_mean_macs']:.3f} by `macs`. "
        f"{len(total['slower'])} results are slower than what went in, {len(total['off_grid'])} widths off the grid. "
        f"Mending is better in {total['mended_better']} of {total['mended_and_cut']} models that were cut; in "
        f"{total['cut_without_a_reader_to_mend']} more no reader has constant weights."
    )
    return markdown(columns, [cells(row, least) for row in rows]) + f"\n{words}\n"
