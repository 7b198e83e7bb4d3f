"""Every pass against its page of cases; see pages.py for what a case is and what it checks."""

from __future__ import annotations

import functools
from typing import Any

import onnx
import pytest
from onnxslim_core.passes import TABLE, pass_class

from onnxslim_core.model import load
from onnxslim_core.rewrite import Change, Context, Kind, Pass
from onnxslim_core.verify import Interface, verify
from tests import oracles, pages

ALL = [case for page in pages.names_of_pages() for case in pages.cases(page)]


def _id(case: pages.Case) -> str:
    return f"{case.page}: {case.title}"


def _pass(case: pages.Case, without: str = "") -> Pass:
    """The pass of a case with its options; `without` switches a guard off."""
    cls: Any = pass_class(case.page)
    if without:
        assert any(g.__name__ == without for g in cls.guards), f"no guard of {case.page} is called {without}"
        guards = tuple(guard for guard in cls.guards if guard.__name__ != without)
        cls = type(cls.__name__, (cls,), {"guards": guards, "__slots__": ()})
    made: Pass = cls(**case.options)
    return made


def _run(case: pages.Case, model: onnx.ModelProto, without: str = "") -> tuple[onnx.ModelProto, list[Change]]:
    held = load(model, keep_feedable=True)
    interface = Interface.of(held.ir)
    changes = _pass(case, without).run(held.ir, Context())
    assert not (problems := verify(held.ir, interface)), problems
    after = held.to_proto()
    onnx.checker.check_model(after, full_check="checker" not in case.notes)
    return after, changes


def _judge(case: pages.Case, after: onnx.ModelProto, without: str = "") -> None:
    """Fail unless the pass kept the answers and the size."""
    kind = pass_class(case.page).kind
    if "numbers" not in case.notes and kind.exact:
        feeds = case.feeds()
        oracles.assert_equal(case.before, after, kind, feeds)
        if kind is Kind.ALGEBRAIC and "float64" not in case.notes:
            oracles.assert_equal_in_float64(case.before, lambda m: _run(case, m, without)[0], feeds)
    same_writer = load(case.before, keep_feedable=True).to_proto()
    oracles.assert_not_bigger(same_writer, after, allowed=int(case.notes.get("growth", 0)))


@pytest.mark.parametrize("case", ALL, ids=_id)
def test_graph_becomes_what_the_page_says(case: pages.Case) -> None:
    after, changes = _run(case, case.before)
    pages.assert_same_structure(case.after, after, case.written)
    refusals = {change.guard for change in changes if not change.applied}
    if case.guard:
        assert case.guard in refusals, f"not refused; on record: {changes}"


@pytest.mark.parametrize("case", ALL, ids=_id)
def test_answers_and_size_stay(case: pages.Case) -> None:
    _judge(case, _run(case, case.before)[0])


@pytest.mark.parametrize("case", ALL, ids=_id)
def test_second_run_changes_nothing(case: pages.Case) -> None:
    if not pass_class(case.page).kind.exact:
        return
    once = _run(case, case.before)[0]
    again, changes = _run(case, once)
    assert not [change for change in changes if change.applied]
    assert again.SerializeToString(deterministic=True) == once.SerializeToString(deterministic=True)


@pytest.mark.parametrize("case", ALL, ids=_id)
def test_same_input_gives_the_same_bytes_and_the_source_stays(case: pages.Case) -> None:
    source = case.before.SerializeToString(deterministic=True)
    first, second = (_run(case, case.before)[0].SerializeToString(deterministic=True) for _ in range(2))
    assert first == second
    assert case.before.SerializeToString(deterministic=True) == source


@pytest.mark.parametrize("case", [c for c in ALL if c.guard and "guard" not in c.notes], ids=_id)
def test_guard_has_a_witness(case: pages.Case) -> None:
    """With the guard switched off, the pass must go wrong on this very case."""
    try:
        after, _ = _run(case, case.before, without=case.guard)
        _judge(case, after, without=case.guard)
    except Exception as err:  # a wrong answer, an invalid graph or a crash: each is a witness
        assert f"no guard of {case.page}" not in str(err), err
        return
    pytest.fail(f"without {case.guard} nothing goes wrong here: delete it, or find a case that needs it")


@functools.cache
def _refused(page: str) -> frozenset[str]:
    return frozenset(case.guard for case in ALL if case.page == page)


@pytest.mark.parametrize("page", pages.names_of_pages())
def test_every_guard_is_on_the_page(page: str) -> None:
    cls: Any = pass_class(page)
    missing = {guard.__name__ for guard in getattr(cls, "guards", ())} - _refused(page)
    assert not missing, f"no case is refused by {sorted(missing)}"


def test_every_page_belongs_to_a_pass() -> None:
    assert set(pages.names_of_pages()) <= {row.name for row in TABLE}


# The machinery itself must be able to say no.

PAGE = """
# x
## A case
```before
g (float[N,3] x) => (float[N,3] y) <float[3] w> { a = Relu(x)  b = Mul(a, w)  y = Sub(b, a) }
```
```arrays
w: uniform 1 2
```
```after
%s
```
"""
SAME = "g (float[N,3] x) => (float[N,3] y) <float[3] w> { q = Relu(x)  p = Mul(q, w)  y = Sub(p, q) }"
OTHERS = {
    "inputs swapped": SAME.replace("Sub(p, q)", "Sub(q, p)"),
    "another op": SAME.replace("Mul", "Div"),
    "another shape": SAME.replace("float[3] w", "float[1] w"),
    "another value": SAME.replace("float[3] w", "float[3] w = {1, 2, 3}"),
    "a node more": SAME.replace("y = Sub(p, q)", "r = Sub(p, q)  y = Identity(r)"),
    "a dead node more": SAME.replace("y = Sub(p, q)", "y = Sub(p, q)  r = Relu(p)"),
    "an attribute more": SAME.replace("Relu(x)", "LeakyRelu<alpha=0.2>(x)"),
    "another output name": SAME.replace("float[N,3] y", "float[N,3] z").replace("y = ", "z = "),
    "wired elsewhere": SAME.replace("Mul(q, w)", "Mul(x, w)"),
}


def _only(text: str) -> pages.Case:
    (case,) = pages.read_cases("normalize", PAGE % text)
    return case


def test_structure_is_blind_to_inner_names() -> None:
    case = _only(SAME)
    pages.assert_same_structure(case.after, case.before, case.written)


@pytest.mark.parametrize("what", OTHERS)
def test_structure_sees(what: str) -> None:
    case = _only(OTHERS[what])
    with pytest.raises(AssertionError):
        pages.assert_same_structure(case.after, case.before, case.written)


def test_structure_sees_into_bodies() -> None:
    def text(op: str, captured: str) -> str:
        return f"""g (bool c, float[3] x) => (float[3] y) {{
            a = Relu(x) b = Neg(x)
            y = If(c) <then_branch = t () => (float[3] r) {{ r = {op}({captured}) }},
                       else_branch = e () => (float[3] s) {{ s = Identity(b) }}> }}"""

    def model(op: str, captured: str) -> onnx.ModelProto:
        (case,) = pages.read_cases("normalize", "## x\n```before\n" + text(op, captured) + "\n```\n")
        return case.before

    pages.assert_same_structure(model("Tanh", "a"), model("Tanh", "a"), frozenset())
    for other in (model("Tanh", "b"), model("Sin", "a"), model("Tanh", "x")):
        with pytest.raises(AssertionError):
            pages.assert_same_structure(model("Tanh", "a"), other, frozenset())


def test_a_malformed_page_names_the_case() -> None:
    with pytest.raises(ValueError, match=r"normalize.md: A case: arrays: no input or weight is called \['v'\]"):
        _ = list(pages.read_cases("normalize", (PAGE % SAME).replace("w: uniform", "v: uniform")))
    with pytest.raises(ValueError, match="unknown distribution"):
        _ = list(pages.read_cases("normalize", (PAGE % SAME).replace("w: uniform", "w: unfirm")))
    with pytest.raises(ValueError, match="A case"):
        _ = list(pages.read_cases("normalize", (PAGE % SAME).replace("Relu(x)", "Relu(")))
