"""The demo: a real network, a shipped recipe, and what it did to the answers, the time and the size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxslim_core.demo import FOLDER
from onnxslim_core.errors import DataError
from onnxslim_core.measure.session import open_session
from onnxslim_core.measure.session import run as call
from onnxslim_core.model import Model, load
from onnxslim_core.pipeline import Result, compress
from onnxslim_core.recipe import Recipe
from onnxslim_core.report import plain
from onnxslim_core.rewrite import Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["Demo", "demonstrate"]


@dataclass(frozen=True, slots=True)
class Demo:
    """What the demo measured.

    Attributes:
        result: The compressed model and its report.
        images: Held-out images: seen neither in training nor by any pass.
        right: How many of them the network reads right, before and after.
        same: On how many both give the same digit.
        changed: At most five images whose answer changed, as [8, 8] arrays in 0..1.
        digits: For each of those: the label, the answer before, the answer after.
    """

    result: Result
    images: int
    right: tuple[int, int]
    same: int
    changed: tuple[np.ndarray, ...]
    digits: tuple[tuple[int, int, int], ...]

    def document(self) -> Mapping[str, Any]:
        """The whole as plain data, for JSON."""
        accuracy = {
            "images": self.images,
            "right_before": self.right[0],
            "right_after": self.right[1],
            "same_answer": self.same,
        }
        return {"heldout": accuracy, "report": plain(self.result.report)}

    def draw(self, console: Console) -> None:
        """Print it for people."""
        report = self.result.report
        console.print()
        console.print("[bold]A network that reads handwritten digits, as PyTorch exported it[/]")
        console.print("with residual blocks, a Concat, a depthwise Conv and channels that training silenced\n")
        console.print(_table(self))
        console.print()
        console.print("[bold]What was done[/]")
        for step in report.steps:
            console.print(f"  {_step_line(step)}", highlight=False)
        if self.digits:
            console.print()
            console.print(_gallery(self))
        console.print()
        console.print("[bold]The same on a model of your own[/]")
        console.print(
            "  onnxslim-core compress model.onnx -o small.onnx --data samples.npz --preset balanced", style="cyan"
        )
        console.print(f"  [dim]the files of this demo are in {FOLDER}[/]", highlight=False, soft_wrap=True)


def demonstrate(
    *, threads: int = 1, seed: int = 0, latency_seconds: float = 10.0, progress: Progress | None = None
) -> Demo:
    """Compress the shipped network by the shipped recipe and read the held-out images with both.

    Args:
        threads: For onnxruntime, within one operator.
        seed: Of everything that is drawn.
        latency_seconds: Bound on the final timing; the whole takes less than a minute with the default.
        progress: Told how far it is.

    Raises:
        DataError: if the files of the demo are not what was shipped.
    """
    source = load(FOLDER / "digits.onnx")
    recipe = Recipe.load(FOLDER / "recipe.toml")
    try:
        with np.load(FOLDER / "heldout.npz") as file:
            images, labels = file["image"], file["label"]
    except (OSError, KeyError, ValueError) as err:
        raise DataError(f"heldout.npz of the demo is damaged: {err}", "install the package again") from err
    result = compress(source, recipe, threads=threads, seed=seed, latency_seconds=latency_seconds, progress=progress)
    before, after = _read(source, images, threads), _read(result.model, images, threads)
    differ = np.flatnonzero(before != after)[:5]
    return Demo(
        result=result,
        images=len(labels),
        right=(int((before == labels).sum()), int((after == labels).sum())),
        same=int((before == after).sum()),
        changed=tuple(images[i, 0] for i in differ),
        digits=tuple((int(labels[i]), int(before[i]), int(after[i])) for i in differ),
    )


def _read(model: Model, images: np.ndarray, threads: int) -> np.ndarray:
    """The digit [N] that a model sees in each image [N, 1, 8, 8]."""
    session = open_session(model, threads=threads)
    answers = [call(session, {"image": images[i : i + 100]})["logits"].argmax(1) for i in range(0, len(images), 100)]
    return np.concatenate(answers)


def _table(demo: Demo) -> Table:
    from rich import box
    from rich.table import Table

    report = demo.result.report
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for title in ("original", "compressed", "change"):
        table.add_column(title, justify="right")
    table.add_column("", style="dim")
    before, after = (100 * n / demo.images for n in demo.right)
    points = f"{after - before:+.2f} points" if demo.right[0] != demo.right[1] else "="
    table.add_row("right answers", f"{before:.2f} %", f"{after:.2f} %", points, f"{demo.images} unseen images")
    table.add_row("same answer", "", f"{100 * demo.same / demo.images:.2f} %", "", "as before")
    if report.fidelity is not None:
        output = report.fidelity["logits"]
        table.add_row("cosine of scores", "", f"{output.cosine:.4f}", "", "1 is equal")
    if (time := report.latency) is not None:
        reading = "faster" if time.high < 1 else "slower" if time.low > 1 else "unclear"
        interval = f"{time.low:.2f} to {time.high:.2f}: {reading}"
        table.add_row(
            "time", f"{time.reference_ms:.3f} ms", f"{time.candidate_ms:.3f} ms", f"x {time.ratio:.2f}", interval
        )
    table.add_row("file", *_pair(report.sizes[0], report.sizes[1], 1e3, "KB"))
    if report.cost_before is not None and report.cost_after is not None:
        pair = (report.cost_before, report.cost_after)
        table.add_row("weights", *_pair(pair[0].params, pair[1].params, 1e3, "K"))
        table.add_row("MACs", *_pair(pair[0].macs, pair[1].macs, 1e6, "M"), "per image")
    return table


def _pair(before: float | None, after: float | None, unit: float, name: str) -> tuple[str, str, str]:
    if not before or after is None:
        return "?", "?", ""
    return f"{before / unit:.1f} {name}", f"{after / unit:.1f} {name}", f"{100 * (after / before - 1):+.0f} %"


def _step_line(step: Any) -> str:
    """One step in one line: what it is called, whether it is exact, what it did."""
    from rich.markup import escape

    mark = {"done": "[green]✓[/]", "rolled back": "[yellow]↩[/]"}.get(step.outcome, "[dim]·[/]")
    kind = "exact" if step.exact else "lossy"
    counts: dict[str, int] = {}
    for change in step.applied:
        counts[change.action] = counts.get(change.action, 0) + 1
    done = ", ".join(f"{n} x {action}" if n > 1 else action for action, n in list(counts.items())[:3])
    return f"{mark} {step.name:16}[dim]{kind:7}[/]{escape(step.reason or done or step.outcome)}"


def _gallery(demo: Demo) -> Table:
    """The images whose answer changed, two characters per pixel."""
    from rich import box
    from rich.table import Table

    title = f"The answers that changed: {demo.images - demo.same} of {demo.images} (label: before → after)"
    table = Table(box=box.SIMPLE, title=title, title_style="bold", title_justify="left", show_header=False)
    pictures, captions = [], []
    for image, (label, before, after) in zip(demo.changed, demo.digits, strict=True):
        table.add_column(no_wrap=True)
        shades = np.rint(image * 4).astype(int)
        pictures.append("\n".join("".join(2 * " ░▒▓█"[shade] for shade in row) for row in shades))
        captions.append(f"{label}: {before} → {after}")
    table.add_row(*pictures)
    table.add_row(*captions)
    return table
