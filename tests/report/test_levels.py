import math

import pytest
from helpers.records import folder, make_matrix, make_record

from clbench import cli
from clbench.experiment.arrival import Arrival
from clbench.report import build
from clbench.report.analysis.grouping import group_by_setting
from clbench.report.analysis.headline import NEXT
from clbench.report.analysis.method_records import (
    chance_level,
    is_at_chance,
    loss_share,
    same_on_every_seed,
    underfit_share,
)
from clbench.results.items import wilson_interval

LOG2, LOG4, LOG6 = (math.log(n) for n in (2, 4, 6))


UNLEARNED = make_matrix(3, -0.15)  # 75% just after a task, of two classes


def with_losses(*last, outputs=None, **made):
    record = make_record(**made)
    return record.model_copy(update={"last_losses": [[9.0, loss] if loss is not None else [] for loss in last],
                                     "outputs": outputs})


@pytest.mark.parametrize(("scenario", "outputs", "chances"), [
    ("task", None, (LOG2, LOG2, LOG2)), ("class", "own", (LOG2, LOG2, LOG2)), ("class", "seen", (LOG2, LOG4, LOG6)),
    ("class", "all", (LOG6, LOG6, LOG6)),
])
def test_the_chance_loss_is_the_log_of_the_number_of_competing_classes(scenario, outputs, chances):
    record = with_losses(*(0.7 * loss for loss in chances), scenario=scenario, outputs=outputs, R=UNLEARNED[:1] * 4)
    assert loss_share(record) == pytest.approx(0.7)
    assert underfit_share([record, record]) == pytest.approx(0.7)
    assert underfit_share([with_losses(*(0.55 * loss for loss in chances), scenario=scenario, outputs=outputs)]) is None


@pytest.mark.parametrize(("scenario", "level"), [("task", 0.8), ("class", 0.7222222)])  # 1/2; 1/2, 1/4 and 1/6
def test_a_method_that_learned_its_tasks_is_not_underfit_whatever_its_loss(scenario, level):
    below, above = ([[level + shift] * 3] * 4 for shift in (-0.001, 0.001))
    assert underfit_share([with_losses(9.0, 9.0, 9.0, scenario=scenario, outputs="seen", R=below)]) is not None
    assert underfit_share([with_losses(9.0, 9.0, 9.0, scenario=scenario, outputs="seen", R=above)]) is None


def test_the_median_task_counts_and_a_first_task_that_was_learned():
    assert loss_share(with_losses(0.9 * LOG2, 0.8 * LOG2, 0.1 * LOG2)) == pytest.approx(0.8)
    assert loss_share(with_losses(0.1 * LOG2, 5.0, 7.0)) == pytest.approx(0.1)  # a penalty, from the second task on
    assert loss_share(with_losses(0.9 * LOG2, None, None)) == pytest.approx(0.9)  # trained on the first task only


def test_what_has_no_loss_to_judge_by_is_not_judged():
    assert loss_share(with_losses()) is None and underfit_share([with_losses(None, None, None)]) is None
    assert loss_share(with_losses(9.0, 9.0, 9.0, scenario="class")) is None  # an older record without its outputs
    moved = with_losses(9.0, 9.0, 9.0)
    moved = moved.model_copy(update={"trial": moved.trial.model_copy(update={"arrival": Arrival(blur=0.5)})})
    assert loss_share(moved) is None
    assert underfit_share([with_losses(9.0, 9.0, 9.0), make_record()]) is None and underfit_share([]) is None


@pytest.mark.parametrize(("scenario", "expected"), [("task", 1 / 2), ("class", 1 / 6)])
def test_chance_is_that_of_the_classes_among_which_a_prediction_is_chosen(scenario, expected):
    assert chance_level(make_record(scenario=scenario)) == pytest.approx(expected)


def at(level, samples=200, **made):
    R = [*make_matrix(3)[:-1], [level] * 3]
    return [make_record(seed=seed, R=R, test_samples=samples, **made) for seed in range(3)]


def test_a_row_is_at_chance_if_the_interval_of_its_test_samples_holds_chance_or_is_below():
    # 600 samples in all: 0.5 is 1.96 standard errors of 0.0204 below 0.54
    assert is_at_chance(at(0.5)) and is_at_chance(at(0.2)) and is_at_chance(at(0.53)) and not is_at_chance(at(0.55))
    assert is_at_chance(at(0.7, samples=4)) and not is_at_chance(at(0.51, samples=20_000))
    assert not is_at_chance(at(0.33, scenario="class"))  # of six classes, as of a method that knows the last task only
    assert is_at_chance(at(0.17, scenario="class")) and not is_at_chance([])


def study(naive_loss, **made):
    """Records of `ncm`, far above `naive`, which ended with this training loss."""
    ncm = [make_record("ncm", seed, make_matrix(3, 0.01 * seed), **made) for seed in range(3)]
    rest = [with_losses(naive_loss, naive_loss, naive_loss, method=method, seed=seed, **made,
                        R=make_matrix(3, -0.15 + 0.01 * seed + jitter * (seed == 1)))
            for seed in range(3) for method, jitter in (("naive", 0.002), ("er", 0.003))]
    return [*ncm, *rest]


def test_a_row_that_is_underfit_is_marked_and_loses_no_comparison_without_the_mark(tmp_path, capsys):
    section, = build(study(0.65)).sections
    rows = {row.label: row for row in section.comparison.rows}
    assert [rows[label].marks for label in ("NCM", "er", "Fine-tuning")] == ["", "△", "△"]
    against = dict(zip(rows, section.comparison.cells("difference to Fine-tuning"), strict=True))
    assert against["NCM"].text == "+14.9 (better △)"
    assert section.headline[0] == ("Answer", "NCM (81.0%) is significantly better than er (66.1%, △).")
    assert ("Caution", "Underfit (the training loss stayed high): er and Fine-tuning.") in section.headline
    assert section.verdicts[0] == "Accuracy: NCM is significantly better than every other method (er △)"
    assert any(note.startswith("△ Underfit: the method had not learned its tasks") for note in section.notes)
    assert any("er (94%) and Fine-tuning (94%)" in note and "--epochs" in note for note in section.notes)
    assert [row.cells[-1].text for row in section.comparisons[0].rows] == [
        "significantly better △", "no significant difference"]
    run = str(folder(tmp_path, *study(0.65)))
    assert cli.call(["compare", run, "--metric", "ACC", "--format", "md"]) == 0
    out = capsys.readouterr().out
    assert "NCM is significantly better △" in out and "△ Underfit: the method had not learned its tasks" in out
    assert ": er" in out
    assert cli.call(["choose", run]) == 0
    assert "significantly worse: er △" in capsys.readouterr().out


def test_a_row_that_has_learned_its_tasks_has_no_mark():
    section, = build(study(0.1)).sections
    assert not any(row.marks for row in section.comparison.rows)
    cells = section.comparison.cells("difference to Fine-tuning")
    assert dict(zip([row.label for row in section.comparison.rows], cells, strict=True))["NCM"].text == "+14.9 (better)"
    assert "△" not in str(section)


def test_a_row_at_chance_is_marked():
    section, = build([*at(0.5, method="ewc"), *at(0.9, method="lora")]).sections
    assert {row.label: row.marks for row in section.comparison.rows} == {"lora": "", "EWC": "○"}
    assert any(note.startswith("○ Not better than guessing") for note in section.notes)


def two(first, second, seeds=7, samples=40, **made):
    """Records of two methods that give these accuracies on every seed."""
    rows = {"ncm": first, "slda": second}
    return [make_record(label, seed, [*make_matrix(3)[:-1], [level] * 3], test_samples=samples, **made)
            for label, level in rows.items() for seed in range(seeds)]


@pytest.mark.parametrize("seeds", [2, 3, 7, 10])
@pytest.mark.parametrize("samples", [7, 700])
def test_seeds_that_repeat_one_result_are_no_evidence(seeds, samples, tmp_path, capsys):
    records = two(0.926, 0.91, seeds, samples)
    section, = build(records).sections
    assert section.headline[0][1].endswith(" leads. It is not tested against SLDA because every seed gave the same "
                                           "results.")
    assert "significant" not in section.headline[0][1] and "tests over seeds" not in " ".join(section.footnote)
    assert section.verdicts[0] == (
        "Accuracy, forgetting: Which method is best is not tested: every seed gave the same result")
    assert not any(cell.bold for cell in section.comparison.cells("ACC"))
    note, = (note for note in section.notes if note.startswith("Every seed gave the same result"))
    assert f"{3 * samples:,} test samples" in note and "NCM 92.60 (" in note and "SLDA 91.00 (" in note
    run = str(folder(tmp_path, *records))
    assert cli.call(["compare", run, "--metric", "ACC", "--format", "md"]) == 0
    out = capsys.readouterr().out
    assert "not tested: every seed gave the same result" in out and "significantly better" not in out
    assert cli.call(["choose", run]) == 0
    assert "not tested: SLDA" in (out := capsys.readouterr().out) and "(every seed gave the same result)" in out


def test_the_interval_of_such_a_row_is_that_of_its_test_samples():
    note, = (n for n in build(two(0.9, 0.5, samples=40)).sections[0].notes if n.startswith("Every seed gave the same"))
    low, high = wilson_interval(0.9, 120)
    assert f"NCM 90.00 ({100 * low:.2f} to {100 * high:.2f})" in note and "120 test samples" in note


def test_a_row_that_varies_is_tested_against_one_that_does_not():
    varied = [make_record("er", seed, [*make_matrix(3)[:-1], [0.6 + 0.01 * seed] * 3]) for seed in range(7)]
    assert not same_on_every_seed(varied) and same_on_every_seed(two(0.9, 0.5)[:7])
    answer = build([*two(0.9, 0.9), *varied]).sections[0].headline[0][1]
    assert answer == ("NCM (90.0%) is significantly better than 1 of 2 other methods. It equals SLDA on every seed.")


def near(samples):
    """Records of two methods 1 point apart on average, which vary from seed to seed."""
    return [make_record(label, seed, [*make_matrix(3)[:-1], [level + 0.03 * (seed % 3 - 1) * sign] * 3],
                        test_samples=samples, command="clbench run --methods er,ewc,naive")
            for label, level, sign in (("er", 0.91, 1), ("ewc", 0.9, -1), ("naive", 0.905, 0.5)) for seed in range(3)]


def test_more_seeds_are_not_advised_where_the_test_set_limits(tmp_path, capsys):
    setting, = group_by_setting(near(4))
    assert len(setting.methods) == 3
    headline = build(near(4)).sections[0].headline
    assert NEXT not in [kind for kind, _ in headline]
    told = headline[0][1]
    assert told.endswith("no significant difference (12 test samples are too few, and more seeds will not help).")
    run = str(folder(tmp_path, *near(4)))
    assert cli.call(["choose", run]) == 0
    out = capsys.readouterr().out
    assert "(12 test samples are too few, and more seeds will not help)" in out and "--seeds" not in out
    headline = build(near(100_000)).sections[0].headline
    assert NEXT not in [kind for kind, _ in headline]
    many = headline[0][1]
    assert many.endswith("no significant difference (more than 100 seeds would be needed).")
