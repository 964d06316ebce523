import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from clbench_lora import adapters
from clbench_lora.adapters import find, layer_summaries
from clbench_lora.arithmetic import combined, delta, merged
from clbench_lora.evaluate import add, evaluate_tasks
from clbench_lora.files import read_adapter, write_adapter, write_base
from clbench_lora.peft_format import fingerprint
from clbench_lora.reload import load
from helpers.adapters import keep, plain
from helpers.per_task import answer, inputs, make_task
from helpers.unreadable import make_unreadable
from safetensors.torch import load_file, save_file

import clbench
from clbench import cli
from clbench.core import seeds
from clbench.core.errors import DataError, SpecError, StoreError, WriteError
from clbench.core.files import hash_file
from clbench.core.registry import discover
from clbench.experiment.trial import Resolved, Weights
from clbench.models.weights import load_weights
from clbench.training.building import build_model

OPTIONS = [
    {}, {"alpha": 5.0, "rank": 3}, {"scaling": "rslora", "rank": 3}, {"dora": True}, {"layers": "last"},
    {"bias": True, "alpha": 5.0, "rank": 3}, {"rank_pattern": {r"blocks\.1\..*": 2}, "scaling": "rslora"},
    {"init": "gaussian", "dropout": 0.3},
]
LINEAR = [*OPTIONS, {"init": "pissa", "rank": 3, "alpha": 5.0}, {"init": "pissa", "scaling": "rslora", "bias": True}]
CASES = [("mlp", o) for o in LINEAR] + [("cnn", o) for o in OPTIONS]


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(("kind", "options"), CASES, ids=str)
def test_what_is_loaded_answers_bitwise_as_what_was_kept(tmp_path, kind, options):
    strategy, source = keep(tmp_path, kind, **options)
    loaded = load(source)
    for task in range(3):
        assert torch.equal(answer(loaded, task).logits, answer(strategy, task).logits)
    assert torch.equal(loaded.shared_features(inputs()), strategy.shared_features(inputs()))
    part = load(source, [2, 0])
    for position, task in enumerate((2, 0)):
        assert torch.equal(answer(part, position).logits, answer(strategy, task).logits)


@pytest.mark.parametrize("kind", ["resnet20", "vit-tiny"])
def test_residual_networks_and_transformers_are_loaded_too(tmp_path, kind):
    strategy, source = keep(tmp_path, kind, rank=1, base="random")
    loaded = load(source)
    assert all(torch.equal(answer(loaded, t).logits, answer(strategy, t).logits) for t in range(3))


@pytest.mark.parametrize("infer", ["entropy", "max-logit", "prototype"])
def test_the_task_is_inferred_as_before(tmp_path, infer):
    strategy, source = keep(tmp_path, scenario="class", infer=infer)
    loaded = load(source)
    for before, after in zip(answer(strategy), answer(loaded), strict=True):
        assert torch.equal(before, after)
    assert set(answer(load(source, [1])).task.tolist()) == {0}


def test_gaussians_are_not_in_adapters_files(tmp_path):
    _, source = keep(tmp_path, scenario="class", infer="gaussian")
    with pytest.raises(SpecError, match="one covariance of all tasks, which the files of adapters do not have"):
        load(source)
    strategy, source = keep(tmp_path / "given", infer="gaussian")
    assert torch.equal(answer(load(source), 1).logits, answer(strategy, 1).logits)


def test_files_are_safetensors_and_json_of_the_formats_names(tmp_path):
    strategy, source = keep(tmp_path, "cnn", dora=True)
    assert set(files(source.folder)) == {"base.safetensors", *(
        f"task{t}/{n}" for t in range(3) for n in ("adapter_config.json", "adapter_model.safetensors", "clbench.json"))}
    parts = [f"{layer}.{part}" for layer in ("blocks.0.body", "blocks.1.body")
             for part in ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")]
    assert set(load_file(source.folder / "task1" / "adapter_model.safetensors")) == {
        f"base_model.model.{name}" for name in (*parts, "head.weight", "head.bias")}
    config = json.loads((source.folder / "task1" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["blocks.0.body", "blocks.1.body"]
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["use_dora"]) == ("LORA", 4, 4, True)
    assert "lora_bias" not in config
    assert set(source.base()) == set(plain("cnn")[0].state_dict())
    assert torch.equal(source.base()["blocks.1.body.weight"], strategy.adapted["blocks.1.body"].base_layer.weight)


def test_ranks_and_alphas_that_differ_become_patterns_by_whole_name(tmp_path):
    _, source = keep(tmp_path, rank=3, rank_pattern={r"blocks\.1\..*": 2})
    config = source.adapter(0).config
    assert (config.r, config.rank_pattern, config.alpha_pattern) == (3, {"blocks.1.body": 2}, {"blocks.1.body": 2.0})


def test_pissa_is_kept_as_an_adapter_of_twice_the_rank_with_the_same_change(tmp_path):
    strategy, source = keep(tmp_path, init="pissa", rank=3, alpha=5.0)
    adapter, base = source.adapter(1), source.base()
    assert adapter.config.r == 6
    for name, layer in strategy.adapted.items():
        weight = base[f"{name}.weight"]
        torch.testing.assert_close(delta(adapter, name, weight).float(), layer.delta_weight(1), rtol=1e-4, atol=1e-6)


def test_removing_a_task_leaves_the_others_bitwise_as_they_were(tmp_path):
    strategy, source = keep(tmp_path, scenario="class", infer="prototype")
    before = files(source.folder)
    adapters.remove(source, 1)
    assert source.tasks == [0, 2]
    assert files(source.folder) == {n: b for n, b in before.items() if not n.startswith("task1/")}
    loaded = load(source)
    for position, task in enumerate((0, 2)):
        assert torch.equal(answer(loaded, position).logits, answer(strategy, task).logits)
    with pytest.raises(StoreError, match=r"lora:mlp/0 has no adapter of task 2, only of 1, 3"):
        source.adapter(1)
    with pytest.raises(StoreError, match="no adapter of task 2"):
        adapters.remove(source, 1)


def test_a_removal_that_crashed_is_not_in_the_way_of_the_next(tmp_path):
    _, source = keep(tmp_path)
    rest = source.folder / ".task1.removed"
    rest.mkdir()
    (rest / "adapter_model.safetensors").touch()
    adapters.remove(source, 1)
    assert {p.name for p in source.folder.iterdir()} == {"base.safetensors", "task0", "task2"}


@pytest.mark.parametrize(("kind", "options"), CASES, ids=str)
def test_merged_weights_load_into_the_plain_model_and_answer_the_same(tmp_path, kind, options):
    strategy, source = keep(tmp_path, kind, **options)
    adapters.merge(source, 1, tmp_path / "merged.safetensors")
    model, _ = plain(kind, seed=5)
    assert load_weights(model, tmp_path / "merged.safetensors") == []
    ours = answer(strategy, 1).logits
    with torch.no_grad():
        theirs = model.eval()(inputs())
    assert torch.equal(theirs.isfinite(), ours.isfinite())
    torch.testing.assert_close(theirs[:, 2:4], ours[:, 2:4], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(theirs[:, 2:4], F.linear(strategy.shared_features(inputs()), model.head.weight,
                                                       model.head.bias)[:, 2:4], atol=1e-4)


def test_merged_weights_as_a_start_have_an_untrained_head(tmp_path):
    _, source = keep(tmp_path)
    path = tmp_path / "merged.safetensors"
    adapters.merge(source, 1, path)
    weights = Weights(path=str(path), sha256=hash_file(path))
    for number_of_classes in (6, 5):
        with seeds.scope(3, "init"):
            untrained = build_model(plain("mlp")[1], None, (1, 8, 8), number_of_classes, discover())[0]
        with seeds.scope(3, "init"):
            model, notes = build_model(plain("mlp")[1], weights, (1, 8, 8), number_of_classes, discover())
        assert notes == ["weights: the head has values that are not finite, it starts untrained"]
        assert torch.equal(model.head.weight, untrained.head.weight)
        assert torch.equal(model.head.bias, untrained.head.bias)
        assert torch.equal(model.blocks[1].body.weight, load_file(path)["blocks.1.body.weight"])


def test_a_bias_without_a_place_cannot_be_merged(tmp_path):
    _, source = keep(tmp_path, "resnet20", rank=1, bias=True)
    with pytest.raises(SpecError, match=r"bias on blocks\.0\.body\.0, which has none"):
        adapters.merge(source, 0, tmp_path / "merged.safetensors")
    with pytest.raises(SpecError, match=r"should end in \.safetensors"):
        adapters.merge(source, 0, tmp_path / "merged.pt")


@pytest.mark.parametrize(("kind", "options"), [
    ("mlp", {"rank": 3, "alpha": 5.0}), ("cnn", {"rank": 2, "scaling": "rslora"}),
    ("mlp", {"init": "pissa", "rank": 2}), ("mlp", {"bias": True, "rank_pattern": {r"blocks\.1\..*": 2}})], ids=str)
def test_a_mixture_is_the_weighted_sum_of_the_changes(tmp_path, kind, options):
    strategy, source = keep(tmp_path, kind, dtype=torch.float64, **options)
    parts = {t: source.adapter(t) for t in (0, 2)}
    mixture, base = combined(parts, [0.3, -1.2]), source.base()
    for name, layer in strategy.adapted.items():
        expected = 0.3 * layer.delta_weight(0) - 1.2 * layer.delta_weight(2)
        found = delta(mixture, name, base[f"{name}.weight"])
        torch.testing.assert_close(found, expected.detach(), rtol=1e-11, atol=1e-13)
        assert mixture.rank(name) == sum(p.rank(name) for p in parts.values())
        if layer.lora_bias:
            own = sum(w * layer.scaling * layer.lora_B[t].bias for w, t in ((0.3, 0), (-1.2, 2)))
            torch.testing.assert_close(merged(mixture, base)[f"{name}.bias"], layer.base_layer.bias + own)
    if options == {"rank": 3, "alpha": 5.0}:
        a, b = (sum(0.5 * p.factors("blocks.1.body")[i] for p in parts.values()) for i in (0, 1))
        half = combined(parts, [0.5, 0.5])
        assert not torch.allclose(delta(half, "blocks.1.body", base["blocks.1.body.weight"]), 5 / 3 * b @ a)


def test_the_head_of_a_mixture_has_each_tasks_own_rows(tmp_path):
    strategy, source = keep(tmp_path)
    weight, bias = combined({0: source.adapter(0), 2: source.adapter(2)}, [0.5, 0.5]).head
    assert torch.equal(weight[[0, 1, 4, 5]], torch.cat([strategy.heads[0].weight, strategy.heads[2].weight]))
    assert torch.equal(bias[[0, 1, 4, 5]], torch.cat([strategy.heads[0].bias, strategy.heads[2].bias]))
    assert bias[[2, 3]].tolist() == [-torch.inf] * 2


def test_classes_that_tasks_share_get_the_mean_row_by_weight(tmp_path):
    tasks = [make_task(i, (0, 1, 2, 3, 4, 5)) for i in range(3)]
    strategy, source = keep(tmp_path, tasks=tasks)
    weight, _ = combined({0: source.adapter(0), 1: source.adapter(1)}, [1.0, 3.0]).head
    expected = 0.25 * strategy.heads[0].weight + 0.75 * strategy.heads[1].weight
    torch.testing.assert_close(weight, expected.detach())
    with pytest.raises(SpecError, match="class 0 add up to 0"):
        combined({0: source.adapter(0), 1: source.adapter(1)}, [1.0, -1.0])


def test_what_cannot_be_combined_is_refused(tmp_path):
    _, source = keep(tmp_path, dora=True)
    with pytest.raises(SpecError, match="dora adapters cannot be combined"):
        adapters.combine(source, [0, 1], [0.5, 0.5], tmp_path / "to")
    with pytest.raises(SpecError, match="2 adapters need as many weights, got 1"):
        adapters.combine(source, [0, 1], [0.5], tmp_path / "to")
    with pytest.raises(SpecError, match="tasks 1, 1: one is named twice"):
        adapters.combine(source, [0, 0], [0.5, 0.5], tmp_path / "to")
    with pytest.raises(SpecError, match=r"weights nan, 0\.5: each must be a finite number"):
        adapters.combine(source, [0, 1], [float("nan"), 0.5], tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_an_export_is_the_adapter_its_base_and_a_card(tmp_path):
    _, source = keep(tmp_path)
    adapters.export(source, 1, tmp_path / "to")
    kept = files(source.folder)
    written = files(tmp_path / "to")
    assert written.pop("README.md").startswith(b"---\nlibrary_name: peft\n")
    assert written == {n.removeprefix("task1/"): b for n, b in kept.items()
                       if n.startswith("task1/") or n == "base.safetensors"}
    with pytest.raises(StoreError, match="is not an empty folder"):
        adapters.export(source, 1, tmp_path / "to")
    mixture = adapters.combine(source, [0, 1], [0.5, 0.5], tmp_path / "mixed")
    again = read_adapter(tmp_path / "mixed")
    assert (again.config, again.info) == (mixture.config, mixture.info)
    assert again.info.mixture == {0: 0.5, 1: 0.5}


def test_an_adapter_or_a_base_that_cannot_be_written_can_be_written_later(tmp_path):
    _, source = keep(tmp_path)
    (tmp_path / "file").touch()  # in the place of a folder
    with pytest.raises(WriteError, match=r"cannot write adapter .*free some space"):
        write_adapter(tmp_path / "file" / "task0", source.adapter(0))
    with pytest.raises(WriteError, match=r"cannot write .*free some space"):
        write_base(tmp_path / "file" / "base", source.base())


def test_another_base_is_an_error_and_another_head_is_not(tmp_path):
    _, source = keep(tmp_path / "a")
    _, other = keep(tmp_path / "b", seed=1)
    base = source.folder / "base.safetensors"
    whole = {name: tensor.clone() for name, tensor in load_file(base).items()}  # the file below may be mapped
    save_file({**whole, "head.weight": whole["head.weight"] + 1}, base)
    source = find(tmp_path / "a")
    assert fingerprint(whole) == source.digest
    load(source)
    nudged = {n: t.clone() for n, t in whole.items()}
    nudged["blocks.1.body.weight"][0, 0] += 1e-7
    for wrong in (nudged, other.base(), {n: t for n, t in whole.items() if n != "blocks.0.body.1.bias"}):
        save_file(wrong, base)
        source = find(tmp_path / "a")
        for use in (load, lambda s: adapters.merge(s, 0, tmp_path / "m.safetensors"),
                    lambda s: adapters.export(s, 0, tmp_path / "to")):
            with pytest.raises(StoreError, match=r"was trained on another base|does not fit model"):
                use(source)
    assert not (tmp_path / "m.safetensors").exists()
    assert not (tmp_path / "to").exists()


def test_without_its_base_an_adapter_is_not_handed_on(tmp_path, monkeypatch):
    _, source = keep(tmp_path)
    whole, path = source.base(), source.folder / "base.safetensors"
    path.unlink()
    source = find(tmp_path)
    # A trial with pretrained weights starts from the same base.
    monkeypatch.setattr(type(source), "model", lambda _: SimpleNamespace(state_dict=lambda: whole))
    for use in (lambda: adapters.export(source, 0, tmp_path / "to"),
                lambda: adapters.combine(source, [0, 1], [0.5, 0.5], tmp_path / "to"),
                lambda: adapters.merge(source, 0, tmp_path / "merged.safetensors")):
        with pytest.raises(StoreError, match=r"base \S+base\.safetensors cannot be read: .*restore it from a copy"):
            use()
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(("name", "content", "message"), [
    ("adapter_model.safetensors", b"\x80\x04K\x01.", "cannot be read"),
    ("adapter_config.json", b"{", "cannot be read"),
    ("clbench.json", b'{"format": 2}', "cannot be read"),
    ("clbench.json", None, r"clbench\.json is missing"),
])
def test_files_that_are_not_whole_are_errors(tmp_path, name, content, message):
    _, source = keep(tmp_path)
    path = source.folder / "task0" / name
    path.write_bytes(content) if content is not None else path.unlink()
    with pytest.raises(StoreError, match=message):
        source.adapter(0)
    source.adapter(1)


def test_an_adapter_that_is_not_the_methods_is_an_error(tmp_path):
    _, source = keep(tmp_path / "a", layers="last")
    path = source.folder / "task0" / "adapter_model.safetensors"
    whole = load_file(path)
    name = "base_model.model.blocks.1.body.lora_A.weight"
    save_file({**whole, name: whole[name].T.contiguous()}, path)
    with pytest.raises(StoreError, match=r"lora_A\.weight has the shape \[12, 4\], which does not fit its rank"):
        load(source)
    save_file({n: t for n, t in whole.items() if n != name}, path)
    with pytest.raises(StoreError, match="is not whole: it lacks"):
        load(source)
    config = source.folder / "task0" / "adapter_config.json"
    save_file({n.replace("blocks.1.body", "../../x"): t for n, t in whole.items()}, path)
    config.write_text(config.read_text().replace("blocks.1.body", "../../x"))
    with pytest.raises(StoreError, match=r"its base has no layer \.\./\.\./x; restore it"):
        load(source)


def _cut(part):
    """Return a function that cuts the columns of a tensor to a half, or a vector to its half."""
    def edit(tensors):
        name = next(name for name in tensors if name.endswith(part))
        tensors[name] = tensors[name].chunk(2, -1)[0].contiguous()
    return edit


@pytest.mark.parametrize(("options", "edit", "message"), [
    ({}, _cut("lora_A.weight"), r"lora_A\.weight has the shape \[4, 32\], which does not fit its base"),
    ({}, _cut("lora_B.weight"), r"lora_B\.weight has the shape \[12, 2\], which does not fit its rank"),
    ({}, lambda t: t.update({n: t[n][:6].contiguous() for n in t if n.endswith("lora_B.weight")}), "not fit its base"),
    ({"bias": True}, _cut("lora_B.bias"), r"lora_B\.bias has the shape \[6\]"),
    ({"dora": True}, _cut("lora_magnitude_vector"), r"lora_magnitude_vector has the shape \[6\]"),
    ({}, _cut("head.weight"), r"head\.weight has the shape"), ({}, _cut("head.bias"), r"head\.weight has the shape"),
    ({}, {"r": 0}, r"the rank of blocks\.0\.body\.1 is 0"), ({}, {"r": -1}, "is -1"),
    ({}, {"r": 3}, "not fit its rank"),
], ids=range(10))
def test_an_adapter_with_wrong_sizes_is_an_error_of_one_line(tmp_path, capsys, options, edit, message):
    _, source = keep(tmp_path, **options)
    folder = source.folder / "task0"
    if isinstance(edit, dict):
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(config | edit))
    else:
        tensors = {name: tensor.clone() for name, tensor in load_file(folder / "adapter_model.safetensors").items()}
        edit(tensors)
        save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(StoreError, match=message + ".*; restore it from a copy, or remove it and add its task again"):
        adapters.export(source, 0, tmp_path / "to")
    for arguments in (("show", "--task", "1"), ("merge", "--task", "1", "--to", tmp_path / "m.safetensors"),
                      ("combine", "--tasks", "1,2", "--weights", "1,1", "--to", tmp_path / "to")):
        assert cli.call(["adapters", arguments[0], str(tmp_path), *map(str, arguments[1:])]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "to").exists()
    assert not (tmp_path / "m.safetensors").exists()


def test_an_unreadable_place_is_an_error_of_one_line(tmp_path, monkeypatch):
    _, source = keep(tmp_path / "run")
    private = tmp_path / "private"
    make_unreadable(monkeypatch, private)
    for use in (lambda: adapters.export(source, 0, private / "to"), lambda: adapters.export(source, 0, private),
                lambda: adapters.combine(source, [0, 1], [1, 1], private / "to"),
                lambda: adapters.merge(source, 0, private / "merged.safetensors")):
        private.mkdir(exist_ok=True)
        with pytest.raises(StoreError, match=r"cannot read \S+private\S*: Permission denied; choose another"):
            use()


def test_layer_summaries_by_hand(tmp_path):
    strategy, source = keep(tmp_path, rank=3, alpha=5.0)
    layers = layer_summaries(source.adapter(2), source.base())
    assert [(f.name, f.rank, f.alpha, f.parameters, f.bytes) for f in layers] == [
        ("blocks.0.body.1", 3, 5.0, 3 * (64 + 12), 12 * (64 + 12)), ("blocks.1.body", 3, 5.0, 3 * 24, 12 * 24)]
    for summary, layer in zip(layers, strategy.adapted.values(), strict=True):
        b, a = layer.lora_B[2].weight, layer.lora_A[2].weight
        ratio = (5 / 3 * b @ a).square().sum().sqrt() / layer.base_layer.weight.square().sum().sqrt()
        assert summary.change == pytest.approx(ratio.item(), rel=1e-5)


def test_trials_are_found_by_name_and_key(tmp_path):
    with pytest.raises(StoreError, match=r"no adapters in .*only trials of lora, and of seq-lora on language models"):
        find(tmp_path)
    _, first = keep(tmp_path)
    assert find(tmp_path).record.key == first.record.key
    _, second = keep(tmp_path, seed=1)
    for name in ("lora:mlp/1", second.record.key, second.record.key[:8]):
        assert find(tmp_path, name).record.key == second.record.key
    with pytest.raises(StoreError, match="several trials saved adapters: name one of lora:mlp/0"):
        find(tmp_path)
    with pytest.raises(StoreError, match=r"no trial 'lora:mlp/2' with adapters .*; there are lora:mlp/0"):
        find(tmp_path, "lora:mlp/2")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A real run, through the harness, of a method with a recipe of its own."""
    run = tmp_path_factory.mktemp("run")
    record, = clbench.run(methods="lora:rank=2:recipe.lr=0.01", model="mlp:width=16", seeds=1, iterations=60, lr=0.1,
                          workers=0, threads=1, device="cpu", out=run)
    return run, record


def test_evaluation_gives_the_last_row_of_the_record(finished):
    run, record = finished
    source = find(run, "lora:rank=2:recipe.lr=0.01/0")
    assert list(evaluate_tasks(source, device="cpu").values()) == record.R[-1]
    assert evaluate_tasks(source, [3, 1], device="cpu") == {3: record.R[-1][3], 1: record.R[-1][1]}


def test_a_removed_task_that_is_added_again_comes_back_bitwise(finished):
    run, _ = finished
    source = find(run)
    before = files(run / "artifacts")
    with pytest.raises(StoreError, match="has an adapter of task 4; remove it first"):
        add(source, 3, device="cpu")
    adapters.remove(source, 3)
    assert add(source, 3, device="cpu") == 3
    assert files(run / "artifacts") == before


def test_a_task_of_another_benchmark_is_added_and_the_others_stay(finished):
    run, record = finished
    source = find(run)
    before = files(run / "artifacts")
    other = Resolved(name="split-mnist-5k", options=discover().benchmark("split-mnist-5k").options.model_validate(
        {"tasks": 2}).model_dump())
    assert add(source, 1, other, device="cpu") == 5
    after = files(run / "artifacts")
    assert {n: b for n, b in after.items() if "task5" not in n} == before
    info = source.adapter(5).info
    assert (info.origin.benchmark, info.origin.task, info.classes) == (other, 1, (5, 6, 7, 8, 9))
    accuracy = evaluate_tasks(source, [0, 5], device="cpu")
    assert accuracy[0] == record.R[-1][0]
    assert accuracy[5] > 0.5  # of five classes
    with pytest.raises(SpecError, match=r"of several benchmarks \(split-mnist-5k:.*\), in which the same outputs are"):
        adapters.combine(source, [0, 5], [0.5, 0.5], run / "mixed")
    adapters.combine(source, [5], [1.0], run / "mixed")
    assert ("adapter of: a weighted sum of adapters: task 2 x 1 of split-mnist-5k:normalize=false:tasks=2:"
            in (run / "mixed" / "README.md").read_text())
    path = source.folder / "task0" / "clbench.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "origin": {**info.origin.model_dump(), "fingerprint": "0" * 16}}))
    with pytest.raises(DataError, match=r"has other data here .* than the adapter was trained on \(0000"):
        evaluate_tasks(source, [5, 0], device="cpu")
    path.write_text(json.dumps(content))
    adapters.remove(source, 5)


def test_a_task_of_a_benchmark_with_fewer_classes_is_added_and_tested(tmp_path):
    record, = clbench.run(benchmark="helpers.tiny_benchmarks:shifting", methods="lora:rank=2", model="mlp:width=8",
                          seeds=1, iterations=4, workers=0, threads=1, device="cpu", out=tmp_path)
    source = find(tmp_path)
    assert source.outputs == 12
    flipping = Resolved(name="helpers.tiny_benchmarks:flipping")
    assert add(source, 1, flipping, device="cpu") == 3  # four classes in two tasks
    accuracy = evaluate_tasks(source, device="cpu")
    assert [accuracy[task] for task in range(3)] == record.R[-1]
    assert 0 <= accuracy[3] <= 1


def test_what_cannot_be_added_is_refused(finished):
    source = find(finished[0])
    with pytest.raises(SpecError, match="has tasks 1 to 5, not 6"):
        add(source, 5, device="cpu")
    with pytest.raises(SpecError, match=r"has inputs \[12\], the base takes \[1, 28, 28\]"):
        add(source, 0, Resolved(name="helpers.tiny_benchmarks:flat"), device="cpu")


def test_other_data_than_the_trial_saw_are_an_error(finished):
    source = find(finished[0])
    stream = source.record.stream.model_copy(update={"fingerprint": "0" * 16})
    changed = adapters.TrialAdapters(source.record.model_copy(update={"stream": stream}), source.folder)
    with pytest.raises(DataError, match="has other data here"):
        evaluate_tasks(changed, device="cpu")


def test_seeds_that_train_as_one_keep_adapters_of_their_own(tmp_path):
    records = clbench.run(methods="lora:rank=2", model="mlp:width=16", seeds=2, iterations=10, workers=0, threads=1,
                          device="cpu", stack=2, out=tmp_path)
    for record in records:
        source = find(tmp_path, f"lora:rank=2/{record.trial.seed}")
        assert list(evaluate_tasks(source, device="cpu").values()) == record.R[-1]


def named_task(index, names):
    return dataclasses.replace(make_task(index), class_names=names)


def test_names_of_classes_are_kept_shown_and_handed_on(tmp_path, capsys):
    names = [("cat", "dog"), ("hen", "<b>cow</b>"), ("ox", "a|b")]
    _, source = keep(tmp_path / "run", tasks=[named_task(i, n) for i, n in enumerate(names)])
    assert [source.adapter(t).info.class_names for t in source.tasks] == names
    adapters.export(source, 1, tmp_path / "one")
    card = (tmp_path / "one" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\n") and "| 2 | hen |\n| 3 | &lt;b&gt;cow&lt;/b&gt; |" in card
    mixture = adapters.combine(source, [0, 2], [0.5, 0.5], tmp_path / "two")
    assert mixture.info.class_names == ("cat", "dog", "ox", "a|b")
    card = (tmp_path / "two" / "README.md").read_text()
    assert "task 1 x 0.5, task 3 x 0.5" in card and "| 5 | a\\|b |" in card
    assert cli.call(["adapters", "show", str(tmp_path / "run"), "--task", "1"]) == 0
    assert capsys.readouterr().out.startswith("task 1: classes 0 cat, 1 dog\n")


def test_without_names_files_are_what_they_were(tmp_path):
    _, source = keep(tmp_path / "run")
    assert "class_names" not in (source.folder / "task0" / "clbench.json").read_text()
    adapters.export(source, 1, tmp_path / "one")
    assert "| 2 | class 2 |\n| 3 | class 3 |" in (tmp_path / "one" / "README.md").read_text()


def test_an_output_that_is_another_class_in_each_task_has_all_their_names(tmp_path):
    tasks = [dataclasses.replace(make_task(i, (0, 1)), class_names=n)
             for i, n in enumerate((("cat", "dog"), ("hen", "dog"), ("ox", "pig")))]
    _, source = keep(tmp_path / "run", tasks=tasks)
    assert adapters.combine(source, [0, 1], [1, 1], tmp_path / "two").info.class_names == ("cat / hen", "dog")
