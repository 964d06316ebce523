import numpy as np
import pytest
from helpers.curves import make_curve
from helpers.records import folder, make_matrix, make_record, with_errors

from clbench.core.errors import StoreError
from clbench.experiment.trial import Weights
from clbench.results import diff
from clbench.results.items import ItemResults
from clbench.results.records import Failure


def test_records_are_merged_by_key_and_the_first_label_counts(tmp_path):
    a = folder(tmp_path / "a", make_record("lora", 0, label="mine"), make_record("er", 0))
    b = folder(tmp_path / "b", make_record("lora", 0, train_seconds=9.0, device="cuda"), make_record("ewc", 0))
    merged = diff.merge_runs([a, b])
    assert sorted(r.label for r in merged.records) == ["er", "ewc", "mine"]
    assert merged.notes == ()


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_curves_with_equally_many_points_that_of_more_samples_is_kept(order):
    plain = make_record("er")
    few, many = (plain.model_copy(update={"curve": make_curve(samples=samples)}) for samples in (100, 200))
    assert diff.add_outputs(*(few, many)[::order]).curve == many.curve


def test_a_merged_record_has_the_outputs_of_both(tmp_path):
    scored = with_errors(make_record("er", label="mine", reference=True, scenario="class"),
                         probe={"learned": [1, 2, 3], "end": [1, 2, 3], "together": [1, 2, 3]})
    plain = scored.model_copy(update={"label": "er", "reference": False, "probe": None, "errors": []})
    first = scored.model_copy(update={"general": {"a": {"nll": [1.0]}}, "general_files": {"a": "hash"}})
    items = ItemResults.of([np.arange(200) + 200 * task for task in range(3)], np.ones(600, bool), "x")
    second = plain.model_copy(update={"curve": make_curve(), "items": items, "general": {"b": {"nll": [2.0]}},
                                      "general_files": {"b": "hash"}})
    third = plain.model_copy(update={"curve": make_curve().model_copy(update={"every": 1})})
    a, b, c = (folder(tmp_path / name, record) for name, record in zip("abc", (first, second, third), strict=True))
    merged, = diff.merge_runs([a, b, c]).records
    assert merged == first.model_copy(update={"curve": third.curve, "items": items,
                                              "general": second.general | first.general,
                                              "general_files": second.general_files | first.general_files})
    assert diff.merge_runs([c, b, a]).records == (merged.model_copy(update={"label": "er", "reference": False}),)


def test_weights_at_another_place_are_the_same_trial(tmp_path):
    def at(path):
        record = make_record("lora")
        trial = record.trial.model_copy(update={"weights": Weights(path=path, sha256="0" * 64)})
        return record.model_copy(update={"trial": trial, "key": trial.key})

    folders = [folder(tmp_path / name, at(f"/{name}.safetensors")) for name in "ab"]
    assert len(diff.merge_runs(folders).records) == 1


def test_weights_of_one_name_have_one_content_in_all_folders(tmp_path):
    def trained_from(content, seed):
        record = make_record("lora", seed, weights=content * 64)
        trial = record.trial.model_copy(update={"weights": Weights(path="timm", sha256="0" * 64)})
        return record.model_copy(update={"trial": trial, "key": trial.key})

    a = folder(tmp_path / "a", trained_from("a", 0))
    b = folder(tmp_path / "b", trained_from("a", 1), trained_from("b", 0), trained_from("b", 2))
    c = folder(tmp_path / "c", trained_from("c", 3))
    merged = diff.merge_runs([a, b])
    assert [(record.trial.seed, record.provenance.weights[0]) for record in merged.records] == [(0, "a"), (1, "a")]
    assert [problem.path.parent.parent for problem in merged.problems] == [b, b]
    assert all("one name must stand for one content" in str(problem) for problem in merged.problems)
    with pytest.raises(StoreError, match=r"no record in .* can be used:\n.* had the content cccccccccccccccc"):
        diff.merge_runs([a, c])


def test_remarks_on_how_trials_ran_do_not_conflict(tmp_path):
    plain, resumed = make_record("lora"), make_record("lora", notes=["started over after an interruption"])
    for order in ((plain, resumed), (resumed, plain)):
        folders = [folder(tmp_path / f"{len(order[0].notes)}{k}", record) for k, record in enumerate(order)]
        assert diff.merge_runs(folders).records == order[:1]
    assert list(diff.differences(plain, resumed)) == ["new note: started over after an interruption"]


def test_a_trial_that_diverged_on_two_machines_is_one_trial(tmp_path):
    def diverged(home, message="the inputs of a layer became NaN or infinite"):
        failure = Failure(type="DivergedError", message=message, traceback=f'File "{home}/subspace.py"',
                          place=f"{home}/mine.py:7 in features")
        return make_record("gpm").model_copy(update={"status": "diverged", "failure": failure})

    a, b = (folder(tmp_path / name, diverged(f"/home/{name}")) for name in "ab")
    assert diff.merge_runs([a, b]).records == (diverged("/home/a"),)
    assert not diff.compare([diverged("/home/a")], [diverged("/home/b")]).any
    assert list(diff.differences(diverged("/a"), diverged("/a", "another"))) == [
        "failure.message: the inputs of a layer became NaN or infinite -> another"]


def test_all_conflicts_are_named_with_their_folders(tmp_path):
    a = folder(tmp_path / "a", make_record("lora", 0), make_record("er", 0), make_record("ewc", 0))
    b = folder(tmp_path / "b", make_record("lora", 0, make_matrix(3, 0.01)), make_record("er", 0, status="diverged"),
               make_record("ewc", 0))
    with pytest.raises(StoreError) as caught:
        diff.merge_runs([a, b])
    first, second, advice = str(caught.value).splitlines()
    first, second = sorted([first, second])
    assert first.startswith(f"er, seed 0 (split-mnist-5k, task, mlp) differs between {a} and {b} (record ")
    assert "status: done -> diverged" in first
    assert "lora, seed 0" in second and "clbench diff" in advice
    assert "ewc" not in str(caught.value)


def test_a_failed_record_gives_way(tmp_path):
    good, bad = make_record("lora", 0), make_record("lora", 0, status="failed", message="out of memory")
    a, b, c = (folder(tmp_path / name, record) for name, record in zip("abc", (bad, good, bad), strict=True))
    for order in ([a, b], [b, a]):
        merged = diff.merge_runs(order)
        assert merged.records == (good,)
        assert merged.notes == (f"lora, seed 0 (split-mnist-5k, task, mlp) failed in {a}; its record in {b} counts",)
    assert diff.merge_runs([a, c]).records == (bad,)
    named = folder(tmp_path / "named", make_record("lora", 0, status="failed", label="mine"))
    assert [record.label for record in diff.merge_runs([named, b]).records] == ["mine"]


def test_a_folder_without_records_is_named(tmp_path):
    a = folder(tmp_path / "a", make_record("lora"))
    with pytest.raises(StoreError, match=f"no records in {tmp_path / 'b' / 'records'}"):
        diff.merge_runs([a, tmp_path / "b"])
