"""Trials of language models, whole: learning, forgetting, routing, general texts, answers, settings (extra `lm`)."""

import contextlib
import re
from pathlib import Path

import pytest
import torch
from helpers.language_models import CITIES, make_model, make_tokenizer, quiet, save, write_lines

from clbench.core.errors import DataError, SpecError
from clbench.core.registry import discover
from clbench.data.own.instructions import hashes_of, read_general
from clbench.execution.continuing import continue_trial
from clbench.execution.embedding import prepare
from clbench.execution.exporting import export
from clbench.execution.reuse import missing_outputs
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.plan import plan
from clbench.experiment.spec import build
from clbench.experiment.trial import Resolved
from clbench.persistence.callbacks import CheckpointCallback
from clbench.results import provenance
from clbench.results.curve import row_after, task_values
from clbench.results.records import Record, general_item_scores
from clbench.strategy.base import Strategy
from clbench.strategy.objectives import prompts_of
from clbench.training.callbacks.error_decomposition import ErrorDecomposition

pytestmark = pytest.mark.extra("lm")
TASKS = {"a": "Name a color of", "b": "what letter is for"}
RECIPE = {"epochs": 60, "batch_size": 12, "lr": 3e-3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama, and two tasks whose test items are their training items."""
    folder = tmp_path_factory.mktemp("language")
    save(folder / "model", make_model(width=64))
    for number, (name, question) in enumerate(TASKS.items()):
        (folder / "tasks" / name).mkdir(parents=True)
        rows = [{"prompt": f"{question} {city}?", "response": "XYZ"[(i + number) % 3]} for i, city in enumerate(CITIES)]
        for part in ("train", "test"):
            write_lines(folder / "tasks" / name / f"{part}.jsonl", rows)
    (folder / "general.txt").write_text("One text of no task.\n\nAnother, which is longer than the first.")
    return folder


def run(folder, method, *, seeds=1, scenario="task", recipe=RECIPE, **settings):
    """Return the records of a method's trials, stacked if there are several."""
    spec = build({"benchmark": f"instructions:{folder / 'tasks'}", "model": f"hf:{folder / 'model'}",
                  "scenario": scenario, "methods": [method], "seeds": seeds, "recipe": recipe,
                  "execution": {"data": folder, **settings}})
    runner = TrialRunner(spec.execution, "cpu", "test")
    planned = plan(spec, discover())
    runner.prepare(planned[0].trial)
    return runner.run_stack(planned)


def test_fine_tuning_learns_a_task_and_forgets_the_one_before(folder):
    record, = run(folder, "naive", general=[str(folder / "general.txt")])
    assert record.status == "done" and record.metric == "nll" and record.stream.task_names == ["a", "b"]
    exact, nll = record.scores["exact"], record.R
    assert exact[0] == [0.0, 0.0] and exact[1][0] >= 0.9 and exact[2][1] >= 0.9 and exact[2][0] < 0.6
    assert nll[1][0] < 0.2 < nll[0][0] and nll[2][1] < 0.2 and nll[2][0] > nll[1][0] + 0.2
    assert list(record.general) == ["general.txt"] and list(record.general["general.txt"]) == ["nll"]
    assert len(record.general["general.txt"]["nll"]) == 3
    assert [(answer.task, answer.prompt) for answer in record.answers] == [
        (task, f"{question} {city}?") for task, question in enumerate(TASKS.values()) for city in CITIES[:3]]
    last = record.answers[3:]
    assert [answer.end for answer in last] == [answer.learned for answer in last]
    assert sum(answer.learned == answer.response for answer in record.answers) >= 5
    assert Record.model_validate_json(record.model_dump_json(by_alias=True)) == record


def test_generated_answers_agree_with_exact_matches(folder):
    record, = run(folder, "seq-lora:base=pretrained:rank=8", recipe=RECIPE | {"epochs": 10})
    for task in range(2):
        of_task = [answer for answer in record.answers if answer.task == task]
        right = sum(answer.end == answer.response for answer in of_task)
        assert right <= round(12 * record.scores["exact"][2][task])


def test_a_long_prompt_does_not_shorten_the_answers_of_other_prompts(folder, tmp_path):
    (tmp_path / "model").symlink_to(folder / "model")
    rows = [{"prompt": "count: ", "response": "one two three four five six"}, {"prompt": "x" * 40, "response": "y"}]
    for task, part in ((task, part) for task in "ab" for part in ("train", "test")):
        (tmp_path / "tasks" / task).mkdir(parents=True, exist_ok=True)
        write_lines(tmp_path / "tasks" / task / f"{part}.jsonl", rows)
    record, = run(tmp_path, "naive", recipe={"iterations": 60, "batch_size": 2, "lr": 1e-2})
    assert record.scores["exact"][-1] == [1.0, 1.0]
    assert {answer.end for answer in record.answers} == {row["response"] for row in rows}


def test_seeds_in_a_stack_give_what_they_give_alone(folder):
    recipe = {"iterations": 6, "batch_size": 5, "lr": 1e-3}
    together = run(folder, "naive", seeds=2, recipe=recipe)
    alone = [run(folder, "naive", seeds=[seed], recipe=recipe)[0] for seed in (0, 1)]
    assert not [note for record in together for note in record.notes if "ran alone" in note]
    for one, other in zip(together, alone, strict=True):
        assert torch.tensor(one.R).allclose(torch.tensor(other.R), atol=1e-4)
    assert together[0].R != together[1].R


def test_parts_of_batches_give_the_same_training(folder):
    whole, parts = (run(folder, "naive", recipe={"iterations": 5, "batch_size": 12, "lr": 1e-3} | more)[0]
                    for more in ({}, {"accumulate": 3}))
    assert torch.tensor(whole.R).allclose(torch.tensor(parts.R), atol=1e-4)


def test_settings_and_methods_about_classes_are_refused(folder):
    for settings, message in (({"probe": True}, "--probe is about classes"),
                              ({"anatomy": "each"}, "--anatomy is about classes")):
        with pytest.raises(SpecError, match=message):
            run(folder, "naive", scenario="domain", **settings)
    with pytest.raises(SpecError, match=r"method 'lwf' trains classifiers.*methods for them are .*er.*lora.*naive"):
        run(folder, "lwf")
    with pytest.raises(SpecError, match="does not support scenario 'class': choose task or domain"):
        run(folder, "naive", scenario="class")
    with pytest.raises(SpecError, match=re.escape("--general scores texts under language models")):
        TrialRunner(ExecutionSettings(general=["english"]), "cpu", "test").prepare(
            plan(build({"benchmark": "split-mnist-5k", "methods": ["naive"], "seeds": 1}), discover())[0].trial)


def test_a_record_without_general_texts_lacks_them(folder):
    record, = run(folder, "naive", recipe={"iterations": 1, "batch_size": 4, "lr": 1e-3})
    settings = ExecutionSettings(general=["english"])
    assert missing_outputs(record, settings, folder, hashes_of(read_general(["english"]))) == "--general english"
    assert missing_outputs(record, ExecutionSettings(), folder, {}) == ""


def test_adapters_are_chosen_by_the_prompt_alone(folder):
    method = "lora:base=pretrained:rank=8:infer=gaussian"
    routed, = run(folder, method, scenario="domain")
    given, = run(folder, method)
    assert routed.task_inference[0] == [0.0, 0.0] and routed.task_inference[-1] == [1.0, 1.0]
    assert routed.R[-1] == pytest.approx(given.R[-1], abs=1e-4) and routed.R[0] == pytest.approx(given.R[0], abs=1e-4)
    assert given.R[-1][0] == given.R[1][0] < given.R[0][0] - 0.5  # what is learned is not forgotten
    assert routed.answers == given.answers
    with pytest.raises(SpecError, match="infer=gaussian, or choose --scenario task"):
        run(folder, "lora:base=pretrained", scenario="domain")


def test_prompts_end_before_the_first_target():
    x, y = torch.tensor([[5, 6, 7, 8], [5, 6, 7, -1]]), torch.tensor([[-100, -100, 7, -100], [-100, 6, 7, -100]])
    assert prompts_of(x, y).tolist() == [[5, 6, -1, -1], [5, -1, -1, -1]]


def test_a_kept_model_is_exported_for_transformers(folder, tmp_path):
    import clbench

    transformers, _ = quiet()
    spec = {"benchmark": f"instructions:{folder / 'tasks'}", "model": f"hf:{folder / 'model'}", "methods": ["naive"],
            "seeds": 1, "recipe": {"iterations": 3, "batch_size": 4, "lr": 1e-3}, "execution": {"keep": "state"}}
    record, = clbench.run(spec, workers=0, out=tmp_path / "run", data=folder, progress=False)
    assert {path.name for path in export(tmp_path / "run", None, tmp_path / "model")} == {"model.safetensors",
                                                                                         "model.json"}
    exported = transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path / "model")).eval()
    kept = clbench.load_model(tmp_path / "run", "naive/0")
    x = torch.arange(5, 21, dtype=torch.int32)[None]
    with torch.no_grad():
        ours = kept.network.head(kept.network(x))
        torch.testing.assert_close(ours, exported(input_ids=x.long()).logits, rtol=1e-5, atol=1e-5)
    assert kept.evaluate(folder) == pytest.approx(record.R[-1], abs=1e-6)
    with pytest.raises(SpecError, match="is a language model, which answers token by token"):
        kept(x, task=0)
    with pytest.raises(SpecError, match="is a language model, which answers token by token"):
        kept.predict(["text"], task=0)
    (tmp_path / "run" / "artifacts" / record.key / "state.safetensors").unlink()  # a new run with it would not help
    with pytest.raises(SpecError, match="is a language model, which cannot continue training"):
        continue_trial(tmp_path / "run", None, Resolved(name="x"), ExecutionSettings(), "cpu")


def test_a_model_in_several_files_gives_the_results_of_one_file(folder, tmp_path):
    transformers, _ = quiet()
    model = transformers.AutoModelForCausalLM.from_pretrained(str(folder / "model"))
    shards = tmp_path / "model"
    save(shards, model)
    (shards / "model.safetensors").unlink()
    model.save_pretrained(str(shards), max_shard_size="60KB")
    names = sorted(path.name for path in shards.glob("*.safetensors"))
    assert len(names) > 1
    (tmp_path / "tasks").symlink_to(folder / "tasks")
    recipe = {"iterations": 3, "batch_size": 4, "lr": 1e-3}
    (one,), (several,) = (run(place, "lora:rank=2", recipe=recipe) for place in (folder, tmp_path))
    assert several.R == one.R and several.trial.weights.path == str(shards / "model.safetensors.index.json")
    assert several.trial.weights.sha256 != one.trial.weights.sha256
    (shards / names[-1]).unlink()
    with pytest.raises(SpecError, match=rf"1 of {len(names)} shards are missing: {names[-1]}"):
        run(tmp_path, "lora:rank=2", recipe=recipe)


def test_a_base_that_learns_the_first_task_may_change_the_starting_model(folder):
    for method in ("lora:base=task1:rank=8", "independent:base=task1"):
        record, = run(folder, method, recipe={"iterations": 6, "batch_size": 4, "lr": 1e-3})
        assert record.status == "done", record.failure
        assert record.R[0][1] != record.R[1][1] and record.R[1][0] == record.R[2][0]


def test_scores_that_are_no_numbers_end_a_trial_as_diverged(folder, monkeypatch):
    monkeypatch.setattr(Strategy, "after_task", lambda self, task: self.model.blocks[-1].activation.weight.data.fill_(
        float("nan")))
    for record in run(folder, "naive", seeds=2, recipe={"iterations": 1, "batch_size": 4, "lr": 1e-3}):
        assert record.status == "diverged" and len(record.R) == 1
        assert "an output or a test score after task 1 is not a number" in record.failure.message


def test_a_trial_goes_on_only_with_the_general_texts_that_it_began_with(folder, tmp_path):
    recipe, texts = {"iterations": 2, "batch_size": 4, "lr": 1e-3}, str(folder / "general.txt")

    def runner(general):
        settings = ExecutionSettings(data=folder, general=general)
        return TrialRunner(settings, "cpu", "test", checkpoints=tmp_path)

    spec = build({"benchmark": f"instructions:{folder / 'tasks'}", "model": f"hf:{folder / 'model'}",
                  "methods": ["naive"], "seeds": 1, "recipe": recipe})
    planned = plan(spec, discover())
    first = runner([])
    origin = provenance.collect("", first.device, "", provenance.code_of(planned[0].trial, discover()))
    checkpoint = CheckpointCallback(tmp_path, origin, ErrorDecomposition(), since=-99)
    member = first._replica(planned[0])
    first._train([member], lambda _: None, checkpoint, checkpoint.origin)
    assert (tmp_path / planned[0].trial.key / "state.safetensors").is_file()
    record, = runner([texts]).run_stack(planned)
    assert any("started over" in note and "--general" in note for note in record.notes)
    assert len(record.general["general.txt"]["nll"]) == 3


def test_general_texts_are_known_by_their_content(folder, tmp_path):
    (tmp_path / "a").mkdir()
    path, other = tmp_path / "texts.txt", tmp_path / "a" / "texts.txt"
    path.write_text("One text.")
    other.write_text("Another text.")
    settings = ExecutionSettings(general=[str(path)])
    record, = run(folder, "naive", recipe={"iterations": 1, "batch_size": 4, "lr": 1e-3}, general=[str(path)])
    assert missing_outputs(record, settings, folder, hashes_of(read_general([str(path)]))) == ""
    path.write_text("One text, changed.")
    changed = hashes_of(read_general([str(path)]))
    assert missing_outputs(record, settings, folder, changed) == "--general texts.txt"
    with pytest.raises(SpecError, match=r"another file is named texts.txt, too; rename one of them"):
        run(folder, "naive", general=[str(path), str(other)])
    with pytest.raises(DataError, match="there is no such file"):
        run(folder, "naive", general=["missing.txt"])


@pytest.mark.parametrize(("method", "scenario", "seeds"), [
    ("naive", "task", 2), ("lora:base=pretrained:rank=8", "task", 1),
    ("lora:base=pretrained:rank=8:infer=gaussian", "domain", 1)])
def test_curves_have_the_metrics_of_evaluations_and_do_not_change_training(folder, method, scenario, seeds):
    recipe = {"iterations": 4, "batch_size": 4, "lr": 1e-2}
    plain = run(folder, method, scenario=scenario, seeds=seeds, recipe=recipe)
    for record, without in zip(run(folder, method, scenario=scenario, seeds=seeds, recipe=recipe, evaluate_every=2),
                               plain, strict=True):
        assert record.facts() == without.facts() and not any("ran alone" in note for note in record.notes)
        assert record.curve.steps == [[0, 1, 2, 3, 4]] * 2 and record.curve.metric == "nll"
        for name, matrix in (("nll", record.R), ("exact", record.scores["exact"])):
            curve = record.curve.by_metric(name)
            for task in range(2):
                assert row_after(curve, task) == pytest.approx(matrix[task + 1][:task + 1], rel=1e-5)
            assert task_values(curve, 0)[0] == pytest.approx(matrix[0][:1], rel=1e-5), "before the first step"
        assert Record.model_validate_json(record.model_dump_json(by_alias=True)) == record


def test_scores_of_single_general_texts_are_kept_with_those_of_test_items(folder, tmp_path):
    facts = [{"prompt": f"Fact {i}: ", "response": city} for i, city in enumerate(CITIES)]
    write_lines(tmp_path / "facts.jsonl", facts)
    texts = [str(folder / "general.txt"), str(tmp_path / "facts.jsonl")]
    for record in run(folder, "naive", seeds=2, recipe={"iterations": 2, "batch_size": 4, "lr": 1e-2}, general=texts):
        for name, metric, count in (("general.txt", "nll", 2), ("facts.jsonl", "nll", len(CITIES)),
                                    ("facts.jsonl", "exact", len(CITIES))):
            items = general_item_scores(record, name, metric)
            assert items.shape == (3, count)
            assert items.mean(axis=1).tolist() == pytest.approx(record.general[name][metric], rel=1e-5)
        assert general_item_scores(record, "general.txt", "exact") is None
        assert record.item_scores.scores("nll") is not None


@pytest.mark.parametrize(("method", "scenario"), [("naive", "task"), ("lora:base=pretrained:rank=8", "task"),
                                                  ("naive", "domain")])
def test_the_scores_of_items_give_the_last_row_and_name_the_items(folder, method, scenario):
    records = run(folder, method, seeds=2, scenario=scenario, recipe={"iterations": 3, "batch_size": 4, "lr": 1e-2})
    for record in records:
        sizes, scores = record.stream.test_samples, record.item_scores
        assert scores.count == sum(sizes)
        for name, row in (("nll", record.R[-1]), ("exact", record.scores["exact"][-1])):
            parts = torch.from_numpy(scores.scores(name)).double().split(sizes)
            assert [float(part.mean()) for part in parts] == pytest.approx(row, rel=1e-6)
        assert Record.model_validate_json(record.model_dump_json(by_alias=True)) == record
    assert records[0].item_scores.ids == records[1].item_scores.ids
    assert records[0].item_scores.content != records[1].item_scores.content


def test_general_texts_are_read_once_in_a_run(folder, tmp_path, monkeypatch):
    path, read, original = tmp_path / "texts.txt", [], Path.read_bytes
    path.write_text("One text.")
    monkeypatch.setattr(Path, "read_bytes", lambda self: read.append(self) or original(self))
    run(folder, "naive", seeds=2, recipe={"iterations": 1, "batch_size": 4, "lr": 1e-3}, general=[str(path)])
    assert read.count(path) == 1


def test_general_texts_that_are_cut_are_noted_and_fit_the_model(folder, tmp_path):
    save(tmp_path / "model", make_model(length=64))
    (tmp_path / "tasks").symlink_to(folder / "tasks")
    (tmp_path / "short.txt").write_text("x" * 40)
    (tmp_path / "long.txt").write_text("x" * 70 + "\n\n" + "y" * 10)
    texts = [str(tmp_path / "short.txt"), str(tmp_path / "long.txt")]
    record, = run(tmp_path, "naive", recipe={"iterations": 1, "batch_size": 4, "lr": 1e-3}, general=texts)
    assert [note for note in record.notes if " cut " in note] == ["long.txt: 1 text was cut to 64 tokens"]


@pytest.mark.parametrize(("options", "shown"), [("", "even without its prompt"),
                                                (":cut_responses=true", "1 response was cut to 64 tokens")])
def test_responses_of_general_texts_follow_the_option_before_the_first_trial(folder, tmp_path, options, shown):
    path = write_lines(tmp_path / "general.jsonl", [{"prompt": "say: ", "response": "x" * 80}])
    spec = build({"benchmark": f"instructions:{folder / 'tasks'}:length=64{options}", "model": f"hf:{folder / 'model'}",
                  "methods": ["naive"], "seeds": 1})
    runner = TrialRunner(ExecutionSettings(data=folder, general=[str(path)]), "cpu", "test")
    with contextlib.nullcontext() if options else pytest.raises(DataError, match=shown):
        assert f"general.jsonl: {shown}" in runner.prepare(plan(spec, discover())[0].trial)


@pytest.mark.parametrize(("extra", "shown"), [
    (("<|zz|>",), r"is not that of model .*: token '.*' is \d+ instead of \d+; leave out the benchmark's option"),
    ([f"<|{i}|>" for i in range(200)], r"has 259 tokens, and the tokenizer .* made the token ID \d+; leave out")])
def test_a_tokenizer_of_another_model_is_refused_before_training(folder, tmp_path, extra, shown):
    save(tmp_path / "other", make_model(vocabulary=600), make_tokenizer(extra=extra))
    benchmark = f"instructions:{folder / 'tasks'}:tokenizer={tmp_path / 'other'}"
    spec = build({"benchmark": benchmark, "model": f"hf:{folder / 'model'}", "methods": ["naive"], "seeds": 1})
    with pytest.raises(DataError, match=shown):
        TrialRunner(ExecutionSettings(data=folder), "cpu", "test").prepare(plan(spec, discover())[0].trial)


def test_the_adapter_of_an_answer_is_chosen_once_by_the_prompt(folder):
    record, = run(folder, "lora:base=pretrained:rank=8:infer=gaussian", scenario="domain",
                  recipe={"iterations": 4, "batch_size": 4, "lr": 1e-2})
    given, = run(folder, "lora:base=pretrained:rank=8", recipe={"iterations": 4, "batch_size": 4, "lr": 1e-2})
    assert record.task_inference[-1] == [1.0, 1.0]
    assert [answer.end for answer in record.answers] == [answer.end for answer in given.answers]


def test_features_of_language_models_are_not_embedded(folder):
    trial = plan(build({"benchmark": f"instructions:{folder / 'tasks'}", "model": f"hf:{folder / 'model'}",
                        "methods": ["naive"], "seeds": 1}), discover())[0].trial
    with pytest.raises(SpecError, match="is for language models, which are not trained on features"):
        prepare(trial, ExecutionSettings(data=folder), "cpu", discover())
