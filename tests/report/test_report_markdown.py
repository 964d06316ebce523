import re

import pytest
from helpers.records import make_record

from clbench.core.errors import PluginError, StoreError
from clbench.core.hookspecs import ReportFormat
from clbench.core.registry import discover
from clbench.report import build, write
from clbench.report.formats.markdown import escape, render

NASTY = "a|b`c`<script>alert(1)</script>\n# head\n*x* _y_ [z](http://q) $m$ &lt; @team ~~s~~ \\"


def cells(line):
    return re.split(r"(?<!\\)\|", line)[1:-1]


def table_after(text, heading):
    lines = text[text.index(heading):].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    stop = next((i for i in range(start, len(lines)) if not lines[i].startswith("|")), len(lines))
    return [[c.strip() for c in cells(line)] for line in lines[start:stop]]


def study(**kwargs):
    return [make_record(m, s, **kwargs) for s in (0, 1) for m in ("naive", "lora", "ewc")]


def test_the_comparison_table_has_its_columns_and_rows():
    records = [*study(), *(make_record("er", s, kept_bytes={"base": 4400}) for s in (0, 1))]
    table = table_after(render(build(records)), "## split-mnist-5k")
    assert table[0] == ["method", "seeds", "accuracy (%) ↑", "difference to Fine-tuning (points)",
                        "forgetting (points) ↓", "backward transfer (points) ↑", "trainable parameters per task ↓",
                        "total parameters ↓", "storage ↓", "training time (s) ↓"]
    assert [row[0] for row in table[2:]] == ["lora", "EWC", "er", "*for reference*", "Fine-tuning"]
    assert table[2][2] == table[6][2] == "80.00 ± 0.00"
    assert [row[3] for row in table[2:]] == ["+0.0 (equal)"] * 3 + [""] * 2
    assert [row[8] for row in table[2:]] == ["**4.00 kB**", "**4.00 kB**", "4.40 kB", "", "4.00 kB"]
    assert len({len(row) for row in table}) == 1


def test_it_has_matrices_settings_provenance_and_the_command():
    text = render(build(study(command="clbench run --methods lora,ewc --seeds 2")))
    for heading in ("**lora: R, mean over 2 seeds**", "**Settings**", "**Provenance**", "**Command**",
                    "## How to read the tables"):
        assert heading in text
    assert "```sh\nclbench run --methods lora,ewc --seeds 2\n```" in text
    assert "torch 2.13.0" in text
    assert table_after(text, "**lora: R")[3][:3] == ["after task 1", "90.00", "50.00"]
    assert text.endswith("\n") and not text.endswith("\n\n")


def test_failed_trials_and_inferred_tasks_are_marked():
    records = [*study(), make_record("er", 0, status="diverged"), make_record("er", 1),
               make_record("pnn", 0, task_inference=[[0.5] * 3] * 4),
               make_record("pnn", 1, task_inference=[[0.5] * 3] * 4)]
    text = render(build(records))
    table = {row[0]: row for row in table_after(text, "## split-mnist-5k")}
    assert table["er"][1] == "1/2; 1 diverged"
    assert "PNN †" in table
    assert "**Trials without a result**" in text
    assert "- † The method was not given the task ID of a test sample and inferred it." in text


def test_nothing_from_a_record_is_taken_as_markdown():
    records = [make_record("lora", s, label=NASTY, benchmark=NASTY, notes=[NASTY], stream_notes=[NASTY],
                           command=NASTY + " ```` end", device=NASTY, machine=NASTY, plugin=NASTY,
                           versions={NASTY: NASTY}, kept_bytes={NASTY: 3}) for s in (0, 1)]
    records.append(make_record("lora", 2, label=NASTY, benchmark=NASTY, status="failed", message=NASTY))
    text = render(build(records))
    folds = re.compile(r"^(<details><summary>[A-Z0-9][A-Za-z, ()]+</summary>|</details>)$", re.M)
    assert len(folds.findall(text)) == 8
    text = folds.sub("", text)
    prose, code = re.sub(r"^!\[(.*)\]\(figures/[a-z0-9.-]*\.svg\)$", r"\1", text, flags=re.M).split("**Command**")
    assert "<" not in prose and "@" not in prose
    assert not re.search(r"(?<!\\)[`$~\[]", prose)
    fence = re.search(r"^(`+)sh\n(.*)\n(`+)$", code, re.M)
    assert fence[1] == fence[3] == "`" * 5
    assert "\n# head" not in text
    tables = re.findall(r"(?:^\|.*\n)+", prose, re.M)
    assert len(tables) == 6  # the comparison, the setting, metrics, costs, bytes by role, R
    for table in tables:
        assert len({len(cells(line)) for line in table.splitlines()}) == 1, table


@pytest.mark.parametrize(("text", "expected"), [
    ("lora:rank=8", "lora:rank=8"), ("a|b", r"a\|b"), ("a\nb", "a b"), ("<b>&", "&lt;b&gt;&amp;"),
    ("- item", r"\- item"), ("1. item", r"1\. item"), ("---", r"\---"), ("=", r"\="), ("-25.00", "-25.00"),
    ("68.30 ± 0.75", "68.30 ± 0.75"), ("class_order", r"class\_order"), ("#3", r"\#3"), ("@team", "&#64;team"),
])
def test_escape(text, expected):
    assert escape(text) == expected


def test_write_puts_the_file_in_place_whole(tmp_path):
    info = discover().report_format("md")
    path = write(build(study()), tmp_path / "run", info)
    assert path == tmp_path / "run" / "report.md"
    assert path.read_text(encoding="utf-8") == render(build(study()))
    write(build([make_record("er")]), tmp_path / "run", info)
    assert path.read_text(encoding="utf-8") == render(build([make_record("er")]))
    assert [p.name for p in path.parent.iterdir()] == ["report.md"]


def test_a_format_that_fails_is_named_and_leaves_the_old_file(tmp_path):
    (tmp_path / "report.x").write_text("old")

    def fail(report):
        raise ValueError("no")

    for render_, message in ((fail, "'x' failed: ValueError: no"), (lambda report: b"", "'x' returned bytes"),
                             ("nowhere:render", "cannot load nowhere:render")):
        with pytest.raises(PluginError, match=message):
            write(build(study()), tmp_path, ReportFormat("x", ".x", render_, ""))
    assert (tmp_path / "report.x").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.x"]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write .*report\.md: Not a directory|File exists"):
        write(build(study()), tmp_path / "file", discover().report_format("md"))
