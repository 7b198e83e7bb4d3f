"""What the README shows is what scripts printed and what the program has."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_tables_are_what_the_scripts_printed() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "bench" / "readme.py"), "--check"], check=False)
    assert done.returncode == 0, "run: python bench/readme.py"


def test_results_name_no_machine_path() -> None:
    files = sorted((ROOT / "bench" / "results").glob("*.json"))
    assert files
    for file in files:
        text = file.read_text(encoding="utf-8")
        facts = json.loads(text)
        assert {"command", "machine", "versions", "date"} <= facts.keys(), file.name
        assert not re.search(r"[\s\"'](/(home|root|tmp|usr|opt|mnt|var|Users|work)/|[A-Z]:\\\\)", text), file.name


def test_two_set_up_commands() -> None:
    assert re.findall(r"<!-- command: (\w+) -->\n```sh\n", README) == ["demo", "test"]


def test_every_verb_shown_exists() -> None:
    """Every `onnxslim-core VERB` and `--option` of the README is known to the command line."""
    from onnxslim_core.cli import sensitivity, verbs
    from onnxslim_core.cli.frame import group

    assert verbs and sensitivity
    shown = re.findall(r"^(?:.*/bin/|    |)onnxslim-core (\w+)([^#\n]*(?:\n    --[^\n]*)?)", README, re.MULTILINE)
    assert len(shown) >= 8
    for name, rest in shown:
        command = group.commands[name]
        known = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"(?<=\s)--?[a-z][a-z-]*", rest)) <= known, name


def test_every_pass_shown_exists() -> None:
    from onnxslim_core.passes import TABLE

    shown = dict(re.findall(r"^\| `(\w+)` \| (exact|lossy) \|", README, re.MULTILINE))
    assert shown == {row.name: "exact" if row.kind.exact else "lossy" for row in TABLE}
