"""Adapters on a tiny Llama against PEFT's, trained on the same batches (extra `lm`)."""

import itertools
import warnings

import pytest
import torch
from helpers.language_models import load, quiet
from helpers.language_runs import LanguageRuns, as_transformers, learn, logits, task_batches

from clbench.core.errors import SpecError

pytestmark = pytest.mark.extra("lm")
PARTS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
         "mlp.down_proj"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return LanguageRuns.make(tmp_path_factory.mktemp("language"))


def peft_of(runs, strategy, **options):
    """Return the model as PEFT adapts it, with A and B of a strategy's newest adapters."""
    _, peft = quiet()
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], lora_dropout=0.0, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT asks transformers for what it will not have any more
        model = peft.get_peft_model(load(runs.model), config)
    with torch.no_grad():
        for name, layer in strategy.adapted.items():
            theirs = model.base_model.model.get_submodule(strategy.model.published_name(name))
            for part, parameter in layer.parameters_of(-1).items():
                getattr(theirs, part.partition(".")[0])["default"].weight.copy_(parameter)
    return model


@pytest.mark.parametrize("options", [{"r": 4, "lora_alpha": 8}, {"r": 2, "lora_alpha": 2, "use_rslora": True},
                                     {"r": 4, "lora_alpha": 8, "use_dora": True}], ids=str)
@pytest.mark.parametrize("method", ["lora", "seq-lora"])
def test_adapters_learn_as_peft_s(runs, method, options):
    named = (f"{method}:targets=q+v:rank={options['r']}:alpha={options['lora_alpha']}"
             f":scaling={'rslora' if options.get('use_rslora') else 'standard'}"
             f":dora={'true' if options.get('use_dora') else 'false'}")
    untrained = runs.replica(named, lr=0.5)
    untrained.begin(0)
    theirs = peft_of(runs, untrained.strategy, **options).train()
    assert sorted(untrained.strategy.model.published_name(n) for n in untrained.strategy.adapted) == sorted(
        f"model.layers.{i}.{part}" for i in range(2) for part in ("self_attn.q_proj", "self_attn.v_proj"))
    strategy, stream = runs.learned(named, tasks=1, lr=0.5)
    optimizer = torch.optim.SGD([p for p in theirs.parameters() if p.requires_grad], lr=0.5)
    for samples in task_batches(stream.tasks[0].train, 0, 0):
        optimizer.zero_grad()
        theirs(**as_transformers(samples)).loss.backward()
        optimizer.step()
    expected = peft_of(runs, strategy, **options)  # with what was learned here
    learned = dict(expected.named_parameters())
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(learned[name], parameter, rtol=1e-5, atol=1e-5)
    assert max(float(p.detach().abs().max()) for n, p in learned.items() if "lora_B" in n) > 1e-3
    test = stream.tasks[0].test
    there = test.x >= 0
    with torch.no_grad():
        answers = theirs.eval()(**as_transformers(test)).logits
    torch.testing.assert_close(logits(strategy, test, 0)[there], answers[there], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["lora", "seq-lora", "o-lora"])
def test_all_linear_layers_are_those_of_the_blocks_without_the_head(runs, method):
    strategy = runs.replica(f"{method}:targets=all-linear").strategy
    assert [strategy.model.published_name(name) for name in strategy.adapted] == [
        f"model.layers.{i}.{part}" for i in range(2) for part in PARTS]


@pytest.mark.parametrize("method", ["lora", "seq-lora", "o-lora"])
def test_the_paper_s_layers_are_q_and_v_whatever_length_the_benchmark_allows(runs, method):
    trial = runs.planned(method)[0].trial  # 512 tokens by default, more than the model takes
    assert trial.method.options["targets"] == ["q", "v"] and trial.benchmark.options["length"] == 512


def test_merging_an_adapter_changes_no_answer(runs):
    replica = runs.replica("seq-lora:merge=true:targets=all-linear", lr=1.0)
    strategy, test = replica.strategy, replica.stream.tasks[0].test
    answers, after_task = [], strategy.after_task

    def noting(task):
        answers.append(logits(strategy, test, task.index))
        after_task(task)
        answers.append(logits(strategy, test, task.index))

    strategy.after_task = noting
    start = logits(strategy, test, 0)
    learn([replica])
    assert len(answers) == 6
    for before, after in zip(answers[::2], answers[1::2], strict=True):
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
        assert (before - start).abs().max() > 1e-2
        start = after
    assert not any(layer.lora_B[-1].weight.any() for layer in strategy.adapted.values())


@pytest.mark.parametrize("method", ["er:share=0.3:update=task", "seq-lora:replay=0.3"])
def test_replayed_items_come_in_addition_with_their_own_targets(runs, method):
    replica = runs.replica(method, epochs=3)
    strategy, sizes = replica.strategy, []
    augment, loss = strategy.prepare_batch, strategy.loss
    seen = []

    def noting(batch):
        extended = augment(batch)
        sizes.append((batch.task, len(batch.y), extended.replayed))
        return extended

    strategy.prepare_batch, strategy.loss = noting, lambda batch: seen.append(batch) or loss(batch)
    learn([replica])
    new = [4, 4, 2] * 9
    passed = [sum(new[:i]) for i in range(len(new) + 1)]
    shares = [3 * after // 10 - 3 * before // 10 for before, after in itertools.pairwise(passed)]
    assert [size[1] for size in sizes] == new
    assert [size[2] for size in sizes] == [0] * 9 + shares[9:]  # nothing of an earlier task in the first
    assert sum(shares[9:]) == 18
    train = {tuple(row): tuple(y[y >= 0]) for task in replica.stream.tasks
             for row, y in zip(task.train.x.tolist(), task.train.y, strict=True)}
    for batch in seen:
        for row, targets, task in zip(batch.x.tolist(), batch.y, batch.tasks.tolist(), strict=True):
            known = {x[:len(row)]: y for x, y in train.items()}
            assert known[tuple(row)] == tuple(targets[targets >= 0]) and task <= batch.task


def test_a_language_model_that_is_one_block_has_no_parts(runs, tmp_path):
    transformers, _ = quiet()
    config = transformers.GPT2Config(vocab_size=259, n_embd=16, n_layer=1, n_head=2, n_positions=64, bos_token_id=2,
                                     eos_token_id=0)
    transformers.GPT2LMHeadModel(config).save_pretrained(str(tmp_path / "gpt2"))
    for file in runs.model.glob("tokenizer*"):
        (tmp_path / "gpt2" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(SpecError, match="its Linear and Conv2d layers are"):
        runs.replica("lora", model=tmp_path / "gpt2")
