import numpy as np
import pytest
from helpers.records import VERSIONS, folder, make_matrix, make_number_record, make_record

from clbench import cli
from clbench.experiment.spec import Recipe
from clbench.report.analysis.grouping import group_by_setting
from clbench.report.analysis.run_diff import pairs, tables
from clbench.results import diff as changes
from clbench.results.items import ItemResults, cross
from clbench.results.records import item_scores


@pytest.fixture
def diff(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(before, after):
        folder(tmp_path / "a", *before)
        folder(tmp_path / "b", *after)
        code = cli.call(["diff", "a", "b"])
        return code, capsys.readouterr().out

    return run


def study(shift=0.0, methods=("lora", "ewc", "naive"), **kwargs):
    return [make_record(m, s, make_matrix(3, shift), **kwargs) for m in methods for s in (0, 1, 2)]


def test_the_same_facts_are_0_whatever_made_them(diff):
    code, out = diff(study(), study(train_seconds=5.0, device="cuda", versions={**VERSIONS, "torch": "2.14.0"}))
    assert code == 0
    assert "9 trials in both, 0 with different facts" in out
    assert "  version of torch: 2.13.0 -> 2.14.0\n" in out and "  device: cpu -> cuda\n" in out
    assert "started" not in out


def test_what_differs_is_named_and_weighed(diff):
    after = [make_record("lora", s, make_matrix(3, 0.01 * (s + 1)), notes=["new"], trainable=[1000, 1005, 1000],
                         train_seconds=2.0) for s in (0, 1, 2)]
    code, out = diff(study(), [*after, *study(methods=("ewc", "naive"))])
    assert code == 1
    assert "9 trials in both, 3 with different facts" in out
    assert ("    R: 6 of 12 cells, by up to 3.00 points (after task 1, on task 1), ACC 80.00 -> 83.00 %\n" in out)
    assert "    costs.trainable: [1000, 1000, 1000] -> [1000, 1005, 1000]\n    new note: new\n" in out
    row, = [line.split("  ") for line in out.splitlines() if line.startswith("lora  ")]
    # t(2, 97.5%) = 4.3027 times a deviation of 1 point over the root of 3 seeds
    assert [cell.strip() for cell in row if cell.strip()] == [
        "lora", "3", "80.00 ± 0.00", "82.00 ± 2.48", "2.00 ± 2.48", "0.00 ± 0.00", "0", "0 B", "1.80"]
    assert not [line for line in out.splitlines() if line.startswith("ewc  ")], "what did not change is left out"


def test_trials_of_one_run_only_are_listed(diff):
    code, out = diff(study(), study()[1:] + study(methods=("er",)))
    assert code == 1
    assert "only in A:\n  lora, split-mnist-5k, Task-IL, mlp: seed 0\n" in out
    assert "only in B:\n  er, split-mnist-5k, Task-IL, mlp: seeds 0-2\n" in out


def test_another_recipe_is_compared_by_label(diff):
    code, out = diff(study(), study(0.05, recipe=Recipe(lr=0.01)))
    assert code == 1
    assert "  split-mnist-5k, Task-IL, mlp: recipe.lr: 0.001 -> 0.01 (" in out
    assert "85.00 ± 0.00" in out and "5.00 ± 0.00" in out


def test_results_of_different_metrics_are_not_compared(diff):
    numbers = [make_number_record("lora", s, [[3.0, 3.0], [1.0, 3.0], [2.0, 1.0]], recipe=Recipe(lr=0.01))
               for s in (0, 1)]
    shares = [r.model_copy(update={"trial": r.trial.model_copy(update={"recipe": Recipe()}), "metric": "",
                                   "R": [[0.5, 0.5], [0.9, 0.5], [0.8, 0.9]]}) for r in numbers]
    shares = [r.model_copy(update={"key": r.trial.key}) for r in shares]
    code, out = diff(shares, numbers)
    assert code == 1 and "only in A" in out and "in B" in out and "80.00" not in out and "85.00" not in out


def test_notes_are_listed_but_do_not_count(diff):
    code, out = diff(study(), [*study()[1:], make_record("lora", 0, make_matrix(3), notes=["started over"])])
    assert code == 0
    assert "9 trials in both, 0 with different facts, 1 with different notes only\n" in out
    assert "    new note: started over\n" in out


def test_trials_that_are_not_listed_are_counted_below_those_that_are(diff):
    def made(shift, **kwargs):
        return [make_record("lora", s, make_matrix(2, shift), **kwargs) for s in range(42)]

    _, out = diff(made(0), made(0.01, device="cuda"))
    facts = out.partition("facts, A -> B:\n")[2].partition("provenance, A -> B:")[0]
    assert facts.splitlines()[-1] == "  and 2 more trials"


def test_a_folder_of_run_folders_lists_whole_commands(diff, tmp_path, capsys):
    folder(tmp_path / "run", *study())
    folder(tmp_path / "runs" / "one", *study())
    for args, command in (("run", "runs"), "run runs/one"), (("runs", "run"), "runs/one run"):
        assert cli.call(["diff", *args]) == 2
        assert capsys.readouterr().err.splitlines()[-1] == f"Error: clbench diff {command}"


def test_a_folder_without_records_is_an_error(tmp_path, capsys):
    assert cli.call(["diff", str(tmp_path), str(tmp_path)]) == 2
    assert "no records in" in capsys.readouterr().err


def test_final_means_have_the_intervals_of_reports_over_seeds_and_samples(tmp_path):
    before, after = ([r.model_copy(update={"items": ItemResults.of([np.arange(200)], right, "images")})
                      for r in (make_record("lora", seed, make_matrix(2, shift + 0.001 * seed)) for seed in range(3))]
                     for shift, right in ((0.0, np.arange(200) % 4 > 0), (0.02, np.arange(200) % 5 > 0)))
    table, = tables(pairs(before, after))
    for title, side in (("ACC in A", before), ("ACC in B", after)):
        setting, = group_by_setting(side)
        expected = setting.interval(setting.final, "lora")
        cell, = table.cells(title)
        assert (cell.mean, cell.half_width) == pytest.approx((expected.mean, expected.half_width))
        assert cell.half_width > 0.02
    change, = table.cells("change of ACC")
    scores = [item_scores(b) - item_scores(a) for a, b in zip(before, after, strict=True)]
    expected = cross([0.02] * 3, scores).interval
    assert (change.mean, change.half_width) == pytest.approx((expected.mean, expected.half_width))


def test_float_noise_is_not_called_zero():
    a = make_record("lora", 0, [[0.5, 0.5], [0.9, 0.5], [0.8, 0.9]])
    b = make_record("lora", 0, [[0.5, 0.5], [0.9, 0.5], [0.8, 0.9 + 1e-9]])
    assert list(changes.differences(a, b)) == [
        "R: 1 of 6 cells, by up to 1e-07 points (after task 2, on task 2), ACC 85.00 -> 85.00 %"]


def test_a_failure_is_told_from_a_result():
    diverged = make_record("er", status="diverged", message="the loss is NaN")
    found = list(changes.differences(make_record("er"), diverged))
    assert found[0] == "status: done -> diverged"
    assert any(line.startswith("failure: None -> ") for line in found)
