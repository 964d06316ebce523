"""`mos`: merged adapters, loss, retrieval and ensemble against NumPy, in float64."""

import numpy as np
import pytest
import torch
from clbench_ease import MOSOptions
from clbench_ease.bottleneck import AdaptedBlock
from clbench_ease.mos import MOS
from helpers.methods import CLASSES, activate, batch, deep_model, make, task

from clbench.core.errors import SpecError
from clbench.core.registry import discover
from clbench.experiment.recipe import Recipe
from clbench.testing.tiny import bench
from clbench.training.optimizers import rates_of


def mos(scenario="class", **options):
    chosen = {"base": "random", "adapter": "lora", "width": 2, "dropout": 0.0, **options}
    if chosen.get("align", True):
        chosen = {"align_epochs": 2, "align_samples": 8, **chosen}
    return make(MOS, MOSOptions(**chosen), scenario, deep_model)


def layer_of(strategy):
    return strategy.adapted["blocks.1.body"]


def adapter(strategy, number):
    return {n: p.detach().numpy().copy() for n, p in layer_of(strategy).parameters_of(number).items()}


def begin(strategy, index):
    if strategy.stream_info.scenario == "class":
        strategy.class_mask[index, [2 * index, 2 * index + 1]] = True
    elif strategy.stream_info.scenario == "domain":
        activate(strategy, index)
    strategy.before_task(task(index))


def train(strategy, index, steps=3, lr=0.5):
    """Train on a task by hand; return the newest adapter after each step, before it is merged."""
    begin(strategy, index)
    stepped = []
    for _ in range(steps):
        b = strategy.prepare_batch(batch(index))
        learning = [p for p in strategy.parameters() if p.requires_grad]
        for p, gradient in zip(learning, torch.autograd.grad(strategy.loss(b), learning), strict=True):
            p.data -= lr * gradient
        stepped.append(adapter(strategy, -1))
    strategy.after_task(task(index))
    return stepped


def taught(scenario="class", tasks=3, **options):
    strategy = mos(scenario, **options)
    for index in range(tasks):
        train(strategy, index)
    return strategy.eval()


def features(strategy, x, number):
    """Return the features of x with an adapter, in numpy."""
    base, parts = layer_of(strategy).base_layer, adapter(strategy, number)
    weight = base.weight.detach().numpy() + parts["lora_B.weight"] @ parts["lora_A.weight"]
    return np.tanh(x.numpy() @ weight.T + base.bias.detach().numpy())


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def softmax(rows):
    powers = np.exp(rows - rows.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def test_after_each_step_the_adapter_moves_towards_the_mean_of_the_earlier_ones():
    strategy = mos(merge=0.2)
    train(strategy, 0)
    first = adapter(strategy, 0)
    begin(strategy, 1)
    assert all(np.array_equal(adapter(strategy, 1)[name], first[name]) for name in first)  # starts where it ended
    train_rest(strategy, 1)
    second = adapter(strategy, 1)
    stepped = train(strategy, 2)[-1]
    for name, value in adapter(strategy, 2).items():
        expected = 0.8 * stepped[name] + 0.2 * (first[name] + second[name]) / 2
        np.testing.assert_allclose(value, expected, rtol=1e-10)
        assert np.abs(value - stepped[name]).max() > 1e-6
        np.testing.assert_array_equal(adapter(strategy, 0)[name], first[name])


def train_rest(strategy, index):
    """Take a step in a task that has begun, and end it."""
    b = strategy.prepare_batch(batch(index))
    learning = [p for p in strategy.parameters() if p.requires_grad]
    for p, gradient in zip(learning, torch.autograd.grad(strategy.loss(b), learning), strict=True):
        p.data -= 0.5 * gradient
    strategy.after_task(task(index))


def test_in_the_first_task_nothing_is_merged():
    strategy = mos(merge=0.9)
    stepped = train(strategy, 0)
    for name, value in adapter(strategy, 0).items():
        np.testing.assert_array_equal(value, stepped[-1][name])


@pytest.mark.parametrize("index", [0, 2])
def test_the_loss_separates_features_from_each_other_and_from_earlier_means(index):
    strategy = taught(tasks=index, contrast=0.3)
    begin(strategy, index)
    b = batch(index, 7)
    own = features(strategy, b.x, -1)
    means = [features(strategy, task(t).train.x, t)[task(t).train.y.numpy() == c].mean(0)
             for t in range(index) for c in (2 * t, 2 * t + 1)]
    rows = np.array([*means, *own])
    contrast = -np.log(np.diag(softmax(rows @ rows.T / 0.8))).mean()
    head = strategy.model.head
    logits = (own @ head.weight.detach().numpy().T + head.bias.detach().numpy())[:, 2 * index:2 * index + 2]
    cross = -np.log(softmax(logits)[np.arange(7), b.y.numpy() - 2 * index]).mean()
    np.testing.assert_allclose(strategy.loss(b).detach().numpy(), cross + 0.3 * contrast, rtol=1e-10)


def by_hand(strategy, x, given=None, moves=3, ensemble=True):
    """Return p of the classes and the tasks whose adapters were used, sample by sample, as the authors' code."""
    head = strategy.model.head
    weight, bias = head.weight.detach().numpy(), head.bias.detach().numpy()
    refines = strategy.stream_info.scenario == "class"
    prototypes, owners = [], []
    for t in range(strategy.learned):
        for c in (2 * t, 2 * t + 1):
            prototypes.append(features(strategy, task(t).train.x, 0)[task(t).train.y.numpy() == c].mean(0))
            owners.append(t)
    learned = range(2 * strategy.learned) if given is None else [2 * given, 2 * given + 1]
    p, used = np.zeros((len(x), CLASSES)), []
    for n, sample in enumerate(x):
        cosines = unit(features(strategy, sample[None], 0))[0] @ unit(np.array(prototypes)).T
        t = owners[int(np.argmax(cosines))] if given is None else given
        for _ in range(moves + 1 if refines else 1):
            logits = (features(strategy, sample[None], t) @ weight.T + bias)[0][list(learned)]
            used_task, t = t, owners[int(np.argmax(logits))] if refines else t
        used.append(used_task)
        p[n, list(learned)] = softmax(logits)
        if ensemble:
            p[n, list(learned)] += softmax(strategy.learned * cosines[list(learned)])
    return p / (1 + ensemble), used


@pytest.mark.parametrize("moves", [0, 1, 3])
def test_a_sample_moves_to_the_adapters_of_the_class_it_is_predicted_to_be(moves):
    strategy = taught(moves=moves)
    with torch.no_grad():  # so that adapters and heads disagree
        generator = torch.Generator().manual_seed(1)
        for number in range(3):
            layer_of(strategy).lora_B[number].weight.copy_(torch.randn(7, 2, generator=generator))
        strategy.model.head.weight.copy_(torch.randn(CLASSES, 7, generator=generator))
    for t in range(3):  # means of the changed features
        for c in (2 * t, 2 * t + 1):
            rows = task(t).train.y.numpy() == c
            strategy.prototypes[c] = torch.from_numpy(features(strategy, task(t).train.x, 0)[rows].mean(0))
    x = torch.cat([task(index).train.x for index in range(3)])
    with torch.no_grad():
        logits, tasks = strategy.predict(x)
    expected, used = by_hand(strategy, x, moves=moves)
    assert tasks.tolist() == used
    np.testing.assert_allclose(logits.exp().numpy(), expected, rtol=1e-9)
    if moves:
        assert used != by_hand(strategy, x, moves=moves - 1)[1]


@pytest.mark.parametrize(("scenario", "given", "ensemble"), [("class", None, False), ("task", 1, True),
                                                             ("domain", None, True)])
def test_predictions_in_other_scenarios_and_without_the_ensemble(scenario, given, ensemble):
    strategy = taught(scenario, tasks=2, ensemble=ensemble)
    x = torch.cat([task(index).train.x for index in range(2)])
    with torch.no_grad():
        logits, tasks = strategy.predict(x, given)
    expected, used = by_hand(strategy, x, given, ensemble=ensemble)
    p = logits.exp() if ensemble else logits.softmax(1)
    np.testing.assert_allclose(p.numpy(), expected, rtol=1e-9)
    assert tasks is None if scenario == "task" else tasks.tolist() == used


def test_a_task_that_is_not_learned_is_answered_without_adapters():
    strategy = taught("task", tasks=1)
    x = batch(0).x
    assert torch.equal(strategy(x, 1), strategy.model(x))
    fresh = mos()
    assert torch.equal(fresh(x), fresh.model(x)) and fresh.predict(x).task.tolist() == [-1] * 6


def test_the_next_task_goes_on_from_the_realigned_head():
    plain, aligned = taught(tasks=2, align=False), taught(tasks=2)
    assert (aligned.model.head.weight - plain.model.head.weight).abs().max() > 1e-4
    assert torch.equal(aligned.prototypes, plain.prototypes)
    before = aligned.model.head.weight.clone()
    begin(aligned, 2)
    assert torch.equal(aligned.model.head.weight, before) and not hasattr(aligned, "unaligned_weight")
    assert len(aligned.class_means) == 4
    torch.testing.assert_close(aligned.class_means, aligned.task_means)


def test_what_learns_and_how_fast():
    strategy = mos()
    begin(strategy, 0)
    name = "model.blocks.1.body.lora_{}.{}.weight"
    head = {"model.head.weight", "model.head.bias"}
    assert {n for n, p in strategy.named_parameters() if p.requires_grad} == {*head, name.format("A", 0),
                                                                             name.format("B", 0)}
    strategy.after_task(task(0))
    begin(strategy, 1)
    assert {n for n, p in strategy.named_parameters() if p.requires_grad} == {*head, name.format("A", 1),
                                                                             name.format("B", 1)}
    assert strategy.learning_rates() == {"model.head.*": 0.1}
    first = mos(base="task1")
    begin(first, 0)
    assert first.base_learns and first.learning_rates() == {"model.head.*": 1.0}
    with pytest.raises(SpecError, match="head_lr cannot be used with MOS"):  # not only in the second phase
        rates_of(first, dict(first.named_parameters()), Recipe(head_lr=0.1))


def test_bottlenecks_of_sixteen_numbers_are_in_every_block_of_a_transformer():
    b = bench(discover().strategy("mos"), {"align_epochs": 1}, "class", model="vit")
    for index in range(2):
        b.learn(index)
    assert all(isinstance(block, AdaptedBlock) and len(block.adapters) == 2 and block.width == 16
               for block in b.strategy.adapted.values()) and len(b.strategy.adapted) == 2
    block = b.strategy.adapted["blocks.1.body"]
    assert not torch.equal(block.adapters[0].up.weight, block.adapters[1].up.weight)


def test_refusals_say_the_way_out():
    with pytest.raises(SpecError, match="mos: adapter = bottleneck is put parallel to the MLP of a transformer block"):
        mos(adapter="bottleneck")
    with pytest.raises(SpecError, match="mos: base = pretrained needs a pretrained model"):
        mos(base="pretrained")
