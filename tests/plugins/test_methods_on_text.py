"""Every method on texts: it learns, or refuses in one line."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.methods import METHODS
from helpers.texts import WIDTH, Words, text_bench, tiny_texts
from torch import nn

from clbench.core import tokens
from clbench.core.errors import SpecError
from clbench.core.registry import discover
from clbench.experiment.spec import Recipe
from clbench.strategy.per_sample_gradients import mean_gradients
from clbench.strategy.subspace import input_moments
from clbench.testing import tiny
from clbench.training.evaluation import evaluate
from clbench.training.loop import TrainingLoop

REFUSE = {"hat": "hat masks the units", "xdg": "xdg gates the units",
          "ease": "model has no such block", "mos": "model has no such block", "dualprompt": "no known place for them",
          "coda-prompt": "no known place for them",
          "acl": "a text has none", "generative-replay": "this benchmark has texts"}


FIRST = ("naive", "ewc", "er", "lora", "pnn", "shared-private", "ncm", "l2p", *REFUSE)  # others: a second look


@pytest.mark.parametrize(("method", "options"), [
    pytest.param(*case, marks=() if case[0] in FIRST else pytest.mark.slow) for case in METHODS])
def test_a_method_learns_texts(method, options, monkeypatch):
    monkeypatch.setattr(tiny, "RECIPE", Recipe(lr=0.02, batch_size=8, epochs=60 if method == "lora-mean" else 25))
    info = discover().strategy(method)
    if method in REFUSE and options.get("adapter") != "lora":
        with pytest.raises(SpecError, match=REFUSE[method]):
            text_bench(info, options, "task").learn(0)
        return
    b = text_bench(info, options, "task")
    for index in range(2):
        b.learn(index)
    accuracy = evaluate(b.strategy, b.stream, "task", learned=2).accuracy[:2]
    assert max(accuracy) > 0.6 or method == "frozen", accuracy


@pytest.mark.parametrize("method", ["naive", "er", "lora", "ewc", "pnn", "ranpac"])
def test_a_stack_of_texts_learns_as_each_seed_alone(method):
    info = discover().strategy(method)
    recipe = Recipe(lr=0.01, batch_size=8, epochs=2)

    def learned(seeds):
        benches = [text_bench(info, {}, "class", seed) for seed in seeds]
        for b in benches:
            b.strategy.double()
        trainer = TrainingLoop([b.replica for b in benches], recipe)
        for index in range(2):
            trainer.train_task(index)
        x = tiny_texts("class").tests.x
        with torch.no_grad():
            return [b.strategy.eval()(x) for b in benches]

    together, alone = learned([0, 1]), [learned([seed])[0] for seed in (0, 1)]
    for one, other in zip(together, alone, strict=True):
        finite = other.isfinite()
        torch.testing.assert_close(one[finite], other[finite], rtol=1e-9, atol=1e-9)


def test_places_behind_the_last_token_change_nothing():
    b = text_bench(discover().strategy("naive"), {}, "task")
    x = b.stream.tests.x
    wider = torch.cat([x, torch.full((len(x), 5), tokens.NO_TOKEN, dtype=tokens.DTYPE)], 1)
    with torch.no_grad():
        torch.testing.assert_close(b.strategy(wider), b.strategy(x))
        torch.testing.assert_close(b.strategy(tokens.shortened([x])[0]), b.strategy(x))


def test_a_replay_memory_keeps_tokens():
    b = text_bench(discover().strategy("er"), {}, "class")
    b.learn(0)
    kept = dict(b.strategy.named_buffers())
    memory = next(t for name, t in kept.items() if t.shape[1:] == b.stream.tests.x.shape[1:])
    assert memory.dtype == tokens.DTYPE
    seen = {tuple(row) for row in b.stream.tasks[0].train.x.tolist()}
    assert {tuple(row) for row in memory.tolist() if max(row) >= 0 and row != [0] * len(row)} <= seen


def test_batches_of_a_step_are_cut_off_behind_the_longest_of_all_members():
    first, second = torch.full((2, 6), -1).int(), torch.full((3, 6), -1).int()
    first[:, :2], second[1, :4] = 5, 6
    assert [part.shape for part in tokens.shortened([first, second])] == [(2, 4), (3, 4)]
    assert tokens.shortened([first])[0].shape == (2, 2)
    assert replace(tiny_texts("task").tests).x.dtype == tokens.DTYPE


def test_fisher_of_an_embedding_is_that_of_single_samples():
    strategy = text_bench(discover().strategy("naive"), {}, "task").strategy.double()
    samples = tiny_texts("task").tasks[0].train
    strategy.class_mask[0, :2] = True

    def fisher(layerwise):
        return mean_gradients(strategy, samples, 0, read=lambda logits, _: logits.log_softmax(1),
                              seeds=lambda out, part: [F.one_hot(samples.y[part], out.shape[1]).to(out)],
                              measure=torch.square, layerwise=layerwise)

    found, expected = fisher(layerwise=True), fisher(layerwise=False)
    word = found["model.blocks.0.body.embedding.weight"]
    assert word.abs().max() > 0
    assert all(torch.allclose(found[name], expected[name], rtol=1e-9, atol=1e-15) for name in expected)


def test_the_moments_of_a_layer_s_inputs_are_those_of_tokens_and_not_of_padding():
    strategy, train = text_bench(discover().strategy("naive"), {}, "task").strategy, tiny_texts("task").tasks[0].train
    words, first, second = Words(), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)  # `first` has biases
    with torch.no_grad():
        inputs = first(words(train.x))[tokens.present(train.x)]
    expected = inputs.T @ inputs / len(train)
    for extra in (0, 9):
        padded = replace(train, x=F.pad(train.x, (0, extra), value=tokens.NO_TOKEN))
        found = input_moments(strategy, lambda x: second(first(words(x))), {"second": second}, padded)["second"]
        torch.testing.assert_close(found, expected)
