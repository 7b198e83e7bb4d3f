"""Other tools behind one door, each run in a process of its own, by an interpreter that has them.

    from rivals import run
    outcome = run("onnxsim", "net.onnx", "out.onnx", python="rivals/bin/python")

The interpreter needs onnxsim, onnxslim, onnxoptimizer, onnxruntime, torch and torch-pruning. Every tool is called as
its own documentation shows, with its defaults unless said below; a crash of the tool is an outcome, not our error.

Tools that read and write ONNX:
  onnxsim            onnxsim.simplify
  onnxsim_pruning    onnxsim.simplify, then onnxsim.apply_structured_pruning at the given ratio (l2, its default)
  onnxslim           onnxslim.slim
  onnxoptimizer      onnxoptimizer.optimize with all its fuse and elimination passes, to a fixpoint
  onnxruntime        offline optimisation at level `extended`, saved as ONNX
Torch-Pruning works on the PyTorch module, so it is asked for a network of coverage_nets.py by name (`torch_pruning`):
magnitude importance (p = 2), the given ratio, outputs ignored, heads and groups told as its documentation shows.
What prunes a classifier on images (`onnxsim_refit`, `onnxsim_norm_refit`, `torch_pruning_resnet`): _rivals_free.py.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from _rivals_free import onnxsim_norm_refit, onnxsim_refit, torch_pruning_resnet


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a tool did: the seconds it took, its error in one line, and the facts it gives about its result."""

    tool: str
    ok: bool
    seconds: float
    error: str = ""
    facts: Mapping[str, Any] | None = None


def run(
    tool: str,
    source: str | Path,
    target: str | Path,
    *,
    python: str | Path,
    timeout: float = 600.0,
    **options: float | str,
) -> Outcome:
    """Run one tool on one model in a fresh process.

    Args:
        tool: A key of `TOOLS`.
        source: The model to read, or the network's name for `torch_pruning`.
        target: Where the result goes; not touched where the tool fails.
        python: The interpreter that has the tool.
        timeout: Seconds after which the tool counts as failed.
        **options: `ratio` for the tools that prune, `calibration` for those that look at samples.
    """
    command = [str(python), __file__, tool, str(source), str(target), json.dumps(options)]
    start = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return Outcome(tool, False, time.perf_counter() - start, f"still running after {timeout:.0f} s")
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"tool"')]
    if lines:
        return Outcome(**json.loads(lines[-1]))
    last = (done.stderr.strip() or "no message").splitlines()[-1]
    return Outcome(tool, False, time.perf_counter() - start, f"died with status {done.returncode}: {last[:200]}")


def versions(python: str | Path) -> dict[str, str]:
    """The versions of the tools that an interpreter has."""
    names = ("onnxsim", "onnxslim", "onnxoptimizer", "onnxruntime", "torch", "torch-pruning", "onnx")
    script = (
        "import importlib.metadata as m, json\n"
        "found = {}\n"
        f"for name in {names!r}:\n"
        "    try:\n        found[name] = m.version(name)\n"
        "    except m.PackageNotFoundError:\n        pass\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run([str(python), "-c", script], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


# What follows runs in the other interpreter and imports nothing of ours but the networks.


def onnxsim(source: str, target: str, _: Mapping[str, Any]) -> dict[str, Any]:
    """Simplify."""
    import onnx
    import onnxsim

    model, checked = onnxsim.simplify(onnx.load(source))
    onnx.save(model, target)
    return {"checked": bool(checked)}


def onnxsim_pruning(source: str, target: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Simplify, then remove channels."""
    import onnx
    import onnxsim

    model, checked = onnxsim.simplify(onnx.load(source))
    onnx.save(onnxsim.apply_structured_pruning(model, sparsity=float(options["ratio"])), target)
    return {"checked": bool(checked)}


def onnxslim(source: str, target: str, _: Mapping[str, Any]) -> dict[str, Any]:
    """Slim."""
    import onnx
    import onnxslim

    onnx.save(onnxslim.slim(onnx.load(source)), target)
    return {}


def onnxoptimizer(source: str, target: str, _: Mapping[str, Any]) -> dict[str, Any]:
    """All fuse and elimination passes."""
    import onnx
    import onnxoptimizer

    passes = onnxoptimizer.get_fuse_and_elimination_passes()
    onnx.save(onnxoptimizer.optimize(onnx.load(source), passes, fixed_point=True), target)
    return {}


def onnxruntime(source: str, target: str, _: Mapping[str, Any]) -> dict[str, Any]:
    """Offline optimisation; the result may hold operators that only onnxruntime knows."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = target
    options.log_severity_level = 3
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return {}


def torch_pruning(source: str, target: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Prune the module of that name and compare it with itself before; writes nothing."""
    import torch
    import torch_pruning as tp
    from coverage_nets import build
    from torch import nn

    net, half = build(source)
    x = torch.randn(2, 3, net.size, net.size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = net(x)
    weights = sum(p.numel() for p in net.parameters())
    heads = {m.qkv: m.heads for m in net.modules() if hasattr(m, "qkv")}
    last = [m for n, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and n.split(".")[0] in _LAST]
    pruner = tp.pruner.BasePruner(
        net,
        x[:1],
        importance=tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=float(options["ratio"]),
        ignored_layers=[*last, *([net.patch] if heads else [])],
        num_heads=heads,
        prune_num_heads=bool(heads),
        prune_head_dims=not heads,
        head_pruning_ratio=float(options["ratio"]) if heads else 0.0,
    )
    pruner.step()
    for m in net.modules():
        if m.__class__.__name__ == "VitBlock":  # as its vision-transformer example does
            m.heads = pruner.num_heads[m.qkv]
    with torch.no_grad():
        after = net(x)
    return {
        "weights": weights,
        "ideal": sum(p.numel() for p in half.parameters()),
        "left": sum(p.numel() for p in net.parameters()),
        "difference": float((after - before).abs().max() / before.abs().max()),
    }


_LAST = ("head", "heads")
_TOOLS = (onnxsim, onnxsim_pruning, onnxslim, onnxoptimizer, onnxruntime, torch_pruning)
_FREE = (onnxsim_refit, onnxsim_norm_refit, torch_pruning_resnet)
TOOLS = {tool.__name__: tool for tool in (*_TOOLS, *_FREE)}


def main() -> None:
    """Run one tool here and print its outcome as one line of JSON."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("tool", choices=sorted(TOOLS))
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("options", nargs="?", default="{}")
    args = parser.parse_args()
    start = time.perf_counter()
    try:
        facts = TOOLS[args.tool](args.source, args.target, json.loads(args.options))
    except Exception as error:  # whatever another tool raises is what is being measured
        text = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        outcome = Outcome(args.tool, False, time.perf_counter() - start, text)
    else:
        outcome = Outcome(args.tool, True, time.perf_counter() - start, facts=facts)
    print(json.dumps(asdict(outcome)))


if __name__ == "__main__":
    main()
