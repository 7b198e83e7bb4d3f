"""Make an ONNX model smaller and faster on an x86 CPU, and prove that it still answers the same.

    import onnxslim_core as osc
    result = osc.compress("net.onnx", recipe=osc.Recipe.preset("balanced"), data="samples.npz")
    result.save("small.onnx")

The public names load on first use, so that the import itself is quick.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from onnxslim_core import _later

if TYPE_CHECKING:
    from onnxslim_core._public import benchmark, compare, inspect
    from onnxslim_core._sensitivity import Sensitivity, sensitivity
    from onnxslim_core.errors import (
        BudgetError,
        DataError,
        InternalError,
        InvalidModel,
        MeasureError,
        ModelError,
        OutputError,
        RecipeError,
        SlimError,
        UnsupportedModel,
    )
    from onnxslim_core.front import Front, pareto
    from onnxslim_core.lock import Applied, Lock, apply
    from onnxslim_core.model import Model, load, save
    from onnxslim_core.pipeline import Result, compress
    from onnxslim_core.recipe import Budget, Recipe, load_budget
    from onnxslim_core.report import Report
    from onnxslim_core.verdict import Verdict, gate

_later.install()
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime writes events into the user's cache from 1.32 on

__version__ = "0.1.0"

__all__ = [
    "Applied",
    "Budget",
    "BudgetError",
    "DataError",
    "Front",
    "InternalError",
    "InvalidModel",
    "Lock",
    "MeasureError",
    "Model",
    "ModelError",
    "OutputError",
    "Recipe",
    "RecipeError",
    "Report",
    "Result",
    "Sensitivity",
    "SlimError",
    "UnsupportedModel",
    "Verdict",
    "__version__",
    "apply",
    "benchmark",
    "compare",
    "compress",
    "gate",
    "inspect",
    "load",
    "load_budget",
    "pareto",
    "save",
    "sensitivity",
]

_HOMES = {
    "_public": ("benchmark", "compare", "inspect"),
    "_sensitivity": ("Sensitivity", "sensitivity"),
    "errors": (
        *("BudgetError", "DataError", "InternalError", "InvalidModel", "MeasureError", "ModelError"),
        *("OutputError", "RecipeError", "SlimError", "UnsupportedModel"),
    ),
    "front": ("Front", "pareto"),
    "lock": ("Applied", "Lock", "apply"),
    "model": ("Model", "load", "save"),
    "pipeline": ("Result", "compress"),
    "recipe": ("Budget", "Recipe", "load_budget"),
    "report": ("Report",),
    "verdict": ("Verdict", "gate"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

# A checkout keeps the passes one level up, a wheel keeps them here.
_root = Path(__file__).resolve().parent.parent
if (_root / "passes" / "__init__.py").is_file() and (_root / "pyproject.toml").is_file():
    __path__.append(str(_root))


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'onnxslim_core' has no attribute '{name}'")
    found: object = getattr(importlib.import_module(f"onnxslim_core.{_HOME[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
