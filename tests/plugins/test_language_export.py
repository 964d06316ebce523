"""Adapters of language models as files: loaded by PEFT, audited by `clbench forget`, managed by commands (extra `lm`).
"""

import json
import shutil
import warnings
from dataclasses import replace

import pytest
import torch
from clbench_lora import adapters, exported, reload
from clbench_lora.arithmetic import combined
from clbench_lora.card import card
from clbench_lora.files import read_adapter
from helpers.language_models import CITIES, load, make_model, quiet, save, write_lines
from helpers.language_runs import LanguageRuns, as_transformers, learn, logits
from safetensors.torch import load_file, save_file

from clbench import cli
from clbench.core.artifacts import BASE, task_folder
from clbench.core.errors import SpecError, StoreError
from clbench.execution.exporting import export
from clbench.execution.loading import SavedModel, load_model
from clbench.execution.trial_runner import TrialRunner
from clbench.models.hf_files import published_as
from clbench.results.store import Store

pytestmark = pytest.mark.extra("lm")
OPTIONS = ["", ":targets=all-linear:rank=3:alpha=5", ":dora=true", ":init=pissa", ":scaling=rslora:rank=3:alpha=5",
           ":targets=all-linear:bias=true:alpha=5"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return LanguageRuns.make(tmp_path_factory.mktemp("language"))


@pytest.fixture(scope="module")
def finished(runs):
    """Return a run folder with one trial of each method that may leave files."""
    folder = runs.folder / "run"
    runner = TrialRunner(runs.runner.settings, "cpu", "a test", artifacts=Store(folder).artifacts)
    for method in ("lora", "seq-lora", "independent"):
        record = runner.run(runs.planned(method, lr=1.0)[0])
        assert record.status == "done", record.failure
        Store(folder).write(record)
    return folder


def by_peft(base, adapter):
    """Return the logits that a base gives with an adapter, as PEFT loads it."""
    _, peft = quiet()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(load(base), str(adapter)).eval()


def adapters_of(folder, label):
    return adapters.find(folder, f"{label}/0")


@pytest.fixture
def call(capsys):
    """Return a function that calls the command and returns code, output and errors."""
    def called(*arguments):
        code = cli.call(list(map(str, arguments)))
        return code, *capsys.readouterr()

    return called


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("method", ["lora", "seq-lora"])
def test_peft_gives_the_strategy_s_own_logits(runs, tmp_path, method, options):
    replica = runs.replica(method + options, lr=0.5)
    strategy, answers = replica.strategy, []
    after_task = strategy.after_task

    def exporting(task):
        after_task(task)
        strategy.export(tmp_path, task)
        answers.append(logits(strategy, replica.stream.tasks[0].test, task.index))

    strategy.after_task = exporting
    learn([replica])
    test = replica.stream.tasks[0].test
    there = test.x >= 0
    with torch.no_grad():
        start = load(runs.model)(**as_transformers(test)).logits[there]
        for task, ours in enumerate(answers):
            theirs = by_peft(runs.model, task_folder(tmp_path, task))(**as_transformers(test)).logits
            torch.testing.assert_close(ours[there], theirs[there], rtol=1e-5, atol=1e-5)
            assert (ours[there] - start).abs().max() > 1e-2
            if method == "lora":  # its answers stay
                assert torch.equal(logits(strategy, test, task), ours)
    assert not (tmp_path / BASE).exists()


@pytest.mark.parametrize("method", ["osf", "seq-lora:merge=true", "independent"])
def test_a_model_that_transformers_cannot_load_is_not_exported(runs, tmp_path, method):
    store = Store(tmp_path / "run")
    runner = TrialRunner(runs.runner.settings.model_copy(update={"keep": "models"}), "cpu", "a test",
                         artifacts=store.artifacts)
    record = runner.run(runs.planned(method)[0])
    store.write(record)
    with pytest.raises(SpecError, match=r"clbench export cannot write for transformers, because .* one plain network"):
        export(tmp_path / "run", None, tmp_path / "model")
    with pytest.raises(SpecError, match="clbench export cannot write"):
        SavedModel(store, record, runner.registry)(torch.zeros(1, 4, dtype=torch.int32), task=0)
    assert not (tmp_path / "model").exists()


def test_advice_on_models_without_a_plain_network_is_not_refused_later(runs, finished, tmp_path, call):
    store = Store(tmp_path / "run")
    runner = TrialRunner(runs.runner.settings.model_copy(update={"keep": "models"}), "cpu", "a test",
                         artifacts=store.artifacts)
    for method in ("lora", "seq-lora", "osf"):
        store.write(runner.run(runs.planned(method)[0]))
    whole = "methods that change only the weights of the network, such as naive and er, save one with --keep models"
    task, own = "clbench export --task N writes the model of task N", "clbench adapters export writes its adapters"
    for run, trial, options, advice in (
            (finished, "lora/0", (), task), (finished, "seq-lora/0", (), own), (finished, "independent/0", (), whole),
            (finished, "seq-lora/0", ("--task", "2"), own), (tmp_path / "run", "lora/0", (), task),
            (tmp_path / "run", "seq-lora/0", (), own), (tmp_path / "run", "seq-lora/0", ("--task", "2"), own),
            (tmp_path / "run", "osf/0", (), whole), (tmp_path / "run", "osf/0", ("--task", "2"), whole)):
        code, _, err = call("export", run, trial, "--to", tmp_path / "to", *options)
        assert code == 2 and err.strip().endswith(f"; {advice}") and len(err.strip().splitlines()) == 1, err
    assert call("export", finished, "lora/0", "--to", tmp_path / "to", "--task", "2")[0] == 0
    test = runner.stream(runs.planned("lora")[0].trial).tasks[1].test
    with torch.no_grad():
        merged, adapted = (model(**as_transformers(test)).logits[test.x >= 0] for model in (
            load(tmp_path / "to"), by_peft(runs.model, adapters_of(finished, "lora").folder / "task1")))
    torch.testing.assert_close(merged, adapted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("method", "task"), [("naive", None), ("lora", 2)])
def test_a_model_in_bfloat16_is_exported_in_the_precision_of_its_training(runs, tmp_path, method, task):
    store = Store(tmp_path / "run")
    base = save(tmp_path / "bf16", make_model().to(torch.bfloat16))
    assert "bfloat16" in (base / "config.json").read_text()
    runner = TrialRunner(runs.runner.settings.model_copy(update={"keep": "models"}), "cpu", "a test",
                         artifacts=store.artifacts)
    record = runner.run(runs.planned(method, model=base)[0])
    store.write(record)
    export(tmp_path / "run", None, tmp_path / "to", task=task)
    test = runner.stream(record.trial).tasks[2].test
    ours = logits(SavedModel(store, record, runner.registry).strategy, test, 2)
    theirs = quiet()[0].AutoModelForCausalLM.from_pretrained(str(tmp_path / "to"))(**as_transformers(test)).logits
    assert theirs.dtype == torch.float32
    torch.testing.assert_close(theirs[test.x >= 0], ours[test.x >= 0], rtol=1e-5, atol=1e-5)


def test_an_export_never_replaces_the_base(runs, finished):
    before = {path.name: path.read_bytes() for path in runs.model.iterdir()}
    record = next(r for r in Store(finished).read()[0] if r.label == "lora")
    with pytest.raises(StoreError, match="has the weights from which lora/0 started; choose another folder with --to"):
        export(finished, "lora/0", runs.model, task=1)
    (runs.model / "model.json").write_text(json.dumps({"record": record.key}))
    with pytest.raises(StoreError, match="choose another folder"):
        export(finished, "lora/0", runs.model, task=1)
    (runs.model / "model.json").unlink()
    assert {path.name: path.read_bytes() for path in runs.model.iterdir()} == before


def test_files_have_the_base_s_name_and_no_head(runs, finished):
    for method in ("lora", "seq-lora"):
        folder = adapters_of(finished, method).folder
        assert sorted(p.name for p in folder.iterdir()) == ["task0", "task1", "task2"]
        config = json.loads((folder / "task1" / "adapter_config.json").read_text())
        assert config["task_type"] == "CAUSAL_LM" and config["modules_to_save"] is None
        assert config["base_model_name_or_path"] == str(runs.model) and "revision" not in config
        assert config["target_modules"] == [f"model.layers.{i}.self_attn.{p}_proj" for i in range(2) for p in "qv"]
        names = set(load_file(folder / "task1" / "adapter_model.safetensors"))
        assert names == {f"base_model.model.{layer}.lora_{part}.weight" for layer in config["target_modules"]
                         for part in "AB"}


def test_an_adapter_names_the_commit_of_its_base_if_that_is_a_repository(runs, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(exported, "published_as", lambda file: ("me/mine", "c0ffee"))
    source = adapters_of(finished, "lora")
    strategy, _ = runs.learned("lora", tasks=1)
    strategy.export(tmp_path, runs.replica("lora").task(0))
    config = json.loads((tmp_path / "task0" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("me/mine", "c0ffee")
    adapter = read_adapter(tmp_path / "task0")
    assert combined({0: adapter}, [1.0]).config.revision == "c0ffee"
    assert '`transformers.AutoModelForCausalLM.from_pretrained` with `revision="c0ffee"`' in card(source, adapter)


@pytest.mark.parametrize(("method", "subject"), [("lora", "task 2"), ("seq-lora", "tasks 1 to 2")])
def test_a_card_names_the_tasks_that_its_adapter_has_learned(finished, method, subject):
    source = adapters_of(finished, method)
    written = card(source, read_adapter(source.folder / "task1"))
    assert f", {subject}\n" in written and f"- adapter of: {subject} of " in written


def test_the_audit_takes_exported_adapters(runs, finished, tmp_path, call):
    tasks = write_lines(tmp_path / "old.jsonl", [{"prompt": f"{c}?", "response": c} for c in CITIES])
    for method in ("lora", "seq-lora"):
        folder = adapters_of(finished, method).folder
        code, out, err = call("forget", runs.model, folder / "task0", folder / "task2", "--tasks", tasks, "--json")
        assert code == 0, err
        cells = json.loads(out)["cells"]
        assert {cell["model"] for cell in cells} == {"task0 (task 1)", "task2 (task 3)"}
        code, out, err = call("forget", runs.model, folder, "--tasks", tasks, "--json")
        assert code == 0, err
        assert json.loads(out)["models"] == ["task0 (task 1)", "task1 (task 2)", "task2 (task 3)"]
    place = tmp_path / "exported"
    assert call("adapters", "export", finished, "lora/0", "--task", "2", "--to", place)[0] == 0
    _, out, _ = call("forget", runs.model, place, "--tasks", tasks)
    assert "\nexported (task 2)\n" in f"\n{out}"
    code, _, err = call("forget", runs.model, adapters_of(finished, "lora").folder.parent, "--tasks", tasks)
    assert code == 2 and "the folder artifacts/KEY of a trial that saved adapters" in err


def test_commands_list_show_export_and_remove(runs, finished, tmp_path, call):
    code, listed, _ = call("adapters", "list", finished)
    assert code == 0 and listed.count("1,2,3") == 2 and "seq-lora/0" in listed
    code, shown, err = call("adapters", "show", finished, "seq-lora/0", "--task", "2")
    assert code == 0 and shown.startswith("tasks 1 to 2: the last is capital\n"), err
    assert "blocks.1.body.unit.self_attn.q_proj" in shown
    assert call("adapters", "export", finished, "lora/0", "--task", "2", "--to", tmp_path / "a")[0] == 0
    assert {p.name for p in (tmp_path / "a").iterdir()} == {"README.md", "adapter_config.json", "clbench.json",
                                                            "adapter_model.safetensors"}
    card = (tmp_path / "a" / "README.md").read_text()
    assert f"Load `{runs.model}` by `transformers.AutoModelForCausalLM.from_pretrained`" in card
    assert "Classes" not in card
    batch = as_transformers(runs.replica("lora").stream.tasks[1].test)
    with torch.no_grad():
        exported, original = (by_peft(runs.model, place)(**batch).logits
                              for place in (tmp_path / "a", adapters_of(finished, "lora").folder / "task1"))
    assert torch.equal(exported, original)
    copied = tmp_path / "run"
    shutil.copytree(finished, copied)
    assert call("adapters", "remove", copied, "lora/0", "--task", "2")[1] == "removed task 2; left: 1, 3\n"
    assert adapters_of(copied, "lora").tasks == [0, 2]


def test_the_advice_on_a_damaged_adapter_works_for_language_models(finished, tmp_path, call):
    shutil.copytree(finished, tmp_path / "run")
    source = adapters_of(tmp_path / "run", "lora")
    path = source.folder / "task1" / "adapter_model.safetensors"
    whole = path.read_bytes()
    tensors = {name: tensor[:, :16].clone() for name, tensor in load_file(path).items()}
    for damage in (lambda: path.write_bytes(whole[:200]), lambda: save_file(tensors, path)):
        damage()
        for command in (("adapters", "show", tmp_path / "run", "lora/0", "--task", "2"),
                        ("export", tmp_path / "run", "lora/0", "--task", "2", "--to", tmp_path / "to")):
            code, _, err = call(*command)
            assert code == 2 and len(err.strip().splitlines()) == 1
            assert "restore it from a copy, or run the experiment again with another --out" in err
    assert not (tmp_path / "to").exists()


def test_adapters_are_combined_exactly(runs, finished, tmp_path, call):
    source = adapters_of(finished, "lora")
    code, out, err = call("adapters", "combine", finished, "lora/0", "--tasks", "1,3", "--weights", "0.25,0.75", "--to",
                          tmp_path / "mix")
    assert code == 0 and out == f"adapter: {tmp_path / 'mix'} (rank 8)\n", err
    mixed = by_peft(runs.model, tmp_path / "mix")
    for layer in source.adapter(0).layers:
        name = source.adapter(0).info.names[layer]
        expected = sum(w * b @ a for w, (a, b) in ((w, source.adapter(t).factors(layer))
                                                   for t, w in ((0, 0.25), (2, 0.75))))
        theirs = mixed.base_model.model.get_submodule(name).get_delta_weight("default")
        torch.testing.assert_close(theirs, expected)


@pytest.mark.parametrize(("arguments", "message"), [
    (("adapters", "merge", "lora/0", "--task", "1", "--to", "w.safetensors"), "clbench export --task N merges it"),
    (("adapters", "merge", "seq-lora/0", "--task", "1", "--to", "w.safetensors"), "merge_and_unload"),
    (("adapters", "eval", "lora/0"), "clbench forget BASE ADAPTER --tasks FILE scores them"),
    (("adapters", "add", "seq-lora/0", "--task", "1"), "clbench run with more tasks trains them"),
    (("lora", "spectrum"), "which independent saves for classification only"),
])
def test_other_commands_refuse_in_one_sentence(finished, arguments, message, call):
    group, command, *rest = arguments
    code, out, err = call(group, command, finished, *rest)
    assert code == 2 and out == "" and message in err and len(err.strip().splitlines()) == 1, err


def test_a_trial_s_model_is_loaded_with_an_adapter(runs, finished):
    source = adapters_of(finished, "lora")
    network = load_model(finished, "lora/0", 2).eval()
    test = runs.replica("lora").stream.tasks[2].test
    there = test.x >= 0
    with torch.no_grad():
        ours = network.head(network(test.x))[there]
        theirs = by_peft(runs.model, source.folder / "task2")(**as_transformers(test)).logits[there]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    with pytest.raises(SpecError, match=r"peft\.PeftModel\.from_pretrained\(base, adapter\) loads one"):
        reload.load(source)


def test_adapters_that_were_deleted_are_reported(finished, tmp_path):
    record = next(r for r in Store(finished).read()[0] if r.trial.method.name == "lora")
    Store(tmp_path).write(record)
    with pytest.raises(StoreError, match="has no adapters: the run's artifacts are not there; run the trial again"):
        load_model(tmp_path, "lora/0", 1)


def test_whole_copies_are_not_written(runs, finished):
    record = next(r for r in Store(finished).read()[0] if r.trial.method.name == "independent")
    assert record.notes == ["the copies are not exported; only those of classifiers are"]
    assert not (Store(finished).artifacts / record.key).exists()
    with pytest.raises(StoreError, match="independent saves its copies only for classification"):
        load_model(finished, "independent/0", 1)


def test_merged_adapters_are_not_written(runs, tmp_path):
    strategy, _ = runs.learned("seq-lora:merge=true", tasks=1)
    strategy.export(tmp_path, runs.replica("seq-lora").task(0))
    assert not list(tmp_path.iterdir())
    assert strategy.notes == ["merge = true: adapters are not exported, because they are merged into W"]


def test_w_is_written_if_it_is_nowhere_else(runs, tmp_path):
    replica = runs.replica("lora:base=task1", epochs=2)
    learn([replica], 1)
    replica.strategy.export(tmp_path, replica.task(0))
    assert json.loads((tmp_path / "task0" / "adapter_config.json").read_text())["base_model_name_or_path"] is None
    base = load_file(tmp_path / BASE)
    assert set(base) == set(load(runs.model).state_dict())
    assert not torch.equal(base["model.layers.0.mlp.up_proj.weight"],
                           load(runs.model).state_dict()["model.layers.0.mlp.up_proj.weight"])


def test_without_its_base_an_adapter_of_an_unpublished_base_is_not_handed_on(finished, tmp_path):
    source = adapters_of(finished, "lora")
    shutil.copytree(source.folder, tmp_path / "lost")
    config = tmp_path / "lost" / "task0" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(StoreError, match=r"base \S+base\.safetensors cannot be read"):
        adapters.export(replace(source, folder=tmp_path / "lost"), 0, tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_where_weights_are_published(tmp_path):
    snapshot = tmp_path / "hub" / "models--HuggingFaceTB--SmolLM2-135M" / "snapshots" / "abc"
    for folder in (tmp_path / "mine", snapshot):
        folder.mkdir(parents=True)
        assert published_as(str(folder / "model.safetensors")) == ("", None)
        (folder / "config.json").write_text("{}")
    assert published_as(str(tmp_path / "mine" / "model.safetensors")) == (str(tmp_path / "mine"), None)
    assert published_as(str(tmp_path / "mine" / "other.safetensors")) == published_as("") == ("", None)
    assert published_as(str(snapshot / "model.safetensors")) == ("HuggingFaceTB/SmolLM2-135M", "abc")
