"""The report as one HTML file that needs no network: tables, and figures that a script draws from the tables."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from clbench.report.figures import style
from clbench.report.figures.data import slugs
from clbench.report.formats.choosable import LEADING, pack_choice
from clbench.report.formats.hints import explain
from clbench.report.formats.page import ranking_view, section_view
from clbench.report.formats.palette import css
from clbench.report.formatting import shorten_alt
from clbench.report.model import Cell, Column, Report

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

_SCRIPTS = ("dom.js", "axes.js", "lines.js", "panels.js", "steps.js", "arrival.js", "seeds.js", "parts.js", "pareto.js",
            "tables.js", "filter.js", "choose.js", "page.js")


# units whose texts a script can parse; texts of other units have prefixes such as k
PLAIN = ("percent", "points", "nats", "value", "count", "number", "seconds")


def render(report: Report, back: tuple[str, str] | None = None) -> str:
    """Return report.html: by section the tables, which can be sorted, figures, settings, provenance, commands.

    Args:
        report: the report, from `build`.
        back: address and name of a page to which the first line links.
    """
    styles = style.assign_styles(report.strategies)
    names = slugs([section.title for section in report.sections])
    views = [section_view(f"s{i}", slug, section, styles)
             for i, (slug, section) in enumerate(zip(names, report.sections, strict=True), start=1)]
    script = "(() => {\n\"use strict\";\n" + "\n".join(map(_asset, _SCRIPTS)) + "})();\n"
    return _environment().get_template("report.html").render(
        report=report, back=back, sections=views, ranking=ranking_view(report, styles), script=script,
        choice=pack_choice([(view.id, view.section) for view in views]), leading=LEADING,
        style=_asset("report.css") + css()) + "\n"


def render_page(template: str, **values: object) -> str:
    """Return a page without scripts, in the report's style."""
    return _environment().get_template(template).render(style=_asset("report.css") + css(), **values) + "\n"


def image_source(svg: bytes) -> str:
    """Return a data URI of an SVG image, which makes it part of the page."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


@cache
def _environment() -> Environment:
    import jinja2

    environment = jinja2.Environment(loader=jinja2.FunctionLoader(_asset), autoescape=True,
                                     undefined=jinja2.StrictUndefined)
    environment.tests["exact_as_text"] = _text_is_exact
    environment.filters |= {"brief": shorten_alt, "breakable": _allow_breaks, "digits": _digits, "explain": explain,
                            "sha256": _sha256, "split_command": _split_command}
    return environment


def _asset(name: str) -> str:
    return (files("clbench.report.formats") / "assets" / name).read_text(encoding="utf-8")


def _allow_breaks(text: str) -> Markup:
    """Return escaped text that may be broken after a colon. An arrow stays with the word before it."""
    from markupsafe import Markup

    parts = re.split("(?<=:)", re.sub(" (?=[↑↓]$)", "\N{NO-BREAK SPACE}", text))
    return Markup("<wbr>").join(parts)


def _split_command(text: str) -> tuple[str, str]:
    """Return a line without the command at its end, and the command: `tune: clbench tune a.toml`."""
    sentence, colon, words = text.partition(": clbench ")
    return sentence + colon[:1], f"clbench {words}" if colon else ""


def _digits(value: float) -> str:
    return f"{value:.6g}"


def _text_is_exact(cell: Cell, column: Column) -> bool:
    """Return whether a cell's number and interval follow from its text, up to the digits shown."""
    if column.unit not in PLAIN:
        return cell.mean == 0 and not cell.half_width
    if cell.low is None or cell.high is None or cell.mean is None:
        return True
    return math.isclose(cell.mean - cell.low, cell.high - cell.mean, rel_tol=1e-6, abs_tol=1e-12)


def _sha256(text: str) -> str:
    """Return the hash by which a content security policy names an inline script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
