"""What is loaded late: sympy, which onnx_ir names and hardly ever needs."""

from __future__ import annotations

import subprocess
import sys


def said(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


LOADED = "import sys; print('sympy.core' in sys.modules)"


def test_a_model_is_opened_without_sympy() -> None:
    assert said(f"import onnxslim_core.pipeline; {LOADED}") == "False"


def test_onnx_ir_finds_it_when_it_needs_it() -> None:
    assert said(f"import onnxslim_core, onnx_ir; print(onnx_ir.SymbolicDim('n') + 1); {LOADED}") == "n + 1\nTrue"


def test_who_uses_sympy_himself_has_it_whole() -> None:
    code = "import onnxslim_core, onnx_ir, sympy; print(sympy.expand((sympy.Symbol('x') + 1) ** 2), sympy.polys.__name__)"
    assert said(code) == "x**2 + 2*x + 1 sympy.polys"
