r"""The report as a complete LaTeX document whose tables can be copied into a paper.

Each table is a separate `table` environment between comments. It needs booktabs and adjustbox. The file is ASCII.
Characters that plain LaTeX lacks are written as U+XXXX (`clbench.report.formats.latex.escape`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import zip_longest

from clbench.core.objective import ACCURACY, Metric, objective_of
from clbench.report.analysis.headline import LEADS
from clbench.report.figures.data import slugs
from clbench.report.model import Cell, Column, Report, Row, Section, Table

_HEAD = r"""
% A report by clbench. It compiles as it is: pdflatex report.tex
% To use a table in a paper, copy it from its "% table" to its "% end"; it needs \usepackage{booktabs,adjustbox}.
\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage[margin=2.5cm]{geometry}
\usepackage{booktabs,adjustbox,float}
\floatplacement{table}{H}  % here, each table stands where it is written
\setlength{\belowcaptionskip}{4pt}
\IfFileExists{lmodern.sty}{\usepackage{lmodern}}{}
\emergencystretch=3em
\begin{document}
""".strip()


def render(report: Report) -> str:
    """Return report.tex: tables with their notes, settings, provenance and commands, by section."""
    blocks = [_HEAD, rf"\section*{{{escape(report.title)}}}"]
    for section, name in zip(report.sections, slugs([s.title for s in report.sections]), strict=True):
        blocks += _section(section, name)
    if report.rankings:
        blocks.append(r"\section*{Across settings}")
        blocks += [table(data, "Across settings", f"ranks-{i}", report.ranking_verdicts if i == 1 else ())
                   for i, data in enumerate(report.rankings, start=1)]
    blocks += [r"\section*{How to read the tables}", _items(map(_prose, report.notes)), r"\end{document}"]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _section(section: Section, name: str) -> Iterator[str]:
    yield rf"\section*{{{escape(section.title)}}}"
    yield _items((rf"\textbf{{{escape(LEADS[topic])}}} " if LEADS[topic] else "") + _prose(text)
                 for topic, text in section.headline)
    yield _items(_prose(f"{name}: {value}") for name, value in section.setting)
    notes = [*section.footnote, _explain_abbreviations(section.metric),
             *(f"No result: {problem}" for problem in section.problems), *section.notes, *section.verdicts]
    tables = (section.comparison, *section.comparisons, *section.details,
              *(general.table for general in section.general), *section.matrices)
    for data, title in zip(tables, slugs([data.title for data in tables]), strict=True):
        yield table(data, section.title, f"{name}-{title}", notes if data is section.comparison else ())
    yield r"\subsection*{Settings}"
    yield _items(_prose(f"{key}: {value}") for key, value in section.settings)
    yield r"\subsection*{Provenance}"
    yield _items(_prose(f"{key}: {value}") for key, value in section.provenance)
    yield r"\subsection*{Command}"
    yield _items(rf"\texttt{{{_prose(command)}}}" for command in section.commands)


def _explain_abbreviations(metric: Metric) -> str:
    """Explain the short titles of columns and the line under a number."""
    names = [f"{metric.short} is the mean {metric.label} over tasks after the last one"]
    if metric != ACCURACY:
        names += [f"{other.short} is the {other.label}" for other in objective_of(metric).metrics
                  if other != metric and other.short != other.label]
        names.append("learned values are those just after each task was trained")
    return (f"{', '.join([*names, 'BWT backward transfer'])}. The second best mean is underlined. References are below "
            "the line.")


def table(data: Table, subject: str, label: str, notes: Iterable[str] = ()) -> str:
    r"""Return one table as a float that fits the page, with references below a rule and notes below the table.

    Args:
        data: the table.
        subject: text after the title in the caption.
        label: the label of the table, for `\ref{tab:<label>}`.
        notes: lines below the table.
    """
    aligned = "".join("l" if column.unit == "text" else "r" for column in data.columns)
    lines = [rf"% table {label}", r"\begin{table}", r"\centering",
             rf"\caption{{{escape(data.title)}. {escape(subject)}.}}", rf"\label{{tab:{label}}}",
             r"\begin{adjustbox}{max width=\linewidth, max totalheight=0.85\textheight}",
             rf"\begin{{tabular}}{{@{{}}l{aligned}@{{}}}}", r"\toprule",
             " & ".join([escape(data.corner), *map(_header, data.columns)]) + r" \\", r"\midrule",
             *_rows(data.rows), r"\bottomrule", r"\end{tabular}", r"\end{adjustbox}"]
    if notes:
        lines += [r"\par\smallskip", r"\begin{minipage}{\linewidth}\footnotesize\raggedright",
                  "\\par\n".join(map(_prose, notes)), r"\end{minipage}"]
    return "\n".join([*lines, r"\end{table}", f"% end {label}"])


def _rows(rows: Iterable[Row]) -> Iterator[str]:
    previous = None
    for row in rows:
        if previous is not None and row.reference and not previous.reference:
            yield r"\midrule"
        yield " & ".join([escape(f"{row.label} {row.marks}".strip()), *map(_cell, row.cells)]) + r" \\"
        previous = row


def _header(column: Column) -> str:
    """Return the header of a column, as a nested tabular if it has several lines."""
    lines = replace(column, heading="").lines  # the short title, which `_explain_abbreviations` explains
    if len(lines) == 1:
        return escape(lines[0])
    side = "l" if column.unit == "text" else "r"
    return rf"\begin{{tabular}}[b]{{@{{}}{side}@{{}}}}" + r"\\".join(map(escape, lines)) + r"\end{tabular}"


def _cell(cell: Cell) -> str:
    """Return a cell, with its number in math mode."""
    if cell.mean is None:
        return escape(cell.text)
    number = r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?"
    parts = re.split(rf"({number}(?: ± {number})?)", cell.text, maxsplit=1)
    if len(parts) < 3:
        return escape(cell.text)
    inside = parts[1].replace(",", "{,}").replace("±", r"\pm")
    inside = re.sub(r"e\+?(-?)0*(\d+)", r" \\times 10^{\1\2}", inside)
    inside = rf"\mathbf{{{inside}}}" if cell.bold else inside
    text = f"{escape(parts[0])}${inside}${_format_suffix(parts[2])}"
    return rf"\underline{{{text}}}" if cell.second and not cell.bold else text


def _format_suffix(text: str) -> str:
    """Return the text after a number, with its leading space non-breaking."""
    return f"~{escape(text[1:])}" if text.startswith(" ") else escape(text)


def _prose(text: str) -> str:
    """Return escaped text whose long words (`lora:rank=4:alpha=8`, paths) may be broken into lines."""
    return re.sub(r"([:/,])(?=[^\s{])", r"\1\\allowbreak{}", escape(text))


def _items(lines: Iterable[str]) -> str:
    items = "\n".join(rf"\item {line}" for line in lines)
    return f"\\begin{{itemize}}\n\\raggedright\n{items}\n\\end{{itemize}}" if items else ""


_SPECIAL = {"\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_",
            "%": r"\%", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
            ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}", "'": r"\textquotesingle{}",
            "`": r"\textasciigrave{}", "[": "{[}", "]": "{]}", "*": "{*}"}  # else a command may read these
_LETTERS = {"ß": "ss", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "å": "aa", "Å": "AA", "ł": "l",
            "Ł": "L", "đ": "dj", "Đ": "DJ", "þ": "th", "Þ": "TH", "ð": "dh",
            "\N{LATIN SMALL LETTER DOTLESS I}": "i", "ŋ": "ng", "Ŋ": "NG"}
_SYMBOLS = {
    "\N{NO-BREAK SPACE}": "~", "\N{EN DASH}": "--", "\N{EM DASH}": "---", "\N{HORIZONTAL ELLIPSIS}": r"\ldots{}",
    "\N{LEFT SINGLE QUOTATION MARK}": r"\textquoteleft{}", "\N{RIGHT SINGLE QUOTATION MARK}": r"\textquoteright{}",
    "\N{LEFT DOUBLE QUOTATION MARK}": r"\textquotedblleft{}", "†": r"$^{\dagger}$", "‡": r"$^{\ddagger}$",
    "\N{RIGHT DOUBLE QUOTATION MARK}": r"\textquotedblright{}", "§": r"\S{}", "•": r"\textbullet{}",
    "¶": r"\P{}", "※": r"$^{\ast}$", "△": r"$^{\triangle}$", "○": r"$^{\circ}$", "°": r"\textdegree{}",
    "€": r"\texteuro{}", "\N{REPLACEMENT CHARACTER}": "?"}
_MATH = {"±": "pm", "\N{MULTIPLICATION SIGN}": "times", "÷": "div", "·": "cdot", "↑": "uparrow", "↓": "downarrow",
         "→": "rightarrow", "←": "leftarrow", "↔": "leftrightarrow", "≤": "leq", "≥": "geq", "≠": "neq",
         "≈": "approx", "∞": "infty", "∈": "in", "√": "surd", "∑": "sum", "∂": "partial", "∇": "nabla",
         "\N{MINUS SIGN}": "-", "²": "^2", "³": "^3", "µ": "mu"}
_GREEK = "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΥΦΨΩ"  # letters that LaTeX has a command for
_ACCENTS = dict(zip("\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0327\u0328",
                    "`'^~=u.\"rHvck", strict=True))


def escape(text: str) -> str:
    r"""Return ASCII LaTeX code that shows a text. A character that plain LaTeX lacks becomes U+XXXX.

    >>> print(escape("a_b & 50% ± é \u6f22"))
    a\_b \& 50\% $\pm$ \'{e} \texttt{U+6F22}
    """
    return "".join(_character(c) + ("{}" if c == following and c in "-," else "")  # LaTeX joins two of them
                   for c, following in zip_longest(text, text[1:]))


def _character(c: str) -> str:
    if c in _TABLE:
        return _TABLE[c]
    if c.isascii():
        return c
    base, mark = (parts := unicodedata.normalize("NFD", c))[0], parts[1:]
    if base.isascii() and base.isalpha() and mark in _ACCENTS:
        return rf"\{_ACCENTS[mark]}{{{base}}}"
    return rf"\texttt{{U+{ord(c):04X}}}"


def _greek(letter: str) -> str:
    """Return the name of a Greek letter in LaTeX: alpha, Omega."""
    name = unicodedata.name(letter).split()[-1].lower().replace("lamda", "lambda")
    return name if letter.islower() else name.capitalize()


_TABLE = {**_SPECIAL, **_SYMBOLS, **{c: rf"\{name}{{}}" for c, name in _LETTERS.items()},
          **{c: f"${name if name in ('-', '^2', '^3') else chr(92) + name}$" for c, name in _MATH.items()},
          **{c: rf"$\{_greek(c)}$" for c in _GREEK}}
