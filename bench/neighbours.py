"""What onnxruntime gains when neighbouring nodes change places or join.

The figures behind `reorder`, `fuse_activations` and `merge_convs`.

    python bench/neighbours.py [--seconds 4]

Each row is a small graph written twice, and timed against each other in the default session, one thread, interleaved.
Rows that the passes carry out should lie below 1, rows that they leave out should not. Writes neighbours.json and
neighbours.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from _common import RESULTS, markdown, write_result
from onnx import numpy_helper, parser

from onnxslim_core.measure.latency import compare_latency
from onnxslim_core.model import load

HEADER = '<ir_version: 8, opset_import: ["": 17]>\n'
PAD = "pads=[1,1,1,1]"
POOL = "kernel_shape=[2,2], strides=[2,2]"


def activations() -> Iterator[tuple[str, str, str, str]]:
    """An activation between Conv and MaxPool, and behind the pool; Relu also behind other nodes."""
    head = "g (float[1,3,112,112] x) => (float[1,64,56,56] y) <float[64,3,3,3] A, float[64] a, float[64,64,3,3] B>"
    names = ("Relu", "LeakyRelu", "Sigmoid", "Tanh", "Elu", "HardSigmoid", "Softplus", "Softsign")
    for name in names:
        before = f"{{ c=Conv<{PAD}>(x,A,a) r={name}(c) m=MaxPool<{POOL}>(r) y=Conv<{PAD}>(m,B) }}"
        after = f"{{ c=Conv<{PAD}>(x,A,a) m=MaxPool<{POOL}>(c) r={name}(m) y=Conv<{PAD}>(r,B) }}"
        yield (
            f"Conv, {name}, MaxPool: pool first",
            "left out" if name == "Relu" else "reorder",
            head + before,
            head + after,
        )
    bound = head.replace("float[64] a,", "float[64] a, float k = {-0.4},")
    before = f"{{ c=Conv<{PAD}>(x,A,a) r=Max(c,k) m=MaxPool<{POOL}>(r) y=Conv<{PAD}>(m,B) }}"
    after = f"{{ c=Conv<{PAD}>(x,A,a) m=MaxPool<{POOL}>(c) r=Max(m,k) y=Conv<{PAD}>(r,B) }}"
    yield "Conv, Max with a number, MaxPool: pool first", "reorder", bound + before, bound + after
    head = "g (float[1,64,56,56] x) => (float[1,64,28,28] y) <float[64,64,1,1] A, float[64,64,3,3] B>"
    before = f"{{ c=Conv(x,A) d=Add(c,x) r=Relu(d) m=MaxPool<{POOL}>(r) y=Conv<{PAD}>(m,B) }}"
    after = f"{{ c=Conv(x,A) d=Add(c,x) m=MaxPool<{POOL}>(d) r=Relu(m) y=Conv<{PAD}>(r,B) }}"
    yield "Add, Relu, MaxPool: pool first", "reorder", head + before, head + after


def pieces() -> Iterator[tuple[str, str, str, str]]:
    """A hard sigmoid or hard swish in pieces, behind a Conv and alone."""
    numbers = "float three = {3}, float zero = {0}, float six = {6}, float one = {1}, float k = {0.2}, float h = {0.5}"
    head = f"g (float[1,16,80,80] x) => (float[1,16,80,80] y) <{numbers}, float[16,16,1,1] A, float[16] a>"
    sixth = "HardSigmoid<alpha=0.16666667, beta=0.5>"
    for what, conv, v in (("", "", "x"), ("Conv, ", "c=Conv(x,A,a) ", "c")):
        before = f"{{ {conv}p=Add({v},three) q=Clip(p,zero,six) r=Mul({v},q) y=Div(r,six) }}"
        yield (
            f"{what}Add, Clip, Mul, Div: a HardSigmoid and a Mul",
            "fuse_activations",
            head + before,
            head + f"{{ {conv}s={sixth}({v}) y=Mul({v},s) }}",
        )
    rows = (
        ("Mul, Add, Clip: a HardSigmoid", "p=Mul(x,k) q=Add(p,h) y=Clip(q,zero,one)", "y=HardSigmoid(x)"),
        ("Add, Clip, Div: a HardSigmoid", "p=Add(x,three) q=Clip(p,zero,six) y=Div(q,six)", f"y={sixth}(x)"),
        ("Clip, Div: a HardSigmoid", "q=Clip(x,zero,six) y=Div(q,six)", "y=HardSigmoid<alpha=0.16666667, beta=0.0>(x)"),
    )
    for what, first, second in rows:
        yield what, "fuse_activations", f"{head} {{ {first} }}", f"{head} {{ {second} }}"
    before, after = "{ c=Conv(x,A,a) y=Clip(c,zero,one) }", "{ c=Conv(x,A,a) y=HardSigmoid(c) }"
    yield "Conv, Clip: a HardSigmoid", "left out", head + before, head + after


def averages() -> Iterator[tuple[str, str, str, str]]:
    """A 1x1 Conv before an average, and behind it."""
    for pool, size in ((f"AveragePool<{POOL}>", 8), ("GlobalAveragePool", 1)):
        head = f"g (float[1,32,16,16] x) => (float[1,16,{size},{size}] y) <float[16,32,1,1] A, float[16] a>"
        before, after = f"{{ r=Relu(x) c=Conv(r,A,a) y={pool}(c) }}", f"{{ r=Relu(x) c={pool}(r) y=Conv(c,A,a) }}"
        yield f"1x1 Conv, {pool.partition('<')[0]}: average first", "reorder", head + before, head + after


def layouts() -> Iterator[tuple[str, str, str, str]]:
    """Transposes at borders, before a matrix, and a LeakyRelu in two nodes."""
    head = "g (float[1,64,7,7] x) => (float[1,128] y) <float[3136,128] W>"
    before = "{ r=Relu(x) t=Transpose<perm=[0,2,3,1]>(r) f=Flatten(t) y=Gemm(f,W) }"
    yield (
        "Transpose into the rows of a matrix",
        "reorder",
        head + before,
        head + "{ r=Relu(x) f=Flatten(r) y=Gemm(f,W) }",
    )
    head = "g (float[1,24,40,40] x) => (float[1,24,40,40] y) <float[24,24,3,3] A, float k = {0.2}, float[24,24,3,3] B>"
    before = f"{{ c=Conv<{PAD}>(x,A) m=Mul(c,k) r=Max(m,c) y=Conv<{PAD}>(r,B) }}"
    after = f"{{ c=Conv<{PAD}>(x,A) r=LeakyRelu<alpha=0.2>(c) y=Conv<{PAD}>(r,B) }}"
    yield "Max(x, k*x) as LeakyRelu", "reorder", head + before, head + after
    head = "g (float[1,32,28,28] x) => (float[1,32,28,28] y) <float[32,32,3,3] A, float[32] a, float[32,32,3,3] B>"
    before = (
        f"{{ c=Conv<{PAD}>(x,A) t=Transpose<perm=[0,2,3,1]>(c) s=Add(t,a) r=Relu(s)"
        f" u=Transpose<perm=[0,3,1,2]>(r) y=Conv<{PAD}>(u,B) }}"
    )
    yield (
        "Transposes around a bias and a Relu",
        "reorder",
        head + before,
        head + f"{{ c=Conv<{PAD}>(x,A,a) r=Relu(c) y=Conv<{PAD}>(r,B) }}",
    )


def merges() -> Iterator[tuple[str, str, str, str]]:
    """Convs and matrices in a row or beside each other."""
    for inputs, hidden, outputs, size in ((320, 320, 1280, 7), (384, 360, 96, 20)):
        weights = f"<float[{hidden},{inputs},1,1] A, float[{outputs},{hidden},1,1] B, float[{outputs},{inputs},1,1] C>"
        head = f"g (float[1,{inputs},{size},{size}] x) => (float[1,{outputs},{size},{size}] y) {weights}"
        before, after = "{ s=Relu(x) u=Conv(s,A) v=Conv(u,B) y=Relu(v) }", "{ s=Relu(x) v=Conv(s,C) y=Relu(v) }"
        yield f"1x1 Convs of {inputs}, {hidden}, {outputs} in a row", "merge_convs", head + before, head + after
    weights = "<float[16,32,1,1] A, float[16,32,1,1] B, float[32,32,1,1] C, float[32,32,3,3] D, float[16,16,3,3] E>"
    head = f"g (float[1,32,56,56] x) => (float[1,32,56,56] y) {weights}"
    before = f"{{ a=Conv(x,A) b=Conv(x,B) r=Relu(a) s=Relu(b) c=Concat<axis=1>(r,s) y=Conv<{PAD}>(c,D) }}"
    yield (
        "two Convs that meet in a Concat",
        "merge_convs",
        head + before,
        head + f"{{ a=Conv(x,C) r=Relu(a) y=Conv<{PAD}>(r,D) }}",
    )
    ends = f"t=Conv<{PAD}>(r,E) u=Conv<{PAD}>(s,E) y=Concat<axis=1>(t,u) }}"
    before = f"{{ a=Conv(x,A) b=Conv(x,B) r=Relu(a) s=Relu(b) {ends}"
    yield (
        "two Convs that part again",
        "left out",
        head + before,
        head + f"{{ a=Conv(x,C) q=Relu(a) r,s=Split<axis=1>(q) {ends}",
    )
    outputs = "float[128,384] p, float[128,384] q, float[128,384] r"
    head = (
        f"g (float[128,384] x) => ({outputs}) <float[384,384] A, float[384,384] B, float[384,384] C, float[384,1152] D>"
    )
    before = "{ a=MatMul(x,A) b=MatMul(x,B) c=MatMul(x,C) p=Tanh(a) q=Tanh(b) r=Tanh(c) }"
    after = "{ d=MatMul(x,D) a,b,c=Split<axis=1>(d) p=Tanh(a) q=Tanh(b) r=Tanh(c) }"
    yield "three MatMuls that part again", "left out", head + before, head + after


def read(text: str) -> onnx.ModelProto:
    """The graph with seeded weights for all that is declared without values."""
    model = parser.parse_model(HEADER + text)
    rng = np.random.default_rng(0)
    for value in model.graph.value_info:
        sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        array = rng.standard_normal(sizes).astype(np.float32) / max(1.0, float(np.prod(sizes[1:]))) ** 0.5
        model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), value.name))
    del model.graph.value_info[:]
    return model


def main() -> None:
    """Measure, print, write."""
    options = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    options.add_argument("--seconds", type=float, default=4.0, help="spent on each row")
    options.add_argument("--out", type=Path, default=RESULTS)
    args = options.parse_args()
    rows = []
    for what, who, before, after in (*activations(), *pieces(), *averages(), *layouts(), *merges()):
        first, second = read(before), read(after)
        sizes = [dim.dim_value for dim in first.graph.input[0].type.tensor_type.shape.dim]
        sample = {"x": np.random.default_rng(0).standard_normal(sizes).astype(np.float32)}
        timing = compare_latency(load(first), load(second), sample, seconds=args.seconds)
        rows.append({"what": what, "pass": who, "ratio": timing.ratio, "low": timing.low, "high": timing.high})
        print(f"{what}: {timing.ratio:.3f} ({timing.low:.3f} to {timing.high:.3f}), {who}", flush=True)
    write_result("neighbours", {"rows": rows}, args.out)
    cells = ([r["what"], r["pass"], f"{r['ratio']:.2f} ({r['low']:.2f} to {r['high']:.2f})"] for r in rows)
    (args.out / "neighbours.md").write_text(
        markdown(["change", "done by", ">time after over before"], cells), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
