"""Summed, merged and averaged adapters, and projected gradients, on a tiny Llama (extra `lm`)."""

import functools

import pytest
import torch
from clbench_lora.layers import LoRALayer
from helpers.language_models import load, quiet, save
from helpers.language_runs import LanguageRuns, as_transformers, learn, logits

from clbench.core.errors import SpecError
from clbench.strategy import subspace

pytestmark = pytest.mark.extra("lm")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return LanguageRuns.make(tmp_path_factory.mktemp("language"))


def with_changes(runs, strategy, changes):
    """Return the model of transformers with weights changed by name of the adapted layer here."""
    model = load(runs.model)
    with torch.no_grad():
        for name, change in changes.items():
            model.get_submodule(strategy.model.published_name(name)).weight += change
    return model


def same_answers(runs, strategy, model, samples, task=None):
    there = samples.x >= 0
    with torch.no_grad():
        theirs = model(**as_transformers(samples)).logits[there]
        start = load(runs.model)(**as_transformers(samples)).logits[there]
    torch.testing.assert_close(logits(strategy, samples, task)[there], theirs, rtol=1e-4, atol=1e-5)
    assert (theirs - start).abs().max() > 1e-2, "nothing was learned"


def input_moments(model, names, samples):
    """Return the sum of x x^T over tokens by layer, over the number of items, from items without padding."""
    sums = {name: 0 for name in names}

    def note(name, module, inputs):
        seen = inputs[0].flatten(0, -2)
        sums[name] = sums[name] + seen.T @ seen / len(samples)

    handles = [model.get_submodule(name).register_forward_pre_hook(functools.partial(note, name)) for name in names]
    with torch.no_grad():
        for row in samples.x:
            model(input_ids=row[row >= 0][None].long())
    for handle in handles:
        handle.remove()
    return sums


def product(layer, adapter):
    return layer.scaling * layer.lora_B[adapter].weight.detach() @ layer.lora_A[adapter].weight.detach()


def test_inflora_looks_at_the_inputs_of_tokens_and_not_of_padding(runs):
    replica = runs.replica("inflora:targets=all-linear:rank=2:threshold=0.9", lr=1.0)
    strategy, train = replica.strategy, replica.stream.tasks[0].train
    assert (train.x < 0).any(), "there is padding"
    replica.begin(0)
    names = {name: strategy.model.published_name(name) for name in strategy.adapted}
    expected = input_moments(load(runs.model), names.values(), train)
    for name, moment in strategy.moments(train).items():
        torch.testing.assert_close(moment, expected[names[name]], rtol=1e-4, atol=1e-4)
        # the first task's A: the strongest directions of its inputs
        values, vectors = torch.linalg.eigh(expected[names[name]].double())
        a = strategy.adapted[name].lora_A[0].weight.detach().double()
        torch.testing.assert_close(a @ a.T, torch.eye(2).double(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close((a @ vectors[:, -2:]).square().sum(), torch.tensor(2.0).double(), rtol=1e-3, atol=0)
        assert values[-1] > values[-3]


def test_inflora_s_later_adapters_are_blind_to_the_stored_subspaces(runs):
    strategy, stream = runs.learned("inflora:targets=all-linear:rank=2:threshold=0.6", tasks=2, lr=1.0)
    changes = {name: product(layer, 0) + product(layer, 1) for name, layer in strategy.adapted.items()}
    same_answers(runs, strategy, with_changes(runs, strategy, changes), stream.tasks[0].test)
    first, _ = runs.learned("inflora:targets=all-linear:rank=2:threshold=0.6", tasks=1, lr=1.0)
    for name, layer in strategy.adapted.items():
        stored = first.stored_projector(name)
        assert 0 < float(stored.trace()) < len(stored)
        assert (layer.lora_A[1].weight @ stored).abs().max() < 1e-4
        assert layer.lora_B[1].weight.abs().max() > 1e-4


@pytest.mark.parametrize("options", ["", ":magnitudes=layer:norm=product"])
def test_sd_lora_s_answers_are_those_of_scaled_directions(runs, options):
    strategy, stream = runs.learned(f"sd-lora:targets=all-linear:rank=2{options}", lr=0.1)
    changes = {}
    for number, (name, layer) in enumerate(strategy.adapted.items()):
        total = torch.zeros_like(layer.base_layer.weight)
        for task, magnitude in enumerate(strategy.magnitudes):
            total += magnitude.detach()[number % len(magnitude)] / strategy.lengths[task, number] * product(layer, task)
        changes[name] = total
    same_answers(runs, strategy, with_changes(runs, strategy, changes), stream.tasks[0].test)
    assert not any(p.requires_grad for p in strategy.model.head.parameters())


def test_ewc_lora_holds_w_by_the_fisher_of_single_items(runs):
    strategy, stream = runs.learned("ewc-lora:targets=all-linear:rank=2:strength=50", tasks=1, lr=1.0)
    published = {name: strategy.model.published_name(name) for name in strategy.adapted}
    model, train = load(runs.model), stream.tasks[0].train
    with torch.no_grad():
        for name, layer in strategy.adapted.items():
            model.get_submodule(published[name]).weight.copy_(layer.base_layer.weight)  # with the adapter merged
    same_answers(runs, strategy, model, stream.tasks[0].test)
    expected = {name: 0 for name in published}
    for item in train.chunks(1):
        model.zero_grad()
        (int((item.y[:, 1:] >= 0).sum()) * model(**as_transformers(item)).loss).backward()
        for name, theirs in published.items():
            expected[name] = expected[name] + model.get_submodule(theirs).weight.grad.square() / len(train)
    for name, layer in strategy.adapted.items():
        torch.testing.assert_close(strategy.importance(name), expected[name], rtol=1e-3,
                                   atol=1e-6 * float(expected[name].max()))
        assert not layer.lora_B[0].weight.any()
    with torch.no_grad():
        for layer in strategy.adapted.values():
            layer.lora_B[0].weight.normal_()
        penalty = sum((expected[name] * product(layer, 0).square()).sum() for name, layer in strategy.adapted.items())
        torch.testing.assert_close(strategy.penalty(), 25 * penalty, rtol=1e-4, atol=0)


def test_ewc_lora_refuses_labels_that_a_language_model_does_not_have(runs):
    with pytest.raises(SpecError, match="fisher = exact needs the distribution over all labels"):
        runs.runner.prepare(runs.planned("ewc-lora:fisher=exact")[0].trial)


def test_the_mean_of_adapters_that_lora_learns(runs):
    mean, stream = runs.learned("lora-mean:targets=all-linear:rank=2", lr=0.5)
    lora, _ = runs.learned("lora:targets=all-linear:rank=2", lr=0.5)
    for name, layer in mean.adapted.items():
        for task in range(3):
            for ours, theirs in zip(layer.parameters_of(task).values(), lora.adapted[name].parameters_of(task).values(),
                                    strict=True):
                assert torch.equal(ours, theirs)
    changes = {name: sum(product(layer, task) for task in range(3)) / 3 for name, layer in lora.adapted.items()}
    same_answers(runs, mean, with_changes(runs, mean, changes), stream.tasks[1].test, task=1)


def test_gpm_s_steps_are_orthogonal_to_the_inputs_of_earlier_tasks(runs):
    replica = runs.replica("gpm:threshold=0.8:increase=0", lr=0.1)
    strategy, train = replica.strategy, replica.stream.tasks[0].train
    learn([replica], 1)
    names = {name: strategy.model.published_name(name) for name in strategy.projected()}
    assert len(names) == 14 and "head" not in names
    model = load(runs.model)
    model.load_state_dict({strategy.model.published_name(n): p for n, p in strategy.model.named_parameters()},
                          strict=False)
    model.tie_weights()
    before = {name: p.detach().clone() for name, p in strategy.model.named_parameters()}
    projectors = {}
    for name, moment in input_moments(model, names.values(), train).items():
        values, vectors = torch.linalg.eigh(moment.double())
        needed = int((values.flip(0).cumsum(0) < 0.8 * values.sum()).sum()) + 1
        projectors[name] = vectors[:, -needed:] @ vectors[:, -needed:].T
    for name, theirs in names.items():
        torch.testing.assert_close(strategy.stored_projector(name).double(), projectors[theirs], rtol=1e-3, atol=1e-3)
    replica.R.extend([[0.0] * 3] * 2)
    learn_next(replica, 1)
    for name, parameter in strategy.model.named_parameters():
        change = (parameter - before[name]).detach()
        layer = name.removesuffix(".weight")
        if layer in names:
            assert change.norm() > 1e-4
            assert (change.double() @ projectors[names[layer]]).norm() < 1e-2 * change.norm()
        else:  # norms, and the embedding, which the head is tied to
            assert not change.any()
    assert strategy.model.head.weight is strategy.model.blocks[0].body.embed_tokens.weight


def test_gpm_takes_layers_whose_inputs_are_flat_and_refuses_a_model_without_layers(runs):
    transformers, _ = quiet()
    torch.manual_seed(0)
    opt = transformers.OPTForCausalLM(transformers.OPTConfig(
        vocab_size=259, hidden_size=16, word_embed_proj_dim=16, ffn_dim=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=256)).eval()
    replica = runs.replica("gpm", model=save(runs.folder / "opt", opt))
    train, layer = replica.stream.tasks[0].train, "blocks.0.body.model.decoder.layers.0.fc1"
    moments = subspace.input_moments(replica.strategy, replica.strategy.model, replica.strategy.projected(), train)
    name = replica.strategy.model.published_name(layer)
    torch.testing.assert_close(moments[layer], input_moments(load(runs.folder / "opt"), [name], train)[name],
                               rtol=1e-4, atol=1e-4)
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=259, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(SpecError, match="and this model has none"):
        runs.replica("gpm", model=save(runs.folder / "gpt2", gpt2))


def learn_next(replica, index):
    from clbench.training.loop import TrainingLoop

    TrainingLoop([replica], replica.trial.trained_by).train_task(index)


def test_adapted_layers_are_where_the_papers_have_them(runs):
    for method, parts in (("inflora", "kv"), ("ewc-lora", "kv"), ("sd-lora", "qv"), ("lora-mean", "qv")):
        strategy = runs.replica(f"{method}:rank=2").strategy
        assert [strategy.model.published_name(name) for name in strategy.adapted] == [
            f"model.layers.{i}.self_attn.{part}_proj" for i in range(2) for part in parts]
        assert all(isinstance(layer, LoRALayer) for layer in strategy.adapted.values())


def test_a_record_says_that_the_head_has_no_rate(runs):
    note = "head_rate changes nothing here, because the head of a language model is not trained"
    assert note in runs.replica("seq-lora:rank=2:head_rate=10", lr=1.0).strategy.notes
    assert note not in runs.replica("seq-lora:rank=2", lr=1.0).strategy.notes
