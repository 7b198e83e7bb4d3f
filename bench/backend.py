"""Do onnx's own backend tests answer as before after the exact recipe? Every one that onnxruntime runs.

    python bench/backend.py [--kinds node simple] [--out DIR]

Needs nothing but the packages: single nodes are made by onnx's code, the rest are files of the onnx package. A case is
not run where onnxruntime does not run it as it is (versions of operators that it lacks, operators that are preview).
Exits with 1 where a case crashes or answers otherwise. Writes backend.json and backend.md.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

from _common import RESULTS, markdown, write_result

from tests.backend import KINDS, cases, judged

OUTCOMES = ("equal", "random", "refused", "not run", "differs", "crash")


def main() -> int:
    """Judge, print, write."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=KINDS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    rows, noted = [], []
    for kind in args.kinds:
        start, counts, nodes = time.perf_counter(), Counter[str](), [0, 0]
        for case in cases(kind):
            verdict = judged(case)
            counts[verdict.outcome] += 1
            if verdict.outcome == "equal":
                nodes = [total + count for total, count in zip(nodes, verdict.nodes, strict=True)]
            elif verdict.outcome != "not run":
                noted.append({"case": str(case), "outcome": verdict.outcome, "note": verdict.note})
                print(f"{case}: {verdict.outcome}, {verdict.note}", flush=True)
        seconds = round(time.perf_counter() - start)
        rows.append({"kind": kind, **{o: counts[o] for o in OUTCOMES}, "nodes": nodes, "seconds": seconds})
        print(rows[-1], flush=True)
    write_result("backend", {"rows": rows, "noted": noted}, args.out)
    columns = ["tests", *(f">{outcome}" for outcome in OUTCOMES), ">nodes"]
    body = [[r["kind"], *(r[o] for o in OUTCOMES), f"{r['nodes'][0]} to {r['nodes'][1]}"] for r in rows]
    (args.out / "backend.md").write_text(markdown(columns, body), encoding="utf-8")
    return 1 if any(row["differs"] or row["crash"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
