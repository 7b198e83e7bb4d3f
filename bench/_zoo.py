"""The zoo's models as benches need them: files that are there, inputs that run, answers and how far two are apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from zoo.fetch import default_folder, table

Feeds = dict[str, np.ndarray]
PLAN: Mapping[str, Any] = {"name": "slim", "allocation": "latency", "forms": ["width", "gone", "rank", "int8"]}
"""One plan of all forms; what it lacks is a target."""
KINDS: Mapping[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}


def models(
    names: Sequence[str] = (), folder: Path | None = None, *, large: bool = False
) -> Iterator[tuple[str, Path, Mapping[str, Any]]]:
    """Name, file and entry of those named, else of every model; of those marked large only where it is asked for.

    Raises:
        SystemExit: if a file is not there; `bench/zoo/fetch.py` brings it.
    """
    entries = table()
    for name in names or [name for name, entry in entries.items() if large or entry.get("size") != "large"]:
        path = (folder or default_folder()) / f"{name}.onnx"
        if name not in entries or not path.exists():
            raise SystemExit(f"{name}: not in the zoo's folder; python bench/zoo/fetch.py {name}")
        yield name, path, entries[name]


def settings(entry: Mapping[str, Any]) -> tuple[dict[str, tuple[int, ...]], dict[str, object]]:
    """Shapes and fixed values of the inputs, as `compress` takes them."""
    example = entry["example_shape"]
    return (
        {name: tuple(one["shape"]) for name, one in example.items()},
        {name: one["value"] for name, one in example.items() if "value" in one},
    )


def feeds(session: ort.InferenceSession, entry: Mapping[str, Any], seed: int) -> Feeds:
    """Seeded inputs at shapes that run, as the entry says: a fixed value, integers below `high`, else normal."""
    rng = np.random.default_rng(seed)
    types = {i.name: KINDS[i.type] for i in session.get_inputs()}
    found: Feeds = {}
    for name, one in entry["example_shape"].items():
        if "value" in one:
            drawn = np.full(one["shape"], one["value"])
        elif "high" in one:
            drawn = rng.integers(0, one["high"], one["shape"])
        else:
            drawn = rng.standard_normal(one["shape"])
        found[name] = np.asarray(drawn).astype(types[name])
    return found


def open_plain(path: Path) -> ort.InferenceSession:
    """A session on one thread with onnxruntime's own optimizer off: the graph as it is written."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def nudged(inputs: Feeds, seed: int) -> Feeds:
    """The same inputs with every float moved by one unit in the last place, up or down."""
    rng = np.random.default_rng(seed)
    moved = {}
    for name, x in inputs.items():
        towards = np.where(rng.random(x.shape) < 0.5, np.inf, -np.inf).astype(np.float32)
        moved[name] = np.asarray(np.nextafter(x, towards)) if x.dtype == np.float32 else x
    return moved


def distance(reference: Sequence[Any], other: Sequence[Any]) -> float:
    """Largest difference of all outputs, each over its own largest value; infinite where they cannot be compared."""
    worst = 0.0
    for a, b in zip(reference, other, strict=True):
        if isinstance(a, list | dict):  # maps and sequences of scikit-learn's classifiers
            worst = max(worst, 0.0 if _equal(a, b) else float("inf"))
            continue
        a, b = np.asarray(a), np.asarray(b)
        if a.shape != b.shape or a.dtype != b.dtype:
            return float("inf")
        if not np.issubdtype(a.dtype, np.floating):
            worst = max(worst, 0.0 if np.array_equal(a, b) else float("inf"))
            continue
        if not np.array_equal(np.isfinite(a), np.isfinite(b)):
            return float("inf")
        finite = np.isfinite(a)
        if finite.any():
            gap = np.abs(a[finite].astype(np.float64) - b[finite].astype(np.float64)).max()
            worst = max(worst, float(gap / max(float(np.abs(a[finite]).max()), 1e-30)))
    return worst


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and np.allclose(list(a.values()), list(b.values()), rtol=1e-5)
    return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
