import json
import random
import re
from itertools import pairwise

import numpy as np
import pytest
from helpers.records import make_matrix, make_record

from clbench import cli
from clbench.report import build
from clbench.report.analysis.families import family
from clbench.report.analysis.grouping import group_by_setting
from clbench.report.analysis.paired_tests import compare
from clbench.report.analysis.readable import name_settings
from clbench.report.columns import ACC, MEASURES
from clbench.report.figures.draw import draw_report
from clbench.report.figures.ranks import groups
from clbench.report.formats.html import render as html
from clbench.report.formats.json import render as as_json
from clbench.report.formats.latex import render as latex
from clbench.report.formats.markdown import render
from clbench.report.formatting import NONE
from clbench.results import stats
from clbench.results.store import Store

COLUMN = ACC.column
MEASURE = {measure.column.title: measure for measure in MEASURES}


def study(shifts, seeds, draws=None, benchmark="split-mnist-5k"):
    """Records of methods whose ACC differs by what is given, with noise that all share and noise of their own."""
    draws = draws or random.Random(0)
    shared = {s: draws.gauss(0, 0.03) for s in seeds}
    return [make_record(m, s, make_matrix(3, -0.1 + shift + shared[s] + draws.gauss(0, 0.004)), benchmark=benchmark)
            for m, shift in shifts.items() for s in seeds]


def texts(table, label):
    (row,) = [r for r in table.rows if r.label == label]
    return dict(zip([c.title for c in table.columns], [c.text for c in row.cells], strict=True))


@pytest.fixture
def run(tmp_path):
    def write(records):
        for record in records:
            Store(tmp_path).write(record)
        return str(tmp_path)
    return write


def test_a_known_effect_is_found_and_where_there_is_none_it_is_not(run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # a table in one part
    folder = run(study({"lora": 0.0, "ewc": -0.05, "er": 0.0, "naive": -0.2}, range(9)))
    assert cli.call(["compare", folder, "--metric", "ACC"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = {frozenset(line.split()[:3:2]): line for line in lines if " minus " in line}
    assert len(found) == 3  # references only as a baseline
    assert found[frozenset(("lora", "EWC"))].endswith("lora is significantly better")
    assert found[frozenset(("EWC", "er"))].endswith("er is significantly better")
    assert found[frozenset(("lora", "er"))].endswith("no significant difference")
    assert " 0.0039 " in found[frozenset(("lora", "EWC"))]  # 2 of 2^9 sign flips
    assert " 0.012 " in found[frozenset(("lora", "EWC"))]  # three times that


def test_identical_methods_are_found_different_no_more_often_than_is_said():
    draws = np.random.default_rng(0)
    false = 0
    for _ in range(1000):
        values = draws.normal(0.8, 0.02, (4, 10)).tolist()
        tests = family(COLUMN, {f"m{k}": dict(enumerate(row)) for k, row in enumerate(values)})
        false += any(pair.significant for pair in tests.pairs)
    assert false / 1000 <= 0.05 + 2.33 * (0.05 * 0.95 / 1000) ** 0.5  # 99%


def test_a_single_pair_uses_up_its_error_rate():
    differences = np.random.default_rng(1).standard_normal((1000, 8)).tolist()
    shown = sum(p <= stats.ALPHA for p in stats.sign_flip_p(differences))
    assert shown == pytest.approx(1000 * 6 / 128, abs=3 * (1000 * 0.047 * 0.953) ** 0.5)  # p comes in steps of 1 / 128


def test_a_baseline_makes_a_smaller_family_and_may_be_a_reference(run, capsys):
    folder = run(study({"lora": 0.0, "ewc": -0.05, "naive": -0.1}, range(7)))
    assert cli.call(["compare", folder, "--baseline", "naive", "--metric", "acc", "--format", "md"]) == 0
    out = capsys.readouterr().out
    assert "**Accuracy: each method minus Fine-tuning**" in out and "p, corrected for 2" in out
    assert [line.split("|")[-2].strip() for line in out.splitlines() if line.startswith(("| lora", "| EWC"))] == [
        "significantly better"] * 2


def test_a_baseline_that_a_setting_lacks_is_said_there_and_used_elsewhere(run, capsys):
    records = [*study({"lora": 0.0, "ewc": -0.05}, range(7)),
               *study({"er": 0.0, "lora": -0.1, "naive": -0.2}, range(7), benchmark="rotated-mnist")]
    assert cli.call(["compare", run(records), "--baseline", "er", "--metric", "ACC"]) == 0
    with_er, without = capsys.readouterr().out.split("split-mnist-5k, Task-IL")
    assert "Accuracy: each method minus er" in with_er and "significantly worse" in with_er
    assert ("Accuracy: Nothing is compared here, because the baseline er was not run in this setting"
            in " ".join(without.split()))
    failed = [*study({"lora": 0.0, "ewc": -0.05}, range(2)), make_record("er", 0, status="diverged")]
    setting, = name_settings(failed, "er")
    assert compare(setting, [MEASURE["forgetting"], ACC], "er") == (
        ("Forgetting, accuracy: Nothing is compared here, because no trial of the baseline er gave a result",), ())
    told = [make_record(m, s, task_inference=make_matrix(3) if m == "lora" else None) for m in ("lora", "er")
            for s in range(2)]
    setting, = group_by_setting(told)
    assert compare(setting, [MEASURE["task inference"]], "er")[0] == (
        "Task-ID accuracy: Nothing is compared here, because the baseline er lacks this metric on some seed",)


def test_the_test_that_decides_is_said_with_what_it_assumes(run, capsys):
    folder = run(study({"lora": 0.0, "ewc": -0.05}, range(3)))
    assert cli.call(["compare", folder]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert ("Paired t-tests, Holm-corrected over 1 comparison between pairs of methods, because 3 seeds are too few "
            "for sign-flip tests. They assume normally distributed differences") in out
    assert " paired t " in out and out.count("lora is significantly better") == 1


def test_one_seed_and_one_method_are_no_comparison(run, capsys):
    assert cli.call(["compare", run(study({"lora": 0.0, "ewc": -0.05}, [0]))]) == 0
    out = capsys.readouterr().out
    assert "is inconclusive with 1 seed; use several seeds" in out and "± n/a" in out
    alone = build(study({"lora": 0.0, "naive": -0.1}, range(6))).sections[0]
    assert alone.verdicts == () and [t.title for t in alone.comparisons] == [
        "Accuracy: each method minus Fine-tuning", "Forgetting: each method minus Fine-tuning"]


def test_only_seeds_that_both_methods_have_are_compared_and_their_number_is_said():
    records = study({"lora": 0.0, "ewc": -0.05, "er": -0.1}, range(9))
    records = [r for r in records if (r.label, r.trial.seed) not in (("ewc", 0), ("ewc", 4))]
    records.append(make_record("ewc", 0, status="diverged"))
    section = build(records).sections[0]
    found = texts(section.comparisons[0], "EWC")
    assert found["seeds"] == "7 of 9" and texts(section.comparisons[0], "er")["seeds"] == "9"
    acc = {(r.label, r.trial.seed): ACC.value(r, None) for r in records if r.status == "done"}
    mean = sum(acc["ewc", s] - acc["lora", s] for s in (1, 2, 3, 5, 6, 7, 8)) / 7
    assert found["difference"].startswith(f"{100 * mean:.2f} ± ")


def test_methods_that_are_equal_on_the_only_shared_seed_are_not_called_equal_on_every_seed():
    records = [make_record(m, s, make_matrix(3, shift + s / 1000)) for m, shift in (("ewc", 0), ("lora", -0.1))
               for s in range(6)]
    section = build([*records, make_record("er", 0)]).sections[0]
    assert texts(section.comparisons[0], "er")["verdict"] == "equal on shared seeds"
    assert "On shared seeds, it equals er" in " ".join(section.verdicts)


def test_a_method_with_too_few_shared_seeds_is_not_decided_while_others_are():
    records = study({"lora": 0.0, "ewc": -0.05, "er": -0.1}, range(9))
    section = build([r for r in records if r.label != "er" or r.trial.seed < 1]).sections[0]
    assert section.verdicts[0] == (
        "Accuracy: lora has the best mean. It is significantly better than EWC. There are too few seeds to compare it "
        "with er")
    found = texts(section.comparisons[0], "er")
    assert found["verdict"] == "inconclusive"
    assert [found[name] for name in ("test", "p", "p, corrected for 3")] == [NONE] * 3


def test_if_no_method_has_all_seeds_the_verdict_is_about_shared_seeds():
    records = study({"lora": 0.0, "ewc": -0.05, "er": -0.1, "naive": -0.2}, range(9))
    lacking = [r for r in records if (r.label, r.trial.seed) not in (("lora", 0), ("ewc", 1), ("er", 2))]
    assert build(lacking).sections[0].verdicts[0].startswith(
        "Accuracy: On shared seeds, lora is significantly better than every other method")


def test_the_best_mean_is_not_claimed_where_a_method_that_lost_a_seed_has_a_better_one():
    records = [r for r in study({"lora": 0.0, "ewc": -0.05, "er": 0.1}, range(9))
               if (r.label, r.trial.seed) != ("er", 3)]
    section = build(records).sections[0]
    said = "has the best mean of the methods with all seeds"
    assert section.verdicts[0] == (
        f"Accuracy: lora {said}. It is significantly better than EWC. On shared seeds, it is significantly worse than "
        "er")
    assert section.comparisons[0].title == f"Accuracy: each method minus lora, which {said}"
    worse = [r for r in study({"lora": 0.0, "ewc": -0.05, "er": -0.1}, range(9))
             if (r.label, r.trial.seed) != ("er", 3)]
    assert build(worse).sections[0].comparisons[0].title.endswith("which has the best mean")


def test_methods_without_a_common_seed_are_not_compared():
    apart = [*study({"lora": 0.0}, range(6)), *study({"ewc": 0.0}, range(6, 9))]
    section = build(apart).sections[0]
    assert section.verdicts == () and section.comparisons == ()
    section = build([*apart, *study({"er": -0.1}, range(6))]).sections[0]
    assert section.verdicts[0] == (
        "Accuracy: lora has the best mean. It is significantly better than er. It has no seed in common with EWC")
    section = build([*study({"lora": -0.2, "er": -0.3}, range(6)), *study({"ewc": 0.0}, range(6, 9))]).sections[0]
    assert section.verdicts[0] == "Accuracy: EWC has the best mean. It has no seed in common with lora and er"
    assert [t.title.partition(":")[0] for t in section.comparisons] == ["Forgetting"]  # there lora is the best


def test_unknown_baselines_and_metrics_are_errors_that_name_near_ones(run, capsys):
    folder = run(study({"lora": 0.0, "ewc": -0.05}, range(2)))
    assert cli.call(["compare", folder, "--baseline", "lor"]) == 2
    assert "did you mean 'lora'?" in capsys.readouterr().err
    assert cli.call(["compare", folder, "--metric", "forgeting"]) == 2
    assert "did you mean 'forgetting'?" in capsys.readouterr().err
    assert cli.call(["compare", folder + "/none"]) == 2
    assert "no records in" in capsys.readouterr().err


def test_a_metric_that_a_setting_does_not_have_is_said(run, capsys):
    folder = run([make_record(m, s, tasks=1) for m in ("lora", "ewc") for s in range(2)])
    assert cli.call(["compare", folder, "--metric", "forgetting"]) == 0
    title, said = capsys.readouterr().out.split("\n", 1)
    assert title == "split-mnist-5k, Task-IL, mlp" and said.startswith("Forgetting: There is nothing to compare")


def test_differences_stand_in_the_markdown_report():
    text = render(build(study({"lora": 0.0, "ewc": -0.05}, range(6))))
    part = text[text.index("<summary>Differences, paired by seed"):text.index("<summary>More metrics")]
    assert "- Accuracy: lora is significantly better than every other method" in part
    assert "**Accuracy: each method minus lora, which has the best mean**" in part and "| EWC " in part


def settings(count, shifts, seeds=range(2)):
    draws = random.Random(1)
    return [r for k in range(count) for r in study(shifts, seeds, draws, f"bench-{k}")]


def test_methods_are_ranked_across_settings_by_their_mean():
    report = build(settings(6, {"lora": 0.0, "ewc": -0.05, "er": -0.1, "naive": -0.2}))
    (table,) = report.rankings
    assert [c.title for c in table.columns] == ["lora", "EWC", "er"]
    assert [c.text for c in table.rows[-1].cells] == ["1.00", "2.00", "3.00"]
    assert len(table.rows) == 7
    assert report.ranking_verdicts == (
        "Friedman's test of 3 methods over 6 settings: p = 0.0025. The average ranks differ significantly. With a "
        "critical difference of 1.35 (Nemenyi), lora ranks significantly better than er",)
    assert not any(c.bold for c in table.rows[-1].cells)  # lora is not shown to be before ewc
    (figure,) = report.figures
    assert [(p.label, p.rank) for p in figure.points] == [("lora", 1.0), ("EWC", 2.0), ("er", 3.0)]
    assert draw_report(report)["critical-difference.svg"].startswith(b"<?xml")
    assert "](figures/critical-difference.svg)" in render(report)


def test_critical_differences_are_not_drawn_if_friedmans_test_is_not_significant():
    """Nemenyi's test alone would separate the methods with the best and the worst average rank."""
    gains = [[1, 2, 4, 5, 3], [2, 3, 4, 5, 1], [5, 2, 3, 4, 1], [4, 3, 2, 5, 1]]  # of each setting
    ranks = stats.rank_methods(gains)
    assert ranks.p > stats.ALPHA and max(ranks.average) - min(ranks.average) > ranks.critical
    report = build([make_record(method, seed, make_matrix(3, 0.01 * gain), benchmark=f"bench-{b}")
                    for b, row in enumerate(gains) for seed in (0, 1)
                    for method, gain in zip(("lora", "ewc", "er", "si", "mas"), row, strict=True)])
    assert "There is no significant difference between the average ranks" in report.ranking_verdicts[0]
    assert report.rankings and report.figures == () and "Across settings" in html(report)


def test_differences_and_ranks_stand_in_every_format_of_the_report():
    report = build(settings(3, {"lora": 0.0, "ewc": -0.05, "er": -0.1}))
    for text in (latex(report), html(report)):
        assert "each method minus lora, which has the best mean" in text
        assert "lora has the best mean. There is no significant difference to EWC" in text
        assert "Ranks by accuracy (1 is the best)" in text and "of 3 methods over 3 settings" in text
    whole = json.loads(as_json(report))
    assert whole["rankings"][0]["rows"][-1]["cells"][0]["mean"] == 1.0
    assert whole["sections"][0]["comparisons"][0]["rows"][0]["cells"][3]["mean"] < 0.5
    assert whole["sections"][0]["facts"]["best"]["method"] == "lora"
    assert "points" not in whole["pictures"][0]


def test_there_are_no_ranks_where_they_would_mean_nothing():
    shifts = {"lora": 0.0, "ewc": -0.05, "er": -0.1}
    assert build(settings(2, shifts)).rankings == ()  # Friedman's test of 3 methods needs 3 settings
    assert build(settings(3, shifts)).rankings
    once = [make_record(m, s, make_matrix(3, 0.01 * k), scenario=scenario) for scenario in ("task", "class", "domain")
            for k, m in enumerate(shifts) for s in (0, 1)]
    assert build(once).rankings == ()  # one benchmark, three times
    variants = [make_record(m, s, make_matrix(tasks, 0.01 * k)) for tasks in (2, 3, 4)
                for k, m in enumerate(shifts) for s in (0, 1)]
    assert len(build(variants).sections) == 3
    assert build(variants).rankings == ()  # one benchmark with three values of an option


def test_methods_without_a_full_result_everywhere_are_named_and_not_ranked():
    records = settings(3, {"lora": 0.0, "ewc": -0.05, "er": -0.1, "pnn": -0.1})
    lost = [r for r in records if (r.label, r.trial.seed, r.trial.benchmark.name) != ("pnn", 1, "bench-2")]
    report = build(lost)
    assert "PNN" not in [c.title for c in report.rankings[0].columns]
    assert "Not ranked, because some setting lacks a result of some seed: PNN" in report.ranking_verdicts
    assert build(settings(3, {"lora": 0.0, "ewc": -0.05})).rankings == ()
    assert build(settings(1, {"lora": 0.0, "ewc": -0.05, "er": 0.0})).rankings == ()


def test_groups_are_the_widest_runs_within_the_critical_difference():
    draws = random.Random(0)
    for _ in range(200):
        ranks = sorted(draws.uniform(1, 8) for _ in range(draws.randint(1, 8)))
        critical = draws.uniform(0.1, 5)
        joined = {(i, j) for i, a in enumerate(ranks) for j, b in enumerate(ranks) if i < j and b - a <= critical}
        found = groups(ranks, critical)
        assert joined == {(i, j) for first, last in found for i in range(first, last) for j in range(i + 1, last + 1)}
        assert all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(found))


def test_a_single_method_is_compared_with_each_reference(run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # a table in one part
    folder = run(study({"er": 0.0, "naive": -0.2, "joint": 0.05}, range(7)))
    assert cli.call(["compare", folder, "--metric", "ACC"]) == 0
    lines = capsys.readouterr().out.splitlines()
    pairs = {re.split(r"\s{2,}", line)[0].removeprefix("er minus "): line for line in lines
             if line.startswith("er minus ")}
    assert set(pairs) == {"Fine-tuning", "Joint training"} and "Accuracy: er minus each reference" in lines
    assert float(re.split(r"\s{2,}", pairs["Fine-tuning"])[2].split()[0]) == pytest.approx(20, abs=1)
    assert pairs["Fine-tuning"].endswith("er is significantly better ○")  # two classes, and an accuracy of about 50%
    assert pairs["Joint training"].endswith("Joint training is significantly better")
    assert any("over 2 comparisons with each reference" in line for line in lines)


def test_a_single_method_without_fine_tuning_is_held_against_the_linear_probe():
    records = study({"lora": 0.0, "frozen": -0.1}, range(3))
    for record in records[3:]:
        record.costs.trainable[1:] = [10, 10]  # a head for each task, and the whole network in the first
    probe = [record.model_copy(update={"reference": True}) for record in records[3:]]
    (setting,) = name_settings([*records[:3], *probe])
    assert setting.baseline == "Linear probe"
    (several,) = name_settings([*records[:3], *probe, *study({"ewc": 0.0}, range(3))])
    assert several.baseline is None  # they are compared with one another
