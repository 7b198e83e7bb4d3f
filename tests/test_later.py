"""What is loaded late: sympy, which onnx_ir names and hardly ever needs."""

from __future__ import annotations

import subprocess
import sys

import pytest


def said(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


LOADED = "import sys; print('sympy.core' in sys.modules)"


def test_a_model_is_opened_without_sympy() -> None:
    assert said(f"import onnxslim_core.pipeline; {LOADED}") == "False"


def test_onnx_ir_finds_it_when_it_needs_it() -> None:
    assert said(f"import onnxslim_core, onnx_ir; print(onnx_ir.SymbolicDim('n') + 1); {LOADED}") == "n + 1\nTrue"


def test_who_uses_sympy_himself_has_it_whole() -> None:
    code = (
        "import onnxslim_core, onnx_ir, sympy; print(sympy.expand((sympy.Symbol('x') + 1) ** 2), sympy.polys.__name__)"
    )
    assert said(code) == "x**2 + 2*x + 1 sympy.polys"


def test_who_uses_sympy_himself_has_every_module_of_it_once() -> None:
    code = "import onnxslim_core, onnx_ir, sympy.core; print(sympy.core.symbol.Symbol is sympy.Symbol)"
    assert said(code) == "True"


@pytest.mark.parametrize("first", ["sympy.Symbol('n')", "onnx_ir.SymbolicDim('n') + 1"])
def test_many_threads_may_be_the_first_to_use_it(first: str) -> None:
    code = f"""
import threading, onnxslim_core, onnx_ir, sympy
failed, ready = [], threading.Barrier(8)
def use():
    ready.wait()
    try:
        {first}
    except Exception as err:
        failed.append(err)
threads = [threading.Thread(target=use) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(failed)
"""
    if first.startswith("onnx_ir"):
        code = code.replace(", sympy\n", "\n")
    assert said(code) == "[]"


def test_onnx_ir_is_a_package_like_any_other() -> None:
    code = "import onnxslim_core, onnx_ir, importlib.resources as r; print(r.files('onnx_ir').joinpath('_core.py').is_file())"
    assert said(f"{code}; print(type(onnx_ir.__loader__).__name__)") == "True\nSourceFileLoader"
