"""Write the page of the speed measurements from the JSON files of reports/speed/."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from pages import code, table
from results_facts import OUT, REPORTS, commit

from clbench.report.formats.markdown import escape

GENERATED = "<!-- Made by `make docs-pages` from reports/speed/; what is written here is lost. -->"
PAGE = """\
Find how fast clbench trains, compared with Avalanche and plain torch. One run of a script in `benchmarks/speed/`
measures each table. Numbers of different machines are never compared."""
STOCK = """\
The table shows new training samples per second, divided by those of Avalanche with its defaults (medians over repeats).
Training, consolidation and all evaluations count. *plain torch* is the fastest loop written by hand. *clbench* trains
one seed, and *several seeds* is the fastest way to train five. *bf16* is `--precision bf16`, which is slow on
processors without instructions for it."""
SCALING = "The numbers behind the figure are in [scaling.json](../../reports/speed/scaling.json)."
CONTENDERS = {"plain torch": r"torch .*", "clbench": r"clbench", "clbench bf16": r"clbench bf16",
              "clbench, several seeds": r"clbench (?!exact|bf16).+"}


def page() -> str:
    """Return speed.md: a list of the measurements, a comparison with stock Avalanche, then every table."""
    folder = REPORTS / "speed"
    found = {path: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.json"))}
    comparisons = {path: one for path, one in found.items() if path.stem == "compare"}
    measured = [[f"[{escape(title(path))}]({link(beside(path))})", *(escape(str(fact)) for fact in (
        one["machine"]["machine"], one["machine"].get("vector instructions", "not recorded"),
        one["machine"].get("date", "not recorded"), commit(one["machine"]["commit"])))]
        for path, one in found.items()]
    commands = "\n".join(command for one in found.values() for command in _commands(one))
    blocks = [GENERATED, "# Speed", PAGE,
              table(["measurement", "machine", "vector instructions", "date", "commit"], measured),
              "## Repeat the measurements", f"<!-- not run: some take an hour -->\n```bash\n{commands}\n```",
              "## Against stock Avalanche", STOCK,
              table(["processor", "model, method, batch", *CONTENDERS],
                    [row for path, one in comparisons.items() for row in _ratios(path, one)]),
              f"## How the cost grows\n\n{SCALING}\n\n![Seconds against the number of seeds, tasks and more]"
              f"({link(folder / 'scaling.svg')})"]
    blocks += [mark(beside(path), title(path)) for path in found if beside(path).suffix == ".md"]
    return "\n\n".join(blocks) + "\n"


def title(path: Path) -> str:
    """Return the title of a measurement."""
    if path.stem == "compare":
        model, vector = path.parent.name.split("-")
        return f"Compared with Avalanche and plain torch: {model.upper()} on a CPU with {vector.upper()}"
    if beside(path).suffix != ".md":
        return "How the cost grows"
    return beside(path).read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# ")


def beside(path: Path) -> Path:
    """Return the file that shows a measurement: its Markdown file, else its figure."""
    return next(p for p in (path.with_suffix(".md"), path.with_suffix(".svg")) if p.exists())


def link(path: Path) -> str:
    """Return the path relative to docs/results."""
    return f"../../reports/{path.relative_to(REPORTS).as_posix()}"


def mark(path: Path, title: str, below: int = 1) -> str:
    """Return the mark that `results_site` replaces by the content of a file."""
    return f"<!-- shown here: {'#' * (below + 1)} {title}: {link(path)} -->"


def fact_cell(name: str, value: object) -> str:
    """Return a fact of a JSON file as a table cell."""
    if isinstance(value, Mapping):
        return escape(", ".join(f"{key} {text}" for key, text in value.items()))
    if name == "commit":
        return commit(str(value))
    return code(OUT.sub("", str(value))) if name == "command" else escape(str(value))


def _commands(one: Mapping[str, Any]) -> list[str]:
    given = one.get("command") or one["machine"].get("command") or one["machine"].get("commands")
    return [re.sub(r" --data \S+", "", OUT.sub("", part)) for part in str(given or "").split("; ") if part]


def _ratios(path: Path, one: Mapping[str, Any]) -> list[list[str]]:
    """Return a row for each model, method and batch size: speeds relative to stock Avalanche."""
    speeds: dict[tuple[str, str, int], dict[str, list[float]]] = {}
    for m in one["measurements"]:
        setting, outcome = m["setting"], m.get("outcome")  # a contender that failed has an error instead
        if outcome is None or setting["contender"] == "floor":
            continue
        group = speeds.setdefault((setting["model"], setting["method"], setting["batch_size"]), {})
        name = setting["contender"] + (f", {len(setting['seeds'])} seeds" if len(setting["seeds"]) > 1 else "")
        group.setdefault(name, []).append(outcome["train_samples"] / outcome["whole"])
    lines = []
    for (model, method, batch), group in speeds.items():
        if "avalanche" not in group:
            continue
        stock = median(group["avalanche"])
        best = [max((median(v) / stock for name, v in group.items() if re.fullmatch(pattern, name)), default=None)
                for pattern in CONTENDERS.values()]
        lines.append([path.parent.name.split("-")[1].upper(), f"{code(model)}, {method}, {batch}",
                      *("" if ratio is None else f"{ratio:.1f}" for ratio in best)])
    return lines
