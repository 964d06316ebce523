"""`generative-replay`: the loss of the autoencoder, and of replay with hard and soft labels, by hand."""

import numpy as np
import pytest
import torch
from clbench_generative_replay import GenerativeReplayOptions
from clbench_generative_replay.generator import Generator
from clbench_generative_replay.strategy import GenerativeReplay
from helpers.methods import CLASSES, FEATURES, activate, batch, deep_model, make, move, task
from torch import nn

from clbench.core.errors import SpecError
from clbench.core.registry import discover
from clbench.data.prepare import Prepare
from clbench.models.network import Block, Network
from clbench.strategy.base import Batch, StreamInfo
from clbench.strategy.granted import PhaseSpec
from clbench.testing.tiny import bench

SMALL = {"width": 6, "depth": 2, "latent": 3}


def affine(layer, x):
    bias = 0 if layer.bias is None else layer.bias.detach().numpy()
    return x @ layer.weight.detach().numpy().T + bias


def decoded(decoder, z):
    """Return what a decoder with two hidden layers puts out, in numpy."""
    first, second, last = (layer for layer in decoder if isinstance(layer, nn.Linear))
    return affine(last, np.maximum(affine(second, np.maximum(affine(first, z), 0)), 0))


def autoencoder_loss(generator, x, noise, pixels):
    """Return the negative evidence lower bound over the number of inputs, in numpy, sample by sample."""
    first, second = (layer for layer in generator.encoder[0] if isinstance(layer, nn.Linear))
    total = 0.0
    for row, e in zip(x, noise, strict=True):
        hidden = np.maximum(affine(second, np.maximum(affine(first, row), 0)), 0)
        mean, variance = affine(generator.mean, hidden), np.exp(affine(generator.log_variance, hidden))
        out = decoded(generator.decoder, mean + np.sqrt(variance) * e)
        if pixels:
            p = 1 / (1 + np.exp(-out))
            likelihood = (row * np.log(p) + (1 - row) * np.log(1 - p)).sum()
        else:
            likelihood = -0.5 * ((row - out) ** 2).sum()
        divergence = 0.5 * (mean**2 + variance - 1 - np.log(variance)).sum()
        total += (divergence - likelihood) / len(row)
    return total / len(x)


def log_softmax(rows):
    return rows - rows.max(1, keepdims=True) - np.log(np.exp(rows - rows.max(1, keepdims=True)).sum(1, keepdims=True))


def replay_loss(new, old, groups, among, targets, temperature=2.0, scaled_mean=False):
    """Return the mean over groups of old outputs of the loss of replayed logits, in numpy."""
    losses = []
    for group, compete in zip(groups, among, strict=True):
        if targets == "hard":
            labels = [compete.index(group[i]) for i in old[:, group].argmax(1)]
            losses.append(-log_softmax(new[:, compete])[range(len(new)), labels].mean())
            continue
        soft, log_q = np.zeros((len(new), len(compete))), log_softmax(new[:, compete] / temperature)
        soft[:, [compete.index(c) for c in group]] = np.exp(log_softmax(old[:, group] / temperature))
        terms = -soft * log_q
        losses.append(temperature**2 * terms.mean() if scaled_mean else terms.sum(1).mean())
    return sum(losses) / len(losses)


@pytest.mark.parametrize("pixels", [True, False])
def test_the_loss_of_the_generator_is_the_negative_bound(pixels):
    torch.manual_seed(0)
    generator, x, noise = Generator(5, 6, 2, 3).double(), torch.rand(7, 5).double(), torch.randn(7, 3).double()
    expected = autoencoder_loss(generator, x.numpy(), noise.numpy(), pixels)
    assert generator.loss(x, noise, pixels).item() == pytest.approx(expected, rel=1e-12)


def in_third_task(scenario, **options):
    """Return a strategy in its third task, whose network and generator have moved after each task, and a batch."""
    strategy = make(GenerativeReplay, GenerativeReplayOptions(**{**SMALL, **options}), scenario, deep_model)
    for index in range(3):
        if scenario == "class":
            activate(strategy, index)
        strategy.before_task(task(index))
        strategy.before_phase(task(index), PhaseSpec(0, 3, 0.1))
        move(strategy, index)
        if index < 2:
            strategy.after_task(task(index))
    return strategy, strategy.prepare_batch(batch(2, 7))


@pytest.mark.parametrize("scenario", ["class", "task"])
@pytest.mark.parametrize("options", [{}, {"targets": "soft"}, {"targets": "soft", "soft_loss": "scaled-mean"},
                                     {"targets": "soft", "temperature": 1.5}])
def test_the_loss_weighs_new_and_generated_inputs_by_the_number_of_tasks(scenario, options):
    strategy, b = in_third_task(scenario, **options)
    first, second, third = strategy.noise.numpy().reshape(3, 7, 3)
    past = decoded(strategy.old_decoder, second)
    with torch.no_grad():
        logits = strategy.model(b.x).numpy()
        new, old = (network(torch.from_numpy(past)).numpy() for network in (strategy.model, strategy.old))
    groups = [[0, 1], [2, 3]] if scenario == "task" else [[0, 1, 2, 3]]
    among = groups if scenario == "task" else [list(range(CLASSES))]
    own = [4, 5] if scenario == "task" else list(range(CLASSES))
    labels = -log_softmax(logits[:, own])[range(7), [own.index(c) for c in b.y.tolist()]].mean()
    replayed = replay_loss(new, old, groups, among, options.get("targets", "hard"), options.get("temperature", 2.0),
                           "soft_loss" in options)
    expected = (labels + autoencoder_loss(strategy.generator, b.x.numpy(), first, False)) / 3
    expected += 2 / 3 * (replayed + autoencoder_loss(strategy.generator, past, third, False))
    assert strategy.loss(b).item() == pytest.approx(expected, rel=1e-10)


def test_the_old_network_labels_with_all_old_classes_if_new_samples_compete_within_their_task():
    b = bench(discover().strategy("generative-replay"), {**SMALL, "outputs": "own"}, "class")
    for index in range(2):
        b.learn(index)
    assert [outputs.tolist() for outputs in b.strategy.old_outputs(2)] == [b.strategy.known[:2].any(0).tolist()]
    assert b.strategy.known.sum(1).tolist()[:2] == [2, 2] and b.strategy.old_outputs(2)[0].sum() == 4


def test_nothing_is_replayed_in_the_first_task_and_copies_are_made_after_it():
    strategy = make(GenerativeReplay, GenerativeReplayOptions(**SMALL), "class", deep_model)
    activate(strategy, 0)
    strategy.before_task(task(0))
    b = strategy.prepare_batch(batch(0, 5))
    assert strategy.noise.shape == (5, 3)
    expected = autoencoder_loss(strategy.generator, b.x.numpy(), strategy.noise.numpy(), False) + (
        strategy.cross_entropy(strategy.model(b.x), b).item())
    assert strategy.loss(b).item() == pytest.approx(expected, rel=1e-10)
    move(strategy, 0)
    learning = {name for name, p in strategy.named_parameters() if p.requires_grad}
    assert not any(name.startswith(("old.", "old_decoder.")) for name in learning)
    assert {name.split(".")[0] for name in learning} == {"model", "generator"}
    strategy.after_task(task(0))
    z = torch.randn(4, 3).double()
    assert torch.equal(strategy.old_decoder(z), strategy.generator.decoder(z))
    move(strategy, 1)
    assert not torch.equal(strategy.old_decoder(z), strategy.generator.decoder(z))
    strategy.train()
    assert strategy.generator.training and not strategy.old_decoder.training


def test_images_are_generated_as_pixels_and_prepared_as_real_ones():
    prepare = Prepare(mean=(0.2, 0.5), std=(0.3, 0.4))
    torch.manual_seed(0)
    model = Network([Block(nn.Flatten(), nn.Identity()), Block(nn.Linear(18, 4), nn.Tanh())], nn.Linear(4, 4))
    stream_info = StreamInfo(4, 2, "class", (2, 3, 3), torch.Generator().manual_seed(0), prepare=prepare)
    strategy = GenerativeReplay(model, stream_info, GenerativeReplayOptions(**SMALL, targets="soft"))
    strategy.class_mask[:, :4] = True
    strategy.known[0, :2] = True
    raw = torch.randint(0, 256, (6, 2, 3, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    b = strategy.prepare_batch(Batch(raw, torch.tensor([2, 3] * 3), torch.ones(6, dtype=torch.int64), 1))
    x, pixels = prepare(raw), raw.flatten(1).double().numpy() / 255
    strategy.double()  # the buffers too; batches follow
    b = Batch(x.double(), b.y, b.tasks, 1)
    z = strategy.noise.numpy().reshape(3, 6, 3)
    past = 1 / (1 + np.exp(-decoded(strategy.old_decoder, z[1])))
    mean, std = np.array([0.2, 0.5]).reshape(2, 1, 1), np.array([0.3, 0.4]).reshape(2, 1, 1)
    images = torch.from_numpy((past.reshape(6, 2, 3, 3) - mean) / std)
    with torch.no_grad():
        new, old, logits = strategy.model(images), strategy.old(images), strategy.model(b.x)
    replayed = replay_loss(new.numpy(), old.numpy(), [[0, 1]], [[0, 1, 2, 3]], "soft")
    labels = -log_softmax(logits.numpy())[range(6), b.y.tolist()].mean()
    expected = (labels + autoencoder_loss(strategy.generator, pixels, z[0], True)) / 2
    expected += (replayed + autoencoder_loss(strategy.generator, past, z[2], True)) / 2
    assert strategy.loss(b).item() == pytest.approx(expected, rel=1e-5)  # `prepare` computes in float32


def test_the_generator_may_have_a_learning_rate_of_its_own():
    strategy, _ = in_third_task("class", generator_lr=0.02)
    assert strategy.learning_rates() == {"generator.*": pytest.approx(0.2)}
    strategy, _ = in_third_task("class")
    assert strategy.learning_rates() == {"generator.*": 1.0}


def test_texts_are_refused():
    stream_info = StreamInfo(CLASSES, 2, "class", (FEATURES,), torch.Generator(), is_text=True)
    with pytest.raises(SpecError, match="generative-replay generates images or numbers, and this benchmark has texts"):
        GenerativeReplay(deep_model(), stream_info)
