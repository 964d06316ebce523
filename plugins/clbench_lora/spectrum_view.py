"""Show spectra as text, Markdown or JSON, and draw them as a figure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from clbench.cli.params import table
from clbench.core.errors import StoreError
from clbench.report.figures import style
from clbench.report.formats.markdown import escape
from clbench.report.formatting import NONE, interval, number
from clbench_lora.spectrum import SHARES, Change, Reached, Spectrum, energy_shares

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEANING = ("Rank holding p % of the energy: the smallest r for which the r largest squared singular values of the "
           "change of W make up p % of all; mean over tasks and seeds, (lowest-highest), and its share of the full "
           "rank. Heads are left out.")
MEANING_OF_PARTS = ("A layer for q, k and v at once is shown whole, as one adapter changes it, and by its parts, as "
                    "adapters with targets do; energies are of what a method adapts, the whole or the parts.")
MEANING_OF_ACC = ("ACC: mean over seeds ± half of the 95% confidence interval. Energy: what the best change of that "
                  "rank holds of the changes of all layers, tasks and seeds together.")
MOST_NAMES = 8  # legends name the curves up to this number


def show(spectra: Sequence[Spectrum], form: str) -> str:
    """Return spectra as `text`, `md` or `json` (with every singular value)."""
    if form == "json":
        return json.dumps([_as_json(s) for s in spectra], indent=1)
    blocks = []
    for s in spectra:
        heading = f"{s.label}: {s.setting}"
        blocks += [f"## {escape(heading)}" if form == "md" else heading]
        ranks = ["layer", "weight", "full rank", *(f"rank for {share:.0%}" for share in SHARES)]
        blocks += [table(ranks, [_layer_row(s.of(layer)) for layer in s.layers], form), MEANING]
        blocks += [MEANING_OF_PARTS] if s.layers != s.finest else []
        blocks += [table(["method", "rank", "energy (%)", "ACC (%)", "seeds"], list(map(_reached_row, s.reached)),
                          form), MEANING_OF_ACC]
        blocks += [escape(note) if form == "md" else note for note in s.notes]
    return "\n\n".join(blocks)


def _layer_row(changes: Sequence[Change]) -> list[str]:
    first = changes[0]
    return [first.layer, "x".join(map(str, first.shape)), str(first.full_rank),
            *(_spread([c.rank(share) for c in changes], first.full_rank) for share in SHARES)]


def _spread(ranks: Sequence[int], full: int) -> str:
    """Return ranks as mean, extremes and share of the full rank.

    >>> _spread([2, 3, 4], 30), _spread([2, 2], 8)
    ('3.0 (2-4), 10%', '2.0, 25%')
    """
    extremes = f" ({min(ranks)}-{max(ranks)})" if min(ranks) < max(ranks) else ""
    return f"{fmean(ranks):.1f}{extremes}, {fmean(ranks) / full:.0%}"


def _reached_row(r: Reached) -> list[str]:
    rank = "full" if r.method == "independent" else NONE if r.rank is None else str(r.rank)
    return [r.label, rank, NONE if r.energy is None else number(r.energy, "percent"),
            interval(r.accuracy.mean, r.accuracy.half_width, "percent"), str(r.accuracy.n)]


def _as_json(s: Spectrum) -> dict[str, Any]:
    """Return a spectrum as plain values."""
    changes = [{**asdict(c), "full_rank": c.full_rank, "ranks": {str(share): c.rank(share) for share in SHARES},
                "relative_ranks": {str(share): c.rank(share) / c.full_rank for share in SHARES}} for c in s.changes]
    return {"label": s.label, "setting": s.setting, "changes": changes,
            "reached": [asdict(r) for r in s.reached], "notes": s.notes}


def draw(spectra: Sequence[Spectrum], path: Path) -> None:
    """Draw spectra into a .png or .svg file: energy against rank for each layer, and accuracy against rank.

    Each spectrum is a row with both plots. The same numbers give the same bytes.

    Raises:
        StoreError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style.styled():
        figure = Figure(figsize=(10, 3.9 * len(spectra)), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, s in zip(figure.subplots(len(spectra), 2, squeeze=False), spectra, strict=True):
            _energies(figure, axes[0], s)
            _accuracies(axes[1], s)
        try:
            figure.savefig(path, dpi=150, metadata={"Date": None, "Creator": None} if path.suffix == ".svg" else None)
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


def _energies(figure: Figure, axes: Axes, s: Spectrum) -> None:
    """Draw each layer's (or its parts') mean over tasks and seeds, from the first layer (dark) to the last (light)."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    colors = colormaps["viridis"].resampled(256)
    layers = s.finest
    for i, layer in enumerate(layers):
        curves = [energy_shares(c.singular) for c in s.of(layer)]
        mean = [fmean(values) for values in zip(*curves, strict=True)]
        axes.plot(range(1, len(mean) + 1), mean, color=colors(0.9 * i / max(len(layers) - 1, 1)), label=layer,
                  linewidth=1.4, marker=".")
    for share in SHARES:
        axes.axhline(share, color=style.PALE, linewidth=0.7, linestyle=":")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    style.percentages(axes.yaxis)
    axes.set(xlabel="rank", ylabel="energy held (%)", ylim=(None, 1.01), title=style.shorten(s.label, 60))
    axes.grid(True)
    if len(layers) <= MOST_NAMES:
        axes.legend(loc="lower right")
    else:
        scale = ScalarMappable(Normalize(1, len(layers)), colors)
        figure.colorbar(scale, ax=axes, label="layer, from the input on")


def _accuracies(axes: Axes, s: Spectrum) -> None:
    """Draw the accuracy of methods at their ranks, and that of full fine-tuning as a line."""
    for i, method in enumerate(dict.fromkeys(r.method for r in s.reached if r.rank is not None)):
        points = [(r.rank, r.accuracy) for r in s.reached if r.method == method and r.rank is not None]
        axes.errorbar([rank for rank, _ in points], [a.mean for _, a in points],
                      [a.half_width or 0.0 for _, a in points], color=style.PALETTE[i], marker=style.MARKERS[i],
                      linestyle="none", capsize=3, label=method)
    full = next(r for r in s.reached if r.method == "independent")
    axes.axhline(full.accuracy.mean, color=style.PALE, linewidth=1.2, linestyle="--", label="independent (full rank)")
    axes.set_xscale("symlog", base=2, linthresh=1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    style.percentages(axes.yaxis)
    axes.set(xlabel="rank", ylabel="ACC (%)", title=style.shorten(s.setting, 60))
    axes.set_xlim(left=-0.3)
    axes.grid(True)
    axes.legend(loc="lower right")
