"""The page of claims about LoRA says what the committed records give, by rules that can be wrong."""

import json
import sys

import pytest
from helpers import ROOT
from helpers.records import make_record

from clbench.core.options import format_value
from clbench.results.metrics import acc
from clbench.results.stats import Interval
from clbench.results.store import Store

sys.path.insert(0, str(ROOT / "benchmarks" / "lora_question"))
import claims
import evidence
import experiments
import keeping
import low_rank
import tested
from clbench_lora.spectrum import Change, Spectrum
from evidence import Finding


@pytest.fixture(scope="module")
def found():
    return evidence.studies(ROOT / "reports")


def test_the_page_is_current(found):
    assert (ROOT / "docs" / "lora-claims.md").read_text(encoding="utf-8") == claims.page(found), (
        "python benchmarks/lora_question/claims.py --write makes it anew")


def test_a_difference_is_paired_and_of_the_committed_records(found):
    study = next(s for s in found if s.folder == "split_mnist" and s.scenario == "task")
    row, = tested.usual(study)
    ewc, = study.named("ewc")
    records, _ = Store(ROOT / "reports" / "split_mnist").read()
    by = {(r.label, r.trial.seed): acc(r.R) for r in records if r.trial.scenario == "task"}
    gaps = [by[row.label, seed] - by[ewc.label, seed] for seed in range(6)]
    over = evidence.paired(row, ewc)
    assert over.n == 6 and over.mean == pytest.approx(sum(gaps) / 6, abs=1e-12)
    finding, = tested.against("ewc")([study])
    assert finding.verdict == "holds" and f"{100 * over.mean:+.1f} [" in finding.text


@pytest.mark.parametrize(("low", "high", "verdict"), [
    (-0.019, 0.1, "holds"), (-0.1, -0.021, "does not hold"), (-0.03, -0.01, "not decided"),
    (None, None, "not decided")])
def test_a_verdict_needs_the_whole_interval(low, high, verdict):
    assert evidence.above(Interval(0.0, low, high, 3), -evidence.MARGIN) == verdict


@pytest.mark.parametrize(("verdicts", "said"), [
    ([], "not tested yet"),
    ([("holds", "a"), ("not decided", "b")], "holds"),
    ([("does not hold", "a")], "does not hold"),
    ([("not decided", "a")], "not decided"),
    ([("holds", "a"), ("does not hold", "b")], "holds only a"),
    ([("holds", "a"), ("holds", "b"), ("does not hold", "b")], "holds in 1 of 1 a, 1 of 2 b"),
    ([("holds", "a"), ("does not hold", "a")], "holds in 1 of 2 a")])
def test_a_condition_is_named_where_it_tells_settings_apart(verdicts, said):
    assert evidence.summary([Finding("", "", verdict, {"id": trait}) for verdict, trait in verdicts]) == said


def test_bases_stand_apart_and_open_comparisons_are_counted():
    one, other, third = (Finding("", "", verdict, {"id": trait, "base": base}) for verdict, trait, base in (
        ("holds", "a", evidence.PRETRAINED), ("not decided", "a", evidence.PRETRAINED),
        ("does not hold", "a", evidence.NOT_PRETRAINED)))
    apart = claims.Tested(claims.CLAIMS[0], (one, other, third)).by_base
    assert [evidence.told(found) for found in apart.values()] == ["holds (1 yes, 1 open)", "does not hold (1 no)"]


def test_every_finding_is_of_one_of_the_bases(found):
    for claim in claims.CLAIMS:
        tested_one = claims.Tested(claim, tuple(claim.test(found)))
        assert sum(map(len, tested_one.by_base.values())) == len(tested_one.findings)


def test_what_changes_is_interference(found):
    study = next(s for s in found if s.folder == "split_mnist" and s.scenario == "task")
    still, = tested.no_interference([study])
    row, = tested.usual(study)
    changed = row.first.model_copy(update={"R": [[*values] for values in row.first.R]})
    changed.R[-1][0] -= 0.001
    moved, = tested.no_interference([evidence.Study("x", (evidence.Row(row.label, {0: changed}),))])
    assert (still.verdict, moved.verdict) == ("holds", "does not hold")
    assert "1 of 10 later accuracies" in moved.text


def test_nothing_follows_from_a_rival_whose_recipe_ruins_the_base(found):
    study = next(s for s in found if s.folder == "pretrained_vit")
    finding, = tested.against("er")([study])
    assert finding.verdict == "not decided" and "its recipe ruins the base" in finding.text
    alone = evidence.Study(study.folder, tuple(row for row in study.rows if row.name != "frozen"))
    assert next(tested.against("er")([alone])).verdict == "holds"


def test_with_the_task_id_rows_that_would_infer_it_differently_are_one(found):
    given, hidden = (next(s for s in found if s.folder == "all_methods" and s.scenario == name)
                     for name in ("task", "class"))
    assert [row.label for row in given.named("lora")] == [row.label for row in hidden.named("lora")]
    assert (len(tested.usual(given)), len(tested.usual(hidden))) == (1, 2)


def test_one_of_several_rivals_is_named(found):
    study = next(s for s in found if s.folder == "all_methods" and s.scenario == "class")
    texts = [finding.text for finding in tested.against("ncm", "slda")([study])]
    assert [name in text for text in texts for name in ("against ncm ", "against slda ")] == 2 * [
        True, False] + 2 * [False, True]


def test_rows_of_one_rival_are_told_apart_where_there_are_several(found):
    several, one = (next(s for s in found if s.folder == folder) for folder in ("lora_question/memory", "split_mnist"))
    texts = [finding.text for finding in tested.against("er")([several])]
    labels = [row.label for row in several.named("er")]
    assert len(labels) > 1 and all(any(f"against {label} " in text for text in texts) for label in labels)
    assert not any("against er" in finding.text for finding in tested.against("er")([one]))


def test_heads_are_compared_with_adapters_on_their_own_base(found):
    study = next(s for s in found if s.folder == "lora_question/base")
    texts = [finding.text for finding in tested.general_features([study])]
    assert len(texts) == 2, "two bases, LoRA on each at the better of two learning rates"
    assert all(text.count("base=task1") in (0, 2) for text in texts)


def row(accuracy, scenario="class", lr=1e-3, **options):
    label = ":".join(["lora", *(f"{k}={format_value(v)}" for k, v in {**options, "recipe.lr": lr}.items())])
    return evidence.Row(label, {seed: make_record(
        "lora", seed, [[0.5, 0.5], [accuracy, 0.5], [accuracy, accuracy]], label=label, scenario=scenario,
        own_recipe={"lr": lr}, options=options) for seed in range(3)})


def heads(*accuracies):
    return evidence.Row("frozen", {seed: make_record("frozen", seed, [[0.5, 0.5], [value, 0.5], [value, value]],
                                                     scenario="class") for seed, value in enumerate(accuracies)})


def test_a_method_stands_in_a_study_by_its_best_recipe():
    study = evidence.Study("x", (row(0.9, rank=4, lr=0.1), row(0.91, rank=4, lr=0.2), row(0.3, rank=4, lr=0.3),
                                 row(0.5, rank=4, alpha=8, lr=0.1), row(0.99, rank=8)))
    assert [r.label for r in tested.usual(study)] == ["lora:rank=4:recipe.lr=0.2", "lora:rank=4:alpha=8:recipe.lr=0.1"]
    assert [r.label for r in tested.by_best_recipe(study, "lora")][2:] == ["lora:rank=8:recipe.lr=1e-3"]
    assert tested.by_best_recipe(study, "ewc") == []


def test_ranks_are_compared_best_with_best_among_rows_that_infer_the_task_alike():
    study = evidence.Study("x", (row(0.9, rank=1, infer="gaussian"), row(0.91, rank=16, infer="gaussian"),
                                 row(0.7, rank=4, infer="gaussian"), row(0.3, rank=16, infer="gaussian", lr=0.1),
                                 row(0.5, rank=4, infer="entropy"), row(0.4, rank=8, infer="entropy"),
                                 row(0.8, rank=32, infer="gaussian")))
    compare = tested.rank_matters(range(1, 5), range(8, 17))
    assert [(finding.text.rpartition(": ")[2], finding.verdict) for finding in compare([study])] == [
        ("+1.0 [+1.0, +1.0]", "holds"), ("-10.0 [-10.0, -10.0]", "does not hold")]


def test_what_is_lost_without_the_task_id_is_told_of_the_same_adapters_wherever_the_runs_lie():
    given = evidence.Study("x", (row(0.9, "task", rank=4), row(0.8, "task", rank=4, layers="last")))
    hidden = evidence.Study("y", (row(0.4, rank=4, infer="gaussian"),))
    finding, = tested.without_id([given, hidden])
    assert "40.00 % without, 90.00 % with: -50.0" in finding.text and "reports/y/" in finding.setting


@pytest.mark.parametrize(("lower", "verdict"), [(0.6, "holds"), (0.9, "not decided"), (0.95, "holds")])
def test_lora_on_two_pretrained_bases_is_told_beside_heads_alone(lower, verdict):
    vit = evidence.Study("lora_question/vision_class", (row(0.9, rank=4, infer="gaussian"),))
    other = evidence.Study("lora_question/efficientnet_class", (heads(*[lower] * 3),
                                                                row(lower, rank=4, infer="gaussian")))
    finding, = experiments.bases_differ([vit, other], "vision_class", "efficientnet_class")
    assert f"90.00 %, MLP {100 * lower:.2f} % (heads alone {100 * lower:.2f} %): " in finding.text
    assert finding.verdict == verdict


def test_a_study_repeated_in_part_by_a_larger_one_is_left_out():
    small, other = evidence.Study("a", (row(0.5, rank=1),)), evidence.Study("c", (row(0.5, rank=2),))
    large = evidence.Study("b", (row(0.5, rank=1), row(0.5, rank=4)))
    assert evidence.repeats(small, large) and not evidence.repeats(other, large)


def test_a_row_that_was_searched_in_a_study_that_trains_the_same_counts_as_searched(found):
    whole, fewer = (next(s for s in found if s.folder == f"lora_question/{name}")
                    for name in ("vision_task_full", "many_tasks"))
    ewc, = whole.named("ewc")
    assert ewc.first.searched is None and ewc.searched
    assert not any(row.searched for row in fewer.rows)


@pytest.mark.parametrize(("whole", "changed", "verdict"), [
    (0.8, "changes by +0.0 [+0.0, +0.0]", "holds"), (0.75, "changes by +5.0 [+5.0, +5.0]", "does not hold"),
    (0.785, "changes by +1.5 [+1.5, +1.5]", "holds")])
def test_leads_on_more_samples_are_compared_seed_by_seed(whole, changed, verdict):
    part = evidence.Study("lora_question/vision_task", (row(0.9, rank=4), heads(0.8, 0.8, 0.8, 0.1), row(0.5, rank=1)))
    finding, = experiments.leads_differ(part, evidence.Study("x", (row(0.9, rank=4), heads(*[whole] * 4))))
    assert "a lead of " in finding.text and changed in finding.text
    assert finding.verdict == verdict


@pytest.mark.parametrize(("low", "high", "verdict"), [
    (-0.019, 0.019, "holds"), (0.021, 0.1, "does not hold"), (-0.1, -0.021, "does not hold"),
    (-0.03, 0.01, "not decided"), (0.0, 0.03, "not decided"), (None, None, "not decided")])
def test_a_change_is_within_a_bound_to_both_sides(low, high, verdict):
    assert evidence.within(Interval(0.0, low, high, 3), evidence.MARGIN) == verdict


def test_the_rank_of_a_change_is_that_of_its_layers_and_the_median_decides(found, monkeypatch):
    # Of the first layer one direction in 20 holds nine tenths of the energy, in the others 10 and 20 of 20 equal ones.
    singular = {"a": (3.0, *[0.2] * 19), "b": (*[1.0] * 10, *[1e-9] * 10), "c": (1.0,) * 20}
    spectrum = Spectrum("a setting", "independent", [Change("key", 0, 0, layer, (20, 30), values)
                                                     for layer, values in singular.items()])
    summed = low_rank.summed_up(spectrum, "permuted_ranks")
    assert [layer["rank for"]["0.9"] for layer in summed["layers"]] == [1, 9, 18]
    assert summed["energy"]["1"] == pytest.approx(11 / (9 + 19 * 0.04 + 10 + 20), abs=1e-5)
    study = next(s for s in found if s.folder == "lora_question/permuted_ranks")
    monkeypatch.setattr(experiments, "written", lambda name: [summed])
    finding, = experiments.low_rank([study])
    assert finding.verdict == "does not hold" and "45.00 % of the ranks hold 90 %" in finding.text
    assert "rank 4 holds" in finding.text and "LoRA reaches 89.67 %" in finding.text
    summed["layers"] = summed["layers"][:1]
    assert next(experiments.low_rank([study])).verdict == "holds"


def test_every_experiment_that_a_claim_waits_for_is_there():
    names = {name for claim in claims.CLAIMS for name in claim.planned}
    begun = {"answer"}  # its claims come with its records (PROTOCOL.md)
    assert names | begun == {path.stem for path in (ROOT / "benchmarks" / "lora_question").glob("*.toml")}


def test_findings_of_other_runs_stay_and_those_of_the_same_are_replaced(tmp_path):
    file = tmp_path / "new" / "found.json"
    keeping.keep([{"folder": "a", "n": 1}, {"folder": "b", "n": 2}], file, by=("folder",))
    keeping.keep([{"folder": "a", "n": 3}], file, by=("folder",))
    assert json.loads(file.read_text()) == [{"folder": "b", "n": 2}, {"folder": "a", "n": 3}]


def test_layers_are_compared_at_the_better_of_their_learning_rates():
    study = evidence.Study("lora_question/layers", (
        row(0.8, layers="all"), row(0.5, layers="all", lr=3e-3), row(0.6, layers="attention"),
        row(0.79, layers="attention", lr=3e-3)))
    finding, = experiments.some_layers([study])
    assert finding.text.startswith("lora:layers=attention:recipe.lr=3e-3 (1,000 parameters) 79.00 %, ")
    assert "lora:layers=all:recipe.lr=1e-3 (1,000) 80.00 %: -1.0 [-1.0, -1.0]" in finding.text
    assert finding.verdict == "holds"
