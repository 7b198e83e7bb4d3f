"""Make an ONNX model smaller and faster on an x86 CPU, and prove that it still answers the same."""

from __future__ import annotations

from pathlib import Path

__version__ = "0.1.0"

# A checkout keeps the passes one level up, a wheel keeps them here.
_root = Path(__file__).resolve().parent.parent
if (_root / "passes" / "__init__.py").is_file() and (_root / "pyproject.toml").is_file():
    __path__.append(str(_root))
