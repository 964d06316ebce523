"""The pages of claims about LoRA show what the committed records give, by rules that can fail."""

import csv
import json
import re
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from helpers import ROOT
from helpers.records import make_record
from scipy import stats as scipy_stats

from clbench.core.compat import tomllib
from clbench.core.options import format_value
from clbench.experiment.trial import Trial
from clbench.results.stats import Interval

sys.path.insert(0, str(ROOT / "benchmarks" / "lora_question"))
import claim_list
import claims
import comparisons
import evidence
import experiments
import json_results
import low_rank
import verdicts
from claim_pages import ClaimResult
from clbench_lora.spectrum import Change, Spectrum

DOCS = ROOT / "docs"
ALL_VERDICTS = {"supported", "contradicted", "inconclusive"}


@pytest.fixture(scope="module")
def studies():
    return evidence.read_studies()


@pytest.fixture(scope="module")
def tested(studies):
    return {claim.slug: ClaimResult.of(claim, studies) for claim in claim_list.CLAIMS}


@pytest.fixture(scope="module")
def csv_rows():
    with open(DOCS / "claims" / "rows.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def raw_accuracies(folder, method, scenario, rank=None):
    """Return the final average accuracy in percent by seed and learning rate, from the JSON files of a study."""
    by_rate = {}
    for path in (ROOT / "reports" / folder / "records").rglob("*.json"):
        record = json.loads(path.read_text())
        trial = record["trial"]
        row = record["label"].partition(":")[0]  # rows with another name, such as lora-head-rate, do not count
        if (row, trial["scenario"], record["status"]) == (method, scenario, "done") and (
                rank is None or trial["method"]["options"]["rank"] == rank):
            rate = {**trial["recipe"], **trial.get("own_recipe", {})}["lr"]
            by_rate.setdefault(rate, {})[trial["seed"]] = 100 * float(np.mean(record["R"][-1]))
    return by_rate


# --- the pages ---

def test_the_pages_are_current(studies):
    pages = claims.render_pages(studies)
    assert [str(path) for path, text in pages.items() if not path.exists() or path.read_text() != text] == [], (
        "python benchmarks/lora_question/claims.py --write writes them")
    assert {path for path in (DOCS / "claims").iterdir()} == {path for path in pages if path.parent.name == "claims"}


def test_the_overview_is_short():
    text = re.sub(r"^```.*?^```$", "", (DOCS / "lora-claims.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    shown = re.sub(r"\]\([^)]*\)", "]", text).replace("|", " ")  # links without their targets, tables included
    assert len(re.findall(r"\S*\w\S*", shown)) <= 1500


def test_every_claim_has_a_page_with_a_permanent_anchor_and_links_that_resolve():
    overview = (DOCS / "lora-claims.md").read_text()
    assert len({claim.slug for claim in claim_list.CLAIMS}) == len(claim_list.CLAIMS)
    for claim in claim_list.CLAIMS:
        page = DOCS / "claims" / f"{claim.slug}.md"
        assert f'<a id="claim-{claim.slug}"></a>' in page.read_text()
        assert f"](claims/{claim.slug}.md)" in overview and f"\nclaims/{claim.slug}\n" in overview
    for page in (DOCS / "lora-claims.md", *(DOCS / "claims").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_slugs_of_published_claims_stay():
    assert {"ewc", "er", "pnn", "shared-private", "shared-adapters", "analytic-classifiers", "joint", "linear-probe",
            "task-ids", "interference", "add-and-remove", "parameters", "compute", "training-time", "many-tasks",
            "pnn-cost", "ewc-weights", "er-buffer", "pretraining", "permuted-inputs", "low-rank-change", "rank-8",
            "rank-32", "alpha", "layers", "test-images"} <= {claim.slug for claim in claim_list.CLAIMS}


def test_the_summary_counts_studies_and_no_study_or_setting_twice(tested):
    overview = (DOCS / "lora-claims.md").read_text()
    for claim in tested.values():
        assert all(row.main for row in claim.counted)
        for counts in (Counter(row.source.name for row in claim.counted),
                       Counter(row.source.setting for row in claim.counted)):
            assert max(counts.values(), default=0) <= 1, claim.slug
        line, = [line for line in overview.splitlines() if line.startswith(f"| [{claim.claim.sentence}](claims/")]
        numbers = [int(number) for cell in line.split("|")[2:] for number in re.findall(r"\d+", cell)]
        assert sum(numbers) == len(claim.counted)


def test_rows_csv_agrees_with_the_pages(tested, csv_rows):
    for slug, claim in tested.items():
        of_claim = [row for row in csv_rows if row["claim"] == slug]
        assert len(of_claim) == len(claim.rows) and {row["verdict"] for row in of_claim} <= ALL_VERDICTS
        page = (DOCS / "claims" / f"{slug}.md").read_text()
        verdict_part, _, sensitivity = page.partition("## Sensitivity")
        for part, counted in ((verdict_part, "true"), (sensitivity, "false")):
            on_page = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| [")]
            in_csv = [row for row in of_claim if row["counted"] == counted]
            assert [(cells[1], cells[2], cells[-2], cells[-1].partition(" (")[0]) for cells in on_page] == [
                (row["method"], row["rival"], row["seeds"], row["verdict"]) for row in in_csv], slug
            for cells, row in zip(on_page, in_csv, strict=True):
                if row["unit"] == "points":
                    ends = [float(row[end]) for end in ("low", "high") if row[end]]
                    shown = [float(cells[4]), *map(float, cells[-3].split(" to ") if ends else [])]
                    assert shown == pytest.approx([float(row["effect"]), *ends], abs=0.0501)
        totals = Counter(row["verdict"] for row in of_claim if row["counted"] == "true")
        words = re.findall(r"(\d+) supported, (\d+) contradicted, (\d+) inconclusive", verdict_part)
        assert [sum(map(int, column)) for column in zip(*words, strict=True)] == [
            totals[verdict] for verdict in verdicts.VERDICTS]


def test_the_headlines_are_counted_studies_with_individual_intervals(csv_rows):
    lines = [line for line in (DOCS / "lora-claims.md").read_text().splitlines() if re.match(r"\| (With|If) ", line)]
    assert len(lines) == 5
    for line in lines:
        slug, study = re.search(r"\(claims/(.+?)\.md\)", line)[1], re.search(r"\| \[([^\]]+)\][^|]*\|$", line)[1]
        row, = [row for row in csv_rows if row["claim"] == slug and row["counted"] == "true"
                and row["study"] == study.replace("\\", "")]
        assert float(line.split(" | ")[1]) == pytest.approx(float(row["effect"]), abs=0.0501)
        assert f": {row['verdict']} |" in line


def test_the_citation_has_the_version_of_the_project():
    citation = (ROOT / "CITATION.cff").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert re.search(r"^version: (.+)$", citation, re.MULTILINE)[1] == project["version"]
    assert re.search(r"^license: (.+)$", citation, re.MULTILINE)[1] == project["license"]
    assert f"version {project['version']}" in (DOCS / "lora-claims.md").read_text()


# --- independent recomputation from raw JSON records ---

@pytest.mark.parametrize(("slug", "folder", "scenario", "rival"), [
    ("ewc", "split_mnist", "task", "ewc"), ("er", "lora_question/answer", "task", "er"),
    ("ewc", "lora_question/answer", "class", "ewc"), ("er", "lora_question/vision_task_full", "task", "er")])
def test_a_difference_is_paired_over_the_seeds_of_both_and_of_the_committed_records(tested, slug, folder, scenario,
                                                                                    rival):
    of_lora, = raw_accuracies(folder, "lora", scenario, rank=4).values()
    of_rival, = raw_accuracies(folder, rival, scenario).values()
    seeds = sorted(of_lora.keys() & of_rival.keys())
    gaps = np.array([of_lora[seed] - of_rival[seed] for seed in seeds])
    row, = [row for row in tested[slug].rows if row.source.report == f"reports/{folder}/report.md" and row.main
            and row.source.scenario == scenario]
    assert sorted(row.values) == seeds and row.counted == (folder != "lora_question/vision_task_full")
    for level in (0.95, tested[slug].level):
        low, high = scipy_stats.t.interval(level, len(seeds) - 1, gaps.mean(), gaps.std(ddof=1) / len(seeds) ** 0.5)
        interval = row.interval(level)
        assert (interval.mean, interval.low, interval.high) == pytest.approx((gaps.mean(), low, high))
    assert row.details.startswith(f"{np.mean([of_lora[seed] for seed in seeds]):.1f}%")


def test_the_level_is_bonferronis_over_the_counted_studies(tested):
    claim = tested["ewc"]
    assert claim.level == pytest.approx(1 - 0.05 / len(claim.counted)) and len(claim.counted) > 10
    assert all(claim.level_of(row) == (claim.level if row.counted else 0.95) for row in claim.rows)


def test_two_studies_are_compared_by_welchs_interval(tested):
    row, = tested["pretraining"].counted
    pretrained, = raw_accuracies("lora_question/vision_task", "lora", "task", rank=4).values()
    first, second = list(pretrained.values()), list(row.second.values())
    interval = scipy_stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    assert (row.interval().low, row.interval().high) == pytest.approx((interval.low, interval.high))
    assert row.seeds == "5 and 3"


def test_the_accuracy_with_given_ids_is_that_of_the_same_trials(tested):
    row, = [row for row in tested["task-ids"].counted if row.source.name.startswith("answer")]
    losses = {}
    for path in (ROOT / "reports" / "lora_question" / "answer" / "records").rglob("*.json"):
        record = json.loads(path.read_text())
        if record["label"].startswith("lora:") and record["trial"]["scenario"] == "class":
            counts = record["errors"][-1]
            given = np.mean(np.array(counts["given"]) / counts["samples"])
            losses[record["trial"]["seed"]] = 100 * (np.mean(record["R"][-1]) - given)
    assert row.values == pytest.approx(losses) and len(losses) == 10
    assert "% with IDs)" in row.details


def test_every_counted_difference_is_over_equal_seed_sets(tested, studies):
    by_name = {study.name: study for study in studies}
    checked = 0
    for claim in tested.values():
        for row in claim.rows:
            study = by_name.get(row.source.name)
            labels = {r.label: r for r in study.rows} if study else {}
            if row.unit == "points" and row.second is None and {row.method, row.rival} <= labels.keys():
                assert set(row.values) <= labels[row.method].trials.keys() & labels[row.rival].trials.keys()
                if claim.slug != "test-images":
                    expected = {s: evidence.accuracy(labels[row.method].trials[s])
                                - evidence.accuracy(labels[row.rival].trials[s]) for s in row.values}
                    assert row.values == pytest.approx(expected)
                checked += 1
    assert checked > 300


# --- rules, with values by hand ---

@pytest.mark.parametrize(("rule", "low", "high", "verdict"), [
    (verdicts.is_above(-2), -1.9, 10, "supported"), (verdicts.is_above(-2), -10, -2.1, "contradicted"),
    (verdicts.is_above(-2), -3, -1, "inconclusive"), (verdicts.is_above(-2), None, None, "inconclusive"),
    (verdicts.is_below(1), 0.2, 0.9, "supported"), (verdicts.is_below(1), 1.1, 1.2, "contradicted"),
    (verdicts.is_below(1), 0.9, 1.1, "inconclusive"),
    (verdicts.is_within(2), -1.9, 1.9, "supported"), (verdicts.is_within(2), 2.1, 10, "contradicted"),
    (verdicts.is_within(2), -10, -2.1, "contradicted"), (verdicts.is_within(2), -3, 1, "inconclusive"),
    (verdicts.is_within(2), 0, 3, "inconclusive"), (verdicts.is_within(2), None, None, "inconclusive")])
def test_a_verdict_needs_the_whole_interval(rule, low, high, verdict):
    assert rule(Interval(0.0, low, high, 3)) == verdict


def row(accuracy, scenario="class", lr=1e-3, seeds=3, **options):
    label = ":".join(["lora", *(f"{k}={format_value(v)}" for k, v in {**options, "recipe.lr": lr}.items())])
    return evidence.Row(label, {seed: make_record(
        "lora", seed, [[0.5, 0.5], [accuracy, 0.5], [accuracy, accuracy]], label=label, scenario=scenario,
        own_recipe={"lr": lr}, options=options) for seed in range(seeds)})


def rival(*accuracies, name="frozen", scenario="class"):
    return evidence.Row(name, {seed: make_record(name, seed, [[0.5, 0.5], [value, 0.5], [value, value]],
                                                 scenario=scenario) for seed, value in enumerate(accuracies)})


def test_seeds_that_only_one_row_has_do_not_count():
    compared = verdicts.difference(evidence.Study("x", (row(0.9),)), row(0.9, seeds=5), rival(0.8, 0.7, 0.6),
                                   verdicts.is_above(-2))
    assert compared.values == {0: 10.0, 1: 20.0, 2: 30.0} and compared.details == "90.0%, 70.0%"


def test_accuracies_near_100_percent_are_inconclusive():
    study = evidence.Study("x", (row(0.9),))
    near = verdicts.difference(study, row(0.9), rival(0.99, 0.97, 0.98), verdicts.is_above(-2))
    assert near.verdict() == "inconclusive" and near.reason == verdicts.NEAR_100
    assert verdicts.difference(study, row(0.9), rival(0.8, 0.81, 0.82), verdicts.is_above(-2)).verdict() == "supported"


def test_an_untuned_rival_below_the_linear_probe_is_inconclusive(studies):
    study = next(s for s in studies if s.folder == "pretrained_vit")
    compare = comparisons.compare_accuracy(verdicts.is_above(-2), "er")
    main = next(compare([study]))
    assert main.main and main.verdict() == "inconclusive" and main.reason == comparisons.UNSUITABLE
    alone = evidence.Study(study.folder, tuple(row for row in study.rows if row.name != "frozen"))
    assert next(compare([alone])).verdict() == "supported"


def test_a_method_that_loses_because_it_was_underfit_decides_nothing(studies):
    study = next(s for s in studies if s.name == "answer (Task-IL)")
    rule = verdicts.is_above(-2)
    loser = next(comparisons.compare_accuracy(rule, "shared-private")([study]))
    assert loser.main and loser.interval().low > 2
    assert (loser.verdict(), loser.reason) == ("inconclusive", comparisons.UNDERFIT)
    assert next(comparisons.compare_accuracy(rule, "ewc")([study])).verdict() == "contradicted"
    private = list(study.main_row("shared-private").trials.values())
    assert comparisons.unsuitable(study, study.main_row("lora"), private) == comparisons.UNDERFIT  # on either side


def test_the_main_row_is_the_best_of_rank_4_and_variants_have_their_best_training_configuration():
    study = evidence.Study("x", (row(0.9, rank=4, lr=0.1), row(0.91, rank=4, lr=0.2), row(0.3, rank=4, lr=0.3),
                                 row(0.5, rank=4, alpha=8, lr=0.1), row(0.99, rank=8)))
    assert study.main_row("lora").label == "lora:rank=4:recipe.lr=0.2"
    assert [r.label for r in study.variants("lora")] == [
        "lora:rank=4:recipe.lr=0.2", "lora:rank=4:alpha=8:recipe.lr=0.1", "lora:rank=8:recipe.lr=1e-3"]
    assert study.variants("ewc") == [] and study.main_row("ewc") is None


def test_a_row_with_a_label_of_its_own_represents_its_method_only_if_it_is_alone():
    better = replace(row(0.95, rank=4, lr=0.3), own_label=True)
    assert evidence.Study("x", (row(0.9, rank=4), better)).main_row("lora").label == "lora:rank=4:recipe.lr=1e-3"
    assert evidence.Study("x", (better,)).main_row("lora") is better


def test_draws_of_other_images_and_epochs_of_as_many_steps_are_the_same_setting(studies, tmp_path):
    path = next((ROOT / "reports" / "lora_question" / "vision_task" / "records").glob("*.json"))
    for folder, change in {"answer": {"train_draw": "seed", "test_draw": "seed", "test_per_class": 10},
                           "answer_budget": {}}.items():
        records = tmp_path / "lora_question" / folder / "records"
        records.mkdir(parents=True)
        for source in path.parent.glob("*.json"):
            record = json.loads(source.read_text())
            if record["trial"]["method"]["name"] != "lora" or record["trial"]["seed"] > 1:
                continue
            record["trial"]["benchmark"]["options"] |= change
            record["trial"]["recipe"] |= {"epochs": None, "iterations": 64}
            record["key"] = Trial.model_validate(record["trial"]).key
            record["label"] = "best" if record["trial"]["method"]["options"]["rank"] == 16 else record["label"]
            (records / f"{record['key']}.json").write_text(json.dumps(record))
    answer, = evidence.read_studies(tmp_path)  # the other one has no verdicts by its protocol
    assert answer.setting == next(s for s in studies if s.name == "vision_task (Task-IL)").setting
    assert {r.own_label for r in answer.rows} == {True, False}


def test_in_task_il_rows_that_would_infer_the_task_differently_are_one():
    rows = (row(0.9, "task", rank=4), row(0.9, "task", rank=4, infer="gaussian"))
    assert len(evidence.Study("x", rows).variants("lora")) == 1
    assert len(evidence.Study("x", (row(0.9, rank=4), row(0.9, rank=4, infer="gaussian"))).variants("lora")) == 2


def test_the_best_of_several_rivals_decides_and_the_others_are_sensitivity_rows():
    study = evidence.Study("x", (row(0.9, rank=4), row(0.8, rank=8), rival(0.7, 0.7, 0.7, name="ncm"),
                                 rival(0.6, 0.6, 0.6, name="slda")))
    compared = list(comparisons.compare_accuracy(verdicts.is_above(-2), "slda", "ncm")([study]))
    assert [(c.rival, c.main, c.method.split(":")[1]) for c in compared] == [
        ("ncm", True, "rank=4"), ("slda", False, "rank=4"), ("ncm", False, "rank=8")]


def test_of_studies_of_one_setting_the_designed_one_counts_else_that_with_most_seeds(tested):
    base = next(row for row in tested["ewc"].rows if row.main)
    rows = [replace(base, source=replace(base.source, name=name, report=f"reports/{name}/report.md"),
                    values=dict.fromkeys(range(seeds), 1.0)) for name, seeds in (("a", 3), ("b", 5), ("c", 3))]
    assert [r.counted for r in verdicts.mark_counted(rows)] == [False, True, False]
    assert [r.counted for r in verdicts.mark_counted(rows, designed=("c",))] == [False, False, True]
    assert [r.counted for r in verdicts.mark_counted([replace(row, main=False) for row in rows])] == [False] * 3


def test_a_single_changed_accuracy_contradicts_no_interference(studies):
    study = next(s for s in studies if s.folder == "split_mnist" and s.scenario == "task")
    main = study.main_row("lora")
    changed = main.first.model_copy(update={"R": [[*values] for values in main.first.R]})
    changed.R[-1][0] -= 0.001
    before, = comparisons.compare_with_just_learned([study])
    after, = comparisons.compare_with_just_learned([evidence.Study("x", (evidence.Row("lora", {0: changed}),))])
    assert (before.verdict(), after.verdict(), after.values) == ("supported", "contradicted", {0: 1.0})


def test_ranks_are_compared_best_with_best_among_rows_that_infer_the_task_alike():
    study = evidence.Study("x", (row(0.9, rank=1, infer="gaussian"), row(0.91, rank=16, infer="gaussian"),
                                 row(0.7, rank=4, infer="gaussian"), row(0.3, rank=16, infer="gaussian", lr=0.1),
                                 row(0.5, rank=4, infer="entropy"), row(0.4, rank=8, infer="entropy"),
                                 row(0.8, rank=32, infer="gaussian")))
    compared = list(comparisons.compare_ranks(range(1, 5), range(8, 17))([study]))
    assert [(round(c.interval().mean, 6), c.verdict(), c.main) for c in compared] == [
        (1.0, "supported", True), (-10.0, "contradicted", False)]


def test_layers_are_compared_at_their_best_training_configuration():
    study = evidence.Study("lora_question/layers", (
        row(0.8, layers="all", rank=4), row(0.5, layers="all", rank=4, lr=3e-3), row(0.6, layers="attention", rank=4),
        row(0.79, layers="attention", rank=4, lr=3e-3)))
    compared, = experiments.compare_layers([study])
    assert compared.details == "79.0%, 80.0%" and compared.main and compared.verdict() == "supported"


@pytest.mark.parametrize(("whole", "change", "verdict"), [
    (0.8, 0.0, "supported"), (0.75, 5.0, "contradicted"), (0.785, 1.5, "supported")])
def test_differences_on_more_test_images_are_compared_seed_by_seed(whole, change, verdict):
    part = evidence.Study("lora_question/vision_task", (row(0.9, rank=4), rival(0.8, 0.8, 0.8, 0.1), row(0.5, rank=1)))
    compared, = experiments.compare_differences(part, evidence.Study("x", (row(0.9, rank=4), rival(*[whole] * 4))))
    assert (round(compared.interval().mean, 6), len(compared.values), compared.verdict()) == (change, 3, verdict)


def test_the_rank_of_a_change_is_that_of_its_layers_and_the_median_decides(studies):
    # Of the first layer one direction in 20 holds nine tenths of the energy, in the others 10 and 20 of 20 equal ones.
    singular = {"a": (3.0, *[0.2] * 19), "b": (*[1.0] * 10, *[1e-9] * 10), "c": (1.0,) * 20}
    spectrum = Spectrum("a setting", "independent", [Change("key", 0, 0, layer, (20, 30), values)
                                                     for layer, values in singular.items()])
    summary = low_rank.summarize_spectrum(spectrum, "permuted_ranks")
    assert [layer["rank for"]["0.9"] for layer in summary["layers"]] == [1, 9, 18]
    assert summary["energy"]["1"] == pytest.approx(11 / (9 + 19 * 0.04 + 10 + 20), abs=1e-5)
    study = next(s for s in studies if s.folder == "lora_question/permuted_ranks")
    independent, = study.rows_of("independent")
    described = experiments.describe_spectrum(study, summary, independent, main=True)
    assert described.verdict() == "contradicted" and described.interval().mean == pytest.approx(45)
    assert "LoRA reaches 89.7%" in described.details
    summary["layers"] = summary["layers"][:1]
    assert experiments.describe_spectrum(study, summary, independent, main=True).verdict() == "supported"


def test_a_row_that_a_study_with_the_same_training_tuned_is_tuned(studies):
    whole, fewer = (next(s for s in studies if s.folder == f"lora_question/{name}")
                    for name in ("vision_task_full", "many_tasks"))
    ewc, = whole.rows_of("ewc")
    assert ewc.first.searched is None and ewc.tuned
    assert not any(row.tuned for row in fewer.rows)


def test_every_experiment_is_of_a_claim():
    names = {name for claim in claim_list.CLAIMS for name in claim.designed}
    names |= {folder.rpartition("/")[2] for folder in evidence.DESCRIPTIVE}
    assert names == {path.stem for path in (ROOT / "benchmarks" / "lora_question").glob("*.toml")}


def test_a_study_is_on_the_pages_as_soon_as_it_has_records(tmp_path, studies):
    if not (ROOT / "reports" / "lora_question" / "answer").exists():
        source = ROOT / "reports" / "lora_question" / "vision_task" / "records"
        (tmp_path / "lora_question" / "answer").mkdir(parents=True)
        (tmp_path / "lora_question" / "answer" / "records").symlink_to(source)
        studies = evidence.read_studies(tmp_path)
    claim = next(claim for claim in claim_list.CLAIMS if claim.slug == "er")
    assert any(row.source.name == "answer (Task-IL)" and row.counted for row in ClaimResult.of(claim, studies).rows)


def test_results_of_other_runs_stay_and_those_of_the_same_are_replaced(tmp_path):
    file = tmp_path / "new" / "results.json"
    json_results.merge_results([{"folder": "a", "n": 1}, {"folder": "b", "n": 2}], file, by=("folder",))
    json_results.merge_results([{"folder": "a", "n": 3}], file, by=("folder",))
    assert json.loads(file.read_text()) == [{"folder": "b", "n": 2}, {"folder": "a", "n": 3}]
