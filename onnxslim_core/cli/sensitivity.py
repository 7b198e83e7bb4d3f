"""The verb `sensitivity`."""

from __future__ import annotations

from typing import Any

import click

from onnxslim_core.cli.frame import OK, Shell, check_targets, verb
from onnxslim_core.cli.verbs import _chosen_recipe, _feeds, _named_files, _parsed, _recipe_data, _root
from onnxslim_core.errors import RecipeError


@verb
@click.argument("model")
@click.option(
    "--ratios", metavar="R,R,...", help="Shares of a group that go.  [default: 0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9]"
)
@click.option("--criterion", metavar="NAME", default="obs", show_default=True, help="Which channels go first.")
@click.option(
    "--repair", metavar="NAME", default="least_squares", show_default=True, help="How readers are mended, or none."
)
@click.option(
    "--round-to", metavar="N", default="1", show_default=True, help="Widths in steps of N; auto: the CPU's grid."
)
@click.option("--only", multiple=True, metavar="GLOB", help="Groups, blocks or nodes in them; else all.")
@click.option("--no-blocks", is_flag=True, help="Ask about groups of channels alone.")
@click.option(
    "--probes", type=click.IntRange(1), default=128, show_default=True, help="At most so many samples measure the loss."
)
@click.option("--metric", metavar="FILE.py:FUNCTION", help="Runs (outputs, labels) -> float.")
@click.option("--labels", metavar="NAME", help="The array of labels in the data, for the metric.")
@click.option(
    "--show",
    type=click.Choice(["loss", "cosine", "top1", "metric"]),
    help="The figure in table and plot.  [default: metric where there is one, else loss]",
)
@click.option("--plot", metavar="F.png", help="Draw the curves (.png, .svg, .pdf); needs the extra 'plot'.")
@click.option("--set", "settings", multiple=True, metavar="data.OPTION=VALUE", help="Change an option of [data].")
@_recipe_data
@_feeds
@_root
def sensitivity(shell: Shell, model: str, plot: str | None, show: str | None, **options: Any) -> int:
    """Show what the answers lose by share of each group of channels, and by block.

    Needs samples (--data), without labels. What was found is kept: an interrupted run goes on where it stopped.
    """
    ratios = _ratios(options["ratios"])
    round_to = int(options["round_to"]) if options["round_to"].isdecimal() else options["round_to"]
    if show == "metric" and options["metric"] is None:
        raise RecipeError("--show metric needs a metric", "give --metric FILE.py:FUNCTION")
    recipe = None
    if options["recipe"] is not None or options["settings"]:
        recipe = _chosen_recipe(options["recipe"], None, options["settings"])
    sources = (*(options[name] for name in ("data", "recipe", "metric")), *_named_files(recipe))
    check_targets(plot, sources=sources, models=(model,), root=options["external_data_root"])
    if plot is not None:
        from onnxslim_core.search.record import require_matplotlib

        require_matplotlib(plot)
    from onnxslim_core._sensitivity import sensitivity as examine

    shapes, values = _parsed(options["shapes"], options["values"])
    asked: dict[str, Any] = {
        "round_to": round_to,
        "blocks": not options["no_blocks"],
        **({"ratios": ratios} if ratios else {}),
    }
    names = ("data", "criterion", "repair", "only", "probes", "metric", "labels", "external_data_root")
    with shell.progress() as tell:
        found = examine(
            model,
            recipe=recipe,
            shapes=shapes,
            values=values,
            threads=shell.threads,
            seed=shell.seed,
            progress=tell,
            **{name: options[name] for name in names},
            **asked,
        )
    if plot is not None:
        found.save_plot(plot, show or "")
    shell.emit(found.document())
    shell.show(lambda console: found.print_console(console, show or ""))
    return OK


def _ratios(text: str | None) -> tuple[float, ...]:
    try:
        return () if text is None else tuple(float(part) for part in text.split(","))
    except ValueError as err:
        raise RecipeError(f"--ratios is '{text}'", "shares with commas between: 0.25,0.5") from err
