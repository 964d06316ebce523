"""A method chosen under constraints: what is filtered, by what evidence it is ranked, what each constraint costs."""

import json
import re
from statistics import fmean

import pytest
from helpers import ROOT
from helpers.records import folder, make_record

from clbench import cli
from clbench.cli.choose import lines
from clbench.core.errors import SpecError
from clbench.experiment.search import Searched
from clbench.report import build
from clbench.report.analysis.choosing import choose, find_choosable, limit
from clbench.report.analysis.grouping import group_by_setting
from clbench.report.formats import html
from clbench.report.formats.choosable import INCONCLUSIVE, LegendEntry, choose_legend, pack_choice
from clbench.results.store import Store

SEEDS = range(6)
# accuracy, bytes kept, parameters trained, samples kept
METHODS = {"er": (0.9, 9_000_000, 1000, 200), "ewc": (0.6, 3_000_000, 1000, 0), "lora": (0.8, 2_000_000, 10, 0),
           "lwf": (0.795, 1_000_000, 1000, 0), "naive": (0.2, 500_000, 1000, 0), "joint": (0.99, 99_000_000, 1000, 0)}


def record(method: str, seed: int):
    accuracy, kept, trainable, samples = METHODS[method]
    own = accuracy + 0.01 * ((seed * 7 + len(method)) % 3 - 1)
    made = make_record(method, seed, [[0.5] * 2, [own, 0.5], [own, own]], trainable=[trainable] * 2,
                       kept_bytes={"base": kept}, train_flops=[kept, kept], test_samples=50_000,
                       command="clbench run --methods er,ewc,lora,lwf,naive,joint --seeds 6")
    costs = made.costs.model_copy(update={"replay_samples": [samples] * 2})
    return made if method == "joint" else made.model_copy(update={"costs": costs})


@pytest.fixture
def setting():
    return group_by_setting([record(method, seed) for method in METHODS for seed in SEEDS])[0]


def test_without_constraints_the_best_is_chosen_and_references_are_no_choice(setting):
    found = choose(setting, [])
    assert found.best == "er" and {r.method for r in found.rivals} == {"ewc", "lora", "lwf"} and not found.refused
    assert found.accuracy == pytest.approx(fmean(fmean(record("er", s).R[-1]) for s in SEEDS))


@pytest.mark.parametrize(("given", "allowed"), [
    ({"kept": "3MB"}, {"ewc", "lora", "lwf"}), ({"kept": "2.5e6"}, {"lora", "lwf"}),
    ({"samples": "0"}, {"ewc", "lora", "lwf"}),
    ({"trainable": "1%"}, {"lora"}), ({"compute": "2x"}, {"lwf"}), ({"compute": "2x-lwf"}, {"lora", "lwf"}),
    ({"kept": "3M", "trainable": "0.5x"}, {"lora"}), ({"kept": "1kB"}, set()),
])
def test_counted_facts_filter(setting, given, allowed):
    found = choose(setting, [limit(setting, name, value) for name, value in given.items()])
    assert {label for label in (found.best, *(r.method for r in found.rivals)) if label} == allowed
    assert set(found.refused) == {"er", "ewc", "lora", "lwf"} - allowed


def test_what_is_not_told_apart_is_said_with_the_seeds_that_would_do(setting):
    found = choose(setting, [limit(setting, "samples", "0")])
    assert found.best == "lora"
    near, far = found.rivals
    assert near.method == "lwf" and not near.shown and near.needed > len(SEEDS)
    assert far.method == "ewc" and far.shown and far.needed is None
    assert near.difference == pytest.approx(fmean(fmean(record("lora", s).R[-1]) - fmean(record("lwf", s).R[-1])
                                                  for s in SEEDS))


def test_a_constraint_costs_what_the_best_without_it_has_more(setting):
    free, bound = choose(setting, [limit(setting, "samples", "0"), limit(setting, "trainable", "1000")]).prices
    assert (free.flag, free.method) == ("--no-samples-kept", "er") and free.difference == pytest.approx(0.1, abs=0.01)
    assert bound.method == "lora" and bound.difference == 0
    none = choose(setting, [limit(setting, "kept", "1"), limit(setting, "samples", "0")])
    assert none.best is None and [price.method for price in none.prices] == ["lora"]


@pytest.mark.parametrize(("given", "message"), [
    ("lots", "--max-kept lots: expected an amount such as 5MB"), ("2x-nobody", "has no method 'nobody'"),
    (".", "expected an amount"), ("1.2.3", "expected an amount"),
    ("2x-loraa", "no method 'loraa'; did you mean 'lora'"),
])
def test_a_limit_that_means_nothing_is_one_line(setting, given, message):
    with pytest.raises(SpecError, match=message):
        limit(setting, "kept", given)


def test_a_share_needs_plain_fine_tuning():
    alone = group_by_setting([record("ewc", seed) for seed in SEEDS])[0]
    with pytest.raises(SpecError, match=r"has no fine-tuning baseline \(naive\) whose trainable parameters per task"):
        limit(alone, "trainable", "1%")


def test_the_command_says_all_of_it(tmp_path, capsys):
    run = str(folder(tmp_path, *(record(method, seed) for method in METHODS for seed in SEEDS)))
    assert cli.call(["choose", run, "--no-samples-kept", "--task-id", "known"]) == 0
    out = capsys.readouterr().out
    assert "3 of 4 methods meet --no-samples-kept" in out and "choose lora: accuracy 8" in out
    assert "no significant difference: LwF" in out and "significantly worse: EWC" in out
    assert "--no-samples-kept costs 10." in out and "left out: er (stores samples: 200)" in out
    assert "caution" not in out and "collect seeds" not in out  # more seeds than the rule allows would be needed
    assert cli.call(["choose", run, "--max-kept", "1MB", "--format", "json"]) == 0
    found, = json.loads(capsys.readouterr().out)
    assert found["best"] == "lwf"
    assert found["limits"] == [{"flag": "--max-kept 1MB", "counted": "bytes kept", "most": 1e6}]
    assert cli.call(["choose", run, "--max-kept", "1"]) == 1
    assert "no method meets all constraints" in capsys.readouterr().out
    assert cli.call(["choose", run, "--max-kept", "5", "MB"]) == 2
    assert "no run folder MB: write an amount without a space, as in --max-kept 5MB" in capsys.readouterr().err
    assert cli.call(["choose", run, "--task-id", "unknown"]) == 2
    assert "run with --scenario class or domain" in capsys.readouterr().err


def test_a_difference_that_no_test_can_decide_is_inconclusive(tmp_path, capsys):
    records = [record(method, 0) for method in METHODS]
    assert cli.call(["choose", str(folder(tmp_path, *records))]) == 0
    out = capsys.readouterr().out
    assert out.count("  inconclusive: ") == 3 and "no significant difference" not in out
    section, = build(records).sections
    setting, = json.loads(pack_choice([("s1", section)]))["settings"]
    assert setting[6][0][2::3] == [INCONCLUSIVE] * 3


def test_methods_that_are_not_named_are_counted_by_verdict():
    setting, = group_by_setting([make_record("ewc", 0, [[0.5] * 2, [0.9, 0.5], [0.5 + k / 100] * 2], label=f"ewc-{k}",
                                             options={"strength": k}) for k in range(12)])
    text = list(lines(choose(setting, []), {m.label: m.label for m in setting.methods}))
    assert text[-1] == "  inconclusive: 3 more" and not any("no significant difference" in line for line in text)


@pytest.mark.parametrize("name", ["er:capacity=60:recipe.lr=0.1", "er:capacity=60", "ER (60)"])
def test_a_multiple_accepts_each_name_of_a_method(tmp_path, capsys, name):
    tuned = [record("er", seed) for seed in SEEDS]
    tuned = [r.model_copy(update={"label": "er:capacity=60:recipe.lr=0.1", "trial": r.trial.model_copy(update={
        "method": r.trial.method.model_copy(update={"options": {"capacity": 60, "per_class": None}})})})
        for r in tuned]
    tuned = [r.model_copy(update={"key": r.trial.key}) for r in tuned]
    run = str(folder(tmp_path, *tuned, *(record("ewc", seed) for seed in SEEDS)))
    assert cli.call(["choose", run, "--max-kept", f"0.5x-{name}"]) == 0
    assert f"1 of 2 methods meets --max-kept 0.5x-{name}" in capsys.readouterr().out


def test_without_constraints_it_says_that_no_method_has_all_results(tmp_path, capsys):
    run = str(folder(tmp_path, *(make_record(m, s, status="failed" if s == i else "done")
                                 for i, m in enumerate(("er", "ewc")) for s in (0, 1))))
    assert cli.call(["choose", run]) == 1
    assert "0 of 2 methods have all results\n  no method has a result for every seed\n" in capsys.readouterr().out


def test_more_seeds_are_advised_as_in_reports(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(METHODS, "lwf", (0.79, 1_000_000, 1000, 0))
    run = str(folder(tmp_path, *(record(method, seed) for method in ("lora", "lwf") for seed in SEEDS)))
    assert cli.call(["choose", run]) == 0
    assert "  collect seeds until the question is decided, in a new folder: clbench run" in capsys.readouterr().out


def test_the_chosen_method_is_cautioned_against_and_a_single_seed_gets_more(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(METHODS, "guess", (0.4, 100, 10, 0))
    run = str(folder(tmp_path, *(record(method, 0).model_copy(update={"reference": False}) for method in ("guess",))))
    assert cli.call(["choose", run]) == 0
    out = capsys.readouterr().out
    assert "  caution: guess \N{WHITE CIRCLE}. Not better than guessing" in out
    assert "  run more seeds: clbench run --methods er,ewc,lora,lwf,naive,joint --seeds 5" in out
    assert cli.call(["choose", run, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["caution"] == "\N{WHITE CIRCLE}"


def test_differences_in_the_unit_of_a_target_have_no_unit(capsys):
    assert cli.call(["choose", str(ROOT / "reports/auto_mpg"), "--no-samples-kept", "--max-kept", "20kB"]) == 1
    assert cli.call(["choose", str(ROOT / "reports/auto_mpg")]) == 0
    assert re.search(r"no significant difference: SI 3.06, 0.142 ± [\d.]+ more \(", out := capsys.readouterr().out)
    assert " value" not in out
    page = html.render(build(Store(ROOT / "reports/auto_mpg").read()[0]))
    assert "Amount by which a task" in page and "Forgetting: " in page and "Value by" not in page


def test_a_method_of_avalanche_is_one_of_its_kind_whatever_its_label():
    section, = build([make_record("avalanche:EWC", s, label="mine") for s in (0, 1)]).sections
    result, = section.results
    entry, = choose_legend(section, [LegendEntry(result, 0, "c0", "o", 0)])
    assert "from Avalanche" in entry.kinds


@pytest.mark.parametrize(("name", "allowed"), [("compute", {"er"}), ("inference", {"lwf"})])
def test_each_limit_reads_its_own_cost(name, allowed):
    flops = {"er": (10, 90), "ewc": (40, 90), "lora": (40, 90), "lwf": (40, 30)}  # of a task, of a prediction
    made = [one.model_copy(update={"costs": one.costs.model_copy(update={
        "train_flops": [train] * 2, "inference_flops": [999, predict]})})
        for m, (train, predict) in flops.items() for one in (record(m, s) for s in SEEDS)]
    setting, = group_by_setting(made)
    found = choose(setting, [limit(setting, name, "60")])
    assert {found.best, *(rival.method for rival in found.rivals)} == allowed


def with_means(**accuracies):
    """Return records by method and seed whose final accuracies are given; None leaves the seed out."""
    return [make_record(method, seed, [[0.5] * 2, [value, 0.5], [value, value]], test_samples=50_000)
            for method, values in accuracies.items() for seed, value in enumerate(values) if value is not None]


def test_methods_without_all_seeds_count_in_the_correction():
    """`clbench compare` and the report correct over all pairs of methods, so the choice does, too."""
    noise = [0.0, 0.012, -0.011, 0.016, -0.014]
    found = with_means(er=[0.60 + e for e in noise], ewc=[0.58] * 5,
                       lora=[0.40 + 3 * e for e in noise], lwf=[0.35, 0.36, None, 0.33, 0.37])
    setting, = group_by_setting(found)
    tests = setting.tests(setting.final, setting.compared(setting.final))
    pair = next(pair for pair in tests.pairs if {pair.first, pair.second} == {"er", "ewc"})
    assert pair.p < 0.05 < pair.corrected and len(tests.pairs) == 6
    choice = choose(setting, [])
    assert choice.best == "er" and not next(rival for rival in choice.rivals if rival.method == "ewc").shown
    comparisons = find_choosable(setting)
    assert [candidate.label for candidate in comparisons.candidates] == ["er", "ewc", "lora"]
    assert not comparisons.comparisons[0][0].shown and comparisons.comparisons[0][1].shown


def test_methods_that_are_equal_on_every_seed_are_called_so():
    values = [0.8, 0.7, 0.75]
    choice = choose(group_by_setting(with_means(er=values, ewc=[v + 1e-17 for v in values]))[0], [])
    assert choice.rivals[0].equal
    printed = "\n".join(lines(choice, {"er": "ER", "ewc": "EWC"}))
    assert "equal on every seed: EWC 75.00" in printed and "would be needed" not in printed


def test_methods_that_saw_other_data_are_not_tested(tmp_path, capsys):
    found = with_means(er=[0.9, 0.91, 0.92], ewc=[0.5, 0.51, 0.53])
    found += [r.model_copy(update={"stream": r.stream.model_copy(update={"fingerprint": "beef"})})
              for r in with_means(lwf=[0.2, 0.21, 0.23])]
    setting, = group_by_setting(found)
    rivals = {rival.method: rival for rival in choose(setting, []).rivals}
    assert rivals["ewc"].shown and not rivals["lwf"].shown
    assert rivals["lwf"].untested == "they did not see the same data"
    answer = build(found, ids=True).sections[0].headline[0][1]
    assert "It is not tested against lwf because they did not see the same data." in answer
    folder(tmp_path, *found)
    assert cli.call(["compare", str(tmp_path), "--metric", "ACC"]) == 0
    assert "not tested: they did not see the same data" in " ".join(capsys.readouterr().out.split())


def test_seeds_that_chose_hyperparameters_are_a_caution():
    found = [r.model_copy(update={"searched": Searched(candidates=4, validation=0.1, seeds=(1, 1000))})
             for r in with_means(er=[0.9, 0.91, 0.92])]
    section = build([*found, *with_means(ewc=[0.5, 0.51, 0.53])], ids=True).sections[0]
    assert any("Seed 1 also chose hyperparameters, so the results with this seed may be too good." in text
               for _, text in section.headline)
