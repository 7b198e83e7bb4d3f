"""How often the gate says what it should: the command line, run as a job would run it, again and again.

    python bench/gate.py [MODEL.onnx ...] [--runs 20] [--threads 1]

For a small network that is built here, and for each model given: the same model twice passes at
max_latency_ratio 1.05; a copy with 30 % extra work and a copy whose answers have a cosine of about 0.95 fail with
exit 1; a bad budget key is exit 2; a missing model, a broken model, missing data, broken data are exit 3.

A copy with extra work gets branches of Conv nodes (or MatMul nodes where there is no Conv) beside the network, each a
copy of one of its own nodes on the same input, until 30 % of the network's multiplications have been added; what they
compute is averaged, clipped to a constant and added to an output, so that the answers stay the same and nothing can be
optimized away. How much time the copy really takes is measured here with plain onnxruntime and written beside the
verdicts. A perturbed copy has noise on its weights, as strong as it takes to bring the cosine to 0.95.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from _common import write_result
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parent.parent
EXTRA = 0.3
COSINE = 0.95
LIMIT = 1.05


@dataclass(frozen=True)
class Case:
    """One kind of run: what is passed to `gate`, and the exit code that is right."""

    name: str
    arguments: tuple[str, ...]
    expected: int


def small_network(seed: int = 0) -> onnx.ModelProto:
    """A convolutional network of eight layers on 1x3x64x64, about 2 ms a call."""
    rng = np.random.default_rng(seed)
    nodes, weights, value, width = [], [], "image", 3
    for layer, out in enumerate((32, 48, 48, 64, 64, 96, 96, 96)):
        stride = 2 if layer in (0, 3, 5) else 1
        array = rng.standard_normal((out, width, 3, 3)) * np.sqrt(2 / (9 * width))
        weights.append(numpy_helper.from_array(array.astype(np.float32), f"w{layer}"))
        weights.append(numpy_helper.from_array((0.1 * rng.standard_normal(out)).astype(np.float32), f"b{layer}"))
        pads = {"pads": [1, 1, 1, 1], "strides": [stride, stride], "kernel_shape": [3, 3]}
        nodes.append(helper.make_node("Conv", [value, f"w{layer}", f"b{layer}"], [f"c{layer}"], f"conv{layer}", **pads))
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"], f"relu{layer}"))
        value, width = f"r{layer}", out
    head = rng.standard_normal((width, 10)) / np.sqrt(width)
    weights.append(numpy_helper.from_array(head.astype(np.float32), "head"))
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["pool"], "pool"))
    nodes.append(helper.make_node("Flatten", ["pool"], ["flat"], "flat"))
    nodes.append(helper.make_node("MatMul", ["flat", "head"], ["logits"], "head_matmul"))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 64, 64])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 10])
    graph = helper.make_graph(nodes, "small", [image], [logits], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def multiplications(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, int]:
    """MACs per output name of each Conv and MatMul with constant weights, from the shapes of a real run."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    chosen = [n for n in model.graph.node if n.op_type in ("Conv", "MatMul") and n.input[1] in weights]
    probe = copy.deepcopy(model)
    known = {output.name for output in probe.graph.output}
    probe.graph.output.extend(onnx.ValueInfoProto(name=n.output[0]) for n in chosen if n.output[0] not in known)
    session = ort.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [n.output[0] for n in chosen]
    sizes = {name: array.size for name, array in zip(names, session.run(names, feeds), strict=True)}
    counts = {}
    for node in chosen:
        dims = list(weights[node.input[1]].dims)
        per_output = int(np.prod(dims[1:])) if node.op_type == "Conv" else dims[-2]
        counts[node.output[0]] = sizes[node.output[0]] * per_output
    return counts


def with_extra_work(model: onnx.ModelProto, feeds: dict[str, np.ndarray], share: float) -> onnx.ModelProto:
    """A copy that does `share` more multiplications and gives the same answers."""
    counts = multiplications(model, feeds)
    wanted = share * sum(counts.values())
    changed = copy.deepcopy(model)
    graph = changed.graph
    by_output = {node.output[0]: node for node in graph.node}
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    zeros = []
    # large nodes first: the small ones then fill up what is left
    for output, macs in sorted(counts.items(), key=lambda entry: -entry[1]):
        if macs > wanted:
            continue
        node = by_output[output]
        twin = copy.deepcopy(node)
        twin.name, twin.output[0] = f"{node.name}_again", f"{output}_again"
        # other weights, or the optimizer would merge the twin with the node
        array = numpy_helper.to_array(initializers[node.input[1]]) * np.float32(1.01)
        graph.initializer.append(numpy_helper.from_array(array, f"{output}_weights"))
        twin.input[1] = f"{output}_weights"
        graph.node.extend([twin, helper.make_node("ReduceMean", [twin.output[0]], [f"{output}_mean"], keepdims=0)])
        zeros.append(f"{output}_mean")
        wanted -= macs
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), "nothing"))
    final = graph.output[0].name
    for node in graph.node:
        node.output[:] = [f"{final}_before" if name == final else name for name in node.output]
        node.input[:] = [f"{final}_before" if name == final else name for name in node.input]
    graph.node.append(helper.make_node("Sum", zeros, ["sum_of_means"]))
    graph.node.append(helper.make_node("Clip", ["sum_of_means", "nothing", "nothing"], ["zero"]))
    graph.node.append(helper.make_node("Add", [f"{final}_before", "zero"], [final]))
    return sort_nodes(changed)


def sort_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Each node after what it reads."""
    ready = {value.name for value in (*model.graph.input, *model.graph.initializer)} | {""}
    waiting, ordered = list(model.graph.node), []
    while waiting:
        runnable = [node for node in waiting if set(node.input) <= ready]
        waiting = [node for node in waiting if not set(node.input) <= ready]
        assert runnable, "a cycle"
        ordered += runnable
        ready.update(name for node in runnable for name in node.output)
    del model.graph.node[:]
    model.graph.node.extend(ordered)
    return model


def answer(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """The first output."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0], np.float64).ravel()


def perturbed(model: onnx.ModelProto, feeds: dict[str, np.ndarray], cosine: float) -> tuple[onnx.ModelProto, float]:
    """A copy with noise on its weights whose answers have about this cosine, and the cosine it has."""
    wanted = answer(model, feeds)

    def noisy(level: float) -> onnx.ModelProto:
        rng = np.random.default_rng(7)
        changed = copy.deepcopy(model)
        for tensor in changed.graph.initializer:
            array = numpy_helper.to_array(tensor)
            if array.dtype == np.float32 and array.ndim >= 2:
                noise = rng.standard_normal(array.shape) * level * array.std()
                tensor.CopyFrom(numpy_helper.from_array((array + noise).astype(np.float32), tensor.name))
        return changed

    def reached(level: float) -> float:
        got = answer(noisy(level), feeds)
        return float(got @ wanted / (np.linalg.norm(got) * np.linalg.norm(wanted)))

    low, high = 0.0, 2.0
    for _ in range(14):
        middle = (low + high) / 2
        low, high = (middle, high) if reached(middle) > cosine else (low, middle)
    return noisy(high), reached(high)


def random_feeds(model: onnx.ModelProto, count: int = 16) -> dict[str, np.ndarray]:
    """Seeded inputs [count * batch, ...] by name; symbolic sizes are 1."""
    rng = np.random.default_rng(3)
    weights = {tensor.name for tensor in model.graph.initializer}
    feeds = {}
    for value in model.graph.input:
        if value.name in weights:
            continue
        shape = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
        feeds[value.name] = rng.standard_normal((shape[0] * count, *shape[1:])).astype(np.float32)
    return feeds


def first_of(feeds: dict[str, np.ndarray], count: int = 16) -> dict[str, np.ndarray]:
    """One sample."""
    return {name: array[: len(array) // count] for name, array in feeds.items()}


def real_ratio(first: onnx.ModelProto, second: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> float:
    """Time of the second over time of the first, by plain onnxruntime: medians over rounds of fresh sessions."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    found = []
    for _ in range(5):
        pair = [ort.InferenceSession(m.SerializeToString(), options) for m in (first, second)]
        times: list[list[float]] = [[], []]
        for _ in range(30):
            for index, session in enumerate(pair):
                begin = time.thread_time_ns()
                session.run(None, feeds)
                times[index].append(time.thread_time_ns() - begin)
        found.append(float(np.median(times[1]) / np.median(times[0])))
    return float(np.median(found))


def prepare(model: onnx.ModelProto, folder: Path, threads: int) -> tuple[list[Case], dict[str, float]]:
    """Write all files of one model, and the cases that use them."""
    feeds = random_feeds(model)
    one = first_of(feeds)
    slow = with_extra_work(model, one, EXTRA)
    far, cosine = perturbed(model, one, COSINE)
    np.testing.assert_allclose(answer(slow, one), answer(model, one), rtol=1e-5, atol=1e-5)
    files = {"reference": model, "twin": model, "slow": slow, "far": far}
    for name, proto in files.items():
        onnx.save(proto, folder / f"{name}.onnx")
    (folder / "broken.onnx").write_bytes(model.SerializeToString()[:-100])
    np.savez(folder / "data.npz", **feeds)  # type: ignore[arg-type]
    (folder / "broken.npz").write_bytes(b"PK\x03\x04 nothing")
    (folder / "budget.toml").write_text(f"[budget]\nmin_cosine = 0.999\nmax_latency_ratio = {LIMIT}\n")
    (folder / "answers.toml").write_text("[budget]\nmin_cosine = 0.99\n")
    (folder / "typo.toml").write_text("[budget]\nmin_cosin = 0.99\n")
    common = ("--threads", str(threads), "--json", "--quiet")

    def case(
        name: str, expected: int, candidate: str, budget: str, data: str = "data", first: str = "reference"
    ) -> Case:
        paths = (str(folder / f"{first}.onnx"), str(folder / f"{candidate}.onnx"))
        options = ("--budget", str(folder / f"{budget}.toml"), "--data", str(folder / f"{data}.npz"))
        return Case(name, (*paths, *options, *common), expected)

    cases = [
        case("the same model twice", 0, "twin", "budget"),
        case("30 % extra work", 1, "slow", "budget"),
        case("cosine 0.95", 1, "far", "answers"),
        case("unknown budget key", 2, "twin", "typo"),
        case("missing model", 3, "absent", "answers"),
        case("broken model", 3, "broken", "answers"),
        case("missing data", 3, "twin", "answers", data="absent"),
        case("broken data", 3, "twin", "answers", data="broken"),
    ]
    return cases, {"time_ratio_of_extra_work": real_ratio(model, slow, one), "cosine_of_perturbed": cosine}


def run_case(case: Case, seed: int) -> dict[str, object]:
    """One run of the command line."""
    command = [sys.executable, "-m", "onnxslim_core", "gate", *case.arguments, "--seed", str(seed)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    begin = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    found: dict[str, object] = {"exit": done.returncode, "seconds": round(time.monotonic() - begin, 2)}
    document = json.loads(done.stdout)
    for row in document.get("rows", []):
        if row["key"] == "max_latency_ratio":
            found["latency"] = {key: row[key] for key in ("found", "verdict", "note")}
    return found


def measure(model: onnx.ModelProto, runs: int, threads: int) -> dict[str, object]:
    """All cases of one model; the timed and perturbed ones `runs` times, exit codes of errors once."""
    with tempfile.TemporaryDirectory() as name:
        cases, facts = prepare(model, Path(name), threads)
        results = {}
        for case in cases:
            repeats = runs if case.expected < 2 else 1
            found = [run_case(case, seed) for seed in range(repeats)]
            right = sum(entry["exit"] == case.expected for entry in found)
            results[case.name] = {"expected_exit": case.expected, "right": right, "of": repeats, "runs": found}
            print(f"  {case.name}: {right} of {repeats}", file=sys.stderr, flush=True)
    return {**facts, "cases": results}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the JSON; the exit code is 1 if a single run said what it should not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default="gate", help="of the result")
    arguments = parser.parse_args(argv)
    models = {"small network": small_network(), **{path.name: onnx.load(path) for path in arguments.models}}
    payload: dict[str, object] = {"limit": LIMIT, "threads": arguments.threads, "models": {}}
    found: dict[str, dict[str, object]] = {}
    for name, model in models.items():
        print(name, file=sys.stderr, flush=True)
        found[name] = measure(model, arguments.runs, arguments.threads)
    payload["models"] = found
    write_result(arguments.name, payload)
    cases = [case for entry in found.values() for case in entry["cases"].values()]  # type: ignore[attr-defined]
    return 0 if all(case["right"] == case["of"] for case in cases) else 1


if __name__ == "__main__":
    sys.exit(main())
