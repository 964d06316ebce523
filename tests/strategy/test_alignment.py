"""Classifier alignment: its Gaussians and steps beside NumPy in float64, what it leaves alone, and that it resumes."""


from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.per_task import make_model, make_stream_info, make_task
from torch import nn

import clbench
from clbench.core.errors import DivergedError, SpecError
from clbench.core.registry import discover
from clbench.data.samples import Samples
from clbench.persistence.snapshot import read, restore, write
from clbench.results.store import STATE
from clbench.strategy.alignment import Aligned, gaussians, lower, normalized, realigned
from clbench.strategy.common_options import AlignOptions, OutputsOptions
from clbench.testing.tiny import RECIPE, TASKS, bench
from clbench.training.costs import measure
from clbench.training.loop import TrainingLoop

METHODS = [("slca", {}), ("slca++", {"rank": 2, "align_growth": 0.0}), ("seq-lora", {"align": True, "rank": 2}),
           ("o-lora", {"align": True, "rank": 2}),
           ("inflora", {"align": True, "rank": 2}), ("ewc-lora", {"align": True, "rank": 2, "strength": 10.0})]
REGISTRY = discover()


def unaligned(options):
    """Return a method's options without the alignment."""
    return {**{name: value for name, value in options.items() if not name.startswith("align_")}, "align": False}


class MineOptions(OutputsOptions, AlignOptions):
    pass


class Mine(Aligned):
    """The shortest use: naive fine-tuning with a head that is realigned."""


def mine(scenario="class", **options):
    return Mine(make_model(), make_stream_info(scenario), MineOptions(align=True, **options))


def taught(method, options, scenario="class", tasks=TASKS, seed=0):
    b = bench(REGISTRY.strategy(method), options, scenario, seed)
    for index in range(tasks):
        b.learn(index)
    return b


def head(strategy):
    """Return the weights [K, D] and biases [K] of the classes so far."""
    units = [strategy.head_of(c) for c in strategy.met]
    return (torch.stack([layer.weight[i] for layer, i in units]).detach(),
            torch.stack([layer.bias[i] for layer, i in units]).detach())


def test_the_gaussians_are_those_of_numpy():
    strategy, task = mine(), make_task(1, classes=(3, 5), count=40)
    outputs, means, factors = gaussians(strategy, task.train, (3, 4, 5), strategy.head_features)
    assert outputs == [3, 5]  # of class 4 there is no sample
    assert factors.shape == (2, 12 * 13 // 2)
    for output, mean, factor in zip(outputs, means, factors, strict=True):
        x = strategy.stream_info.prepare(task.train.x[task.train.y == output])
        own = strategy.model.features(x).detach().double().numpy()
        np.testing.assert_allclose(mean, own.mean(0), rtol=1e-5, atol=1e-7)
        triangle = lower(factor.double(), 12).numpy()
        assert np.array_equal(triangle, np.tril(triangle))
        np.testing.assert_allclose(triangle @ triangle.T, np.cov(own.T) + 1e-4 * np.eye(12), rtol=1e-4, atol=1e-7)


def test_a_single_sample_has_no_variance_but_what_is_added():
    strategy, task = mine(), make_task(0, classes=(0, 1), count=2)
    _, _, factors = gaussians(strategy, task.train, (0, 1), strategy.head_features)
    torch.testing.assert_close(lower(factors[0], 12), 0.01 * torch.eye(12))


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 1e12])
def test_features_without_a_covariance_mean_that_the_trial_diverged(scale):
    strategy, task = mine(), make_task(0, classes=(0, 1), count=8)  # a covariance of 8 samples has no full rank
    with pytest.raises(DivergedError, match="the features of class 0 are not finite or too large for a covariance"):
        gaussians(strategy, task.train, (0, 1), lambda x: strategy.head_features(x) * scale)


def test_drawn_features_have_the_moments_kept_and_older_means_are_nearer_to_0():
    strategy = mine(align_samples=40_000)
    strategy.met, strategy.met_in = [4, 0, 2], [0, 1, 2]
    generator = torch.Generator().manual_seed(1)
    full = torch.randn(3, 5, 5, generator=generator).tril()
    strategy.class_means = 3 + torch.randn(3, 5, generator=generator)
    strategy.class_factors = torch.stack([one[tuple(torch.tril_indices(5, 5))] for one in full])
    features, rows = strategy._draw()
    for row, shrink in enumerate((0.9 + 0.1 / 3, 0.9 + 0.2 / 3, 1.0)):
        own = features[rows == row].double().numpy()
        assert len(own) == 40_000
        np.testing.assert_allclose(own.mean(0), shrink * strategy.class_means[row].numpy(), atol=0.05)
        np.testing.assert_allclose(np.cov(own.T), (full[row] @ full[row].T).numpy(), atol=0.15)


def loss_by_hand(weight, bias, x, y, groups, temperature):
    """Return the loss and its gradients by central differences, in float64 and without torch."""
    def loss(flat):
        w, b = flat[:weight.size].reshape(weight.shape), flat[weight.size:]
        logits = x @ w.T + b
        if temperature is not None:
            lengths = [np.sqrt((logits[:, g] ** 2).sum(1)) + 1e-7 for g in groups]
            logits = logits / np.mean(lengths, 0)[:, None] / temperature
        top = logits.max(1, keepdims=True)
        return (np.log(np.exp(logits - top).sum(1)) + top[:, 0] - logits[np.arange(len(y)), y]).mean()

    flat = np.concatenate([weight.ravel(), bias])
    steps = 1e-6 * np.eye(len(flat))
    gradient = np.array([(loss(flat + step) - loss(flat - step)) / 2e-6 for step in steps])
    return gradient[:weight.size].reshape(weight.shape), gradient[weight.size:]


@pytest.mark.parametrize("temperature", [0.1, None])
def test_the_steps_are_those_of_a_loop_in_numpy(temperature):
    generator = torch.Generator().manual_seed(3)
    weight, bias = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((5, 4), (5,)))
    tasks = [0, 0, 2, 1, 2]
    groups = [[0, 1], [2, 4], [3]]
    epochs = [(torch.randn(12, 4, generator=generator, dtype=torch.float64), torch.arange(12) % 5) for _ in range(3)]
    drawn = iter(epochs)
    found = realigned(weight, bias, tasks, lambda: next(drawn), 3, 6, 0.02, temperature,
                      torch.Generator().manual_seed(7))

    w, b = weight.numpy().copy(), bias.numpy().copy()
    moving = [np.zeros_like(w), np.zeros_like(b)]
    shuffle = torch.Generator().manual_seed(7)
    for epoch, (x, y) in enumerate(epochs):
        order = torch.randperm(12, generator=shuffle).numpy()
        for part in (order[:6], order[6:]):
            gradients = loss_by_hand(w, b, x.numpy()[part], y.numpy()[part], groups, temperature)
            moving = [0.9 * m + g + 5e-4 * p for m, g, p in zip(moving, gradients, (w, b), strict=True)]
            rate = 0.02 * (1 + np.cos(np.pi * epoch / 3)) / 2
            w, b = w - rate * moving[0], b - rate * moving[1]
    np.testing.assert_allclose(found[0], w, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found[1], b, rtol=1e-6, atol=1e-7)
    assert (found[0] - weight).abs().max() > 0.01


def test_normalized_logits_do_not_depend_on_the_length_of_the_head():
    logits = torch.tensor([[3.0, 4.0, 12.0], [0.0, 0.0, 0.0]])
    groups = [torch.tensor([0, 1]), torch.tensor([2])]
    torch.testing.assert_close(normalized(logits, groups)[0], torch.tensor([3.0, 4.0, 12.0]) / 8.5)
    torch.testing.assert_close(normalized(logits, groups), normalized(7 * logits, groups))


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_only_the_head_of_classes_so_far_is_changed_and_training_goes_on_from_the_unaligned(method, options):
    with_it, without = taught(method, options), taught(method, unaligned(options))
    ours, theirs = dict(with_it.strategy.named_parameters()), dict(without.strategy.named_parameters())
    assert ours.keys() == theirs.keys()
    part = "heads." if method in ("inflora", "ewc-lora") else "model.head."
    changed = {n for n in ours if not torch.equal(ours[n], theirs[n])}
    assert changed == {n for n in ours if n.startswith(part)}
    for kept, trained in zip((with_it.strategy.unaligned_weight, with_it.strategy.unaligned_bias),
                             head_like(with_it.strategy, without.strategy),
                             strict=True):
        assert torch.equal(kept, trained)
    assert with_it.strategy.met == [0, 1, 2, 3, 4, 5]


def head_like(strategy, other):
    """Return the weights and biases that another strategy has for the classes of this one."""
    other.met = strategy.met
    return head(other)


def test_after_the_first_task_nothing_is_aligned_and_outputs_not_met_never_are():
    start = bench(REGISTRY.strategy("slca"), {}, "class").strategy.model.head.weight.detach().clone()
    for tasks in (1, 2):
        aligned, plain = taught("slca", {}, tasks=tasks), taught("slca", {"align": False}, tasks=tasks)
        both = [b.strategy.model.head.weight for b in (aligned, plain)]
        assert torch.equal(*both) is (tasks == 1)
        assert all(torch.equal(weight[2 * tasks:], start[2 * tasks:]) for weight in both)


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_steps_are_counted_and_what_is_kept_has_sizes_known_beforehand(method, options):
    b = bench(REGISTRY.strategy(method), {**options, "align_epochs": 3, "align_samples": 10}, "class")
    plain = bench(REGISTRY.strategy(method), unaligned(options), "class")
    for index in range(TASKS):
        steps = []
        for one in (b, plain):
            steps.append(TrainingLoop([one.replica], RECIPE).train_task(index)[0].steps)
        classes = 2 * (index + 1)
        assert steps[0] - steps[1] == (3 * classes if index else 0)
        assert measure(b.strategy).bytes["class statistics"] == 4 * classes * (12 + 12 * 13 // 2)
        more = measure(b.strategy).bytes["heads"] - measure(plain.strategy).bytes.get("heads", 0)
        assert more == 4 * classes * (12 + 1)


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_a_trial_resumes_from_its_checkpoint_to_the_same_numbers(method, options, tmp_path):
    whole, fresh = taught(method, options, tasks=2), bench(REGISTRY.strategy(method), options, "class")
    write(tmp_path / STATE, whole.replica, 2)
    restore(read(tmp_path / STATE), fresh.replica, RECIPE)
    whole.learn(2)
    fresh.learn(2)
    ours, theirs = whole.strategy.state_dict(), fresh.strategy.state_dict()
    assert ours.keys() == theirs.keys() >= {"class_means", "class_factors", "unaligned_weight", "unaligned_bias"}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_draws_are_the_trials_own_and_another_seed_has_others():
    heads = []
    for seed, noise in ((0, 1), (0, 2)):
        torch.manual_seed(noise)
        heads.append(taught("slca", {}, seed=seed).strategy.model.head.weight.detach())
    assert torch.equal(*heads)
    b = taught("slca", {}, tasks=1)
    task, before = b.replica.begin(1), torch.get_rng_state()
    drawn = b.strategy.stream_info.generator.get_state()
    b.strategy.after_task(task)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(b.strategy.stream_info.generator.get_state(), drawn)


def test_a_class_that_returns_has_the_gaussian_of_its_last_task():
    strategy = mine()
    for index, classes in enumerate([(0, 1), (2, 3), (1, 4)]):
        task = make_task(index, classes=classes)
        strategy.before_task(task)
        strategy.after_task(task)
    assert (strategy.met, strategy.met_in) == ([0, 2, 3, 1, 4], [0, 1, 1, 2, 2])
    expected = gaussians(strategy, make_task(2, classes=(1, 4)).train, (1, 4), strategy.head_features)
    assert torch.equal(strategy.class_means[3:], expected[1])
    assert len(strategy.class_factors) == len(strategy.unaligned_bias) == 5


def test_a_few_samples_of_a_class_of_an_earlier_task_do_not_replace_its_gaussian():
    strategy, tasks = mine(), [make_task(0, classes=(0, 1)), make_task(1, classes=(2, 3))]
    stray = tasks[0].train.take(torch.tensor([int((tasks[0].train.y == 1).nonzero()[0])]))
    mixed = Samples(torch.cat([tasks[1].train.x, stray.x]), torch.cat([tasks[1].train.y, stray.y]),
                    torch.cat([tasks[1].train.tasks, stray.tasks]))
    for task in (tasks[0], replace(tasks[1], classes=(2, 3, 1), train=mixed)):
        strategy.before_task(task)
        strategy.after_task(task)
    assert (strategy.met, strategy.met_in) == ([0, 1, 2, 3], [0, 0, 1, 1]) and strategy.aligns
    expected = gaussians(strategy, tasks[0].train, (0, 1), strategy.head_features)
    assert torch.equal(strategy.class_means[:2], expected[1]) and torch.equal(strategy.class_factors[:2], expected[2])


@pytest.mark.parametrize("scenario", ["task", "domain"])
@pytest.mark.parametrize(("method", "options"), METHODS)
def test_where_outputs_of_tasks_do_not_compete_nothing_is_done_and_a_note_says_so(method, options, scenario):
    with_it = taught(method, options, scenario, tasks=2).strategy
    without = taught(method, unaligned(options), scenario, tasks=2).strategy
    assert with_it.state_dict().keys() == without.state_dict().keys()
    assert all(torch.equal(with_it.state_dict()[n], t) for n, t in without.state_dict().items())
    assert any("align = true changes nothing here" in note for note in with_it.notes)
    assert not any("align" in note for note in without.notes)


def test_committed_trials_keep_their_keys():
    for method in ("seq-lora", "o-lora", "inflora"):
        options = REGISTRY.strategy(method).options
        assert not any(name.startswith("align") for name in options().model_dump())
        assert options(align=True).model_dump()["align"] is True


def test_a_head_of_one_layer_is_a_head_of_several_joined():
    strategies = [taught(*METHODS[i]).strategy for i in (1, 3)]
    for strategy in strategies:
        assert all(isinstance(layer, nn.Linear) for layer in (strategy.head_of(c)[0] for c in strategy.met))
        x = bench(REGISTRY.strategy("naive"), {}, "class").stream
        inputs = x.prepare(x.tasks[0].test.x)
        weight, bias = head(strategy.eval())
        with torch.no_grad():
            features = strategy.head_features(inputs)
            torch.testing.assert_close(strategy(inputs)[:, strategy.met], features @ weight.T + bias)


@pytest.mark.slow
def test_a_realigned_head_is_better_where_features_hardly_move(tmp_path):
    # The paper's optimizer. Adam moves features by more than the spread of a class; see docs/decisions/strategy.md.
    records = clbench.run(methods=["seq-lora:outputs=own", "seq-lora:outputs=own:align=true"], scenario="class",
                          seeds=1, benchmark="split-mnist-5k", epochs=10, optimizer="sgd", lr=0.01, momentum=0.9,
                          workers=0, out=tmp_path)
    accuracy = {record.trial.method.options.get("align", False): np.mean(record.R[-1]) for record in records}
    assert accuracy[True] > accuracy[False] + 0.2


def test_a_head_without_biases_is_refused_before_training():
    model = make_model()
    model.head = nn.Linear(model.head.in_features, model.head.out_features, bias=False)
    with pytest.raises(SpecError, match="this model's head has none; choose align = false"):
        Mine(model, make_stream_info("class"), MineOptions(align=True))
    Mine(model, make_stream_info("class"), MineOptions(align=False))
