"""Draw architecture.svg, the flow of the data through the packages: `make docs-pages`.

A test checks that the committed figure is current. Its colors follow the reader's color scheme, light or dark.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

WIDTH, HEIGHT = 1000, 548
LIGHT = {"paper": "#fdfdfb", "wash": "#f0f1ee", "box": "#ffffff", "line": "#8a929c", "ink": "#1f2328",
         "soft": "#59616b", "plug": "#0b5cad"}
DARK = {"paper": "#15181c", "wash": "#1e2227", "box": "#2a3037", "line": "#8d96a0", "ink": "#e6e8eb",
        "soft": "#a9b1ba", "plug": "#85bdf2"}
TITLE = ("The way of the data. A command makes a Spec; experiment plans it as trials; execution hands those that are "
         "missing to workers. In a worker, data makes a Stream of a benchmark, models a Network, on which a strategy "
         "is built; training leads it task by task, watched by callbacks of accounting and persistence, and execution "
         "makes a Record of it. results stores it, report makes tables and figures of all records. hf scores "
         "language models that Hugging Face's Trainer trains. Everything stands on core. "
         "Plugins bring commands, benchmarks, models, strategies, trackers and report formats.")
BOXES = (  # package, what it does, left, top, width, height
    ("cli", ("a file for each", "command"), 32, 84, 138, 62),
    ("experiment", ("Spec, plan,", "Trial and its key"), 222, 84, 158, 62),
    ("execution", ("which are missing,", "who runs them"), 432, 84, 158, 62),
    ("results", ("the store: one file", "for each record"), 642, 84, 152, 62),
    ("report", ("tables, figures,", "formats"), 836, 84, 132, 62),
    ("data", ("a benchmark as tensors,", "seen through a scenario"), 192, 252, 188, 62),
    ("models", ("networks by name,", "their weights"), 192, 346, 188, 62),
    ("strategy", ("the interface of methods,", "and bases to build on"), 462, 346, 192, 62),
    ("training", ("leads a strategy task by task:", "before_task, steps, after_task;", "then tests it on all tasks:",
                  "a row of R"), 722, 230, 232, 100),
    ("accounting", ("callbacks that", "count FLOPs"), 722, 344, 111, 64),
    ("persistence", ("callbacks that", "save"), 843, 344, 111, 64),
    ("hf", ("a callback and replay for", "Hugging Face's Trainer"), 192, 440, 188, 62),
    ("testing", ("the rules, checked on", "a tiny stream"), 722, 440, 232, 62),
)
ARROWS = (  # corners from start to end; label and its position
    (((170, 115), (216, 115)), "", 0, 0),
    (((380, 115), (426, 115)), "trials", 403, 106),
    (((794, 115), (830, 115)), "", 0, 0),
    (((511, 146), (511, 210)), "Trial", 532, 200),
    (((760, 230), (760, 152)), "Record", 788, 200),
    (((380, 283), (716, 283)), "Stream", 556, 275),
    (((380, 377), (456, 377)), "Network", 418, 367),
    (((654, 377), (690, 377), (690, 310), (716, 310)), "", 0, 0),
    (((845, 440), (845, 414)), "", 0, 0),
    (((286, 408), (286, 434)), "", 0, 0),
)
PLUGINS = (  # kind of object that plugins provide, left, top, and the arrow to the package that uses it
    ("commands", 46, 22, ((101, 46), (101, 78))),
    ("trackers", 663, 22, ((718, 46), (718, 78))),
    ("report formats", 847, 22, ((902, 46), (902, 78))),
    ("benchmarks", 32, 271, ((142, 283), (186, 283))),
    ("models", 32, 365, ((142, 377), (186, 377))),
    ("strategies", 503, 440, ((558, 440), (558, 414))),
)


def main() -> None:
    """Write architecture.svg."""
    (Path(__file__).parent / "architecture.svg").write_text(draw(), encoding="utf-8")


def draw() -> str:
    """Return the figure."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" font-family="system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif">',
        f"<title>{escape(TITLE)}</title>",
        f"<style>{style(LIGHT)} @media (prefers-color-scheme: dark) {{ {style(DARK)} }}</style>",
        "<defs>", *(f'<marker id="{kind}" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="8" markerHeight="8" '
                    f'orient="auto"><path class="{tip}" d="M0 0 8 4 0 8z"/></marker>'
                    for kind, tip in (("flow", "name"), ("bring", "plug"))), "</defs>",
        rect("paper", 0, 0, WIDTH, HEIGHT, 0),
        rect("lane", 16, 62, 968, 114, 10),
        text("where", "the process of the command: it imports no torch", 32, 167, "start"),
        rect("lane", 176, 216, 808, 208, 10),
        text("where", "a worker process", 192, 238, "start"),
        *(part for name, lines, *place in BOXES for part in box(name, lines, *place)),
        *(part for points, label, x, y in ARROWS for part in arrow("flow", points, label, x, y)),
        *(part for name, x, y, points in PLUGINS for part in plugin(name, x, y, points)),
        rect("lane", 16, 512, 968, 26, 10),
        text("name", "core", 32, 530, "start"),
        text("what", "errors, options, hooks and the registry, scenarios, seeds, files: everything stands on it",
             78, 530, "start"),
        text("plug", "dashed: what plugins bring", 240, 39, "start"),
    ]
    return "\n".join([*parts, "</svg>", ""])


def style(colors: dict[str, str]) -> str:
    """Return a color scheme as CSS."""
    c = colors
    return (f".paper {{ fill: {c['paper']} }} .lane {{ fill: {c['wash']} }} "
            f".box {{ fill: {c['box']}; stroke: {c['line']} }} "
            f".chip {{ fill: {c['paper']}; stroke: {c['plug']}; stroke-dasharray: 4 3 }} "
            f".flow {{ stroke: {c['ink']}; fill: none; stroke-width: 1.4 }} "
            f".bring {{ stroke: {c['plug']}; fill: none; stroke-width: 1.4; stroke-dasharray: 4 3 }} "
            f".name {{ fill: {c['ink']} }} .what, .where {{ fill: {c['soft']} }} .plug {{ fill: {c['plug']} }} "
            ".name { font-size: 15px; font-weight: 600 } .what, .plug, .label { font-size: 12.5px } "
            f".where {{ font-size: 12px; font-style: italic }} .label {{ fill: {c['ink']} }}")


def rect(kind: str, x: float, y: float, width: float, height: float, radius: float) -> str:
    """Return a rectangle."""
    return f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="{radius}"/>'


def text(kind: str, words: str, x: float, y: float, anchor: str = "middle") -> str:
    """Return a line of text with its baseline at y."""
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>'


def box(name: str, lines: Sequence[str], x: float, y: float, width: float, height: float) -> Iterator[str]:
    """Yield the box of a package, with its name and its purpose."""
    yield rect("box", x, y, width, height, 6)
    yield text("name", name, x + width / 2, y + 21)
    for number, line in enumerate(lines):
        yield text("what", line, x + width / 2, y + 38 + 16 * number)


def arrow(kind: str, points: Sequence[tuple[float, float]], label: str = "", x: float = 0,
          y: float = 0) -> Iterator[str]:
    """Yield an arrow along points, with an optional label."""
    way = " ".join(f"{px},{py}" for px, py in points)
    yield f'<polyline class="{kind}" points="{way}" marker-end="url(#{kind})"/>'
    if label:
        yield text("label", label, x, y)


def plugin(name: str, x: float, y: float, points: Sequence[tuple[float, float]]) -> Iterator[str]:
    """Yield the box of a kind of object that plugins provide, with the arrow to the package that uses it."""
    yield rect("chip", x, y, 110, 24, 12)
    yield text("plug", name, x + 55, y + 16)
    yield from arrow("bring", points)


if __name__ == "__main__":
    main()
