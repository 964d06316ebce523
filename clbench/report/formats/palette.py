"""The light and dark colors of the HTML page, and colors of methods with enough contrast on both."""

from __future__ import annotations

from clbench.report.figures.style import PALE, PALETTE

LEAST = 3.0  # minimum contrast of the marks in a figure (WCAG 2.2, 1.4.11)
LIGHT = {"paper": "#fdfdfb", "ink": "#1f2328", "soft": "#59616b", "rule": "#e2e2de", "wash": "#f3f3ef",
         "accent": "#0b5cad", "warn": "#8a3b00", "warn-paper": "#fdf1e4", "cold": "#eef1f3", "hot": "#103a5e",
         "on-cold": "#000000", "on-hot": "#ffffff"}
DARK = {"paper": "#15181c", "ink": "#e6e8eb", "soft": "#a3abb5", "rule": "#30353c", "wash": "#1e2227",
        "accent": "#85bdf2", "warn": "#ffb37a", "warn-paper": "#2b2018", "cold": "#22272d", "hot": "#75a5c5",
        "on-cold": "#ffffff", "on-hot": "#000000"}


def css() -> str:
    """Return the light and the dark palette as CSS variables, and a class for each color of methods."""
    methods = _method_colors()
    outlines = {f"{name}-edge": visible(c, LIGHT["paper"], "#000000") for name, c in methods.items()}
    bright = {name: visible(c, DARK["paper"], "#ffffff", 4.5) for name, c in methods.items()}
    light = _variables(LIGHT | methods | outlines)
    dark = _variables(DARK | bright | {f"{name}-edge": c for name, c in bright.items()})
    return (f":root, .light {{ {light} }}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
            + "\n".join(f".{name} {{ --c: var(--{name}); --edge: var(--{name}-edge); }}" for name in methods) + "\n")


def color_class(color: str) -> str:
    """Return the CSS class for a color of `clbench.report.figures.style.assign_styles`."""
    return next(name for name, method_color in _method_colors().items() if method_color == color)


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colors `#rrggbb`, from 1 to 21.

    Source: WCAG 2.2, relative luminance and contrast ratio.
    """
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def mix(one: str, other: str, share: float) -> str:
    """Return a mixture of two colors `#rrggbb` with this share of the second."""
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(_parts(one), _parts(other), strict=True))


def visible(color: str, paper: str, towards: str, least: float = LEAST) -> str:
    """Return a color, mixed with another color until it reaches the minimum contrast with the background."""
    steps = (mix(color, towards, i / 20) for i in range(21))
    return next(step for step in steps if contrast(step, paper) >= least)


def _method_colors() -> dict[str, str]:
    return {**{f"c{i}": color for i, color in enumerate(PALETTE)}, "gray": PALE}


def _variables(palette: dict[str, str]) -> str:
    return " ".join(f"--{name}: {color};" for name, color in palette.items())


def _parts(color: str) -> tuple[int, ...]:
    return tuple(int(color[i:i + 2], 16) for i in (1, 3, 5))


def _luminance(color: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (p / 255 for p in _parts(color))]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
