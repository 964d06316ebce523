"""Scores of single items of language models: their file next to the record, and the statistics that use them."""

import math

import numpy as np
import pytest
from helpers.records import folder, make_lm_record, make_nll_matrix
from scipy import stats

from clbench import cli, report
from clbench.core.errors import SpecError
from clbench.core.registry import discover
from clbench.execution.deciding import states
from clbench.execution.housekeeping import garbage
from clbench.experiment.until import UntilDecided
from clbench.report.analysis.grouping import group_by_setting
from clbench.report.formats import markdown
from clbench.results import diff
from clbench.results.item_scores import ItemScores
from clbench.results.records import general_item_scores, select_metric
from clbench.results.store import Store

ITEMS = 60  # of three tasks of 20


def scored(method, seed, shift, ids="same"):
    """A record whose last row is the mean over tasks of its items' scores, which most methods share."""
    easy = np.random.default_rng(0).gamma(2.0, 0.5, ITEMS)
    nll = (easy + shift + np.random.default_rng([len(method), seed]).normal(0, 0.05, ITEMS) ** 2)
    nll = nll.astype(np.float32)
    exact = nll < 1
    final = nll.reshape(3, 20).mean(axis=1, dtype=np.float64).tolist()
    R, shares = make_nll_matrix(0.5, 2.0), make_nll_matrix(0.5, 0.5)
    shares = [[0.5] * 3 for _ in shares]
    R[-1], shares[-1] = final, exact.reshape(3, 20).mean(axis=1).tolist()
    record = make_lm_record(method, seed, R, shares, test_samples=20)
    return record.model_copy(update={"item_scores": ItemScores.of({"nll": nll, "exact": exact}, ids)})


def records(seeds=4):
    return [scored(method, seed, shift + 0.02 * seed) for method, shift in (("er", 0.0), ("lora", 0.3))
            for seed in range(seeds)]


def test_the_scores_are_in_a_file_next_to_the_record_and_come_back(tmp_path):
    record = scored("er", 0, 0.0)
    store = Store(folder(tmp_path, record))
    text = store.path(record.key).read_text()
    assert '"content"' not in text and '"sha256"' in text
    with np.load(store.items_path(record.key)) as arrays:
        assert arrays["nll"].dtype == np.float32 and arrays["exact"].dtype == np.bool_
        assert arrays["nll"].reshape(3, 20).mean(axis=1).tolist() == pytest.approx(record.R[-1])
    read, problems = store.read()
    assert read == [record] and problems == [] and store.get(record.key) == record
    assert read[0].item_scores.scores("exact").tolist() == pytest.approx(arrays_of(record)["exact"].tolist())
    assert record.facts() == record.model_copy(update={"item_scores": None}).facts()


def test_scores_of_general_texts_are_in_the_same_file_and_are_merged(tmp_path):
    made = scored("er", 0, 0.0)

    def with_general(name, value):
        rows = [[value, value + 1], [value + 2, value + 3]]
        return made.model_copy(update={
            "general": {name: {"nll": [value + 0.5, value + 2.5]}}, "general_files": {name: f"hash of {value}"},
            "item_scores": made.item_scores.with_general({name: {"nll": rows, "exact": [[0.0, 1.0], [1.0, 1.0]]}})})

    a, b, same_name = with_general("a", 1.0), with_general("b", 2.0), with_general("a", 3.0)
    folders = [folder(tmp_path / name, record) for name, record in (("a", a), ("b", b), ("c", same_name))]
    with np.load(Store(folders[0]).items_path(made.key)) as arrays:
        assert arrays["general/nll/a"].dtype == np.float32 and arrays["general/exact/a"].dtype == np.bool_
    merged, = diff.merge_runs(folders).records
    assert general_item_scores(merged, "a", "nll").tolist() == [[1, 2], [3, 4]]
    assert general_item_scores(merged, "b", "nll").tolist() == [[2, 3], [4, 5]]
    assert arrays_of(merged)["nll"].tolist() == arrays_of(made)["nll"].tolist()
    assert general_item_scores(made, "a", "nll") is None
    lost = a.model_copy(update={"item_scores": a.item_scores.model_copy(update={"content": ""})})
    assert general_item_scores(diff.add_outputs(lost, same_name), "a", "nll") is None, "another file of this name"
    assert general_item_scores(diff.add_outputs(lost, b), "b", "nll").tolist() == [[2, 3], [4, 5]]


def arrays_of(record):
    return {name: record.item_scores.scores(name) for name in ("nll", "exact")}


@pytest.mark.parametrize(("damage", "reason"), [
    (lambda path: path.unlink(), "cannot be read (No such file or directory)"),
    (lambda path: path.write_bytes(path.read_bytes()[:-5]), "is damaged or of another record")])
def test_a_missing_or_damaged_file_is_said_and_counts_as_no_scores(tmp_path, capsys, damage, reason):
    made = records()
    store = Store(folder(tmp_path, *made))
    damage(store.items_path(made[0].key))
    assert cli.call(["report", str(tmp_path)]) == 0
    warning, = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Warning: ")]
    assert reason in warning and "so the statistics of er/0 are without scores of single items" in warning
    found, _ = store.read()
    setting, = group_by_setting(found)
    assert setting.answers(setting.final) == {}
    assert setting.tests(setting.final, setting.compared(setting.final)).pairs[0].test == "t"
    with pytest.raises(SpecError, match="the records do not have the results of single samples"):
        states(found, UntilDecided(first=3, most=5))
    store.write(store.get(made[0].key).model_copy(update={"label": "other"}))  # does not invent a file
    assert len(store.read()[1]) == 1


@pytest.mark.parametrize("metric", ["nll", "exact"])
def test_intervals_and_tests_are_over_seeds_and_items_in_the_unit_of_the_metric(metric):
    made = records()
    setting, = group_by_setting(select_metric(made, metric))
    pair, = setting.tests(setting.final, setting.compared(setting.final)).pairs
    assert pair.test == "crossed" and pair.crossed.samples == ITEMS
    differences = np.stack([arrays_of(a)[metric].astype(float) - arrays_of(b)[metric].astype(float)
                            for a, b in zip(made[:4], made[4:], strict=True)])
    seeds = differences.mean(axis=1)
    grand, rows, columns = differences.mean(), differences.mean(axis=1), differences.mean(axis=0)
    ms = (ITEMS * ((rows - grand) ** 2).sum() / 3, 4 * ((columns - grand) ** 2).sum() / (ITEMS - 1),
          ((differences - rows[:, None] - columns + grand) ** 2).sum() / (3 * (ITEMS - 1)))
    variance = max(ms[0] + ms[1] - ms[2], ms[0], ms[1]) / differences.size
    assert pair.crossed.mean == pytest.approx(seeds.mean(), abs=1e-6)
    assert pair.crossed.variance == pytest.approx(variance, rel=1e-4)
    better = pair.better(setting.metric.direction)
    assert better == "er" and (pair.crossed.mean < 0) == (metric == "nll")
    interval = setting.interval(setting.final, "er")
    over_seeds = stats.sem([np.mean(r.R[-1]) for r in select_metric(made[:4], metric)])
    assert interval.half_width > stats.t.ppf(0.975, 3) * over_seeds or math.isclose(over_seeds, 0)


def test_every_final_mean_whose_scores_are_known_is_tested_over_seeds_and_samples():
    made = records()
    setting, = group_by_setting(made)
    tested = {m.column.title: setting.tests(m, setting.compared(m)).pairs[0].test
              for m in setting.measures if m.in_report}
    assert tested == {"NLL": "crossed", "forgetting": "t", "exact": "crossed"}
    swapped, = group_by_setting(select_metric(made, "exact"))
    exact, nll = (setting.measures[[m.column.title for m in setting.measures].index(title)]
                  for title in ("exact", "NLL"))
    assert setting.interval(exact, "er") == swapped.interval(swapped.final, "er")
    assert setting.interval(nll, "er") == setting.interval(setting.final, "er")
    footnote = " ".join(report.build(made).sections[0].footnote)
    assert ("Intervals and tests of NLL and exact match also cover the choice of test samples. All results are "
            "conditional on the training samples, which all seeds share. Results of other metrics are also "
            "conditional on the test samples.") in footnote


def test_until_decided_decides_language_models_by_their_items():
    state, = states(records(), UntilDecided(first=3, most=8))
    er, lora = (scored(method, 0, 0).trial.method_config for method in ("er", "lora"))
    assert state.decided == {lora: "worse than another", er: "the best"} and state.open == ()
    equal = [scored(method, seed, 0.02 * seed) for method in ("er", "lora") for seed in range(3)]
    state, = states(equal, UntilDecided(first=3, most=8))
    assert set(state.open) == {er, lora}


def test_items_of_other_tests_are_not_crossed():
    made = [scored("er", seed, 0.0, ids=str(seed)) for seed in range(3)]
    setting, = group_by_setting(made)
    assert setting.own_tests and setting.answers(setting.final) == {}


def test_copied_and_merged_folders_keep_the_scores_and_stale_files_are_removed(tmp_path):
    made = records(2)
    a, b = folder(tmp_path / "a", *made[:2]), folder(tmp_path / "b", *made[2:])
    for path in Store(b).records.iterdir():  # copying files merges folders
        (Store(a).records / path.name).write_bytes(path.read_bytes())
    assert {record.key: record for record in Store(a).read()[0]} == {record.key: record for record in made}
    plain = folder(tmp_path / "plain", made[0].model_copy(update={"item_scores": None}))
    merged = diff.merge_runs([plain, a])
    assert [record for record in merged.records if record.key == made[0].key] == [made[0]]
    store = Store(a)
    store.path(made[0].key).unlink()
    assert [unused.path for unused in garbage([a], tmp_path, discover())] == [store.items_path(made[0].key)]
    store.write(made[1].model_copy(update={"item_scores": None}))
    assert not store.items_path(made[1].key).exists()


def test_scores_of_records_that_cannot_be_read_are_kept(tmp_path):
    newer, plain = records(1)[:2]
    store = Store(folder(tmp_path / "run", newer, plain))
    path = store.path(newer.key)
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 2'))
    path = store.path(plain.key)
    path.write_text(plain.model_copy(update={"item_scores": None}).model_dump_json(by_alias=True))
    assert [problem.path for problem in store.read()[1]] == [store.path(newer.key)]
    assert [unused.path for unused in garbage([store.directory], tmp_path, discover())] == [
        store.items_path(plain.key)]


def test_a_report_says_that_tests_are_over_seeds_and_test_samples():
    text = markdown.render(report.build(records()))
    assert "t-tests over seeds and test samples" in text and "NLLs are tested over seeds and samples" in text
    assert "Intervals and tests of NLL and exact match also cover the choice of test samples" in text
