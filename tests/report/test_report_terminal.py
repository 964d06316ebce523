import io

import pytest
from helpers.records import make_record
from rich.cells import cell_len
from rich.console import Console

from clbench.report import build
from clbench.report.formats.terminal import fit, show, standard_output


def study():
    records = [make_record(m, s, label=f"{m}:a=1", kept_bytes={"base": size})
               for s in (0, 1) for m, size in (("naive", 4000), ("lora", 4000), ("ewc", 8000))]
    return build([*records, make_record("er", 0, status="diverged"), make_record("er", 1)])


def printed(report, terminal, width=80, encoding="utf-8"):
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, newline="\n")
    show(report, Console(file=file, force_terminal=terminal, width=width, color_system=None))
    file.flush()
    return raw.getvalue().decode(encoding)


def texts(report):
    (section,) = report.sections
    return [row.label for row in section.comparison.rows] + [c.text for row in section.comparison.rows
                                                             for c in row.cells]


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_a_terminal_of_any_width_shows_every_cell_whole(width):
    report = study()
    out = printed(report, terminal=True, width=width)
    assert all(text in out for text in texts(report))
    assert "…" not in out
    assert max(cell_len(line) for line in out.splitlines()) <= width


def test_a_wide_terminal_shows_one_table():
    assert printed(study(), terminal=True, width=200).count("\nmethod") == 1
    assert printed(study(), terminal=True, width=80).count("\nmethod") > 1


def test_the_narrowest_terminal_folds_and_does_not_cut():
    out = printed(study(), terminal=True, width=20)
    assert "…" not in out
    assert max(cell_len(line) for line in out.splitlines()) <= 20


def test_a_pipe_gets_a_plain_table():
    report = study()
    out = printed(report, terminal=False, width=200)
    assert "\x1b" not in out
    (line,) = [x for x in out.splitlines() if x.startswith("lora:a=1  ")]
    assert "4.00 kB *" in line and "12.0 kB" not in line and "80.00 ± 0.00 *" not in line
    (reference,) = [x for x in out.splitlines() if x.startswith("Fine-tuning  ")]
    assert "*" not in reference
    assert "no result: er, seed 0: diverged" in out
    first = out[:out.index("\nmethod")].splitlines()
    assert first[1:3] == [
        "lora:a=1 (80.0%) leads. It equals EWC on every seed. It equals er on shared seeds.",
        "References: Fine-tuning 80.0%. Of 3 methods, none is significantly better than Fine-tuning."]
    assert "Caution: Not every seed gave a result: er." in first and "Caution: No method was tuned." in first
    below = out[out.index("\nmethod"):]
    assert "Names for --methods: EWC = ewc:a=1; Fine-tuning = naive:a=1." in below and "* marks bold." in below
    assert "benchmark: split-mnist-5k, Task-IL" in below and "seeds: 0, 1" in below


def test_references_stand_behind_a_line():
    lines = printed(study(), terminal=False).splitlines()
    at = next(i for i, x in enumerate(lines) if x.startswith("Fine-tuning "))
    assert set(lines[at - 1]) == {"-", " "}


def test_a_console_without_unicode_gets_aligned_ascii():
    out = printed(study(), terminal=False, encoding="ascii")
    assert "80.00 +/- 0.00" in out and "(up)" in out
    lines = out.splitlines()
    rule = next(x for x in lines if x.startswith("---"))
    assert len(next(x for x in lines if x.startswith("lora:a=1  "))) <= len(rule)
    assert "80.00 +/- 0.00" in printed(study(), terminal=True, width=120, encoding="ascii")


def test_labels_are_not_taken_as_markup():
    report = build([make_record("lora", 0, label="[red]lora[/red]"), make_record("ewc", 0, label="\x1b[2Jewc")])
    for terminal in (True, False):
        out = printed(report, terminal=terminal, width=200)
        assert "[red]lora[/red]" in out
        assert "\x1b[2J" not in out


def test_fit_keeps_every_column_once_and_in_order():
    table = study().sections[0].comparison
    for width in (30, 70, 110, 300):
        parts = fit(table, width)
        assert [c for part in parts for c in part.columns] == list(table.columns)
        assert all([r.label for r in part.rows] == [r.label for r in table.rows] for part in parts)


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_pipe_of_any_width_shows_every_cell_whole(width):
    report = study()
    out = printed(report, terminal=False, width=width)
    tables = [line for line in out.splitlines() if line.startswith(("method ", "------"))]
    assert all(text in out for text in texts(report)) and "4.00 kB *" in out
    assert max(map(cell_len, tables)) <= width
    assert (out.count("\nmethod ") == 1) == (width == 200)


@pytest.mark.parametrize(("columns", "width"), [(None, 120), ("60", 60), ("200", 200)])
def test_without_a_terminal_columns_says_how_wide_tables_are(columns, width, monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    assert standard_output().width == width
    show(study())
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("------")]
    assert 0 < max(map(len, lines)) <= width
