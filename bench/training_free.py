"""How much of a network can go without training it again? Every criterion with every repair, at half the multiply-adds.

    python bench/training_free.py --model cifar-resnet56.onnx --calibration calibration.npz --test test.npz [--plot]

The network is an image classifier (written for ResNet-56 on CIFAR-10); the files hold `image`, uint8 NHWC, and `label`.
`calibration.npz` is used without its labels: of its images half decide and the other half would judge a budget, as in
every run of `compress` (so 1,024 images are 512 to decide with). `test.npz` is only looked at when all is decided.

    half       criterion x repair, `uniform` at ratio .5: every width inside a block is halved, the residual streams
               (channels made by more than one node) stay, which is half the multiply-adds, as in the literature
    curve      the same at other ratios, for three of them
    macs       `allocation = "macs"`: a target, and the program chooses the widths, those of the streams too
    everything `uniform` at ratio .5 with the streams cut as well: about a quarter of the multiply-adds

Widths are free (`round_to = 1`): this is about answers, not about time. Given are accuracy, its difference to the
original in points with the 95 % interval of a paired comparison (images that became right or wrong), mean cosine of the
logits per image, agreement of the first answer with the original's, MACs, and the seconds that the pass took.
Writes training_free.json and training_free.md; with `--plot` (needs matplotlib) training_free.png.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from _common import RESULTS, count_weights, markdown, write_result

import onnxslim_core as osc

CRITERIA = ("l1", "l2", "bn_scale", "geometric_median", "random", "obs")
REPAIRS = ("none", "bias", "least_squares")
RATIOS = (0.2, 0.3, 0.4, 0.6)
TARGETS = (0.8, 0.7, 0.6, 0.5, 0.4)
CURVES = (("l1", "none"), ("l1", "least_squares"), ("obs", "least_squares"))
BATCH = 100
Options = dict[str, Any]


def recipe_text(args: argparse.Namespace, name: str, options: Mapping[str, Any]) -> str:
    """The recipe: how an image is prepared, the exact passes that score needs, and the cut."""
    lines = ["version = 1", "[data]", f"samples = {args.samples}", f"[data.inputs.{name}]", 'from = "image"']
    lines += ['layout = "NHWC"', f"scale = {args.scale}", f"mean = {list(args.mean)}", f"std = {list(args.std)}"]
    lines += ["[[pass]]", 'name = "fuse_batchnorm"', "[[pass]]", 'name = "prune_channels"', "round_to = 1"]
    lines += [f"{key} = {_toml(value)}" for key, value in options.items()]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(_toml(each) for each in value) + "]"
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' if isinstance(value, str) else repr(value)


class Judge:
    """The test images and what the original says to them; prepared here, not by the program under test."""

    def __init__(self, args: argparse.Namespace, name: str) -> None:
        with np.load(args.test) as archive:
            image, self.labels = archive["image"], archive["label"].reshape(-1)
        scaled = image.astype(np.float32) / np.float32(args.scale)
        scaled = (scaled - np.asarray(args.mean, np.float32)) / np.asarray(args.std, np.float32)
        self.name, self.images = name, np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))
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
    """Everything that is tried: the part of the table it belongs to, and the options of prune_channels."""
    for criterion in CRITERIA:
        for repair in REPAIRS:
            yield "half", {"criterion": criterion, "repair": repair, "ratio": 0.5, "ignored": list(streams)}
    for target in TARGETS:
        yield "macs", {"criterion": "obs", "repair": "least_squares", "allocation": "macs", "target": target}
    for criterion, repair in CURVES:
        for ratio in RATIOS:
            yield "curve", {"criterion": criterion, "repair": repair, "ratio": ratio, "ignored": list(streams)}
    for criterion, repair in CURVES:
        yield "everything", {"criterion": criterion, "repair": repair, "ratio": 0.5}


def measure(args: argparse.Namespace, judge: Judge, options: Options) -> dict[str, Any]:
    """One plan: cut, written, judged."""
    recipe = osc.Recipe.parse(recipe_text(args, judge.name, options))
    result = osc.compress(args.model, recipe, data=args.calibration, measure_latency=False, verify=False)
    report = result.report
    step = next(step for step in report.steps if step.name == "prune_channels")
    row: dict[str, Any] = {"outcome": step.outcome, "seconds": round(step.seconds, 2)}
    row["deciding_images"] = report.data.deciding
    if step.outcome != "done" or report.cost_before is None or report.cost_after is None:
        return row | {"reason": "; ".join(change.reason for change in step.refused)[:300]}
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "out.onnx")
        result.save(target)
        row["macs"] = report.cost_after.macs / report.cost_before.macs
        row["weights"] = count_weights(target) / count_weights(args.model)
        return row | judge.compare(target)


def cells(row: Mapping[str, Any]) -> list[str]:
    """One row of the table."""
    how = row["options"]
    amount = f"macs, target {how['target']}" if "target" in how else f"uniform, ratio {how['ratio']}"
    head = [row["part"], how["criterion"], how["repair"], amount]
    if "accuracy" not in row:
        return [*head, "", row.get("error") or row.get("reason", ""), "", "", "", ""]
    return [
        *head,
        f"{row['macs']:.3f}",
        f"{100 * row['accuracy']:.2f} %",
        f"{row['points']:+.2f} ± {row['plus_minus']:.2f}",
        f"{row['cosine']:.4f}",
        f"{100 * row['agreement']:.1f} %",
        f"{row['seconds']:.0f}",
    ]


def plot(rows: Sequence[Mapping[str, Any]], original: float, path: Path) -> None:
    """Accuracy over MACs, one line per way."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        how = row["options"]
        pair = (how["criterion"], how["repair"])
        if "accuracy" in row and row["part"] != "everything" and (row["part"] == "macs" or pair in CURVES):
            widths = "widths chosen" if row["part"] == "macs" else "uniform"
            lines.setdefault(f"{pair[0]}, {pair[1].replace('_', ' ')}, {widths}", []).append(
                (row["macs"], 100 * row["accuracy"])
            )
    figure, axes = pyplot.subplots(figsize=(6.4, 4), layout="constrained")
    axes.axhline(100 * original, color="grey", linewidth=0.8, linestyle=":", label="original")
    for label, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", markersize=4, label=label)
    axes.set(xlabel="multiply-adds left", ylabel="accuracy, %", title="Pruned without training")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def triple(text: str) -> tuple[float, ...]:
    """Numbers separated by commas."""
    return tuple(float(part) for part in text.split(","))


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True, help="unlabelled use of an .npz with `image`")
    parser.add_argument("--test", type=Path, required=True, help=".npz with `image` and `label`")
    parser.add_argument("--samples", type=int, default=1024, help="calibration images; half of them decide")
    parser.add_argument("--scale", type=float, default=255.0)
    parser.add_argument("--mean", type=triple, default=(0.485, 0.456, 0.406))
    parser.add_argument("--std", type=triple, default=(0.229, 0.224, 0.225))
    parser.add_argument("--parts", nargs="*", default=["half", "macs", "curve", "everything"])
    parser.add_argument("--plot", action="store_true", help="draw training_free.png; needs matplotlib")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    name = ort.InferenceSession(str(args.model), providers=["CPUExecutionProvider"]).get_inputs()[0].name
    judge = Judge(args, name)
    original = float(judge.right.mean())
    print(f"original: {100 * original:.2f} % of {len(judge.labels)} images", flush=True)
    rows: list[dict[str, Any]] = []
    for part, options in plans(residual_streams(args.model)):
        if part not in args.parts:
            continue
        row: dict[str, Any] = {"part": part, "options": options}
        try:
            row |= measure(args, judge, options)
        except Exception as error:  # one that fails must not hide the others
            row["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        rows.append(row)
        print(" | ".join(cells(row)), flush=True)
    facts = {"original_accuracy": original, "test_images": len(judge.labels), "rows": rows}
    write_result("training_free", facts, args.out)
    columns = ["part", "criterion", "repair", "widths", ">MACs left", ">accuracy", ">difference, points"]
    columns += [">cosine of logits", ">same first answer", ">seconds"]
    order = ["half", "macs", "curve", "everything"]
    ranked = sorted(rows, key=lambda r: (order.index(r["part"]), -r.get("accuracy", 0) if r["part"] == "half" else 0))
    text = f"Original: {100 * original:.2f} % of {len(judge.labels)} test images.\n\n"
    (args.out / "training_free.md").write_text(text + markdown(columns, map(cells, ranked)), encoding="utf-8")
    if args.plot:
        plot(rows, original, args.out / "training_free.png")
    return 1 if any("accuracy" not in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
