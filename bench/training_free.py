"""How much of a network can go without training it again, and how much faster is it then?

    python bench/training_free.py --model cifar-resnet56.onnx --calibration calibration.npz --test test.npz
        [--rivals rivals/bin/python] [--parts half headline ...] [--plot]

The network is an image classifier (written for ResNet-56 on CIFAR-10); the files hold `image`, uint8 NHWC, and `label`.
All images of `calibration.npz` decide, without their labels; `test.npz` judges when all is decided (its first 64 also
stand for the samples that `compress` wants to judge with; no budget is set, so nothing is decided by them).

    half      criterion x repair, `uniform` at ratio .5: every width inside a block is halved, the residual streams
              (channels made by more than one node) stay, which is half the multiply-adds, as in the literature
    macs      `prune_channels`, `allocation = "macs"`: a target, and the program chooses the widths, also of streams
    slim      `slim` with the same targets in multiply-adds: widths, blocks and ranks
    latency   `slim` with targets in measured time, widths on the CPU's grid
    blocks    `drop_blocks`: six residual branches
    cost      512 images, `macs` at .5: time over that of one onnxruntime pass of these images through the original,
              peak memory of the process, and where the time went (the main thread's line, looked at every 2 ms)
    rivals    other tools on the same images (see `_rivals_free.py`)

Except under `latency` widths are free (`round_to = 1`). Targets in `SEEDED` are run with three sampling seeds. Given
are accuracy, its difference to the original in points with the 95 % interval of a paired comparison (images that became
right or wrong), mean cosine of the logits per image, agreement of the first answer with the original's, multiply-adds,
measured time over the original's (one thread, one image, calls in turns), and the seconds that the pass took, also as a
multiple of one onnxruntime pass of the images through the original in the same run. Each plan has a process of its own.
Rows are merged into training_free.json by part, so parts can be measured again. Writes training_free.md too; with
`--plot` (needs matplotlib) training_free.png.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import rivals
from _common import RESULTS, count_weights, markdown, write_result
from _watch import Watch

import onnxslim_core as osc

BY_WEIGHTS = ("l1", "l2", "bn_scale", "geometric_median", "svd_leverage", "random")
BY_SAMPLES = ("apoz", "wifv", "thinet", "lasso", "omp", "obs")
REPAIRS = ("none", "bias", "variance", "scale", "least_squares")
EVERY_REPAIR = ("l1", "thinet", "obs")
"""Criteria tried with every repair; the others with the first and the last."""
TARGETS = (0.8, 0.7, 0.6, 0.5, 0.4)
LATENCIES = (0.8, 0.68, 0.6)
SEEDED = (0.7, 0.5, 0.68)
SEEDS = (0, 1, 2)
BLOCKS = 6
COST_SAMPLES = 512
RATIOS = (0.3, 0.5)
TOOLS = ("onnxsim_refit", "onnxsim_norm_refit", "torch_pruning_resnet")
PARTS = ("half", "macs", "slim", "latency", "blocks", "cost", "rivals")
BATCH, JUDGES = 100, 64
Options = dict[str, Any]


def recipe_text(args: argparse.Namespace, name: str, options: Mapping[str, Any], judging: Path) -> str:
    """The recipe: how an image is prepared, the exact pass that score needs, and the cut."""
    told = dict(options)
    lines = ["version = 1", "[data]", f"samples = {told.pop('samples', args.samples)}"]
    lines += [f"judging = {_toml(str(judging))}", f"[data.inputs.{name}]", 'from = "image"']
    lines += ['layout = "NHWC"', f"scale = {args.scale}", f"mean = {list(args.mean)}", f"std = {list(args.std)}"]
    lines += ["[[pass]]", 'name = "fuse_batchnorm"', "[[pass]]"]
    lines += [f"{key} = {_toml(value)}" for key, value in told.items() if key != "seed"]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(_toml(each) for each in value) + "]"
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' if isinstance(value, str) else repr(value)


def prepared(args: argparse.Namespace, image: np.ndarray) -> np.ndarray:
    """Images as the network takes them, float32 NCHW."""
    scaled = image.astype(np.float32) / np.float32(args.scale)
    scaled = (scaled - np.asarray(args.mean, np.float32)) / np.asarray(args.std, np.float32)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


class Judge:
    """The test images and what the original says to them; prepared here, not by the program under test."""

    def __init__(self, args: argparse.Namespace, name: str) -> None:
        with np.load(args.test) as archive:
            image, self.labels = archive["image"], archive["label"].reshape(-1)
        self.name, self.images = name, prepared(args, image)
        self.second_per_image = 0.0
        self.reference = self.answers(args.model)
        self.right = self.reference.argmax(1) == self.labels

    def answers(self, path: Path) -> np.ndarray:
        """Logits of all images, [images, classes], in float64."""
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        parts = range(0, len(self.images), BATCH)
        found = [session.run(None, {self.name: self.images[at : at + BATCH]})[0] for at in parts]
        return np.concatenate(found).astype(np.float64)

    def compare(self, path: Path) -> dict[str, float]:
        """A candidate against labels and against the original."""
        logits = self.answers(path)
        right = logits.argmax(1) == self.labels
        lengths = np.linalg.norm(logits, axis=1) * np.linalg.norm(self.reference, axis=1)
        cosine = (logits * self.reference).sum(axis=1) / np.maximum(lengths, 1e-30)
        changed = float((right != self.right).mean())
        loss = float(right.mean() - self.right.mean())
        return {
            "accuracy": float(right.mean()),
            "points": 100 * loss,
            "plus_minus": 196 * ((changed - loss**2) / len(right)) ** 0.5,
            "cosine": float(cosine.mean()),
            "agreement": float((logits.argmax(1) == self.reference.argmax(1)).mean()),
        }


def residual_streams(model: Path) -> list[str]:
    """Globs for the groups of channels that several nodes make: what is added up along the network."""
    seen = osc.inspect(osc.compress(model, measure_latency=False, verify=False).model).explanation
    assert seen is not None
    literal = [group.name for group in seen.groups if len(group.producers) > 1]
    return [name.replace("[", "[[]").replace("*", "[*]").replace("?", "[?]") for name in literal]


def plans(streams: Sequence[str]) -> Iterator[tuple[str, Options]]:
    """Everything that is tried: the part of the table it belongs to, and the pass with its options."""
    cut = {"name": "prune_channels", "round_to": 1}
    for criterion in (*BY_WEIGHTS, *BY_SAMPLES):
        for repair in REPAIRS if criterion in EVERY_REPAIR else (REPAIRS[0], REPAIRS[-1]):
            yield "half", {**cut, "criterion": criterion, "repair": repair, "ratio": 0.5, "ignored": list(streams)}
    chosen = {**cut, "criterion": "obs", "allocation": "macs"}
    for target in TARGETS:
        for seed in SEEDS if target in SEEDED else SEEDS[:1]:
            yield "macs", {**chosen, "target": target, "seed": seed}
            yield "slim", {"name": "slim", "round_to": 1, "allocation": "macs", "target": target, "seed": seed}
    for target in LATENCIES:
        for seed in SEEDS if target in SEEDED else SEEDS[:1]:
            yield "latency", {"name": "slim", "allocation": "latency", "target": target, "seed": seed}
    yield "blocks", {"name": "drop_blocks", "count": BLOCKS}
    yield "cost", {**chosen, "target": 0.5, "samples": COST_SAMPLES}
    for tool in TOOLS:
        for ratio in RATIOS:
            yield "rivals", {"name": tool, "ratio": ratio}


def cut(args: argparse.Namespace, name: str, options: Options, judging: Path, target: Path, *, watch: bool) -> Options:
    """One plan, in a process of its own: carried out and written. What is known of it without looking at the result."""
    recipe = osc.Recipe.parse(recipe_text(args, name, options, judging))
    given = {"data": args.calibration, "verify": False, "seed": options.get("seed", 0)}
    timed = options.get("allocation") == "latency"
    before = resource.getrusage(resource.RUSAGE_SELF)
    if watch:
        with Watch() as watched:
            result = osc.compress(args.model, recipe, measure_latency=timed, **given)
    else:
        result = osc.compress(args.model, recipe, measure_latency=timed, **given)
    after = resource.getrusage(resource.RUSAGE_SELF)
    report = result.report
    step = next(step for step in report.steps if step.name == options["name"])
    row: Options = {"outcome": step.outcome, "seconds": round(step.seconds, 2), "images": report.data.deciding}
    row["processor_seconds"] = round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2)
    row["peak_bytes"] = after.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if watch:
        row["where"] = watched.shares()
    if step.outcome != "done":
        return row | {"reason": (step.reason or "; ".join(change.reason for change in step.refused))[:300]}
    row["did"] = "; ".join(c.action for c in step.applied if c.pass_name == options["name"] and not c.where)
    result.save(target)
    return row


def one_pass(args: argparse.Namespace, name: str) -> float:
    """Seconds that an image takes of one pass of all calibration images through the original; the best of three."""
    with np.load(args.calibration) as archive:
        images = prepared(args, archive["image"][: args.samples])
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = ort.InferenceSession(str(args.model), options, providers=["CPUExecutionProvider"])
    took = []
    for _ in range(3):
        start = time.perf_counter()
        for at in range(0, len(images), BATCH):
            session.run(None, {name: images[at : at + BATCH]})
        took.append(time.perf_counter() - start)
    return min(took) / len(images)


def rival(args: argparse.Namespace, name: str, options: Options, target: Path) -> Options:
    """What another tool makes of it, with the same images."""
    with np.load(args.calibration) as archive, tempfile.TemporaryDirectory() as folder:
        ready = Path(folder, "calibration.npz")
        np.savez(ready, **{name: prepared(args, archive["image"][: args.samples])})
        told = {"ratio": options["ratio"], "calibration": str(ready)}
        done = rivals.run(options["name"], args.model, target, python=args.rivals, **told)
    row: Options = {"outcome": "done" if done.ok else "failed", "seconds": round(done.seconds, 2)}
    return row if done.ok else row | {"reason": done.error}


def measure(args: argparse.Namespace, judge: Judge, part: str, options: Options, folder: Path) -> Options:
    """One plan: carried out elsewhere, judged and timed here."""
    target = folder / "out.onnx"
    target.unlink(missing_ok=True)
    if part == "rivals":
        row = rival(args, judge.name, options, target)
    else:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            told = (args, judge.name, options, folder / "judge.npz", target)
            row = pool.submit(cut, *told, watch=part == "cost").result()
        row["passes"] = round(row["seconds"] / (judge.second_per_image * row["images"]), 1)
    if row["outcome"] != "done":
        return row
    costs = [osc.inspect(path, explain=False).cost for path in (args.model, target)]
    row["macs"] = costs[1].macs / costs[0].macs
    row["weights"] = count_weights(target) / count_weights(args.model)
    row |= judge.compare(target)
    if part not in ("half", "cost"):
        sample = {judge.name: judge.images[:1]}
        timing = osc.benchmark(str(args.model), str(target), data=sample, seconds=args.seconds)
        row["latency"] = {key: getattr(timing, key) for key in ("ratio", "low", "high")}
    return row


def described(options: Mapping[str, Any]) -> str:
    """What a row is, in words."""
    if options["name"] in TOOLS:
        return f"{options['name']}, ratio {options['ratio']}"
    if options["name"] == "drop_blocks":
        return f"drop_blocks, {options['count']}"
    head = "slim" if options["name"] == "slim" else f"{options['criterion']}, {options.get('repair', 'least_squares')}"
    if "ratio" in options:
        return f"{head}, uniform"
    tail = f", seed {options['seed']}" if options.get("seed") else ""
    return f"{head}, {options['allocation']} {options['target']}{tail}"


def cells(row: Mapping[str, Any]) -> list[str]:
    """One row of the table."""
    head = [row["part"], described(row["options"])]
    if "accuracy" not in row:
        return [*head, "", row.get("error") or row.get("reason", ""), "", "", "", "", "", ""]
    time_ = row.get("latency")
    return [
        *head,
        f"{row['macs']:.3f}",
        f"{100 * row['accuracy']:.2f} %",
        f"{row['points']:+.2f} ± {row['plus_minus']:.2f}",
        f"{row['cosine']:.4f}",
        f"{100 * row['agreement']:.1f} %",
        "" if time_ is None else f"{time_['ratio']:.2f} ({time_['low']:.2f} to {time_['high']:.2f})",
        f"{row['seconds']:.0f}",
        f"{row['passes']:.0f}" if "passes" in row else "",
    ]


def means(rows: Sequence[Mapping[str, Any]]) -> list[Options]:
    """The mean over seeds, of what was run with several."""
    found: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["part"] in ("macs", "slim", "latency") and "accuracy" in row:
            found.setdefault((row["part"], row["options"]["target"]), []).append(row)
    keys = ("macs", "accuracy", "points", "plus_minus", "cosine", "agreement")
    return [
        {
            "part": part,
            "target": target,
            "seeds": len(of),
            **{key: float(np.mean([row[key] for row in of])) for key in keys},
            "latency": float(np.median([row["latency"]["ratio"] for row in of])),
        }
        for (part, target), of in found.items()
    ]


def plot(rows: Sequence[Mapping[str, Any]], original: float, path: Path) -> None:
    """Accuracy over what is left, of multiply-adds and of time."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9.6, 4), layout="constrained", sharey=True)
    for axes, label in zip(panels, ("multiply-adds left", "time left, one thread"), strict=True):
        axes.axhline(100 * original, color="grey", linewidth=0.8, linestyle=":", label="original")
        axes.set(xlabel=label)
        lines: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            if "latency" in row and "accuracy" in row:
                x = row["macs"] if axes is panels[0] else row["latency"]["ratio"]
                name = row["options"]["name"]
                if "target" in row["options"]:
                    name = f"{name}, {row['options']['allocation']}"
                lines.setdefault(name, []).append((x, 100 * row["accuracy"]))
        for name, points in lines.items():
            axes.plot(*zip(*sorted(points), strict=True), marker="o", markersize=4, label=name)
    panels[0].set(ylabel="accuracy, %")
    panels[1].legend(fontsize=8)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def triple(text: str) -> tuple[float, ...]:
    """Numbers separated by commas."""
    return tuple(float(part) for part in text.split(","))


def write(args: argparse.Namespace, judge: Judge, rows: Sequence[Mapping[str, Any]]) -> None:
    """The two files."""
    original = float(judge.right.mean())
    facts = {"original_accuracy": original, "test_images": len(judge.labels)}
    facts |= {"seconds_of_one_pass_per_image": judge.second_per_image, "means": means(rows), "rows": list(rows)}
    write_result("training_free", facts, args.out)
    columns = ["part", "what", ">MACs left", ">accuracy", ">difference, points", ">cosine of logits"]
    columns += [">same first answer", ">time", ">seconds", ">passes"]
    order = {part: number for number, part in enumerate(PARTS)}
    ranked = sorted(rows, key=lambda r: (order[r["part"]], -r.get("accuracy", 0) if r["part"] == "half" else 0))
    text = f"Original: {100 * original:.2f} % of {len(judge.labels)} test images.\n\n"
    lines = [
        f"{each['part']} {each['target']}: {each['points']:+.2f} points, cosine {each['cosine']:.4f}, MACs "
        f"{each['macs']:.3f}, time {each['latency']:.2f}, mean of {each['seeds']} seeds."
        for each in means(rows)
        if each["seeds"] > 1
    ]
    lines += [
        f"{row['images']} images: {row['passes']} times one pass of them, peak {row['peak_bytes'] / 1e9:.2f} GB, "
        + ", ".join(f"{100 * share:.0f} % {kind}" for kind, share in row["where"].items())
        for row in rows
        if "where" in row
    ]
    text += markdown(columns, map(cells, ranked)) + "\n" + "\n".join(f"- {line}" for line in lines) + "\n"
    (args.out / "training_free.md").write_text(text, encoding="utf-8")


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True, help="unlabelled use of an .npz with `image`")
    parser.add_argument("--test", type=Path, required=True, help=".npz with `image` and `label`")
    parser.add_argument("--samples", type=int, default=1024, help="calibration images; all of them decide")
    parser.add_argument("--scale", type=float, default=255.0)
    parser.add_argument("--mean", type=triple, default=(0.485, 0.456, 0.406))
    parser.add_argument("--std", type=triple, default=(0.229, 0.224, 0.225))
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS)
    parser.add_argument("--rivals", metavar="PYTHON", help="an interpreter that has the other tools")
    parser.add_argument("--seconds", type=float, default=10.0, help="bound on one timing")
    parser.add_argument("--plot", action="store_true", help="draw training_free.png; needs matplotlib")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    name = ort.InferenceSession(str(args.model), providers=["CPUExecutionProvider"]).get_inputs()[0].name
    judge = Judge(args, name)
    judge.second_per_image = one_pass(args, name)
    print(f"original: {100 * judge.right.mean():.2f} % of {len(judge.labels)} images", flush=True)
    kept = args.out / "training_free.json"
    old = json.loads(kept.read_text(encoding="utf-8")).get("rows", []) if kept.exists() else []
    rows: list[Options] = [row for row in old if row["part"] in PARTS and row["part"] not in args.parts]
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        with np.load(args.test) as archive:
            np.savez(Path(folder, "judge.npz"), image=archive["image"][:JUDGES])
        for part, options in plans(residual_streams(args.model)):
            if part not in args.parts or (part == "rivals" and not args.rivals):
                continue
            row: Options = {"part": part, "options": options}
            try:
                row |= measure(args, judge, part, options, Path(folder))
            except Exception as error:  # one that fails must not hide the others
                row["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            bad += "accuracy" not in row
            rows.append(row)
            print(" | ".join(cells(row)), flush=True)
            write(args, judge, rows)
    if args.plot:
        plot(rows, float(judge.right.mean()), args.out / "training_free.png")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
