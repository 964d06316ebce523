import copy

import pytest
import torch
from clbench_ewc import EWCOptions
from clbench_ewc.strategy import EWC
from helpers.stacks import lead
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

from clbench.core.errors import PluginError, SpecError
from clbench.core.options import label, validate
from clbench.core.registry import discover
from clbench.data.samples import Samples
from clbench.experiment.spec import Recipe
from clbench.models.builtin import MLPOptions
from clbench.models.network import Block, Network
from clbench.models.small import mlp
from clbench.strategy.base import Batch, Strategy, StreamInfo, Task
from clbench.strategy.fisher import diagonal_fisher
from clbench.training.loop import TrainingLoop

SHAPE, CLASSES, TASKS = (1, 3, 3), 6, 3


def make(seed=0, network=None, **options):
    torch.manual_seed(seed)
    stream_info = StreamInfo(CLASSES, TASKS, "task", SHAPE, torch.Generator().manual_seed(seed))
    network = network or mlp(MLPOptions(width=6), SHAPE, CLASSES)
    strategy = EWC(network, stream_info, EWCOptions(**{"strength": 3.0, **options})).double()
    for t in range(TASKS):
        strategy.class_mask[t, 2 * t:2 * t + 2] = True
    return strategy


def task(index, n=9):
    g = torch.Generator().manual_seed(index)
    samples = Samples(torch.randn(n, *SHAPE, generator=g), torch.randint(0, 2, (n,), generator=g) + 2 * index,
                      torch.full((n,), index))
    return Task(index, (2 * index, 2 * index + 1), samples)


def batch(index=0, n=5):
    part = task(index, n).train
    return Batch(part.x.double(), part.y, part.tasks, index)


def move(strategy, step):
    """Change all parameters, as training would."""
    g = torch.Generator().manual_seed(100 + step)
    with torch.no_grad():
        for p in strategy.parameters():
            p += 0.3 * torch.randn(p.shape, generator=g, dtype=p.dtype)


def learn(strategy, tasks=TASKS):
    """Walk through tasks; return each one's Fisher, computed apart, and the parameters where it was taken."""
    history = []
    for index in range(tasks):
        strategy.before_task(task(index))
        move(strategy, index)
        fisher = diagonal_fisher(strategy, task(index).train, index, generator=torch.Generator())
        history.append((fisher, {n: p.detach().clone() for n, p in strategy.named_parameters()}))
        strategy.after_task(task(index))
    move(strategy, 99)
    return history


def gradients(strategy, value):
    return dict(zip((n for n, _ in strategy.named_parameters()),
                    torch.autograd.grad(value, list(strategy.parameters())), strict=True))


def test_one_quadratic_equals_the_sum_over_tasks_in_value_and_gradient():
    strategy = make()
    history = learn(strategy)
    explicit = sum((f[n] * (p - old[n]).square()).sum() for f, old in history for n, p in strategy.named_parameters())
    explicit = 0.5 * 3.0 * explicit
    penalty = strategy.penalty()
    torch.testing.assert_close(penalty, explicit, rtol=1e-12, atol=0)
    got, expected = gradients(strategy, penalty), gradients(strategy, explicit)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-11, atol=1e-15)


def test_the_first_penalty_by_hand_for_softmax_regression():
    network = Network([Block(nn.Flatten(), nn.Identity())], nn.Linear(9, CLASSES))
    strategy = make(network=network, strength=2.0)
    first = task(0)
    x = first.train.x.double().flatten(1)
    weight, bias = strategy.model.head.weight.detach().clone(), strategy.model.head.bias.detach().clone()
    p = torch.zeros(len(x), CLASSES, dtype=torch.float64)
    p[:, :2] = torch.softmax((x @ weight.T + bias)[:, :2], 1)
    strategy.before_task(first)
    strategy.after_task(first)
    move(strategy, 1)
    variance = p * (1 - p)
    expected = ((variance.T @ x.square() / len(x)) * (strategy.model.head.weight - weight).square()).sum()
    expected = expected + (variance.mean(0) * (strategy.model.head.bias - bias).square()).sum()
    torch.testing.assert_close(strategy.penalty(), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("gamma", [0.0, 0.7, 1.0])
def test_online_decays_what_it_holds_for_every_new_task_and_anchors_at_the_latest_parameters(gamma):
    strategy = make(mode="online", gamma=gamma)
    history = learn(strategy)
    latest = history[-1][1]
    expected = torch.zeros((), dtype=torch.float64)
    for name, p in strategy.named_parameters():
        fisher = sum(gamma ** (TASKS - t) * f[name] for t, (f, _) in enumerate(history))  # Schwarz 2018: gamma F*
        expected = expected + (fisher * (p - latest[name]).square()).sum()
    torch.testing.assert_close(strategy.penalty(), 1.5 * expected, rtol=1e-12, atol=0)
    assert strategy.offset == 0


def test_no_penalty_before_the_first_task_ends_nor_where_the_parameters_are_the_anchor():
    strategy = make(strength=1e5)
    plain = Strategy(strategy.model, strategy.stream_info)
    plain.class_mask.copy_(strategy.class_mask)
    strategy.before_task(task(0))
    move(strategy, 0)
    assert strategy.penalty() == 0
    torch.testing.assert_close(strategy.loss(batch()), plain.loss(batch()), rtol=0, atol=0)
    strategy.after_task(task(0))
    assert strategy.penalty() == 0
    move(strategy, 1)
    torch.testing.assert_close(strategy.loss(batch(1)), plain.loss(batch(1)) + strategy.penalty(), rtol=1e-14, atol=0)
    assert strategy.penalty() > 0


def test_where_nothing_is_held_the_anchor_is_the_latest_parameter():
    strategy = make()
    history = learn(strategy, 2)
    fisher, anchor = strategy.importance__model__head__bias, strategy.anchor__model__head__bias
    assert (fisher[4:] == 0).all() and (fisher[:4] > 0).all()  # outputs 4 and 5 belong to a task not met
    assert torch.equal(anchor[4:], history[-1][1]["model.head.bias"][4:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_first_held_is_held_where_it_is_bit_for_bit(dtype):
    strategy = make().to(dtype)
    strategy.before_task(task(0))
    with torch.no_grad():  # small numbers with digits of their own, which anchor + (parameter - anchor) would round off
        for parameter in strategy.parameters():
            parameter.copy_(0.03 * torch.randn(parameter.shape, dtype=dtype).abs())
    strategy.after_task(task(0))
    for name, parameter in strategy.named_parameters():
        importance, anchor = strategy.importance_and_anchor(name)
        assert torch.equal(anchor, parameter)
        assert (importance > 0).any()
    move(strategy, 1)
    before = {n: strategy.importance_and_anchor(n)[1].clone() for n, _ in strategy.named_parameters()}
    strategy.add_anchor({n: torch.zeros_like(p, dtype=torch.float64) for n, p in strategy.named_parameters()})
    for name, parameter in strategy.named_parameters():  # a task that needs nothing moves only what nobody needs
        importance, anchor = strategy.importance_and_anchor(name)
        assert torch.equal(anchor, torch.where(importance > 0, before[name], parameter))


@pytest.mark.parametrize("strength", [10.0, 1e5])
def test_old_heads_stay_exactly_where_they_are_under_adam(strength):
    info, recipe = discover().strategy("ewc"), Recipe(optimizer="adam", lr=1e-2, batch_size=8, epochs=3)
    for double in (False, True):
        b = lead(info, {"strength": strength}, [0], recipe, model="mlp", double=double, tasks=1)[0]
        trainer = TrainingLoop([b.replica], recipe)
        head = b.strategy.model.head
        for index in (1, 2):
            before = {n: p.detach().clone() for n, p in b.strategy.named_parameters()}
            trainer.train_task(index)
            for name, now in (("weight", head.weight), ("bias", head.bias)):
                was = before[f"model.head.{name}"]
                assert torch.equal(now[:2 * index], was[:2 * index])
                assert not torch.equal(now[2 * index:2 * index + 2], was[2 * index:2 * index + 2])


@pytest.mark.parametrize(("double", "within"), [(False, 5e-6), (True, 1e-12)])
def test_a_stack_of_two_under_adam_equals_each_alone(double, within):
    info, recipe = discover().strategy("ewc"), Recipe(optimizer="adam", lr=1e-2, batch_size=8, epochs=10)
    stacked = lead(info, {"strength": 1e5}, [0, 1], recipe, model="mlp", double=double)
    for seed, member in enumerate(stacked):
        alone = lead(info, {"strength": 1e5}, [seed], recipe, model="mlp", double=double)[0]
        for (name, ours), theirs in zip(member.strategy.named_parameters(), alone.strategy.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=within, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("fisher", ["exact", "sampled", "empirical", "predicted"])
def test_fisher_options_reach_the_estimate(fisher):
    strategy = make(fisher=fisher, fisher_samples=4)
    state = strategy.stream_info.generator.get_state()
    before = torch.get_rng_state()
    strategy.before_task(task(0))
    strategy.after_task(task(0))
    g = torch.Generator()
    g.set_state(state)
    expected = diagonal_fisher(strategy, task(0).train, 0, generator=g, kind=fisher, limit=4)
    for name, value in expected.items():
        torch.testing.assert_close(getattr(strategy, "importance__" + name.replace(".", "__")), value)
    assert torch.equal(torch.get_rng_state(), before)


def test_frozen_parameters_are_not_held():
    torch.manual_seed(0)
    network = mlp(MLPOptions(width=6), SHAPE, CLASSES)
    network.blocks.requires_grad_(False)
    strategy = make(network=network)
    strategy.before_task(task(0))
    strategy.after_task(task(0))
    names = sorted(n for n, _ in strategy.named_buffers() if n.startswith(("importance", "anchor")))
    assert names == ["anchor__model__head__bias", "anchor__model__head__weight",
                     "importance__model__head__bias", "importance__model__head__weight"]


def test_a_growing_model_is_held_from_when_its_parts_come():
    strategy = make()
    strategy.before_task(task(0))
    strategy.after_task(task(0))
    strategy.model.blocks.append(Block(nn.Linear(6, 6).double(), nn.Tanh()))
    move(strategy, 0)
    before = strategy.penalty()
    strategy.before_task(task(1))
    torch.testing.assert_close(strategy.penalty(), before, rtol=0, atol=0)
    strategy.after_task(task(1))
    assert (strategy.importance__model__blocks__2__body__weight > 0).any()


def test_a_parameter_that_changes_its_shape_is_refused():
    strategy = make()
    strategy.model.head = nn.Linear(6, CLASSES + 2)
    with pytest.raises(PluginError, match=r"'model.head.weight' changed its shape from \(6, 6\) to \(8, 6\)"):
        strategy.before_task(task(1))


def test_loss_is_pure_and_can_be_stacked_over_seeds():
    strategies = [make(seed, strength=50.0) for seed in range(3)]
    for s in strategies:
        learn(s, 2)
    b = batch(1)
    params, buffers = stack_module_state(strategies)
    skeleton = copy.deepcopy(strategies[0])

    class Loss(nn.Module):
        def __init__(self, strategy):
            super().__init__()
            self.strategy = strategy

        def forward(self, x, y, tasks):
            return self.strategy.loss(Batch(x, y, tasks, 1))

    def loss(p, q, x):
        state = {f"strategy.{k}": v for k, v in {**p, **q}.items()}
        return functional_call(Loss(skeleton), state, (x, b.y, b.tasks))

    stacked = vmap(grad(loss), in_dims=(0, 0, None))(params, buffers, b.x)
    for i, s in enumerate(strategies):
        state = {k: v.clone() for k, v in s.state_dict().items()}
        for name, g in gradients(s, s.loss(b)).items():
            torch.testing.assert_close(stacked[name][i], g, rtol=1e-9, atol=1e-12)
        assert all(torch.equal(v, state[k]) for k, v in s.state_dict().items())


def test_state_dict_and_deep_copy_round_trip():
    strategy = make()
    learn(strategy, 2)
    other, twin = make(5), copy.deepcopy(strategy)
    other.load_state_dict(strategy.state_dict())
    assert other.penalty() == twin.penalty() == strategy.penalty() > 0
    twin.after_task(task(2))
    assert other.penalty() == strategy.penalty()


def test_memory_does_not_grow_with_tasks():
    strategy = make()
    sizes = []
    for index in range(TASKS):
        strategy.before_task(task(index))
        strategy.after_task(task(index))
        sizes.append(sum(v.numel() for n, v in strategy.named_buffers() if n != "class_mask"))
    assert sizes == [2 * sum(p.numel() for p in strategy.parameters()) + 1] * TASKS


def test_it_forgets_less_than_fine_tuning():
    def first_task_loss(strength):
        strategy = make(strength=strength)
        for index in range(2):
            strategy.before_task(task(index))
            optimizer = torch.optim.Adam(strategy.parameters(), 1e-2)
            for _ in range(150):
                optimizer.zero_grad()
                strategy.loss(batch(index, 9)).backward()
                optimizer.step()
            strategy.after_task(task(index))
        return Strategy.loss(strategy, batch(0, 9)).item(), Strategy.loss(strategy, batch(1, 9)).item()

    (free, free_new), (held, held_new) = first_task_loss(0.0), first_task_loss(1e3)
    assert held < 0.2 * free
    assert free_new < 0.1 and held_new < 0.6


def test_options():
    assert EWCOptions().strength == 1e5
    assert label("ewc", EWCOptions(mode="online", gamma=0.9)) == "ewc:mode=online:gamma=0.9"
    for wrong, message in (({"strength": -1}, "ewc.strength"), ({"gamma": 1.5, "mode": "online"}, "ewc.gamma"),
                           ({"gamma": 0.5}, "gamma has an effect only with mode = online"),
                           ({"fisher": "true"}, "ewc.fisher"), ({"fisher_samples": 0}, "ewc.fisher_samples")):
        with pytest.raises(SpecError, match=message):
            validate(EWCOptions, wrong, "ewc", "clbench methods")
