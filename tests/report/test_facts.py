import random
from statistics import fmean

import pytest
from helpers.records import make_matrix, make_record

from clbench.core.errors import SpecError
from clbench.experiment.search import Searched
from clbench.report import build
from clbench.report.analysis.facts import facts
from clbench.report.analysis.grouping import by_setting
from clbench.report.formats import html, latex, markdown
from clbench.results.metrics import acc
from clbench.results.paired import saturated_rate


def study(shifts, seeds=range(3), noise=0.004, **kwargs):
    draws = random.Random(0)
    return [make_record(m, s, make_matrix(3, -0.1 + shift + draws.gauss(0, noise)), **kwargs)
            for m, shift in shifts.items() for s in seeds]


SHIFTS = {"ewc": -0.2, "lora": 0.05, "er": 0.06, "naive": 0.0, "joint": 0.08}


def found(records, **kwargs):
    setting, = by_setting(records)
    return facts(setting, **kwargs)


def lines(records):
    section, = build(records).sections
    return dict(section.headline)


def test_each_method_is_held_against_naive_and_joint_and_three_seeds_are_enough_for_what_is_plain():
    told = found(study(SHIFTS))
    assert (told.baseline.other, told.joint.other) == ("naive", "joint")
    assert [(p.method, p.verdict, p.test) for p in told.baseline.pairs] == [
        ("ewc", "worse", "t"), ("lora", "better", "t"), ("er", "better", "t")]
    assert told.below == ["ewc"] and told.above == []
    assert next(iter(told.accuracy)) == "joint" and told.references == ("naive", "joint")
    assert told.false_claims == saturated_rate(3)


def test_a_baseline_can_be_named_and_its_differences_are_those_of_the_records():
    records = study(SHIFTS)
    told = found(records, baseline="lora")
    pair = next(p for p in told.baseline.pairs if p.method == "ewc")
    by_seed = {(r.label, r.trial.seed): acc(r.R) for r in records}
    assert abs(pair.difference - fmean(by_seed["ewc", s] - by_seed["lora", s] for s in range(3))) < 1e-12
    assert pair.every_seed == "below" and pair.verdict == "worse" and pair.needed is None


def test_what_is_not_decided_has_the_seeds_that_would_do():
    told = found(study({"ewc": 0.005, "er": -0.3, "naive": 0.0}, noise=0.01))
    assert list(told.undecided) == ["ewc"] and told.below == ["er"]
    assert told.undecided["ewc"] is None or told.undecided["ewc"] > 3


def test_the_first_lines_say_what_the_records_decide_in_the_order_of_a_decision():
    told = lines(study({**SHIFTS, "lora": 0.0585}))
    assert list(told) == ["Task", "Front of accuracy", "Below naive", "Above joint", "Not decided", "Decided by",
                          "Mind"]
    assert told["Task"].startswith("lora 75.8, er 75.7") and "; naive 70.1, joint 78.1" in told["Task"]
    assert told["Below naive"].startswith("ewc -") and told["Above joint"] == "none."
    assert told["Not decided"].startswith("the best (3 seeds; ")
    assert told["Decided by"].startswith("paired t, which supposes normal differences (tests: 3 against naive, 3 "
                                         "against joint, 3 of all pairs); ")
    assert f"up to {100 * saturated_rate(3):.0f} %" in told["Decided by"]
    assert told["Mind"] == ("No search on record: all. 70 steps per task. Had not learned their tasks: ewc. "
                            "○ not shown to do better than chance: ewc.")


def test_sign_flips_need_no_warning():
    told = lines(study({"ewc": -0.2, "naive": 0.0}, seeds=range(6)))
    assert told["Decided by"] == "sign flips (tests: 1 against naive)."


def test_what_is_below_on_every_seed_is_named_even_where_it_is_not_shown():
    told = lines(study({"ewc": -0.05, "er": 0.0, "naive": 0.0}, seeds=range(2), noise=0.01))
    assert told["Below naive"].startswith("none; on every seed, but not shown: ewc") or "ewc -" in told["Below naive"]


def test_rows_that_were_searched_beside_rows_that_were_not_are_a_warning():
    search = Searched(candidates=4, validation=0.1, seeds=(0,))
    records = [r.model_copy(update={"searched": search}) if r.label == "er" else r for r in study(SHIFTS)]
    warned = lines(records)["Mind"]
    assert "Searched: er; no search on record: lora, ewc, so differences are also those of the search" in warned


def test_where_few_were_not_searched_these_are_named():
    search = Searched(candidates=4, validation=0.1, seeds=(0,))
    shifts = {**SHIFTS, "der": 0.0, "si": 0.0}
    records = [r if r.label in ("er", "naive") else r.model_copy(update={"searched": search}) for r in study(shifts)]
    assert "Searched: all but er, so differences are also those of the search." in lines(records)["Mind"]
    most = [r.model_copy(update={"searched": None}) if r.label == "si" else r for r in records]
    assert "; no search on record: er, si, so differences are also those of the search." in lines(most)["Mind"]
    every = [r.model_copy(update={"searched": search}) for r in study(shifts)]
    assert "of the search" not in lines(every)["Mind"]


def test_without_naive_no_column_and_a_warning():
    section, = build(study({"ewc": 0.0, "er": 0.1})).sections
    assert not [c for c in section.comparison.columns if c.title.startswith("against")]
    assert "No naive among the records" in dict(section.headline)["Mind"]


def test_the_column_against_naive_has_the_verdicts():
    section, = build(study(SHIFTS)).sections
    told = {row.label: cell for row, cell in zip(section.comparison.rows, section.comparison.cells("against naive"),
                                                 strict=True)}
    assert told["ewc"].text.startswith("-2") and told["ewc"].text.endswith(" worse ○")
    assert told["er"].text.endswith(" better") and told["naive"].text == ""


def test_a_named_baseline_takes_the_place_of_naive():
    records = study(SHIFTS)
    section, = build(records, baseline="er").sections
    assert [c.title for c in section.comparison.columns if c.title.startswith("against")] == ["against er"]
    compared = facts(by_setting(records)[0], baseline="er").baseline
    assert section.facts.baseline.other == "er" and {*section.facts.baseline.pairs} == {*compared.pairs}
    told = {row.label: cell.mean for row, cell in zip(section.comparison.rows, section.comparison.cells("against er"),
                                                      strict=True)}
    assert told["ewc"] == pytest.approx(SHIFTS["ewc"] - SHIFTS["er"], abs=0.01) and told["er"] is None
    assert {"Below er", "Above er"} <= {about for about, _ in section.headline}
    assert section.comparisons[0].title.endswith("each method minus er")
    with pytest.raises(SpecError, match="no method 'eer'; did you mean 'er'"):
        build(records, baseline="eer")


def test_sixty_methods_give_a_short_report_with_a_filter():
    records = [make_record("lora" if k % 2 else f"m{k}", s, make_matrix(5, -k / 100), options={"k": k},
                           label=f"method-{k}", scenario=scenario)
               for scenario in ("task", "class") for k in range(60) for s in (0, 1)]
    records += [make_record("naive", s, make_matrix(5, -0.3), scenario=scenario) for scenario in ("task", "class")
                for s in (0, 1)]
    report = build(records)
    assert len(markdown.render(report).encode()) < 40_000
    page = html.render(report)
    assert len(page.encode()) < 500_000
    assert page.count('class="filter"') == 2 and page.count('aria-pressed="false"') > 80
    assert 'class="filter"' not in html.render(build(study(SHIFTS)))
    assert r"\textbf{Below naive:}" in latex.render(report)


def test_references_alone_have_no_front():
    assert "Front of accuracy" not in lines([make_record(m, s) for m in ("naive", "joint") for s in (0, 1)])
    assert lines(study(SHIFTS))["Front of accuracy"].startswith("against ")
