import base64
import hashlib
import re
import subprocess
import sys
from html.parser import HTMLParser
from statistics import fmean

import pytest
from helpers import ROOT
from helpers.records import make_matrix, make_number_record, make_record

from clbench.core.objective import METRICS
from clbench.core.registry import discover
from clbench.report import build
from clbench.report.columns import COMPARISON
from clbench.report.figures import data
from clbench.report.figures.style import PALE, PALETTE, assign_styles
from clbench.report.formats import palette
from clbench.report.formats.hints import MEANINGS, explain
from clbench.report.formats.html import render
from clbench.report.formatting import NONE
from clbench.report.metric_columns import measures_of
from clbench.results.records import metric_of
from clbench.results.stats import mean_interval

NASTY = "</script><img src=x onerror='alert(1)'>\u2028{{ 7 * 7 }} \"a\" &lt; <b>"
EMPTY = {"meta", "link", "input", "wbr"}


class Page(HTMLParser):
    """A parser that checks that elements close in order, and keeps tables, texts and attributes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.names, self.attributes, self.tables, self.raw = [], [], [], {}, {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, name, attributes):
        self.names.append(name)
        self.attributes.append((name, dict(attributes)))
        if name not in EMPTY:
            self.open.append(name)
        if name == "table":
            self.rows = self.tables[dict(attributes)["id"]] = []
        if name == "tr":
            self.rows.append([])
        if name in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            self.raw[self.open[-1]] = self.raw.get(self.open[-1], "") + data
        elif any(name in ("td", "th") for name in self.open):
            self.rows[-1][-1] += data


def study(methods=("lora", "ewc", "naive"), seeds=3, **kwargs):
    return [make_record(m, s, make_matrix(shift=0.01 * s), trainable=[1000 * (i + 1)] * 3, **kwargs)
            for i, m in enumerate(methods) for s in range(seeds)]


def test_the_page_is_well_formed_and_holds_every_method_and_number():
    report = build(study())
    page = Page(render(report))
    section, = report.sections
    assert page.names.count("h1") == 1 and page.names[:2] == ["html", "head"]
    shown = page.tables["s1-comparison"]
    assert [row[0] for row in shown] == ["method", "lora", "EWC", "for reference", "Fine-tuning"]
    for row, ours in zip((shown[1], shown[2], shown[4]), section.comparison.rows, strict=True):
        assert row[1:] == [cell.text for cell in ours.cells]
    curves = data.values_over_tasks(section.results)
    assert page.tables["s1-accuracy"][1][1:] == [cell.text for cell in curves.rows[0].cells]
    for table in (*section.details, *section.matrices):
        assert any([r[1:] for r in found if len(r) > 1][1:] == [[c.text for c in r.cells] for r in table.rows]
                   for found in page.tables.values()), table.title


def test_tables_say_what_their_headers_head():
    page = Page(render(build(study())))
    scopes = [a.get("scope") for name, a in page.attributes if name == "th"]
    assert set(scopes) == {"col", "row", "rowgroup"}
    assert page.names.count("caption") == page.names.count("table")
    assert all(a.get("data-alt") for name, a in page.attributes if name == "figure")


def test_the_curves_are_means_over_the_tasks_seen_with_the_tables_interval():
    records = study(methods=("lora",))
    table = data.values_over_tasks(build(records).sections[0].results)
    for i, cell in enumerate(table.rows[0].cells, start=1):
        expected = mean_interval([fmean(r.R[i][:i]) for r in records])
        assert (cell.mean, cell.half_width) == (pytest.approx(expected.mean), pytest.approx(expected.half_width))


def test_seeds_without_a_result_have_a_dash_and_others_no_interval():
    records = [make_record("lora", 0), make_record("lora", 2), make_record("ewc", 1)]
    records.append(make_record("er", 0, status="failed"))
    section, = build(records).sections
    rows = data.values_by_seed(section.results, section.seeds).rows
    assert [[c.text for c in row.cells] for row in rows] == [
        ["80.00", NONE, "80.00", "80.00 ± 0.00"], [NONE, "80.00", NONE, "80.00 ± n/a"], [NONE] * 4]
    assert [c.text for c in data.forgetting_per_task(section.results).rows[2].cells] == [NONE] * 2


def test_the_same_records_give_the_same_page():
    code = ("import sys; sys.path.insert(0, 'tests')\nfrom report.test_report_html import build, render, study\n"
            "import hashlib; print(hashlib.sha256(render(build(study())).encode()).hexdigest())")
    here = hashlib.sha256(render(build(study())).encode()).hexdigest()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          cwd=ROOT)
    assert done.stdout.strip() == here


def test_nothing_from_a_record_is_markup_and_only_our_own_script_may_run():
    records = [make_record("lora", s, label=NASTY, benchmark=NASTY, notes=[NASTY], stream_notes=[NASTY], command=NASTY,
                           device=NASTY, machine=NASTY, plugin=NASTY, versions={NASTY: NASTY}, kept_bytes={NASTY: 3})
               for s in (0, 1)]
    records.append(make_record("ewc", 2, benchmark=NASTY, status="failed", message=NASTY))
    plain, page = Page(render(build(study()))), Page(render(build(records)))
    assert set(page.names) <= set(plain.names)
    assert page.names.count("script") == page.names.count("style") == 1
    assert page.raw == plain.raw
    assert "\u2028" not in render(build(records)) and "49" not in page.tables["s1-comparison"][1][0]
    assert not any(key.startswith("on") or key in ("style", "src") for _, a in page.attributes for key in a)
    policy = next(a["content"] for _, a in page.attributes if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ")
    for name in ("script", "style"):
        hashed = base64.b64encode(hashlib.sha256(page.raw[name].encode()).digest()).decode()
        assert f"{name}-src 'sha256-{hashed}'" in policy
    assert not re.search(r"https?:(?!//www\.w3\.org/2000/svg)", page.raw["script"] + page.raw["style"])


def test_ten_methods_of_ten_tasks_and_seeds_stay_below_300_kilobytes():
    records = [make_record(f"method-{m}", s, [[(m + 3 * s + 7 * i + j) % 97 / 97 for j in range(10)]
                                              for i in range(11)], trainable=[1000 * m + 1] * 10)
               for m in range(10) for s in range(10)]
    assert len(render(build(records)).encode()) < 300_000


def test_a_single_task_and_a_setting_where_all_failed_are_shown():
    records = [make_record("lora", 0, tasks=1), make_record("ewc", 0, status="failed", scenario="class")]
    page = Page(render(build(records)))
    kinds = [a["data-kind"] for name, a in page.attributes if name == "figure"]
    assert kinds == ["lines", "pareto", "seeds", "lines", "heat"]
    assert page.tables["s2-comparison"][1][:2] == ["EWC", "0/1; 1 failed"]


def test_seeds_of_different_numbers_of_tasks_have_the_figures_that_need_no_mean_over_tasks():
    trial = make_record("lora").trial
    records = [make_record("lora", s, tasks=2 + s, trainable=[1000] * (2 + s)) for s in (0, 1)]
    records = [r.model_copy(update={"trial": trial.model_copy(update={"seed": s})}) for s, r in enumerate(records)]
    page = Page(render(build(records)))
    kinds = [a["data-kind"] for name, a in page.attributes if name == "figure"]
    assert kinds == ["pareto", "seeds"]


def test_methods_have_the_colors_of_the_written_report_and_can_be_seen():
    css = palette.css()
    assert [palette.color_class(c) for c in (*PALETTE, PALE)] == ["c0", "c1", "c2", "c3", "c4", "c5", "gray"]
    assert f"--c1: {PALETTE[1]};" in css and f"--gray: {PALE};" in css
    found = assign_styles([("lora", False), ("ewc", False), ("naive", True)])
    page = Page(render(build(study())))
    assert [(a["data-color"], a["data-marker"]) for _, a in page.attributes if "data-color" in a] == [
        (palette.color_class(look.color), look.marker) for look in found.values()]
    for paper in (palette.LIGHT["paper"], palette.DARK["paper"]):
        block = next(part for part in css.split("}") if f"--paper: {paper};" in part)
        edges = re.findall(r"-edge: (#\w+);", block)
        assert len(edges) == 7 and all(palette.contrast(edge, paper) >= 3 for edge in edges)


@pytest.mark.parametrize("colors", [palette.LIGHT, palette.DARK], ids=["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(colors):
    assert palette.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert palette.contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # a well-known pair
    for text, behind in (("ink", "paper"), ("soft", "paper"), ("soft", "wash"), ("ink", "wash"), ("accent", "paper"),
                         ("warn", "warn-paper"), ("ink", "warn-paper"), ("paper", "ink")):
        assert palette.contrast(colors[text], colors[behind]) >= 4.5, (text, behind)
    script = Page(render(build(study()))).raw["script"]
    deep = float(re.search(r"const DEEP = ([\d.]+)", script)[1])
    for i in range(1001):
        cell = palette.mix(colors["cold"], colors["hot"], i / 1000)
        assert palette.contrast(cell, colors["on-hot" if i / 1000 > deep else "on-cold"]) >= 4.5, i


def test_the_format_is_found_by_name():
    info = discover().report_format("html")
    assert (info.name, info.suffix) == ("html", ".html")


def test_bold_and_underlined_values_are_explained():
    def key(records):
        page = render(build(records))
        return (re.search(r'<p class="summary">(.*?)</p>', page, re.DOTALL)[1],
                re.search(r'<p class="key">(.*?)<a href="#reading"', page, re.DOTALL)[1])

    costs = {"ewc": 100, "lora": 50, "er": 100}
    footnote, told = key([make_record(m, s, parameters={"base": c}) for m, c in costs.items() for s in (0, 1)])
    assert ("Bold marks a value that is significantly better than that of every other method, or the smallest count. "
            "References are left out of this comparison.") in footnote
    assert told.strip() == "<u>Underlined</u> is the next best mean."
    assert "nderlined" not in key([make_record("ewc", s) for s in (0, 1)])[1]


def test_columns_are_headed_in_words_with_their_definition_as_a_tooltip():
    page = render(build(study()))
    meaning = "Mean accuracy over all tasks after the last one. Its name in files is ACC."
    assert re.search(rf'data-title="ACC" data-name="accuracy"[^>]* title="{meaning}">accuracy \(%\)', page)
    for measure in (m for records in (study(), [make_number_record("lora", 0, [[1.0] * 2] * 3)])
                    for m in measures_of(metric_of(records[0])) if m.table == COMPARISON):
        assert explain(measure.column).count(".") >= 1, measure.column.title


def test_tooltips_are_of_columns_that_exist():
    titles = {m.column.title for metric in METRICS.values() for m in measures_of(metric)}
    assert set(MEANINGS) - {"seeds"} <= titles


def test_notes_beyond_five_are_folded_without_an_empty_heading():
    records = [make_record(m, s, notes=[f"note {k}" for k in range(7)]) for m in ("ewc", "lora") for s in (0, 1)]
    section, = build(records).sections
    assert len(section.notes) > 6
    page = render(build(records))
    assert f"<summary>{len(section.notes) - 5} more notes</summary>" in page and "<h3></h3>" not in page
    shown, folded = page.split("more notes</summary>")
    assert all((note in shown) == (k < 5) and (note in folded) == (k >= 5)
               for k, note in enumerate(section.notes) if note.startswith("note"))


def test_the_next_command_stands_in_a_block_of_its_own():
    report = build(study(methods=("lora", "ewc"), command="clbench run study.toml"))
    topic, text = report.sections[0].headline[-1]
    words, command = text.split(": ", 1)
    assert topic == "Next" and command.startswith("clbench run study.toml --methods ")
    block = f'<pre tabindex="0" role="region" aria-label="Command"><code>{command}</code></pre>'
    assert re.search(rf"<dd>{words}:<wbr>\s*<div class=\"command\">{re.escape(block)}", render(report))
