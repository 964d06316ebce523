import re
import shutil
import subprocess
from dataclasses import replace

import pytest
from helpers.records import make_matrix, make_record

from clbench.report import build
from clbench.report.analysis.method_records import MARKS
from clbench.report.formats.latex import escape, render, table
from clbench.report.model import Cell, Column, Row, Table

NASTY = "[a_b] 50% $x$ #1 {z} ~^ \\end{tabular} & * -- ,, <t> \"q\" 'r' `s` é ł ß λ ± → † 漢 \N{GRINNING FACE} e\u0301"


def cell_text(text, **kwargs):
    made = table(Table("t", (Column("c", "percent"),), (Row("r", (Cell(text, 0.5, **kwargs),)),)), "s", "l")
    return re.search(r"^r & (.*) \\\\$", made, re.M)[1]


@pytest.mark.parametrize(("text", "kwargs", "expected"), [
    ("97.40 ± 0.66", {}, r"$97.40 \pm 0.66$"), ("-0.04 ± 0.36", {"bold": True}, r"$\mathbf{-0.04 \pm 0.36}$"),
    ("1.93 MB", {"second": True}, r"\underline{$1.93$~MB}"), ("1,916,810", {}, "$1{,}916{,}810$"),
    ("7.7e-06", {}, r"$7.7 \times 10^{-6}$"), ("98.31 ± n/a", {}, r"$98.31$~$\pm$ n/a"), ("\N{EN DASH}", {}, "--")])
def test_numbers_are_in_math_mode_best_bold_second_underlined(text, kwargs, expected):
    assert cell_text(text, **kwargs) == expected


@pytest.mark.parametrize(("text", "expected"), [
    ("a_b", r"a\_b"), ("50%", r"50\%"), ("{$#&}", r"\{\$\#\&\}"), ("~^\\", r"\textasciitilde{}\textasciicircum{}"
     r"\textbackslash{}"), ("--x-y", r"-{}-x-y"), ("é", r"\'{e}"), ("\u01d8", r"\texttt{U+01D8}"),
    ("Łódź", r"\L{}\'{o}d\'{z}"), ("λΩ↑", r"$\lambda$$\Omega$$\uparrow$"), ("漢", r"\texttt{U+6F22}"),
    ("[*]", "{[}{*}{]}"), ("¶", r"\P{}")])
def test_escape(text, expected):
    assert escape(text) == expected


def test_every_mark_of_a_row_is_known_to_latex():
    assert not [mark for mark in MARKS if "U+" in escape(mark)]


def test_references_are_set_apart_and_notes_stand_below():
    records = [make_record(m, s) for s in (0, 1) for m in ("naive", "lora", "ewc")]
    text = render(build([*records, make_record("er", 0, status="diverged")]))
    comparison = text[text.index("% table split-mnist-5k-task-mlp-comparison"):]
    comparison = comparison[:comparison.index("% end")]
    lines = comparison.splitlines()
    assert lines[lines.index(next(line for line in lines if line.startswith("Fine-tuning &"))) - 1] == r"\midrule"
    assert r"ACC\\(\%) $\uparrow$" in comparison
    assert "No result: er, seed 0: diverged" in comparison.replace(r"\allowbreak{}", "")
    assert text.isascii()
    labels = re.findall(r"\\label\{(.*)\}", text)
    assert len(labels) == len(set(labels)) == text.count(r"\begin{table}")


def test_differences_and_ranks_are_tables_too():
    records = [make_record(m, s, make_matrix(3, shift + s / 1000), benchmark=b) for b in ("x", "y", "z", "w", "v")
               for s in range(6) for m, shift in (("lora", 0.05), ("ewc", 0.02), ("er", 0.0))]
    report = build(records)
    text = render(report)
    section = report.sections[0]
    assert section.comparisons and section.verdicts and report.rankings
    for data in (*section.comparisons, *report.rankings):
        assert rf"\caption{{{escape(data.title)}. " in text
    assert escape(section.verdicts[0]) in text.replace(r"\allowbreak{}", "")
    assert text.index(r"\section*{Across settings}") < text.index(r"\section*{How to read")


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not installed")
def test_it_compiles_whatever_the_records_hold(tmp_path):
    records = [make_record(m, s, label=NASTY if m == "lora" else m, benchmark=NASTY, notes=[NASTY], command=NASTY,
                           device=NASTY, machine="long/path:" * 40, versions={NASTY: NASTY}, kept_bytes={NASTY: 3})
               for s in (0, 1) for m in ("lora", "ewc", "naive")]
    records += [make_record("lora", s, label=NASTY + "2", options={"i": i}) for s in (0, 1) for i in range(60)]
    every = " ".join(chr(c) for c in range(0x20, 0x500) if chr(c).isprintable())
    report = build([*records, make_record("er", 2, status="failed", message=NASTY + every)])
    first = report.sections[0]
    rows = tuple(replace(row, cells=tuple(replace(c, second=True) for c in row.cells)) for row in first.comparison.rows)
    report = replace(report, sections=(replace(first, comparison=replace(first.comparison, rows=rows)),
                                       *report.sections[1:]))
    (tmp_path / "report.tex").write_text(render(report))
    done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "report.tex"], cwd=tmp_path,
                          capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-3000:]
    assert "Missing character" not in (tmp_path / "report.log").read_text(errors="replace")
    wide = [float(w) for w in re.findall(r"Overfull \\hbox \(([\d.]+)pt", done.stdout)]
    assert not any(w > 20 for w in wide), wide
