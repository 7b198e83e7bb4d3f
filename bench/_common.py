"""What every bench script shares: the header of its JSON, the folder of results, and counting weights.

A result says which machine, versions and command it comes from, and holds no path and no host name.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx

RESULTS = Path(__file__).resolve().parent / "results"
sys.path.insert(0, str(RESULTS.parent.parent))  # a bench measures the checkout it lies in, installed or not

VERSIONS = ("numpy", "onnx", "onnx-ir", "onnxruntime")
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16)


def cpu_name() -> str:
    """The processor's model name, as far as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def versions(packages: Iterable[str] = VERSIONS) -> dict[str, str]:
    """Our own version and those of the packages that are installed."""
    from onnxslim_core import __version__

    found = {"python": platform.python_version(), "onnxslim-core": __version__}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def header(packages: Iterable[str] = VERSIONS) -> dict[str, object]:
    """Machine, versions and command; of an argument that is a path only the last part is kept."""
    command = ["python", f"bench/{Path(sys.argv[0]).name}", *(_without_folder(a) for a in sys.argv[1:])]
    return {
        "schema": 1,
        "command": " ".join(command),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "system": platform.system(),
            "architecture": platform.machine(),
        },
        "versions": versions(packages),
    }


def _without_folder(argument: str) -> str:
    return f".../{Path(argument).name}" if Path(argument).is_absolute() else argument


def write_result(name: str, payload: Mapping[str, object], folder: Path | None = None) -> Path:
    """Write `NAME.json` with its header in front, whole or not at all."""
    target = (folder or RESULTS) / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    part.write_text(json.dumps({**header(), **payload}, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(target)
    return target


def markdown(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table; columns that begin with `>` are aligned to the right."""
    names = list(columns)
    lines = ["| " + " | ".join(name.removeprefix(">") for name in names) + " |"]
    lines.append("| " + " | ".join("---:" if name.startswith(">") else "---" for name in names) + " |")
    lines.extend("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)
    return "\n".join(lines) + "\n"


def count_weights(model: onnx.ModelProto | str | Path) -> int:
    """Float elements in initializers and Constant nodes, bodies included; scalars are not counted.

    Independent of the program under test on purpose: it reads the file with onnx alone.
    """
    if not isinstance(model, onnx.ModelProto):
        model = onnx.load(str(model), load_external_data=False)
    total, graphs = 0, [model.graph]
    while graphs:
        graph = graphs.pop()
        tensors = list(graph.initializer)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    graphs.append(attribute.g)
                elif node.op_type == "Constant" and attribute.name == "value":
                    tensors.append(attribute.t)
        total += sum(int(np.prod(t.dims, dtype=np.int64)) for t in tensors if t.data_type in FLOATS and t.dims)
    return total
