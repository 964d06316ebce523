"""Reports of seeds that were added until decided: numbers of seeds, verdicts, intervals, and what is said of them."""

import json as stdlib_json
from csv import DictReader
from io import StringIO
from statistics import fmean

import pytest
from helpers.records import make_record

from clbench import report
from clbench.cli.choose import lines
from clbench.core.errors import StoreError
from clbench.experiment.until import UntilDecided
from clbench.report.analysis.choosing import choose, find_choosable, limit
from clbench.report.analysis.facts import facts
from clbench.report.analysis.families import Family, PairedTest
from clbench.report.analysis.grouping import group_by_setting
from clbench.report.analysis.paired_tests import compare
from clbench.report.columns import ACC
from clbench.report.formats import csv, html, json, latex, markdown
from clbench.report.formats.choosable import pack_choice
from clbench.results.sequential import critical, find_strongest_analysis, repeated_interval
from clbench.results.store import Store

RULE = UntilDecided(first=3, most=8)
NOISE = [0.004, -0.006, 0.001, 0.007, -0.003, -0.002, 0.005, -0.006, 0.002, 0.001]


def made(rule=RULE, **accs):
    """Records of methods by their ACC seed by seed."""
    return [make_record(label, seed, R=[[0.5, 0.5], [0.9, 0.5], [acc, acc]]).model_copy(update={"until": rule})
            for label, values in accs.items() for seed, acc in enumerate(values)]


@pytest.fixture
def records():
    """er is decided after 3 seeds, ewc open after 8, naive has as many."""
    naive = [0.30 + e for e in NOISE[:8]]
    return made(naive=naive, er=[0.70 + e for e in (0.001, -0.002, 0.003)], ewc=[0.301 + e for e in NOISE[1:9]])


def test_methods_have_seeds_of_their_own_and_are_whole(records):
    setting = group_by_setting(records)[0]
    assert {m.label: (m.state, m.complete) for m in setting.methods} == {
        "er": ("3", True), "ewc": ("8", True), "naive": ("8", True)}
    section = report.build(records).sections[0]
    answer, references = (text for about, text in section.headline if about == "Answer")
    assert answer == "er (70.1%) is significantly better than EWC (30.1%, ○)."
    assert references == ("References: Fine-tuning 30.0%. Of 2 methods, 1 is significantly better than Fine-tuning.")
    shown = zip(section.comparison.rows, section.comparison.cells("seeds"), strict=True)
    assert {row.label: cell.text for row, cell in shown} == {"er": "3", "EWC": "8", "Fine-tuning": "8"}
    footnote = " ".join(section.footnote)
    assert ("by sequential t-tests over seeds, Holm-corrected over " in footnote
            and "with an interim analysis after each seed from 3 to at most 8" in footnote
            and "Jennison & Turnbull 1991" in footnote)
    assert not any("Not every seed" in text or "fresh seeds" in text or "--until" in text
                   for _, text in section.headline)
    assert section.notes[0].startswith("Seeds were added until this was decided: ")
    assert "Each method has 3 to at most 8 seeds (--until decided)" in section.notes[0]


def test_seeds_beyond_those_that_the_rule_allows_do_not_count():
    """A later run with a fixed number of seeds may have added them to the folder."""
    ewc = [0.301 + e for e in NOISE[1:9]]
    found = [*made(naive=[0.30 + e for e in NOISE[:8]], ewc=ewc), *made(None, ewc=[*ewc, 0.9, 0.9])[8:]]
    setting, = group_by_setting(found)
    assert setting.left_out == 2 and len(setting.records) == 16 and setting.seeds == tuple(range(8))
    assert setting.interval(ACC, "ewc").mean == pytest.approx(fmean(ewc))
    section = report.build(found, ids=True).sections[0]
    assert section.facts.accuracy["ewc"] == pytest.approx(fmean(ewc))
    assert any(note.startswith("2 records are left out, because the rule allows at most 8 seeds") for note in
               section.notes)


def test_a_method_that_a_worse_method_exceeds_is_worse():
    """A is better than B, and B than C, but A and C share too few seeds for a test of their own."""
    noise = [0.004, -0.006, 0.001, 0.007, -0.003, -0.002, 0.005, -0.006]
    found = made(er=[0.85, 0.72, 0.88, *[0.80 + e for e in noise[3:]]], ewc=[0.50 + e for e in noise],
                 lwf=[0.30 + e / 2 for e in noise[:3]])
    setting, = group_by_setting(found)
    tests = setting.tests(setting.final, setting.compared(setting.final))
    assert {(pair.first, pair.second) for pair in tests.pairs if not pair.significant} == {("er", "lwf")}
    choice = choose(setting, [])
    assert choice.best == "er" and all(rival.shown for rival in choice.rivals)
    assert all(pair.shown for row in find_choosable(setting).comparisons for pair in row)


def test_the_choice_says_the_seeds_of_the_chosen_method(records):
    setting, = group_by_setting(records)
    assert choose(setting, []).seeds == 3
    section, = report.build(records).sections
    packed = stdlib_json.loads(pack_choice([("s1", section)]))["settings"][0]
    assert [method[0].split()[0] for method in packed[5]] == ["er", "EWC"] and packed[3] == [3, 8]


def test_without_a_pair_of_complete_methods_the_footnote_names_no_test():
    failed = make_record("ewc", 0, tasks=2, status="failed").model_copy(update={"until": RULE})
    section, = report.build([*made(er=[0.7, 0.72, 0.71]), failed]).sections
    assert section.footnote and not any("t-tests" in text or "corrected" in text for text in section.footnote)


def test_before_the_first_interim_analysis_differences_are_inconclusive():
    records = made(naive=[0.3, 0.31], er=[0.7, 0.72], ewc=[0.4, 0.39], lora=[0.5, 0.52])
    section, = report.build(records).sections
    assert section.headline[0][1] == "er (71.0%) leads, but there are too few seeds to show a difference."
    assert [cell.text for cell in section.comparison.cells("difference to Fine-tuning")] == [
        "+40.5 (inconclusive)", "+20.5 (inconclusive)", "+9.0 (inconclusive)", ""]
    section, = report.build([r for r in records if r.label in ("er", "ewc")]).sections
    assert section.headline[0][1] == "er 71.0%, EWC 39.5%: inconclusive."


def test_verdicts_and_intervals_are_sequential_in_every_table(records):
    setting = group_by_setting(records)[0]
    pairs = {p.method: p for p in facts(setting).baseline.pairs}
    differences = [0.40 + a - b for a, b in zip((0.001, -0.002, 0.003), NOISE, strict=False)]
    assert (pairs["er"].verdict, pairs["ewc"].verdict) == ("better", "open")
    assert pairs["er"].p == pytest.approx(2 * find_strongest_analysis(differences, RULE).p, rel=1e-6)  # Holm over two
    expected = repeated_interval(differences, RULE)
    assert (pairs["er"].low, pairs["er"].high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    cell = report.build(records).sections[0].comparison.cells("ACC")[1]
    usual = 2.365  # t of 8 seeds
    assert critical(8, RULE) > usual
    values = [0.301 + e for e in NOISE[1:9]]
    assert cell.half_width == pytest.approx(repeated_interval(values, RULE).half_width)
    for baseline in ("naive", None):
        for table in compare(setting, [ACC], baseline)[1]:
            assert {row.cells[table.index("test")].text for row in table.rows} == {"sequential t"}
    choice = choose(setting, ())
    assert choice.best == "er" and choice.half_width == pytest.approx(
        repeated_interval([0.701, 0.698, 0.703], RULE).half_width)


def test_a_csv_file_has_no_rows_for_seeds_that_were_not_planned(records):
    records[-1] = failed = records[-1].model_copy(update={"status": "failed"})
    lines = DictReader(StringIO(csv.render(report.build(records, ids=True))))
    unfinished = [(line["method"], line["seed"]) for line in lines if line["status"] == "no result"]
    assert unfinished == [(failed.label, "7")]


@pytest.mark.parametrize("form", [markdown, html, latex])
def test_every_format_says_how_seeds_were_added(records, form):
    text = form.render(report.build(records))
    assert "Seeds were added until this was decided" in " ".join(text.split()) and "equential t-tests" in text


def test_the_rule_is_data_in_json(records):
    assert json.data(report.build(records))["sections"][0]["facts"]["until"] == {
        "baseline": None, "first": 3, "most": 8}
    assert "until" not in made(None, naive=[0.3])[0].model_dump_json()


def test_a_method_that_was_dropped_does_not_lead_for_its_lucky_seeds():
    rule = UntilDecided(baseline="best", first=3, most=8)
    better = [0.75, 0.751, 0.749, 0.60, 0.61, 0.60]
    other = [0.745, 0.757, 0.742, 0.60, 0.62, 0.61]
    dropped = [0.700, 0.7011, 0.6992]  # a higher mean than the others', of other seeds
    setting = group_by_setting(made(rule, er=better, ewc=other, lwf=dropped))[0]
    best = facts(setting).best
    assert best.method in ("er", "ewc") and best.beaten == ("lwf",)


def test_a_method_that_only_another_one_beats_is_not_beaten_by_the_leader():
    rule = UntilDecided(baseline="best", first=3, most=8)
    leader = [0.42 + e for e in (0.10, -0.12, 0.06, 0.1, 0.05, 0.02, 0.06, 0.01)]
    other, dropped = [0.41 + e for e in NOISE[:8]], [0.34 + e for e in (0.001, -0.002, 0.003)]
    setting = group_by_setting(made(rule, lora=leader, ewc=other, si=dropped))[0]
    best = facts(setting).best
    assert best.method == "lora" and not best.beaten and best.open == ("ewc",) and best.dropped == ("si",)
    section, = report.build(made(rule, lora=leader, ewc=other, si=dropped)).sections
    assert section.headline[0][1] == (
        "lora (45.5%, ○) leads, but it is not significantly better than any of the 2 other methods. "
        "Significantly worse than another method: SI (no more seeds were added).")


def test_a_method_with_all_seeds_that_another_one_beats_is_not_said_to_have_got_no_more():
    values = {"er": [0.42 + e for e in (0.1, -0.1) * 4], "lora": [0.41 + e for e in NOISE[:8]],
              "ewc": [0.39 + e for e in NOISE[1:9]], "naive": [0.4 + e for e in (0.1, -0.1, -0.1, 0.1) * 2]}
    section, = report.build(made(RULE, **values)).sections  # the rule compares with naive
    assert section.facts.best.method == "er" and section.facts.best.dropped == ("EWC",)
    assert section.headline[0][1].endswith(" Significantly worse than another method: EWC.")


@pytest.mark.parametrize(("until", "beaten"), [(RULE, {"ewc", "si"}), (None, {"ewc"})])
def test_a_method_that_was_dropped_is_also_beaten_by_what_beats_the_better_one(until, beaten):
    ps = {("lora", "ewc"): 0.01, ("si", "ewc"): 0.02, ("lora", "si"): 0.2}
    pairs = [PairedTest(a, b, (-0.1 if a == "si" else 0.1,) * 3, p, p, "t", 3, until) for (a, b), p in ps.items()]
    tests = Family(ACC.column, tuple(pairs))
    assert tests.beaten_by("lora") == beaten and tests.beaten_by("ewc") == {"si"} and not tests.beaten_by("si")


def test_seeds_beyond_the_most_are_left_out_of_the_tests(records):
    more = made(None, naive=[0.3 + e for e in NOISE], ewc=[0.9] * 10)[8:10] + [
        r for r in made(None, naive=[0.3] * 10, ewc=[0.9] * 10) if r.label == "ewc" and r.trial.seed >= 8]
    before, after = (facts(group_by_setting(found)[0]).baseline.pairs for found in (records, [*records, *more]))
    assert [p.p for p in before] == [p.p for p in after]


def test_results_by_two_rules_are_not_mixed(records):
    other = make_record("lwf", 0, tasks=2).model_copy(update={"until": UntilDecided(first=3, most=30)})
    with pytest.raises(StoreError, match=r"seeds were added by different rules.*report the run folders apart"):
        report.build([*records, other])


def test_a_named_baseline_is_the_one_of_the_column():
    rule = UntilDecided(baseline="ewc", first=3, most=8)
    section = report.build(made(rule, naive=[0.3, 0.31, 0.3], ewc=[0.5, 0.5, 0.51], er=[0.7, 0.69, 0.7])).sections[0]
    assert section.facts.baseline.other == "EWC"
    assert "difference to EWC" in [column.title for column in section.comparison.columns]


def test_a_record_keeps_its_rule(tmp_path, records):
    Store(tmp_path).write(records[0])
    again, = Store(tmp_path).read()[0]
    assert again.until == RULE and again.outcome() == make_record(
        "naive", 0, R=again.R).outcome()


def test_the_page_chooses_by_the_same_rule_as_the_command(records):
    setting = group_by_setting(records)[0]
    made_here, chosen = find_choosable(setting), choose(setting, [])
    first, rival = made_here.candidates[0], chosen.rivals[0]
    assert (first.label, first.half_width) == (chosen.best, pytest.approx(chosen.half_width))
    beside = made_here.comparisons[0][0]
    assert (made_here.candidates[1].label, beside.difference, beside.half_width, beside.shown) == (
        rival.method, rival.difference, rival.half_width, rival.shown)


def test_a_dropped_method_is_no_price_and_estimates_end_with_the_rule():
    better = [0.75, 0.751, 0.749, 0.60, 0.61, 0.60]
    other = [0.745, 0.757, 0.742, 0.60, 0.62, 0.61]
    dropped = [0.700, 0.7011, 0.6992]  # a higher mean than the others', of other seeds
    found = [r.model_copy(update={
        "stream": r.stream.model_copy(update={"test_samples": [10**6] * 2}),
        "costs": r.costs.model_copy(update={"bytes": [{"base": 4000 if r.label == "er" else 9000}] * 2})})
        for r in made(UntilDecided(baseline="best", first=3, most=8), er=better, ewc=other, lwf=dropped)]
    setting = group_by_setting(found)[0]
    choice = choose(setting, [limit(setting, "kept", "5kB")])
    price, = choice.prices
    assert choice.best == "er" and price.method == "ewc" and price.difference >= 0 and choice.most_seeds == 8
    text = "\n".join(lines(choose(setting, []), {m.label: m.label for m in setting.methods}))
    assert "no significant difference: " in text and "(more than 8 seeds would be needed)" in text
