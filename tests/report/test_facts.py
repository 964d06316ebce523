import random
import re
from dataclasses import replace
from statistics import fmean

import pytest
from helpers.records import make_matrix, make_record

from clbench.core.errors import SpecError, StoreError
from clbench.experiment.trial import Continued, Resolved
from clbench.report import build
from clbench.report.analysis.facts import facts
from clbench.report.analysis.grouping import group_by_setting
from clbench.report.analysis.method_records import test_set_interval as set_interval
from clbench.report.figures.draw import draw_figure
from clbench.report.figures.style import assign_styles
from clbench.report.formats import html, latex, markdown
from clbench.report.results import Results
from clbench.results.items import wilson_interval
from clbench.results.metrics import acc


def study(shifts, seeds=range(3), noise=0.004, **kwargs):
    draws = random.Random(0)
    return [make_record(m, s, make_matrix(3, -0.1 + shift + draws.gauss(0, noise)), **kwargs)
            for m, shift in shifts.items() for s in seeds]


SHIFTS = {"ewc": -0.2, "lora": 0.05, "er": 0.06, "naive": 0.0, "joint": 0.08}


def found(records, baseline=None):
    setting, = group_by_setting(records)
    return facts(replace(setting, named_baseline=baseline))


def test_each_method_is_held_against_naive_and_joint_and_three_seeds_are_enough_for_what_is_plain():
    told = found(study(SHIFTS))
    assert (told.baseline.other, told.joint.other) == ("naive", "joint")
    assert [(p.method, p.verdict, p.test) for p in told.baseline.pairs] == [
        ("ewc", "worse", "t"), ("lora", "better", "t"), ("er", "better", "t")]
    assert told.baseline.labels("worse") == ["ewc"] and told.joint.labels("better") == []
    assert next(iter(told.accuracy)) == "joint" and told.references == ("naive", "joint")
    assert told.baseline.test == told.best.test == "t"


def test_a_baseline_can_be_named_and_its_differences_are_those_of_the_records():
    records = study(SHIFTS)
    told = found(records, baseline="lora")
    pair = next(p for p in told.baseline.pairs if p.method == "ewc")
    by_seed = {(r.label, r.trial.seed): acc(r.R) for r in records}
    assert abs(pair.difference - fmean(by_seed["ewc", s] - by_seed["lora", s] for s in range(3))) < 1e-12
    assert pair.every_seed == "below" and pair.verdict == "worse" and pair.needed is None


def test_what_is_not_decided_has_the_seeds_that_would_do():
    told = found(study({"ewc": 0.005, "er": -0.3, "naive": 0.0}, noise=0.01))
    assert told.baseline.labels("open") == ["ewc"] and told.baseline.labels("worse") == ["er"]
    pair = next(p for p in told.baseline.pairs if p.method == "ewc")
    assert pair.needed is None or pair.needed > 3


def test_the_difference_of_a_single_seed_does_not_say_that_more_seeds_will_not_help():
    records = study({"ewc": -0.2, "er": -0.2001, "naive": -0.2002}, seeds=[0])
    told = found(records)
    assert told.best.limited is None and all(pair.limited is None for pair in told.baseline.pairs)


def test_without_naive_there_is_no_column_of_differences():
    section, = build(study({"ewc": 0.0, "er": 0.1})).sections
    assert not [c for c in section.comparison.columns if c.title.startswith("difference to")]


def test_the_column_of_differences_has_the_verdicts():
    section, = build(study(SHIFTS)).sections
    told = {row.label: cell for row, cell in zip(section.comparison.rows,
                                                 section.comparison.cells("difference to Fine-tuning"), strict=True)}
    assert told["EWC"].text.startswith("-2") and told["EWC"].text.endswith(" (worse ○)")
    assert told["er"].text.startswith("+") and told["er"].text.endswith(" (better)")
    assert told["Fine-tuning"].text == ""
    near, = build(study({"ewc": 0.005, "er": -0.3, "naive": 0.0}, noise=0.01)).sections
    assert near.comparison.cells("difference to Fine-tuning")[0].text.endswith(" (not significant)")


def test_a_named_baseline_takes_the_place_of_naive():
    records = study(SHIFTS)
    section, = build(records, baseline="er").sections
    assert [c.title for c in section.comparison.columns if c.title.startswith("diff")] == ["difference to er"]
    compared = found(records, baseline="er").baseline
    assert section.facts.baseline.other == "er"
    assert {pair.difference for pair in section.facts.baseline.pairs} == {pair.difference for pair in compared.pairs}
    told = {row.label: cell.mean for row, cell in zip(section.comparison.rows,
                                                      section.comparison.cells("difference to er"), strict=True)}
    assert told["EWC"] == pytest.approx(SHIFTS["ewc"] - SHIFTS["er"], abs=0.01) and told["er"] is None
    assert section.comparisons[0].title.endswith("each method minus er")
    assert build(records, baseline="EWC").sections == build(records, baseline="ewc").sections
    with pytest.raises(SpecError, match="no method 'eer'; did you mean 'er'"):
        build(records, baseline="eer")


def test_the_footnote_says_that_seeds_divide_the_samples_of_a_validation_split():
    def footnote(**options):
        records = []
        for record in study(SHIFTS):
            benchmark = record.trial.benchmark.model_copy(update={"options": options})
            trial = record.trial.model_copy(update={"validation": 0.1, "benchmark": benchmark})
            records.append(record.model_copy(update={"trial": trial, "key": trial.key}))
        section, = build(records).sections
        return " ".join(section.footnote)

    assert ("All results are conditional on the samples that each seed divides into training and validation samples."
            in footnote()) and "which all seeds share" not in footnote()
    assert "conditional on" not in footnote(train_draw="seed")


def test_the_footnote_names_the_tests_their_correction_and_their_assumption():
    by_t, = (section.footnote for section in build(study(SHIFTS)).sections)
    assert by_t[1] == "Marks: ○ not better than guessing."
    assert by_t[2].startswith(
        "Differences are tested by paired t-tests over seeds, Holm-corrected over 3 comparisons with Fine-tuning, 3 "
        "comparisons with Joint training and 3 comparisons between pairs of methods. They assume normally distributed "
        "differences.")
    assert by_t[3] == "All results are conditional on the training and test samples, which all seeds share."
    assert by_t[4] == "Names for --methods: EWC = ewc; Joint training = joint; Fine-tuning = naive."
    by_flips, = (section.footnote for section in build(study({"ewc": -0.2, "naive": 0.0}, range(8))).sections)
    assert by_flips[2] == ("Differences are tested by exact sign-flip tests over seeds, Holm-corrected over 1 "
                           "comparison with Fine-tuning. They assume that a difference is as likely as its opposite.")
    assert all("±" in footnote[0] and "Bold" in footnote[0] for footnote in (by_t, by_flips))
    with_ids, = (section.footnote for section in build(study(SHIFTS), ids=True).sections)
    assert not any("Names for" in sentence for sentence in with_ids)


def test_the_footnote_warns_of_wide_intervals_only_with_two_seeds():
    footnotes = [" ".join(build(study(SHIFTS, range(seeds))).sections[0].footnote) for seeds in (1, 2, 3)]
    assert ["very wide" in footnote for footnote in footnotes] == [False, True, False]


def test_the_footnote_names_both_tests_if_methods_have_few_seeds():
    records = [*study({"lora": 0.05, "er": 0.06, "naive": 0.0}, range(10)), *study({"ewc": -0.2}, range(6))]
    section, = build(records).sections
    assert section.footnote[2].startswith(
        "Differences are tested by exact sign-flip tests over seeds, Holm-corrected over 3 comparisons with "
        "Fine-tuning and 3 comparisons between pairs of methods. They assume that a difference is as likely as its "
        "opposite. Other differences are tested by paired t-tests over seeds, Holm-corrected over 3 comparisons with "
        "Fine-tuning and 3 comparisons between pairs of methods. They assume normally distributed differences. They "
        "are used for pairs with too few seeds for sign-flip tests.")
    shared = [r for r in study({"ewc": -0.2, "naive": 0.0}, range(40)) if r.label == "naive" or r.trial.seed < 8]
    tests = build(shared).sections[0].footnote[2]
    assert tests.startswith("Differences are tested by exact sign-flip tests"), "8 seeds are shared"
    assert "paired t-tests" not in tests


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
    assert r"\textbf{Best trade-offs}" in latex.render(report)


def test_figures_of_many_methods_show_the_references_that_their_captions_name():
    records = [make_record(f"m{i}", s, make_matrix(shift=0.001 * (i + s)), trainable=[1000 if i else 10] * 3)
               for i in range(20) for s in (0, 1)]
    records += [make_record(m, s, reference=True) for m in ("naive", "joint", "frozen") for s in (0, 1)]
    report = build(records)
    curves = next(f for f in report.sections[0].figures if f.kind == "curves")
    assert "fronts of trainable parameters and training compute, Fine-tuning and Joint training. " in curves.caption
    names = {result.label for result in curves.results}
    assert {"Fine-tuning", "Joint training", "m0", "m19"} <= names and not {"Linear probe", "m1"} & names
    count = f"({len(names)} of 23 methods)"
    assert count[1:-1] in curves.caption and Results(records).plot().axes[0].get_title(loc="left").endswith(count)
    heatmaps, = (f for f in report.sections[0].figures if f.kind == "heatmaps")
    drawn, brief = (draw_figure(f, assign_styles(report.strategies), ["svg"])[0].decode() for f in (heatmaps, curves))
    assert count in drawn and count not in brief, "report.md has the captions of the brief figures"
    shown = re.findall(r'aria-pressed="true"[^>]*>([^<]*)<', html.render(report))
    assert {"Fine-tuning", "Joint training", "m0", "m19"} <= set(shown) and "Linear probe" not in shown


def test_results_that_continue_different_trials_are_not_mixed():
    def continued(record, parent):
        trial = record.trial.model_copy(update={"continues": Continued(
            parent=parent, benchmarks=[Resolved(name="x")], tasks=2, outputs=4)})
        return record.model_copy(update={"trial": trial, "key": trial.key})

    records = [continued(make_record("ewc", seed), parent) for seed, parent in ((0, "a"), (1, "b"))]
    assert group_by_setting(records)[0].methods[0].complete
    with pytest.raises(StoreError, match=r"ewc has two results for seed 0: trials \w+ and \w+ continue different"):
        group_by_setting([*records, continued(make_record("ewc", 0), "c")])


def test_tests_of_unequal_tasks_count_by_the_variance_of_their_mean():
    record = make_record("ewc", 0, make_matrix(2))

    def interval(*sizes, common=False):
        stream = record.stream.model_copy(update={"test_samples": list(sizes), "common_test": common})
        return set_interval([record.model_copy(update={"stream": stream})])

    assert interval(200, 200) == wilson_interval(acc(record.R), 400) != interval(10, 390)
    assert interval(10, 1990) == wilson_interval(acc(record.R), 4 / (1 / 10 + 1 / 1990))  # var(mean) = p (1 - p) / that
    assert interval(300, 300, common=True) == wilson_interval(acc(record.R), 300)
