"""Texts from files to adapters, on a tiny model of transformers (extras `text` and `peft`)."""

import json
import os
import re
import warnings
from pathlib import Path

import pytest
import torch
from clbench_lora import adapters, reload, run_adapters
from helpers.text_models import TOPICS, save_model, write_texts

import clbench
from clbench.core.errors import DataError, SpecError
from clbench.core.registry import discover
from clbench.data.stream import load_stream
from clbench.experiment.trial import Resolved

pytestmark = [pytest.mark.extra("text"), pytest.mark.extra("peft")]


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import peft  # noqa: F401 - what its imports complain about
        import transformers
    transformers.logging.set_verbosity_error()


def stream_of(benchmark, scenario="task", **options):
    """Return the stream of a benchmark with options as a run has it."""
    registry = discover()
    info = registry.benchmark(benchmark)
    whole = info.options.model_validate(options).model_dump()
    return load_stream(Resolved(name=benchmark, options=whole), scenario, 0, Path(os.devnull).parent, registry)


def load_exported(model, adapter):
    """Return a model with an exported adapter and its head, for 4 classes, loaded by transformers and PEFT."""
    from peft import PeftModel
    from transformers import AutoModel

    network = AutoModel.from_pretrained(str(model)).eval()
    network.head = torch.nn.Linear(16, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what PEFT asks transformers
        return PeftModel.from_pretrained(network, str(adapter)).eval()


def test_a_run_on_texts_gives_adapters_that_plain_peft_loads(tmp_path):

    plain = save_model(tmp_path / "model", "bert")
    write_texts(tmp_path / "topics.csv")
    records = clbench.run(benchmark={"name": f"text:{tmp_path / 'topics.csv'}", "options": {"tasks": 2, "length": 12}},
                          model=f"hf:{tmp_path / 'model'}", methods="lora:targets=q+v,naive,er", epochs=4, seeds=2,
                          scenario="task", lr=0.01, batch_size=8, workers=0, out=tmp_path / "run")
    assert [r.status for r in records] == ["done"] * 6
    assert min(next(r for r in records if r.label == "er").R[-1]) > 0.7
    assert records[0].trial.weights.path == str(tmp_path / "model" / "model.safetensors")
    assert records[0].trial.benchmark.options["tokenizer"] == str(tmp_path / "model")

    source = run_adapters.find(tmp_path / "run", "lora:targets=q+v/0")
    adapters.export(source, 0, tmp_path / "to")
    config = json.loads((tmp_path / "to" / "adapter_config.json").read_text())
    assert "encoder.layer.0.attention.self.query" in config["target_modules"]
    x = stream_of(f"text:{tmp_path / 'topics.csv'}", tasks=2, length=12, tokenizer=str(tmp_path / "model")).tests.x
    strategy = reload.load(source, [0]).eval()
    there = x >= 0
    tuned = load_exported(tmp_path / "model", tmp_path / "to")
    with torch.no_grad():
        ours = strategy.predict(x, 0).logits
        hidden = tuned(input_ids=x.masked_fill(~there, 0).long(), attention_mask=there.long()).last_hidden_state
        theirs = tuned.base_model.model.head((hidden * there[..., None]).sum(1) / there.sum(1, keepdim=True))
    assert (theirs - ours)[:, :2].abs().max() < 1e-5
    assert not torch.equal(plain(x.clamp(min=0).long()).last_hidden_state, hidden)


@pytest.mark.parametrize(("kind", "options", "pool"), [
    ("llama", "", "last"), ("bert", "", "mean"), ("bert", ":pool=cls", "cls")])
def test_an_exported_adapter_names_the_pooling_that_its_head_needs(tmp_path, kind, options, pool):

    save_model(tmp_path / "model", kind)
    write_texts(tmp_path / "topics.csv")
    clbench.run(benchmark={"name": f"text:{tmp_path / 'topics.csv'}", "options": {"tasks": 2, "length": 12}},
                model=f"hf:{tmp_path / 'model'}{options}", methods="lora", epochs=1, seeds=1, scenario="task", lr=0.1,
                batch_size=8, workers=0, out=tmp_path / "run")
    adapters.export(run_adapters.find(tmp_path / "run"), 0, tmp_path / "to")
    assert f"(pool={pool})\n" in (tmp_path / "to" / "README.md").read_text()
    page = (Path(__file__).parents[2] / "docs" / "pretrained.md").read_text()
    features, = re.findall(rf"^\| `{pool}`[^|]* \| `(.*)` \|$", page, re.MULTILINE)
    x = stream_of(f"text:{tmp_path / 'topics.csv'}", tasks=2, length=12, tokenizer=str(tmp_path / "model")).tests.x
    batch = {"input_ids": x.clamp(min=0).long(), "attention_mask": (x >= 0).long()}
    tuned = load_exported(tmp_path / "model", tmp_path / "to")
    with torch.no_grad():
        hidden = tuned(**batch).last_hidden_state
        names = {"torch": torch, "hidden": hidden, "batch": batch, "mask": batch["attention_mask"].unsqueeze(2)}
        theirs = tuned.base_model.model.head(eval(features, names))
        ours = clbench.load_model(tmp_path / "run", task=0)(x)
    torch.testing.assert_close(theirs[:, :2], ours[:, :2], rtol=1e-5, atol=1e-5)


def test_a_saved_model_predicts_texts(tmp_path):
    save_model(tmp_path / "model", "bert")
    write_texts(tmp_path / "topics.csv")
    clbench.run(benchmark={"name": f"text:{tmp_path / 'topics.csv'}", "options": {"tasks": 2, "length": 6}},
                model=f"hf:{tmp_path / 'model'}", methods="naive", scenario="class", seeds=1, epochs=1, workers=0,
                keep="models", out=tmp_path / "run")
    model = clbench.load_model(tmp_path / "run")
    tokens = torch.tensor([[2, 4, 6, 8, 3, -1], [2, 1, 3, -1, -1, -1]], dtype=torch.int32)  # [CLS] the dog barks [SEP]
    answers = model.predict(["the dog barks", "unbekannt"])
    assert torch.equal(answers.logits, model.predict(tokens).logits) and set(answers.names) <= set(TOPICS)
    with pytest.raises(DataError, match=r"this str is not one: .*texts as a list of strings"):
        model.predict("the dog barks")


def test_a_column_of_sites_makes_a_domain_stream(tmp_path):
    save_model(tmp_path / "model", "bert")
    write_texts(tmp_path / "topics.csv", sites=("north", "south"))
    stream = stream_of(f"text:{tmp_path / 'topics.csv'}", "domain", task_column="site", length=12,
                       tokenizer=str(tmp_path / "model"))
    assert stream.is_text and stream.classes == 4 and len(stream.tasks) == 2


def test_empty_texts_are_counted(tmp_path):
    save_model(tmp_path / "model", "bert")
    write_texts(tmp_path / "topics.csv")
    with (tmp_path / "topics.csv").open("a") as file:
        file.write(" ,dogs,here\n,cats,here\n")
    stream = stream_of(f"text:{tmp_path / 'topics.csv'}", tasks=2, length=12, tokenizer=str(tmp_path / "model"))
    assert "2 of 66 texts are empty" in stream.notes


def test_the_files_of_a_folder_are_tasks(tmp_path):
    save_model(tmp_path / "model", "bert")
    (tmp_path / "corpora").mkdir()
    for seed, name in enumerate(("mail", "news")):
        write_texts(tmp_path / "corpora" / f"{name}.csv", seed=seed)
    stream = stream_of(f"text:{tmp_path / 'corpora'}", "domain", length=12, tokenizer=str(tmp_path / "model"))
    assert [len(t.train) + len(t.test) for t in stream.tasks] == [64, 64]


def test_a_folder_with_training_and_test_holds_nothing_out(tmp_path):
    save_model(tmp_path / "model", "bert")
    (tmp_path / "set").mkdir()
    write_texts(tmp_path / "set" / "train.csv", count=10)
    write_texts(tmp_path / "set" / "test.csv", count=3, seed=1)
    stream = stream_of(f"text:{tmp_path / 'set'}", tasks=2, length=12, tokenizer=str(tmp_path / "model"))
    assert [(len(t.train), len(t.test)) for t in stream.tasks] == [(20, 6), (20, 6)]
    assert not any("not used" in note for note in stream.notes)
    write_texts(tmp_path / "set" / "valid.csv", count=2)
    (tmp_path / "set" / "more").mkdir()
    write_texts(tmp_path / "set" / "more" / "a.csv", count=2)
    (tmp_path / "set" / "README.md").write_text("no texts")
    told = "files next to train and test that were not used: valid.csv, more"
    assert told in stream_of(f"text:{tmp_path / 'set'}", tasks=2, length=12, tokenizer=str(tmp_path / "model")).notes


def test_json_lines_are_read_and_what_is_wrong_with_a_file_is_said(tmp_path):
    save_model(tmp_path / "model", "bert")
    options = {"tasks": 2, "length": 12, "tokenizer": str(tmp_path / "model")}
    file = tmp_path / "topics.jsonl"
    rows = [{"body": f"the {w}", "label": label} for label, w in TOPICS.items() for _ in range(4)]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert stream_of(f"text:{file}", text_column="body", **options).tasks[0].train.x[0].tolist()[:2] == [2, 4]
    with pytest.raises(DataError, match=r"topics\.jsonl has no column 'text' of texts \(.*\), only body, label"):
        stream_of(f"text:{file}", **options)
    write_texts(tmp_path / "topics.csv")
    with pytest.raises(DataError, match=r"topics\.csv has no column 'body' of texts \(.*\), only text, label, site"):
        stream_of(f"text:{tmp_path / 'topics.csv'}", text_column="body", **options)
    (tmp_path / "bad.csv").write_text("text,label\nthe dog,\n")
    with pytest.raises(DataError, match=r": bad\.csv: row 1 \(line 2 of the file\), column 'label' is empty"):
        stream_of(f"text:{tmp_path / 'bad.csv'}", **options)


def test_models_and_benchmarks_that_do_not_go_together(tmp_path):
    save_model(tmp_path / "model", "bert")
    write_texts(tmp_path / "topics.csv")
    with pytest.raises(SpecError, match=r"has texts, and model 'mlp' takes numbers; choose --model hf:NAME"):
        clbench.run(benchmark=f"text:{tmp_path / 'topics.csv'}", methods="naive", out=tmp_path / "run")
    with pytest.raises(SpecError, match=r"takes text, this benchmark has inputs \[1, 28, 28\]"):
        clbench.run(model=f"hf:{tmp_path / 'model'}", methods="naive", workers=0, out=tmp_path / "run")


def write_newsgroups(folder, groups=20):
    """Write files like those of 20 Newsgroups."""
    (folder / "text").mkdir()
    topics = {f"group{i:02}": "dog barks" if i % 2 else "stars shine" for i in range(groups)}
    for part, count in (("train", 4), ("test", 2)):
        write_texts(folder / "text" / f"20newsgroups-{part}.csv", topics, count)


def test_newsgroups_are_split_by_class_and_cut_to_a_number_of_each(tmp_path):
    save_model(tmp_path / "model", "bert")
    registry = discover()
    options = registry.benchmark("split-newsgroups").options.model_validate(
        {"tokenizer": str(tmp_path / "model"), "length": 8, "train_per_class": 3}).model_dump()
    with pytest.raises(DataError, match=r"no .*20newsgroups-train\.csv; python benchmarks/texts/fetch\.py"):
        load_stream(Resolved(name="split-newsgroups", options=options), "class", 0, tmp_path, registry)
    write_newsgroups(tmp_path)
    stream = load_stream(Resolved(name="split-newsgroups", options=options), "class", 0, tmp_path, registry)
    assert [(len(t.classes), len(t.train), len(t.test)) for t in stream.tasks] == [(2, 6, 4)] * 10
    assert stream.input_shape == (8,) and stream.tasks[0].train.x.dtype == torch.int32


@pytest.mark.extra("hf")
def test_texts_of_the_datasets_library(tmp_path):
    import datasets

    save_model(tmp_path / "model", "bert")
    rows = [(f"the {words}", label) for label, words in TOPICS.items() for _ in range(6)]
    datasets.Dataset.from_dict({"body": [r[0] for r in rows], "label": [r[1] for r in rows]}).save_to_disk(
        str(tmp_path / "set"))
    name, options = f"hf:{tmp_path / 'set'}", {"tasks": 2, "length": 8, "tokenizer": str(tmp_path / "model")}
    stream = stream_of(name, text_column="body", **options)
    assert stream.is_text and [len(t.train) + len(t.test) for t in stream.tasks] == [12, 12]
    with pytest.raises(DataError, match=r"body is text; name one for a model of text \(text_column=body\)"):
        stream_of(name, tasks=2)
