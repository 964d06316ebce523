import importlib
import time

import pytest
from helpers.records import VERSIONS, make_matrix, make_record

from clbench.core.errors import StoreError
from clbench.experiment.spec import Recipe
from clbench.report import build
from clbench.report.analysis.notes import summary
from clbench.report.formats.markdown import render
from clbench.report.formatting import as_ranges, clean, describe_by_task, interval, list_seeds, number


def row(table, label):
    (found,) = [r for r in table.rows if r.label == label]
    return found


def cell(section, label, title, table=None):
    table = table or section.comparison
    return row(table, label).cells[[c.title for c in table.columns].index(title)]


def study(methods=("naive", "lora", "ewc", "joint"), seeds=(0, 1, 2), **kwargs):
    return [make_record(m, s, make_matrix(3, 0.01 * k + 0.001 * s), **kwargs)
            for s in seeds for k, m in enumerate(methods)]


def only(records):
    (section,) = build(records).sections
    return section


def test_rows_come_by_their_accuracy_with_references_last():
    section = only([*study(("naive", "lora", "joint", "ewc")), make_record("er", 0, status="failed")])
    assert [r.label for r in section.comparison.rows] == ["EWC", "lora", "er", "Joint training", "Fine-tuning"]
    assert [r.reference for r in section.comparison.rows] == [False, False, False, True, True]
    assert [r.label for r in section.results] == [r.label for r in section.comparison.rows]
    equal = only([make_record(m, s) for m in ("pnn", "lora", "ewc") for s in (0, 1)])
    assert [r.label for r in equal.comparison.rows] == ["PNN", "lora", "EWC"]  # of equal ones the first leads


def test_a_cell_holds_mean_interval_and_text():
    found = cell(only(study()), "lora", "ACC")
    mean = (0.71 + 0.711 + 0.712 + (0.81 + 0.811 + 0.812) + (0.91 + 0.911 + 0.912)) / 9
    assert found.mean == pytest.approx(mean)
    assert found.n == 3
    assert found.half_width == pytest.approx(4.30265273 * 0.001 / 3 ** 0.5)
    assert found.text == "81.10 ± 0.25"


def shifted(methods, seeds=range(9), noise=0.002, **kwargs):
    """Records of methods whose accuracies are apart by what is given, plus noise that seeds share but for a little."""
    return [make_record(m, s, make_matrix(3, 0.01 * (s % 4) + shift + noise * ((s * 7 + k) % 3)), **kwargs)
            for s in seeds for k, (m, shift) in enumerate(methods.items())]


def test_the_best_is_bold_among_the_methods_where_the_test_shows_it_and_never_a_reference():
    section = only(shifted({"lora": -0.03, "ewc": 0.0, "er": -0.02, "joint": 0.03}))
    assert {r.label for r in section.comparison.rows if r.cells[1].bold} == {"EWC"}
    assert {r.label for r in section.comparison.rows if r.cells[1].second} == {"er"}
    assert cell(section, "Joint training", "ACC").mean > cell(section, "EWC", "ACC").mean
    assert section.verdicts[0] == "Accuracy: EWC is significantly better than every other method"


def test_a_winner_that_the_test_does_not_support_is_not_bold():
    few = only(shifted({"lora": -0.03, "ewc": 0.0, "er": -0.02}, seeds=range(1)))
    assert not any(r.cells[1].bold or r.cells[1].second for r in few.comparison.rows)
    assert few.verdicts == (
        "Accuracy, forgetting: Which method is best is inconclusive with 1 seed; use several seeds",)
    close = only(shifted({"lora": -0.03, "ewc": 0.0, "er": 0.0}))
    assert not any(r.cells[1].bold for r in close.comparison.rows)


def test_methods_that_are_equal_on_every_seed_are_the_best_together():
    section = only(shifted({"lora": -0.03, "ewc": 0.0, "er": 0.0}, noise=0.0))
    assert {r.label for r in section.comparison.rows if r.cells[1].bold} == {"EWC", "er"}
    assert section.verdicts[0] == (
        "Accuracy: EWC has the best mean. It is significantly better than lora. On every seed, it equals er")


def test_a_count_that_differs_over_seeds_needs_the_test_as_well():
    records = [make_record(m, s, kept_bytes={"base": size + s}) for m, size in (("lora", 4000), ("ewc", 9000))
               for s in range(6)]
    assert cell(only(records), "lora", "bytes kept").bold
    few = [r for r in records if r.trial.seed < 5]
    assert not cell(only(few), "lora", "bytes kept").bold
    assert cell(only(few), "lora", "trainable params per task").bold is False  # the same for both


def test_methods_that_print_the_same_are_both_bold():
    records = [make_record("lora", 0, trainable=[10] * 3), make_record("ewc", 0, trainable=[10] * 3),
               make_record("er", 0, trainable=[11] * 3)]
    title = "trainable params per task"
    assert [cell(only(records), m, title).bold for m in ("lora", "EWC", "er")] == [True, True, False]


def test_lower_is_better_for_costs_and_forgetting():
    records = [make_record("lora", 0, kept_bytes={"base": 10}), make_record("ewc", 0, kept_bytes={"base": 5})]
    assert cell(only(records), "EWC", "bytes kept").bold
    assert not cell(only(records), "lora", "bytes kept").bold
    headers = {c.title: c.header for c in only(records).comparison.columns}
    assert headers["forgetting"] == "forgetting (points) ↓"
    assert headers["ACC"] == "accuracy (%) ↑"
    assert headers["bytes kept"] == "storage ↓"
    assert headers["trainable params per task"] == "trainable parameters per task ↓"


def test_a_single_method_is_not_the_best_of_anything():
    assert not any(c.bold for r in only([make_record("lora"), make_record("naive")]).comparison.rows for c in r.cells)


def test_one_seed_shows_that_it_has_no_interval():
    section = only([make_record("lora", 0)])
    assert cell(section, "lora", "ACC").text == "80.00 ± n/a"
    assert cell(section, "lora", "ACC").half_width is None
    assert "n/a means that one seed gives no interval." in section.notes


def test_a_method_that_lost_a_seed_says_so_and_is_not_bold():
    records = study()
    records = [r for r in records if (r.label, r.trial.seed) != ("ewc", 1)]
    records.append(make_record("ewc", 1, status="diverged", message="the loss is NaN at step 9"))
    section = only(records)
    assert cell(section, "EWC", "seeds").text == "2/3; 1 diverged"
    assert cell(section, "EWC", "ACC").n == 2
    assert not any(c.bold for c in row(section.comparison, "EWC").cells)
    assert cell(section, "lora", "seeds").text == "3"
    (problem,) = section.problems
    assert problem.startswith("EWC, seed 1: diverged after 1 finished task: the loss is NaN at step 9 (record ")
    assert any(n.startswith("EWC: only seeds 0, 2 of 0-2 gave a result") for n in section.notes)


def test_a_seed_without_a_record_counts_as_missing():
    section = only([r for r in study() if (r.label, r.trial.seed) != ("lora", 2)])
    assert cell(section, "lora", "seeds").text == "2/3; 1 missing"
    assert section.problems == ("lora: no record for seed 2",)


def test_a_method_without_any_result_keeps_its_row():
    section = only([make_record("lora", s) for s in (0, 1)] + [make_record("er", s, status="failed") for s in (0, 1)])
    assert cell(section, "er", "seeds").text == "0/2; 2 failed"
    assert {c.text for c in row(section.comparison, "er").cells[1:]} == {"–"}  # noqa: RUF001
    assert [m.title for m in section.matrices] == ["lora: R, mean over 2 seeds"]
    assert "DivergedError" in section.problems[0]


def test_a_trial_that_failed_before_its_first_row_is_reported():
    broken = make_record("er", 0, status="failed").model_copy(update={"stream": None, "R": []})
    section = only([broken])
    assert section.problems[0].startswith("er, seed 0: failed: DivergedError")
    assert dict(section.settings)["benchmark"] == "split-mnist-5k:tasks=3"
    assert "er" in render(build([broken]))


def test_what_competed_in_training_marks_the_rows_where_it_was_not_all_so_far():
    rows = {"inflora": "own", "er": "seen", "der": "all", "si": None}
    section = only([make_record(m, 0, scenario="class").model_copy(update={"outputs": o}) for m, o in rows.items()])
    assert [row(section.comparison, m).marks for m in ("inflora", "er", "der", "SI")] == ["‡", "", "§", ""]
    assert [n[0] for n in section.notes if n[0] in "†‡§"] == ["‡", "§"]


def test_task_inference_marks_the_rows_that_need_it():
    inference = [[0.3] * 3, [0.4] * 3, [0.5] * 3, [0.6, 0.7, 0.8]]
    section = only([make_record("lora", 0, task_inference=inference), make_record("ewc", 0)])
    assert row(section.comparison, "lora").marks == "†"
    assert row(section.comparison, "EWC").marks == ""
    assert cell(section, "lora", "task inference").mean == pytest.approx(0.7)
    assert any(n.startswith("† ") for n in section.notes)
    without = only([make_record("lora", 0)])
    assert "task inference" not in [c.title for c in without.comparison.columns]
    assert not any("†" in n for n in without.notes)


def test_trainable_parameters_that_change_are_spelled_out():
    section = only([make_record("lora", s, trainable=[478410, 4100, 4100]) for s in (0, 1)])
    assert cell(section, "lora", "trainable params per task").text == "4,100"
    costs = section.details[1]
    assert cell(section, "lora", "trainable by task", costs).text == "478,410 in task 1, 4,100 in tasks 2-3"
    assert "trainable by task" not in [c.title for c in only([make_record("lora")]).details[1].columns]


def test_what_is_fitted_in_closed_form_is_not_said_to_train_the_least():
    records = [make_record(name, trainable=[9, 9, n]) for name, n in (("slda", 0), ("ncm", 0), ("lora", 5), ("ewc", 9))]
    section = build(records).sections[0]
    column = [c.title for c in section.comparison.columns].index("trainable params per task")
    assert [(r.cells[column].text, r.cells[column].bold) for r in section.comparison.rows] == [
        ("0", False), ("0", False), ("5", True), ("9", False)]
    said = "SLDA and NCM trained nothing by gradients in the last task"
    assert any(n.startswith(said) for n in section.notes)
    assert not any("trained nothing" in n for n in build(records[2:]).sections[0].notes)


def test_counts_that_differ_over_seeds_have_an_interval():
    records = [make_record("lora", s, parameters={"base": 1000 + s}) for s in (0, 2)]
    assert cell(only(records), "lora", "total params").text == "1,001 ± 13"


def test_training_time_counts_consolidation():
    assert cell(only([make_record("lora", 0, train_seconds=2.0)]), "lora", "training time").mean == 3 * 2.25


def test_forgetting_of_a_single_task_is_a_dash():
    section = only([make_record("lora", s, tasks=1) for s in (0, 1)])
    assert cell(section, "lora", "forgetting").text == cell(section, "lora", "BWT").text == "–"  # noqa: RUF001
    assert cell(section, "lora", "ACC").text == "90.00 ± 0.00"


def test_intransigence_needs_joint_for_every_seed():
    section = only(study())
    assert cell(section, "EWC", "intransigence", section.details[0]).mean == pytest.approx(0.01)
    section = only([r for r in study() if (r.label, r.trial.seed) != ("joint", 1)])
    assert cell(section, "EWC", "intransigence", section.details[0]).mean is None
    section = only(study(("naive", "ewc")))
    assert "intransigence" not in [c.title for c in section.details[0].columns]


def test_matrices_are_the_mean_over_seeds():
    table = only(study()).matrices[1]
    assert table.title == "lora: R, mean over 3 seeds"
    assert [r.label for r in table.rows] == ["before training", "after task 1", "after task 2", "after task 3"]
    assert [c.text for c in table.rows[2].cells] == ["81.10", "91.10", "50.00"]


def test_bytes_by_role_show_every_role_of_every_method():
    section = only([make_record("lora", 0, kept_bytes={"base": 1000, "adapters": 2500}), make_record("ewc", 0)])
    table = section.details[2]
    assert [c.title for c in table.columns] == ["seeds", "base", "adapters"]
    assert cell(section, "lora", "adapters", table).text == "2.50 kB"
    assert cell(section, "EWC", "adapters", table).text == "0 B"


def test_each_setting_is_a_section_of_its_own():
    records = [make_record("lora", 0, scenario=s) for s in ("task", "class")]
    records += [make_record("lora", 0, recipe=Recipe(lr=0.1, optimizer="sgd", momentum=0.9, iterations=2000))]
    report = build(records)
    assert [s.title for s in report.sections] == [
        "split-mnist-5k, Task-IL, mlp, optimizer adam, lr 1e-3, momentum 0",
        "split-mnist-5k, Class-IL, mlp",
        "split-mnist-5k, Task-IL, mlp, optimizer sgd, lr 0.1, momentum 0.9"]
    summary = dict(report.sections[2].setting)
    assert (summary["optimizer"], summary["budget"]) == (
        "SGD, learning rate 0.1", "2,000 steps per task, batch size 128")
    recipe = dict(report.sections[2].settings)["recipe"]
    assert "sgd, lr 0.1 (constant), momentum 0.9, 2,000 iterations per task" in recipe


def test_methods_with_one_label_are_told_apart():
    records = [make_record("lora", 0, options={"rank": r}, label="lora") for r in (4, 8)]
    assert [r.label for r in only(records).comparison.rows] == ["LoRA r=4", "LoRA r=8"]
    assert [r.label for r in build(records, ids=True).sections[0].comparison.rows] == ["lora:rank=4", "lora:rank=8"]


def test_the_same_record_twice_counts_once_and_a_contradiction_is_named():
    assert cell(only([make_record("lora", 0), make_record("lora", 0, label="other")]), "lora", "ACC").n == 1
    with pytest.raises(StoreError, match="two records that disagree"):
        build([make_record("lora", 0), make_record("lora", 0, make_matrix(3, 0.01))])


def test_no_records_is_an_error_that_says_what_to_do():
    with pytest.raises(StoreError, match="clbench run"):
        build([])


@pytest.mark.parametrize(("change", "expected"), [
    ({"device": "NVIDIA H100"}, "different devices, so times cannot be compared, and accuracies may differ slightly: "
                                "cpu, NVIDIA H100"),
    ({"machine": "another"}, "different machines, so times cannot be compared: a processor, 2 cores, another"),
    ({"threads": 8}, "different numbers of threads, so times cannot be compared: 1, 8"),
    ({"git": None}, "different commits of clbench, so the code may differ: "),
    ({"versions": {**VERSIONS, "torch": "2.9.0"}}, "different versions of torch, so results may "
     "differ for this reason alone: 2.13.0, 2.9.0"),
    ({"fingerprint": "beef"}, "The methods did not see the same data with seed 0"),
])
def test_what_makes_records_hard_to_compare_is_noted(change, expected):
    section = only([make_record("lora", 0), make_record("ewc", 0, **change)])
    assert any(expected in note for note in section.notes)
    assert not any("different" in note or "same data" in note
                   for note in only([make_record("lora", 0), make_record("ewc", 0)]).notes)


@pytest.mark.parametrize(("change", "is_bold"), [({}, True), ({"machine": "another"}, False), ({"threads": 8}, False)])
def test_times_of_different_machines_are_not_bold(change, is_bold):
    records = [make_record(method, s, train_seconds=seconds * (1 + s / 100), **(change if method == "er" else {}))
               for method, seconds in (("lora", 5.0), ("er", 1.0)) for s in range(5)]
    assert cell(only(records), "er", "training time").bold == is_bold


def test_the_setting_says_that_marked_rows_have_other_learning_rates():
    records = [make_record("lora", 0), make_record("ewc", 0, own_recipe={"lr": 0.5})]
    assert dict(summary(records, [0]))["optimizer"] == "Adam, learning rate 1e-3 (other rates in rows with ¶)"
    assert dict(summary(records[:1], [0]))["optimizer"] == "Adam, learning rate 1e-3"


def test_the_note_on_several_commits_says_which_results_are_of_which():
    first, second = "a" * 40, "b" * 40
    records = [make_record(m, s, git=second if m == "er" or (m in ("ewc", "mas") and s) else first)
               for m in ("lora", "ewc", "er", "si", "mas", "lwf") for s in range(3)]
    assert (f"The records come from different commits of clbench, so the code may differ: {second} (seeds 1, 2 of EWC, "
            f"MAS; er), {first} (all other results).") in only(records).notes


def test_seeds_of_one_method_from_two_plugin_versions_are_noted():
    section = only([make_record("lora", 0), make_record("lora", 1, plugin="clbench 0.2.0")])
    assert ("The seeds of lora come from different versions of its plugin: clbench 0.1.0, clbench 0.2.0."
            in section.notes)


def test_notes_of_records_and_streams_stand_once():
    records = [make_record("lora", s, make_matrix(3, 0.01 * s), notes=["own"], stream_notes=["stream"]) for s in (0, 1)]
    assert only(records).notes == ("stream.", "lora: own.")


def test_seeds_with_streams_of_different_lengths_have_no_mean_matrix():
    short = make_record("lora", 1, tasks=2)
    short = short.model_copy(update={"trial": make_record("lora", 1).trial})
    section = only([make_record("lora", 0), short])
    assert section.matrices == ()
    assert any("streams of different lengths" in n for n in section.notes)


@pytest.mark.parametrize(("value", "unit", "expected"), [
    (1, "percent", "100.00"), (-0.00001, "points", "0.00"), (-0.25, "points", "-25.00"),
    (1234567, "count", "1,234,567"),
    (0, "bytes", "0 B"), (812, "bytes", "812 B"), (999, "bytes", "999 B"), (999.6, "bytes", "1.00 kB"),
    (1_913_640, "bytes", "1.91 MB"), (999_999, "bytes", "1.00 MB"), (45_200_000, "bytes", "45.2 MB"),
    (5e15, "bytes", "5,000 TB"), (5e15, "flops", "5.00 PFLOP"), (0, "flops", "0 FLOP"),
    (9.996, "seconds", "10.0"), (99.96, "seconds", "100"), (12345.6, "seconds", "12,346"),
])
def test_numbers_are_readable(value, unit, expected):
    assert number(value, unit) == expected


def test_intervals_share_the_unit_of_their_mean():
    assert interval(1_500_000, 20_000, "bytes") == "1.50 ± 0.02 MB"
    assert interval(12.34, 0.5, "seconds") == "12.3 ± 0.50"


def test_lists_are_short():
    assert as_ranges([2, 0, 1, 7]) == "0-2, 7"
    assert as_ranges([3, 4]) == "3, 4"
    assert describe_by_task([5, 6, 7, 8, 9, 10, 9]) == "5 in task 1, 9 in task 7, 10 at most"
    assert clean("a\n\tb\x1b[31m\u202ec") == "a b\ufffd[31m\ufffdc"


def test_a_hundred_records_take_well_under_half_a_second():
    methods = [f"m{k}" for k in range(10)]
    records = [make_record(m, s, make_matrix(10, 0.001 * (s * k % 7)))
               for s in range(10) for k, m in enumerate(methods)]
    importlib.import_module("scipy.special")  # which takes longer than the report
    began = time.process_time()  # not wall time: other tests may keep the machine busy
    render(build(records))
    assert time.process_time() - began < 0.5


def test_a_note_that_all_methods_have_is_said_once_without_a_name():
    both = [make_record(label, notes=["the head starts untrained."], tasks=2) for label in ("lora", "ewc")]
    assert [n for n in only(both).notes if "untrained" in n] == ["the head starts untrained."]
    one = [make_record("lora", notes=["the head starts untrained."]), make_record("ewc")]
    assert "lora: the head starts untrained." in only(one).notes


def test_growth_of_what_is_trained_names_the_largest_where_it_is_not_an_end():
    assert describe_by_task(list(range(10, 90, 10))) == "10 in task 1, 80 in task 8"
    assert describe_by_task([10, 20, 90, 40, 50, 60, 70, 80]) == "10 in task 1, 80 in task 8, 90 at most"


def test_results_hold_what_each_seed_gave():
    records = [make_record("lora", 0, make_matrix(2, 0.01), parameters={"base": 5, "heads": 2}),
               make_record("lora", 1, make_matrix(2), trainable=[7, 3]),
               make_record("lora", 2, make_matrix(2), status="diverged"),
               make_record("joint", 0, make_matrix(2))]
    lora, joint = only(records).results
    assert (lora.label, lora.complete, lora.seeds, joint.reference) == ("lora", False, (0, 1), True)
    assert lora.R[0] == tuple(map(tuple, make_matrix(2, 0.01)))
    assert lora.trainable[1] == (7, 3)
    assert lora.parameters == ((7, 7), (1000, 1000))
    assert lora.bytes[0] == (4000, 4000)
    assert lora.seconds == (2.5, 2.5)


def test_one_seed_and_one_epoch_are_singular_and_seeds_are_listed_once():
    assert [list_seeds(seeds) for seeds in ([0], [0, 0, 1, 1, 2, 2], [3, 1])] == ["seed 0", "seeds 0-2", "seeds 1, 3"]
    for epochs, seeds, words in ((1, [4], "1 epoch per task"), (2, [0, 1], "2 epochs per task")):
        section, = build([make_record("ewc", s, recipe=Recipe(epochs=epochs)) for s in seeds]).sections
        summary = dict(section.setting)
        assert summary["budget"].startswith(f"{words}, batch size") and summary["seeds"] == as_ranges(seeds)
