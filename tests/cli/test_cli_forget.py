"""`clbench forget` on adapters of PEFT's own, merged models, checkpoints and broken folders (extra `lm`)."""

import json
import random
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from helpers.language_models import codes, load, make_model, make_tokenizer, marked, quiet, save, train, write_lines
from helpers.unreadable import make_unreadable
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from clbench import cli
from clbench.core.errors import DataError
from clbench.core.files import distinct_names
from clbench.core.objective import CAUSAL_LM
from clbench.data.own.instruction_tokens import ItemTokenizer
from clbench.data.own.instructions import read_items
from clbench.execution import audit
from clbench.models.causal_lm import Base, load_model
from clbench.models.hf_candidates import find_candidates
from clbench.models.scoring import Scorer
from clbench.report.audit import headline
from clbench.results.audit import MARGINS, Audit, DialPoint, FileScores, compare, judge, noise_floor

pytestmark = pytest.mark.extra("lm")
OLD = codes(1)
NEW = [{"prompt": row["prompt"].replace("?", "!"), "response": row["response"]} for row in codes(2)]
TALK = [{"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]}
        for row in OLD[:3]]
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "up_proj", "down_proj"],
        "task_type": "CAUSAL_LM"}


def adapter(base, folder, steps=0, config=None, **options):
    """Write an adapter by PEFT's save_pretrained, trained on the new task for some steps."""
    _, peft = quiet()
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(load(base), config or peft.LoraConfig(**{**LORA, **options}))
        if steps:
            train(model, make_tokenizer(), NEW, steps, 1e-2)
        model.save_pretrained(str(folder))
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base that knows the old task, an adapter and a merged model that were trained on the new one, files."""
    root = tmp_path_factory.mktemp("forget")
    save(root / "base", train(make_model(width=48), make_tokenizer(), OLD, 100, 1e-2))
    model = adapter(root / "base", root / "adapter", 60)
    save(root / "merged", model.merge_and_unload())
    adapter(root / "base", root / "fresh")
    write_lines(root / "old.jsonl", OLD)
    write_lines(root / "new.jsonl", NEW)
    write_lines(root / "talk.jsonl", TALK)
    (root / "general.txt").write_text("one sentence here\n\nand a second one\n\nthe third is the last\n")
    return root


def call(capsys, folder, *args):
    """Call the command with paths relative to a folder; return code, output and errors."""
    paths = [folder / a if isinstance(a, str) and (folder / a).exists() and a else a for a in args]
    code = cli.call(["forget", *map(str, paths)])
    out, err = capsys.readouterr()
    return code, out, err


def verdicts(out):
    return {(c["model"], c["file"], c["metric"]): c["verdict"] for c in json.loads(out)["cells"]}


FILES = ("--new", "new.jsonl", "--tasks", "old.jsonl", "--general", "general.txt")


def test_a_planted_loss_is_found_and_a_fresh_adapter_keeps_everything(capsys, folder):
    code, out, _ = call(capsys, folder, "base", "adapter", "fresh", "merged", *FILES, "--json", "--fail-on", "lost")
    assert code == 1
    found, data = verdicts(out), json.loads(out)
    for model in ("adapter", "merged"):
        assert found[model, "old.jsonl", "nll"] == found[model, "old.jsonl", "exact"] == "lost"
        assert found[model, "new.jsonl", "nll"] == found[model, "new.jsonl", "exact"] == "kept"
    assert all(found["fresh", file, "nll"] == "kept" for file in ("new.jsonl", "old.jsonl", "general.txt"))
    assert ("fresh", "general.txt", "exact") not in found
    cells = {(c["model"], c["file"], c["metric"]): c for c in data["cells"]}
    assert cells["fresh", "old.jsonl", "nll"]["difference"] == 0
    assert cells["adapter", "old.jsonl", "exact"]["base"] == 1
    for file in ("old.jsonl", "new.jsonl", "general.txt"):  # the merged model is the adapter on its base
        assert cells["merged", file, "nll"]["value"] == pytest.approx(cells["adapter", file, "nll"]["value"], abs=1e-4)


def test_what_a_later_adapter_lost_of_an_earlier_one_is_compared_with_the_earlier(capsys, folder, tmp_path):
    for number, name in enumerate(("adapter", "fresh")):  # the second one has lost what the first had learned
        shutil.copytree(folder / name, tmp_path / "run" / f"task{number}")
    code, out, err = call(capsys, folder, "base", "fresh", "--new", "new.jsonl", "--json")
    assert code == 0 and verdicts(out)["fresh", "new.jsonl", "nll"] == "kept", err
    code, out, err = call(capsys, folder, "base", "fresh", "--compare-with", "adapter", "--tasks", "new.jsonl",
                          "--fail-on", "lost", "--json")
    assert code == 1 and json.loads(out)["compared_with"] == "adapter", err
    comparison = json.loads(out)["cells"][0]
    _, alone, _ = call(capsys, folder, "base", "adapter", "fresh", "--tasks", "new.jsonl", "--json")
    first, second = (c["value"] for c in json.loads(alone)["cells"] if c["metric"] == "nll")
    assert (comparison["base"], comparison["value"]) == pytest.approx((first, second))
    assert comparison["verdict"] == "lost"
    # An earlier part of a series is not compared with itself.
    code, out, err = call(capsys, folder, "base", tmp_path / "run", "--compare-with", tmp_path / "run" / "task0",
                          "--tasks", "new.jsonl", "--out", tmp_path / "out")
    assert code == 0, err
    written = (tmp_path / "out" / "audit.md").read_text()
    assert "task1 compared with task0" in written and "Differences are model minus task0, with" in written
    assert "| file | items | metric | task0 | model |" in written and "kept: nll" not in out
    assert not any(line.startswith("base:") for line in err.splitlines())  # the base itself is not scored
    code, _, err = call(capsys, folder, "base", "fresh", "--compare-with", tmp_path / "run", "--tasks", "new.jsonl")
    assert code == 2 and "--compare-with takes one adapter or model, and" in err and "task0" in err and "task1" in err


def test_the_final_adapter_of_a_training_with_checkpoints_can_be_compared_with(capsys, folder, tmp_path):
    shutil.copytree(folder / "adapter", tmp_path / "fresh")
    shutil.copytree(folder / "fresh", tmp_path / "fresh" / "checkpoint-10")
    code, out, err = call(capsys, folder, "base", "fresh", "--compare-with", tmp_path / "fresh", "--tasks", "new.jsonl",
                          "--json")
    assert code == 0 and json.loads(out)["compared_with"] == str(tmp_path / "fresh"), err  # not two models named fresh
    assert set(json.loads(out)["settings"]) >= {"fresh", str(tmp_path / "fresh")}


def test_a_whole_model_that_others_are_compared_with_is_loaded_once(capsys, folder, monkeypatch):
    loads = []
    monkeypatch.setattr(audit, "load_model", lambda path, device: loads.append(path.name) or load(path).float().eval())
    code, out, err = call(capsys, folder, "base", "fresh", "--compare-with", "merged", "--tasks", "new.jsonl", "--json")
    assert code == 0 and loads == ["merged"], err
    assert verdicts(out)["fresh", "new.jsonl", "nll"] == "lost"


def test_a_quantized_model_is_refused(folder, monkeypatch):
    transformers, _ = quiet()
    monkeypatch.setattr(transformers.LlamaForCausalLM, "is_quantized", True, raising=False)
    with pytest.raises(DataError, match=r"the model is quantized.*name the model before its quantization"):
        load_model(folder / "base", torch.device("cpu"))


def test_margins_are_those_asked_for_and_at_least_three_floors(capsys, folder):
    _, out, _ = call(capsys, folder, "base", "adapter", *FILES, "--json", "--margin-nll", "0", "--margin-exact", "0")
    cells = json.loads(out)["cells"]
    assert all(c["margin"] == pytest.approx(3 * c["floor"]) for c in cells)
    assert min(c["floor"] for c in cells if c["metric"] == "nll") > 0
    _, out, _ = call(capsys, folder, "base", "adapter", *FILES, "--json", "--margin-nll", "50", "--margin-exact", "100")
    assert "lost" not in verdicts(out).values()


def test_copies_of_an_item_are_no_further_evidence(capsys, folder, tmp_path):
    write_lines(tmp_path / "once.jsonl", OLD)
    write_lines(tmp_path / "copies.jsonl", [row for row in OLD for _ in range(20)])
    found = []
    for name in ("once.jsonl", "copies.jsonl"):
        code, out, _ = call(capsys, folder, "base", "adapter", "--tasks", tmp_path / name, "--json")
        assert code == 0
        audited = json.loads(out)
        cells = [{**cell, "file": ""} for cell in audited["cells"]]
        found.append(cells)
        assert {cell["items"] for cell in cells} == {len(OLD)}
    assert found[0] == found[1]
    code, out, _ = call(capsys, folder, "base", "adapter", "--tasks", tmp_path / "copies.jsonl")
    assert f"{19 * len(OLD)} copies of items are left out" in out


def test_losses_on_the_new_task_do_not_count_in_the_dial(capsys, folder):
    for new, other, within in (("new", "old", [True, False]), ("old", "new", [True, True])):
        _, out, _ = call(capsys, folder, "base", "adapter", "--new", f"{new}.jsonl", "--tasks", f"{other}.jsonl",
                         "--scale", "0,1", "--json")
        assert [point["within"] for point in json.loads(out)["dial"]] == within


def test_without_a_loss_the_exit_code_is_0(capsys, folder):
    code, out, _ = call(capsys, folder, "base", "fresh", "--tasks", "old.jsonl", "--fail-on", "lost")
    assert code == 0
    assert "fresh: kept: nll of old.jsonl; inconclusive: exact of old.jsonl." in out


def test_english_is_a_text_that_comes_with_clbench_unless_a_file_has_that_name(capsys, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, errors = call(capsys, folder, "base", "--general", "english", "--show")
    assert code == 0 and "english.txt: 36 items" in out, errors
    code, out, errors = call(capsys, folder, "base", "fresh", "--general", "english", "--json")
    assert code == 0 and dict(json.loads(out)["settings"])["english.txt"].startswith("comes with clbench ("), errors
    (tmp_path / "english").write_text("no text")
    code, _, errors = call(capsys, folder, "base", "--general", "english", "--show")
    assert code == 2 and "expected a file that ends in" in errors


def test_files_of_the_same_name_are_told_apart_by_their_folders(capsys, folder, tmp_path):
    for name, items in (("acme", OLD), ("beta", NEW)):
        (tmp_path / "tasks" / name).mkdir(parents=True)
        write_lines(tmp_path / "tasks" / name / "test.jsonl", items)
    code, out, errors = call(capsys, folder, "base", "fresh", "--tasks", tmp_path / "tasks/acme/test.jsonl", "--tasks",
                             tmp_path / "tasks/beta/../beta/test.jsonl", "--general", "general.txt", "--json")
    assert code == 0, errors
    assert {file for _, file, _ in verdicts(out)} == {"acme/test.jsonl", "beta/test.jsonl", "general.txt"}


def test_distinct_names_are_the_shortest_ends_that_differ():
    assert distinct_names(map(Path, ("/a/b/t", "/c/b/t", "/c/u"))) == ["a/b/t", "c/b/t", "u"]
    assert distinct_names(map(Path, ("/t", "/a/t"))) == ["/t", "a/t"]


def test_scores_are_written_and_not_computed_again(capsys, folder, tmp_path, monkeypatch):
    out = tmp_path / "audit"
    code, first, err = call(capsys, folder, "base", "adapter", *FILES, "--out", out)
    assert code == 0
    assert err.count("items,") == 9  # base twice and adapter, on three files
    assert sorted(p.name for p in out.iterdir()) == ["audit.html", "audit.json", "audit.md", "scores"]
    assert len(list((out / "scores").iterdir())) == 9
    assert "| old.jsonl (task) | 12 | nll ↓ |" in (out / "audit.md").read_text()
    assert "old.jsonl (task)" in (out / "audit.html").read_text()
    with monkeypatch.context() as patch:
        patch.setattr("clbench.execution.audit.Scorer", None)  # nothing may be scored
        code, again, err = call(capsys, folder, "base", "adapter", *FILES, "--out", out)
    assert (code, again) == (0, first)
    assert "items," not in err
    code, _, err = call(capsys, folder, "base", "adapter", "fresh", *FILES, "--out", out)
    assert [line.split(":")[0] for line in err.splitlines() if "items," in line] == ["fresh"] * 3
    for length, count in (("100", 0), ("8", 9)):  # 100 changes no token
        code, _, err = call(capsys, folder, "base", "adapter", *FILES, "--length", length, "--out", out)
        assert (code, err.count("items,")) == (0, count)


def test_files_and_models_are_hashed_once(capsys, folder, tmp_path, monkeypatch):
    hashed = []
    for name in ("fingerprint", "read_content"):
        original = getattr(audit, name)
        monkeypatch.setattr(audit, name, lambda path, original=original: hashed.append(path) or original(path))
    code, _, err = call(capsys, folder, "base", "adapter", *FILES, *DIAL, "--out", tmp_path / "audit")
    assert code == 0, err
    assert sorted(path.name for path in hashed) == ["adapter", "base", "general.txt", "new.jsonl", "old.jsonl"]


def test_a_broken_file_of_scores_is_named(capsys, folder, tmp_path):
    out = tmp_path / "audit"
    call(capsys, folder, "base", "fresh", "--tasks", "old.jsonl", "--out", out)
    for path in (out / "scores").iterdir():
        path.write_bytes(b"no zip")
    code, _, err = call(capsys, folder, "base", "fresh", "--tasks", "old.jsonl", "--out", out)
    assert code == 2
    assert "cannot be read" in err
    assert "delete it" in err


def test_checkpoints_are_a_series_in_the_order_of_their_numbers(capsys, folder, tmp_path):
    for number in (5, 40, 10):
        shutil.copytree(folder / ("adapter" if number == 40 else "fresh"), tmp_path / "run" / f"checkpoint-{number}")
    code, out, _ = call(capsys, folder, "base", tmp_path / "run", "--tasks", "old.jsonl", "--json")
    assert code == 0
    assert json.loads(out)["models"] == ["checkpoint-5", "checkpoint-10", "checkpoint-40"]
    assert verdicts(out)["checkpoint-40", "old.jsonl", "nll"] == "lost"
    _, out, _ = call(capsys, folder, "base", tmp_path / "run", "--tasks", "old.jsonl")
    assert "All models" in out
    code, _, err = call(capsys, folder, "base", tmp_path / "run", tmp_path / "run" / "checkpoint-5", "--tasks",
                        "old.jsonl")
    assert code == 2
    assert "checkpoint-5 is named twice; name each adapter, model or series once" in err


def test_no_candidate_has_the_label_of_the_base(folder, tmp_path, monkeypatch):
    for name in ("base", "other", "more/other"):
        shutil.copytree(folder / "fresh", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    parent = tmp_path.name
    assert [c.label for c in find_candidates([Path("base"), Path("other")])] == [f"{parent}/base", "other"]
    assert [c.label for c in find_candidates([Path("other"), Path("more/other")])] == [f"{parent}/other", "more/other"]


def test_show_marks_the_scored_tokens(capsys, folder):
    code, out, _ = call(capsys, folder, "base", "--tasks", "talk.jsonl", "--show")
    assert code == 0
    assert "talk.jsonl: 3 items; the first has" in out
    answer = marked(*OLD[0]["response"], "<|im_end|>")
    assert f"<|im_start|>user\nrome?<|im_end|>\n<|im_start|>assistant\n{answer}\n" in out


def edit(folder, target, name, change):
    """Copy a folder and change a JSON file in it."""
    shutil.copytree(folder, target)
    data = json.loads((target / name).read_text())
    change(data)
    (target / name).write_text(json.dumps(data))
    return target


def test_folders_and_files_that_do_not_fit_are_one_clear_line(capsys, folder, tmp_path):
    other = tmp_path / "other"
    save(other, make_model(seed=5, width=32, layers=1))
    wide = tmp_path / "wide"
    save(wide, make_model(seed=5, vocabulary=260), make_tokenizer(extra=("<extra>",)))
    renamed = edit(folder / "adapter", tmp_path / "renamed", "adapter_config.json",
                   lambda c: c.update(base_model_name_or_path="someone/else-7B"))
    empty = tmp_path / "empty"
    empty.mkdir()
    no_weights = tmp_path / "no_weights"
    shutil.copytree(folder / "adapter", no_weights)
    (no_weights / "adapter_model.safetensors").unlink()
    torn = tmp_path / "torn"
    shutil.copytree(folder / "adapter", torn)
    (torn / "adapter_model.safetensors").write_bytes((torn / "adapter_model.safetensors").read_bytes()[:1000])
    torn_model = tmp_path / "torn_model"
    shutil.copytree(folder / "merged", torn_model)
    (torn_model / "model.safetensors").write_bytes((torn_model / "model.safetensors").read_bytes()[:1000])
    no_json = tmp_path / "no_json"
    shutil.copytree(folder / "adapter", no_json)
    (no_json / "adapter_config.json").write_text("{")
    half = tmp_path / "half"
    shutil.copytree(folder / "merged", half)
    weights = load_file(half / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, half / "model.safetensors", metadata={"format": "pt"})
    cases = [
        (("base", tmp_path / "nowhere"), "nowhere: there is no such folder"),
        (("base", empty), "empty: it has neither adapter_config.json nor config.json nor folders checkpoint-N"),
        (("base", no_weights), "no_weights: the adapter's weights are missing"),
        (("base", no_json), "adapter_config.json: it cannot be read as JSON"),
        (("base", torn), "torn/adapter_model.safetensors: it cannot be read"),
        (("base", torn_model), "torn_model/model.safetensors: it cannot be read"),
        (("base", half), "half: 1 weights of the model are missing, such as model.layers.1.mlp.up_proj.weight"),
        (("base", renamed), "renamed: the adapter was trained on someone/else-7B, and the base is"),
        (("base", wide), "wide: its vocabulary is not that of the base"),
        ((other, "adapter", "--any-base"),
         "lora_A.default.weight has the shape [4, 48] in its file and [4, 32] in the"),
        (("adapter", "adapter"), "is an adapter; name its base first"),
        ((tmp_path / "nobase", "adapter"), "no config.json"),
        (("base", "adapter", "--new", "typo.jsonl"), "typo.jsonl: there is no such file"),
        (("base", "adapter", "--general", "englsh"), "englsh: expected a file that ends in .jsonl, .json or .txt"),
    ]
    for args, message in cases:
        code, out, err = call(capsys, folder, *args, "--tasks", "old.jsonl")
        errors = [line for line in err.splitlines() if "items," not in line]
        assert (code, out, len(errors)) == (2, "", 1), err
        assert errors[0].startswith("Error: ")
        assert message in errors[0]
    code, _, _ = call(capsys, folder, "base", renamed, "--any-base", "--tasks", "old.jsonl")
    assert code == 0


def test_a_model_that_is_broken_inside_and_too_little_memory_are_one_line(capsys, folder, tmp_path, monkeypatch):
    broken = tmp_path / "broken"
    shutil.copytree(folder / "merged", broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"].fill_(float("nan"))
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    code, _, err = call(capsys, folder, "base", broken, "--tasks", "old.jsonl")
    assert code == 2
    assert "broken: its loss on item 1 of" in err.splitlines()[-1]
    monkeypatch.setattr(Scorer, "score", lambda *_: torch.empty(2**45))
    code, _, err = call(capsys, folder, "base", "fresh", "--tasks", "old.jsonl")
    assert code == 2
    assert "base: out of memory on" in err
    assert "--batch-size" in err


def test_an_adapter_with_more_layers_than_the_base_does_not_fit(capsys, folder, tmp_path):
    """PEFT itself ignores weights that the base has no place for."""
    small = tmp_path / "base"
    config = json.loads((folder / "base" / "config.json").read_text())
    model = load(folder / "base")
    model.model.layers = model.model.layers[:1]
    model.config.num_hidden_layers = 1
    save(small, model)
    assert config["num_hidden_layers"] == 2
    code, _, err = call(capsys, folder, small, "adapter", "--any-base", "--tasks", "old.jsonl")
    assert code == 2
    assert "does not fit the base" in err
    assert "layers.1" in err


def other_kinds():
    """Return a configuration of each of some kinds of adapters that are no LoRA."""
    _, peft = quiet()
    return {"IA3": peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"],
                                  task_type="CAUSAL_LM"),
            "LOHA": peft.LoHaConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")}


@pytest.mark.parametrize("kind", ["IA3", "LOHA"])
def test_an_adapter_of_another_kind_that_does_not_fit_is_refused(capsys, folder, tmp_path, kind):
    """PEFT warns of missing weights, ignores unexpected ones, and then scores as the base does."""
    for layers in (1, 2):
        base = save(tmp_path / f"base{layers}", make_model(layers=layers, width=48))
        adapter(base, tmp_path / f"adapter{layers}", config=other_kinds()[kind])
    shutil.copytree(tmp_path / "adapter2", tmp_path / "wrapped")
    path = tmp_path / "wrapped" / "adapter_model.safetensors"
    save_file({f"module.{name}": tensor for name, tensor in load_file(path).items()}, path)
    for base, name, reason in (("base1", "adapter2", "the base has no place for "), ("base2", "adapter1", "lacks "),
                               ("base2", "wrapped", "module."), ("base2", "adapter2", "")):
        code, _, err = call(capsys, tmp_path, base, name, "--any-base", "--tasks", folder / "old.jsonl")
        assert code == (2 if reason else 0), (base, name, err)
        assert reason in err.splitlines()[-1] if reason else "fit" not in err


def test_a_local_base_is_compared_by_its_files(capsys, folder, tmp_path):
    """Checkpoints of several trainings have the same folder names."""
    adapter(save(tmp_path / "seed0" / "checkpoint-5", make_model(seed=0)), tmp_path / "adapter")
    other = save(tmp_path / "seed1" / "checkpoint-5", make_model(seed=1))
    code, _, err = call(capsys, tmp_path, other, "adapter", "--tasks", folder / "old.jsonl")
    assert code == 2
    assert "checkpoint-5, and the base is" in err
    shutil.copytree(tmp_path / "seed0" / "checkpoint-5", tmp_path / "copy")
    for base in ("seed0/checkpoint-5", "copy"):
        code, _, err = call(capsys, tmp_path, base, "adapter", "--tasks", folder / "old.jsonl")
        assert code == 0, err


def test_an_adapter_with_tokens_that_the_base_lacks_is_refused_before_anything_is_scored(capsys, folder, tmp_path):
    model = load(folder / "base")
    model.resize_token_embeddings(261)
    adapter(save(tmp_path / "wide", model, make_tokenizer(extra=("<a>", "<b>"))), tmp_path / "adapter").save_pretrained(
        str(tmp_path / "adapter"), save_embedding_layers=True)
    code, _, err = call(capsys, folder, "base", tmp_path / "adapter", "--any-base", "--tasks", "old.jsonl")
    assert code == 2
    assert "its embeddings have 261 tokens, those of the base" in err
    assert "merge the adapter" in err
    assert "items," not in err


def test_a_tokenizer_with_more_tokens_than_the_base_is_one_line(capsys, folder, tmp_path):
    save(tmp_path / "base", make_model(width=48, vocabulary=40))
    code, _, err = call(capsys, tmp_path, "base", folder / "fresh", "--any-base", "--tasks", folder / "old.jsonl")
    assert code == 2
    assert "old.jsonl, line 1: the tokenizer made the token ID" in err
    assert "the model has only 40 tokens" in err


def test_adapters_of_other_kinds_are_audited_and_leave_the_base_as_it_was(capsys, folder, tmp_path):
    _, peft = quiet()
    adapter(folder / "base", tmp_path / "ia3", config=peft.IA3Config(
        target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"))
    adapter(folder / "base", tmp_path / "dora", use_dora=True)
    adapter(folder / "base", tmp_path / "prompt", config=peft.PromptTuningConfig(
        num_virtual_tokens=3, task_type="CAUSAL_LM"))
    adapter(folder / "base", tmp_path / "pissa", init_lora_weights="pissa")
    code, out, _ = call(capsys, folder, "base", *(tmp_path / n for n in ("prompt", "pissa", "ia3", "dora")), "fresh",
                        "--tasks", "old.jsonl", "--json")
    assert code == 0
    differences = {c["model"]: c["difference"] for c in json.loads(out)["cells"] if c["metric"] == "nll"}
    assert differences["fresh"] == 0
    assert differences["ia3"] == pytest.approx(0, abs=1e-4)
    assert differences["dora"] == pytest.approx(0, abs=1e-4)
    assert differences["pissa"] == pytest.approx(0, abs=1e-3)
    assert differences["prompt"] != 0


def test_an_adapter_that_needs_more_than_tokens_is_one_line(capsys, folder, tmp_path):
    _, peft = quiet()
    adapter(folder / "base", tmp_path / "poly", config=peft.PolyConfig(
        r=4, n_tasks=2, n_skills=2, n_splits=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    code, _, err = call(capsys, folder, "base", tmp_path / "poly", "--tasks", "old.jsonl")
    assert code == 2
    assert "task_ids" in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith(f"Error: {tmp_path / 'poly'}: the adapter, for the base ")


@pytest.mark.parametrize("saved", [{"modules_to_save": ["embed_tokens"]}, {}, {"kind": "IA3"}])
def test_embeddings_that_an_adapter_replaces_do_not_stay_in_the_base(capsys, folder, tmp_path, saved):
    """Only embeddings of tokens change that the check of the base's logits does not use."""
    model = load(folder / "base")
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    save(tmp_path / "base", model)
    adapter(tmp_path / "base", tmp_path / "fresh")
    kind, saved = saved.get("kind"), {k: v for k, v in saved.items() if k != "kind"}
    changed = adapter(tmp_path / "base", tmp_path / "changed", config=other_kinds()[kind] if kind else None, **saved)
    with torch.no_grad():
        changed.get_input_embeddings().weight[20:] += 0.5
    changed.save_pretrained(str(tmp_path / "changed"), save_embedding_layers=not saved)
    code, out, _ = call(capsys, tmp_path, "base", "changed", "fresh", "--tasks", folder / "old.jsonl", "--json")
    assert code == 0
    differences = {c["model"]: c["difference"] for c in json.loads(out)["cells"] if c["metric"] == "nll"}
    assert differences["fresh"] == 0
    assert differences["changed"] != 0


def test_items_leave_room_for_the_virtual_tokens_of_adapters(capsys, folder, tmp_path):
    """GPT-2 has an embedding for each position, and none after the last one."""
    transformers, peft = quiet()
    torch.manual_seed(0)
    save(tmp_path / "base", transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=259, n_positions=64, n_embd=32, n_layer=1, n_head=4, bos_token_id=0, eos_token_id=0)))
    adapter(tmp_path / "base", tmp_path / "prompt", config=peft.PromptTuningConfig(
        num_virtual_tokens=5, task_type="CAUSAL_LM"))
    write_lines(tmp_path / "long.jsonl", [{"prompt": "x" * 200, "response": "yes"}] * 2)
    code, out, err = call(capsys, tmp_path, "base", "prompt", "--tasks", "long.jsonl", "--json")
    assert code == 0, err
    assert dict(json.loads(out)["settings"])["length"] == "59 tokens"
    code, _, err = call(capsys, tmp_path, "base", "prompt", "--tasks", "long.jsonl", "--length", "60")
    assert code == 2
    assert "after 5 virtual tokens of an adapter takes at most 59 tokens" in err


DIAL = ("--scale", "0,0.5,1")


def test_the_dial_shows_each_scale_and_exports_one(capsys, folder, tmp_path):
    _, peft = quiet()
    out = tmp_path / "out"
    code, text, _ = call(capsys, folder, "base", "adapter", *FILES, *DIAL, "--out", out, "--export-scale", "0.5",
                         "--to", tmp_path / "half")
    assert code == 0
    data = json.loads((out / "audit.json").read_text())
    assert [point["scale"] for point in data["dial"]] == [0, 0.5, 1]
    cells = [{(c["file"], c["metric"]): c for c in point["cells"]} for point in data["dial"]]
    assert cells[0]["old.jsonl", "nll"]["difference"] == 0
    whole = next(c for c in data["cells"] if (c["file"], c["metric"]) == ("old.jsonl", "nll"))
    assert cells[2]["old.jsonl", "nll"]["value"] == whole["value"]
    assert cells[2]["old.jsonl", "nll"]["difference"] > cells[1]["old.jsonl", "nll"]["difference"] > 0
    assert (out / "figures" / "dial.svg").read_text().startswith("<?xml")
    assert "data:image/svg+xml" in (out / "audit.html").read_text()
    assert "scale" in text
    ids = torch.arange(40)[None]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scaled = peft.PeftModel.from_pretrained(load(folder / "base"), str(tmp_path / "half"))
        full = peft.PeftModel.from_pretrained(load(folder / "base"), str(folder / "adapter"))
        for module in full.modules():
            if isinstance(getattr(module, "scaling", None), dict):
                module.scaling["default"] *= 0.5
        assert torch.allclose(scaled(ids).logits, full(ids).logits, atol=1e-5)
    code, again, _ = call(capsys, folder, "base", tmp_path / "half", *FILES, "--json")
    value = next(c["value"] for c in json.loads(again)["cells"] if (c["file"], c["metric"]) == ("old.jsonl", "nll"))
    assert cells[1]["old.jsonl", "nll"]["value"] == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize(("within", "line"), [
    ([True, False, True], "At scale 0.5, the smallest above 0, losses do not stay within the margin."),
    ([True, True, False], "The largest scale whose losses stay within the margin is 0.5.")])
def test_the_headline_names_the_scale_up_to_which_losses_stay_within_the_margin(within, line):
    points = (DialPoint(scale, (), fits) for scale, fits in zip((0, 0.5, 1), within, strict=True))
    assert headline(Audit("base", (), (), (), dial=tuple(points))) == [line]


def test_a_scaled_adapter_is_written_to_a_new_folder_only(capsys, folder):
    code, _, err = call(capsys, folder, "base", "adapter", "--export-scale", "0.5", "--to", "new.jsonl")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "new.jsonl is not an empty folder; choose a new folder" in err


def test_a_base_with_a_revision_takes_the_adapters_of_its_repository(folder, tmp_path):
    shutil.copytree(folder / "adapter", tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "me/Mine"}))
    candidate, = find_candidates([tmp_path])
    for name in ("me/mine", "me/mine@main"):
        Base(folder / "base", name, make_tokenizer(), torch.device("cpu")).check(candidate)
    with pytest.raises(DataError, match=r"was trained on me/Mine, and the base is me/other@main"):
        Base(folder / "base", "me/other@main", make_tokenizer(), torch.device("cpu")).check(candidate)


def test_folders_that_cannot_be_read(capsys, folder, tmp_path, monkeypatch):
    private = tmp_path / "private"
    for name in ("base", "base2"):
        shutil.copytree(folder / "base", private / name)
    shutil.copytree(folder / "adapter", private / "adapter")
    named = {name: tmp_path / name for name in ("same", "other")}
    for target, base in zip(named.values(), ("base", "base2"), strict=True):
        edit(folder / "adapter", target, "adapter_config.json",
             lambda c, base=base: c.update(base_model_name_or_path=str(private / base)))
    make_unreadable(monkeypatch, private)
    base = folder / "base"
    assert call(capsys, folder, base, named["same"], "--tasks", "old.jsonl")[0] == 0  # the names are compared
    half = ("--export-scale", "0.5", "--to", private / "half")
    for arguments, reason in (((base, named["other"], "--tasks", folder / "old.jsonl"), "was trained on"),
                              ((base, private / "adapter", "--tasks", folder / "old.jsonl"), "cannot read"),
                              ((base, private, "--tasks", folder / "old.jsonl"), "cannot read"),
                              ((private / "base", named["same"], "--tasks", folder / "old.jsonl"), "cannot read"),
                              ((base, named["same"], *half), "cannot read")):
        code = cli.call(["forget", *map(str, arguments)])
        err = capsys.readouterr().err
        assert (code, len(err.splitlines())) == (2, 1)
        assert reason in err and str(private) in err


def test_a_full_disk_is_an_error_of_one_line_when_a_scaled_adapter_is_written(capsys, folder, tmp_path, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.serialize_file", full)
    code, _, err = call(capsys, folder, "base", "adapter", "--export-scale", "0.5", "--to", tmp_path / "half")
    assert code == 2 and err.splitlines()[-1].endswith(f"cannot write {tmp_path / 'half'}: No space left on device")


def test_only_plain_lora_can_be_scaled(capsys, folder, tmp_path):
    _, peft = quiet()
    adapter(folder / "base", tmp_path / "ia3", config=peft.IA3Config(
        target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"))
    adapter(folder / "base", tmp_path / "dora", use_dora=True)
    adapter(folder / "base", tmp_path / "head", modules_to_save=["embed_tokens"])
    adapter(folder / "base", tmp_path / "saved").save_pretrained(str(tmp_path / "saved"), save_embedding_layers=True)
    shutil.copytree(tmp_path / "saved", tmp_path / "bin")
    torch.save(load_file(tmp_path / "bin" / "adapter_model.safetensors"), tmp_path / "bin" / "adapter_model.bin")
    (tmp_path / "bin" / "adapter_model.safetensors").unlink()
    edit(folder / "adapter", tmp_path / "kasa", "adapter_config.json",
         lambda c: c.update(kasa_config={"beta": 1e-4}))
    for name, reason in (("ia3", "it is of the kind IA3"), ("dora", "it has DoRA"),
                         ("head", "it has modules that are saved as a whole"), ("kasa", "it has KaSA"),
                         *((name, "it replaces weights of the base, such as base_model.model.lm_head.weight")
                           for name in ("saved", "bin")), ("merged", "it is a whole model")):
        model = name if name == "merged" else tmp_path / name
        code, _, err = call(capsys, folder, "base", model, *FILES, *DIAL)
        assert (code, len(err.splitlines())) == (2, 1)
        assert reason in err
        code, _, err = call(capsys, folder, "base", model, "--export-scale", "0.5", "--to", tmp_path / "made")
        assert code == 2
        assert reason in err


@pytest.mark.parametrize(("sharded", "layer"), [(False, "embed_tokens"), (True, "embed_tokens"), (False, "lm_head")])
def test_an_adapter_of_embeddings_is_scaled_if_its_copies_are_those_of_the_base(capsys, folder, tmp_path, sharded,
                                                                                layer):
    base = folder / "base"
    if sharded:
        base = tmp_path / "base"
        load(folder / "base").save_pretrained(str(base), max_shard_size="40KB")
        make_tokenizer().save_pretrained(str(base))
        assert (base / "model.safetensors.index.json").is_file()
    adapter(base, tmp_path / "same", **{**LORA, "target_modules": ["q_proj", layer]})
    name = next(key for key in load_file(tmp_path / "same" / "adapter_model.safetensors") if ".base_layer." in key)
    assert layer in name
    weights = load_file(tmp_path / "same" / "adapter_model.safetensors")
    shutil.copytree(tmp_path / "same", tmp_path / "other")
    save_file({**weights, name: weights[name] + 0.5}, tmp_path / "other" / "adapter_model.safetensors")
    for options in ((*FILES, *DIAL), ("--export-scale", "0.5", "--to", tmp_path / "half")):
        assert call(capsys, folder, base, tmp_path / "same", *options)[0] == 0
    assert torch.equal(load_file(tmp_path / "half" / "adapter_model.safetensors")[name], weights[name])
    for options in ((*FILES, *DIAL), ("--export-scale", "0.5", "--to", tmp_path / "made")):
        code, _, err = call(capsys, folder, base, tmp_path / "other", *options)
        assert (code, len(err.splitlines())) == (2, 1)
        assert f"it replaces weights of the base, such as {name}" in err


@pytest.mark.parametrize(("args", "message"), [
    (("base", "adapter"), "name at least one file"), (("base", "--tasks", "old.jsonl"), "name at least one adapter"),
    (("base", "adapter", "--tasks", "old.jsonl", *DIAL), "name the file of the new task by --new FILE"),
    (("base", "adapter", "--new", "new.jsonl", *DIAL), "name the others by --tasks FILE or --general FILE"),
    (("base", "adapter", "fresh", *FILES, *DIAL), "--scale takes one adapter, found 2 models"),
    (("base", "adapter", *FILES, "--scale", "0,x"), "expected numbers such as 0,0.25,0.5,0.75,1"),
    (("base", "adapter", "--export-scale", "nan", "--to", "made"), "nan is not a finite number"),
    (("base", "adapter", *FILES, "--margin-nll", "inf"), "inf is not a finite number"),
    (("base", "adapter", "--export-scale", "1", "--to", "made", "--fail-on", "lost"), "--fail-on needs files to score"),
    (("base", "adapter", "--export-scale", "1", "--to", "made", "--scale", "0.5"), "--scale needs files to score"),
    (("base", "adapter", *FILES, "--export-scale", "1"), "--export-scale and --to go together"),
    (("base", "adapter", "--tasks", "old.jsonl", "--tasks", "old.jsonl"), "old.jsonl is named twice"),
    (("base", "adapter", "--tasks", "old.jsonl", "--tasks", "../{0}/old.jsonl"), "old.jsonl is named twice"),
    (("base", "adapter", "../{0}/adapter", "--tasks", "old.jsonl"), "adapter is named twice"),
    (("base", "adapter", *FILES, *DIAL, "--compare-with", "fresh"), "--scale compares with the base"),
    (("base", "adapter", "--tasks", "old.jsonl", "--compare-with", "adapter"), "name a second adapter or model"),
    (("base", "adapter", "--tasks", "old.jsonl", "--length", "999"), "takes at most 256 tokens")])
def test_options_that_do_not_go_together_are_refused(capsys, folder, args, message):
    code, _, err = call(capsys, folder, *(arg.format(folder.name) for arg in args))
    assert code == 2
    assert message in err


def test_few_audits_of_the_same_model_in_other_precision_report_a_loss(folder):
    """200 audits of random subsets of items: the base, and the same model with weights in bfloat16.

    The noise floor comes from another evaluation of the base than those that are compared. A change of 0.2 nats in
    every item, and the same evaluations without margins, must give losses; else the test could not fail.
    """
    draw = random.Random(0)
    rows = [{"prompt": draw.choice(OLD)["prompt"] * draw.randint(1, 3), "response": draw.choice(OLD)["response"]}
            for _ in range(150)]
    write_lines(folder / "many.jsonl", rows)
    items = ItemTokenizer(make_tokenizer(), 256).tokenize(read_items(folder / "many.jsonl")).items
    base, rounded = load(folder / "base"), load(folder / "base").to(torch.bfloat16).float()
    first, again, other = (Scorer(model, torch.device("cpu"), precision).score(items, size) for model, precision, size
                           in ((base, "fp32", 8), (base, "bf16", 5), (rounded, "bf16", 3)))
    assert len({first.nll, again.nll, other.nll}) == 3
    reported = dict.fromkeys(("unchanged", "changed", "without margins"), 0)
    for _ in range(200):
        chosen = draw.sample(range(len(items)), 30)
        scores, floor_scores, same = (FileScores(tuple(p.nll[i] for i in chosen), tuple(p.exact[i] for i in chosen))
                                      for p in (first, again, other))
        worse = FileScores(tuple(value + 0.2 for value in same.nll), same.exact)
        for name, compared, margins in (("unchanged", same, MARGINS), ("changed", worse, MARGINS),
                                        ("without margins", same, dict.fromkeys(MARGINS, 0.0))):
            floors = {metric: noise_floor(scores, floor_scores, metric) if any(margins.values()) else 0.0
                      for metric in CAUSAL_LM.metrics}
            comparisons = [compare("m", "f", metric, scores, compared, floors[metric], margins)
                           for metric in CAUSAL_LM.metrics]
            reported[name] += any(one.verdict == "lost" for one in judge(comparisons))
    assert reported["unchanged"] <= 10 and reported["changed"] >= 190 and reported["without margins"] > 10, reported
