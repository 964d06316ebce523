"""docs/results/: what its pages say is what the committed records, references and measurements say."""

import importlib
import json
import re
from collections import Counter
from typing import get_args

import pytest
from helpers import ROOT

from clbench.experiment import references
from clbench.results.verification import Verdict

OVERVIEWS = ["index", "verify", "explain", "speed"]
REPORTS = ROOT / "reports"


@pytest.fixture(scope="module")
def made():
    """Import the scripts of docs/ that write the pages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs")
        return importlib.import_module("results_pages")


@pytest.fixture(scope="module")
def facts(made):
    return importlib.import_module("results_facts")


def page(name):
    return (ROOT / "docs" / "results" / f"{name}.md").read_text(encoding="utf-8")


def sections(text):
    return dict(part.split("\n", 1) for part in re.split("^## ", text, flags=re.MULTILINE)[1:])


@pytest.mark.slow
def test_the_pages_of_results_are_current(made, facts):
    pages = made.pages()
    assert set(pages) == {f"{name}.md" for name in OVERVIEWS} | {f"{one.slug}.md" for one in facts.studies()}
    assert set(pages) == {path.name for path in (ROOT / "docs" / "results").glob("*.md")}
    assert [name for name, text in pages.items() if text != page(name.removesuffix(".md"))] == [], "make docs-pages"


def test_every_folder_with_records_is_on_a_page(facts):
    text = "".join(map(page, [*OVERVIEWS, *(one.slug for one in facts.studies())]))
    for folder in REPORTS.rglob("records"):
        assert f"](../../{folder.parent.relative_to(ROOT)}/" in text


def test_the_listing_of_verify_has_the_verdicts_of_the_page():
    lines = [line.split("|")[1:-1] for line in page("verify").splitlines() if line.startswith("|")]
    rows = [list(map(str.strip, line)) for line in lines]
    by_title = {re.sub(r"^\[(.*)\]\(.*\)$", r"\1", row[0]): row for row in rows}
    statuses = references.statuses()
    for name, path in references.shipped().items():
        row, verdicts = by_title[references.read_reference(path).title], statuses[name].verdicts
        if "no records" in row[-1]:
            assert not verdicts
        else:
            assert [int(cell) for cell in row[2:6]] == [verdicts.get(verdict, 0) for verdict in get_args(Verdict)], name
        assert statuses[name].flops, "benchmarks/reference_status.py --count"


def test_the_index_links_every_study(facts):
    rows = re.findall(r"^\| \[(.+?)\]\((\S+)\.md\) \|", page("index"), re.MULTILINE)
    assert [slug for _, slug in rows] == [one.slug for one in facts.studies()]
    assert len({title for title, _ in rows}) == len(rows) > 25


def test_a_study_says_what_its_records_say(facts):
    for one in facts.studies():
        records = [json.loads(path.read_text()) for path in one.folder.glob("records/*.json")]
        text = page(one.slug)
        done = sum(record["status"] == "done" for record in records)
        assert f"| trials | {len(records)}, {'all' if done == len(records) else done} done" in text
        came = [record["provenance"] for record in records]
        starts = sorted(p["started"][:16].replace("T", " ") for p in came)
        assert re.search(rf"^\| date \| {starts[0]} to ({starts[-1]}|{starts[-1][11:]}) UTC ", text, re.MULTILINE)
        row = re.search(r"^\| commit \| (.*) \|$", text, re.MULTILINE)[1]
        assert {found[:10] for found in re.findall(r"[0-9a-f]{10}", row)} == {p["git"][:10] for p in came if p["git"]}
        assert all(p["machine"] in text for p in came)
        assert all(re.sub(r" --.*", "", p["command"]) in text for p in came)
        seconds = sum(sum(record["timings"].get(kind, ())) for record in records
                      for kind in ("train", "consolidate", "evaluate", "curve"))
        took = re.search(r"^\| time \| ([\d.]+) (hours|minutes),", text, re.MULTILINE)
        assert float(took[1]) == pytest.approx(seconds / {"hours": 3600, "minutes": 60}[took[2]], abs=0.51)
        without = [not p.get("code") for p in came]
        assert ("hash of the method's code" in text) == any(without)
        assert (f"hash of the method's code (in {sum(without)} of" in text) == (any(without) and not all(without))


def test_what_repeats_a_study_does_not_write_into_its_committed_folder(made, facts):
    for one in facts.studies():
        commands = made.repeat(one)
        assert sum(command.startswith("clbench run ") for command in commands) == 1
        assert commands[-1].endswith(f"--out runs/{one.name}") or not commands[-1].startswith("clbench run")
        assert not any("--out reports/" in command for command in commands)


def test_every_file_behind_a_study_says_what_it_is_and_what_it_needs(facts):
    for one in facts.studies():
        assert one.file, f"{one.name}: no file in benchmarks/ has this name"
        assert 5 < len(one.head.title) <= 120 and one.head.text
        assert "/opt/" not in str(facts.rows(one.records)[:3])


def test_verdicts_are_those_of_the_reports():
    for path in REPORTS.glob("verify/*/verify.md"):
        table = path.read_text().split("\n## ")[0]
        counts = Counter(re.findall(r"\| (reproduced|not reproduced|inconclusive|not run) +\|$", table, re.MULTILINE))
        row, = (line for line in page("verify").splitlines() if f"/{path.parent.name}/verify.md) |" in line)
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[2:6] == [str(counts[word]) for word in ("reproduced", "not reproduced", "inconclusive", "not run")]


def test_speeds_against_avalanche_are_those_of_the_reports():
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page("speed").splitlines()
            if re.match(r"\| AVX", line)]
    expected = []
    for path in sorted(REPORTS.glob("speed/*/compare.md")):
        for title, text in sections(path.read_text()).items():
            ratios = {cells[0].strip(): float(cells[5]) for line in text.splitlines() if line.startswith("| ")
                      and (cells := line.strip("|").split("|"))[5].strip() not in ("-", "whole ÷ stock")}
            model, method, batch = title.split(", ")
            best = [max((r for name, r in ratios.items() if name.startswith("torch")), default=None),
                    ratios["clbench"], ratios.get("clbench bf16"),
                    max((r for name, r in ratios.items() if name.endswith(" seeds")), default=None)]
            expected.append(([path.parent.name.split("-")[1].upper(),
                              f"`{model}`, {method}, {batch.removeprefix('batch ')}"], best))
    assert [row[:2] for row in rows] == [names for names, _ in expected]
    for row, (_, best) in zip(rows, expected, strict=True):
        for cell, ratio in zip(row[2:], best, strict=True):
            assert (cell == "") if ratio is None else float(cell) == pytest.approx(ratio, abs=0.056)


HEAD = """\
# What it is about: a first sentence. A second
# line.
#
# Needs data,
# and time.
#
#     clbench tune a.toml --trials 4 \\
#         --out runs/a
#     clbench run a.toml
#
# The rest.

benchmark = "x"  # none of this
"""


def test_the_head_of_a_file(facts):
    head = facts.head(HEAD)
    assert head.title == "What it is about"
    assert head.text == ("A first sentence. A second line.", "The rest.")
    assert head.needs == "data, and time."
    assert head.commands == ("clbench tune a.toml --trials 4 --out runs/a", "clbench run a.toml")


@pytest.mark.parametrize(("line", "title", "rest"), [
    ("# One sentence.", "One sentence", ()),
    ("# The question: what does it cost? More.", "The question: what does it cost?", ("More.",)),
    ("# A rate of 0.5 and 3:4, as said. More: of it.", "A rate of 0.5 and 3:4, as said", ("More: of it.",)),
    ("benchmark = 1", "", ()),
])
def test_the_title_of_a_file(facts, line, title, rest):
    head = facts.head(line + "\n")
    assert (head.title, head.text) == (title, rest)
