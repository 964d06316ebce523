import pytest
import torch
import torch.nn.functional as F
from helpers.stacks import lead
from torch import nn

from clbench.core.hookspecs import StrategyInfo
from clbench.core.registry import discover
from clbench.data.samples import Samples
from clbench.experiment.spec import Recipe
from clbench.strategy.base import Strategy
from clbench.testing.checks import bench
from clbench.training import precompute
from clbench.training.lookup import CachedSamples, DeferredRows, OutputCache, cache_frozen_outputs

RECIPE = Recipe(optimizer="sgd", lr=0.1, batch_size=8, epochs=2)
N = 40
BATCHES = torch.arange(N).split(8)


class Frozen(nn.Module):
    def __init__(self, inputs=6, outputs=5):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs), requires_grad=False)

    def forward(self, x):
        return F.relu(F.linear(x, self.weight))


def some(seed=0, budget=10**6, modules=None):
    torch.manual_seed(seed)
    frozen, learner = Frozen(), nn.Linear(5, 3)
    samples = Samples(torch.randn(N, 6), torch.arange(N), torch.zeros(N, dtype=torch.int64))
    return frozen, learner, samples, cache_frozen_outputs(samples, [frozen] if modules is None else modules, budget)


def test_what_a_frozen_module_gives_is_looked_up_and_is_what_it_gives():
    frozen, learner, samples, kept = some()
    for index in BATCHES:
        x = kept.take(index).x
        out = learner(frozen(x) * 2)
        assert type(x) is DeferredRows and type(out) is torch.Tensor
        torch.testing.assert_close(out, learner(frozen(samples.x[index]) * 2))
        assert out.requires_grad
    (table,) = [n.table for n in kept.cache.nodes.values() if n.table is not None]
    torch.testing.assert_close(table, frozen(samples.x) * 2)


def test_gradients_are_those_of_ordinary_tensors():
    frozen, learner, samples, kept = some()
    for index in BATCHES[:3]:
        grads = [torch.autograd.grad(learner(frozen(part.take(index).x)).square().sum(), learner.weight)[0]
                 for part in (kept, samples)]
        torch.testing.assert_close(*grads)


def test_the_frozen_product_is_not_computed_again(monkeypatch):
    frozen, learner, _, kept = some()
    learner(frozen(kept.take(BATCHES[0]).x))
    nodes = [n for n in kept.cache.nodes.values() if n is not None]
    for node in nodes:
        monkeypatch.setattr(node, "function", None)  # calling it would raise
    with torch.autograd.profiler.profile() as profile:
        for index in BATCHES[1:]:
            learner(frozen(kept.take(index).x))
    products = [e.name for e in profile.function_events if e.name in ("aten::mm", "aten::addmm")]
    assert products == ["aten::addmm"] * 4


def test_a_weight_that_changes_after_all_is_not_looked_up():
    frozen, learner, samples, kept = some()
    for index in BATCHES:
        with torch.no_grad():
            frozen.weight.mul_(1.1)
        torch.testing.assert_close(learner(frozen(kept.take(index).x)), learner(frozen(samples.x[index])))


@pytest.mark.parametrize("use", [
    lambda x, frozen: frozen(x - x.mean(0)),  # depends on the other samples of the batch
    lambda x, frozen: torch.cat([frozen(x), frozen(x)])[:len(x)],
    lambda x, frozen: frozen(x).cumsum(0),
    lambda x, frozen: frozen(x) + torch.arange(len(x))[:, None],  # meets a tensor that is no weight
    lambda x, frozen: frozen(x)[torch.arange(len(x)).flip(0)],
    lambda x, frozen: frozen(x) / len(x) + x.shape[0] + x.dim(),
    lambda x, frozen: frozen(x).add_(1.0),  # changes what it is given
    lambda x, frozen: F.relu(frozen(x) - 1, inplace=True),
    lambda x, frozen: frozen(x).max(1).values[:, None].expand(-1, 5),
    lambda x, frozen: torch.stack(frozen(x).unbind(1), 1),
    lambda x, frozen: torch.where(frozen(x) > 1, frozen(x), -1.0).to(torch.float64).float(),
    lambda x, frozen: frozen(x).masked_fill(frozen(x) > 1, 0.0),
    lambda x, frozen: torch.tensor(frozen(x).tolist()),
    lambda x, frozen: torch.from_numpy(frozen(x).numpy()),
])
def test_whatever_is_done_with_rows_gives_what_ordinary_tensors_give(use):
    frozen, learner, samples, kept = some()
    for index in [*BATCHES, torch.arange(3)]:
        torch.testing.assert_close(learner(use(kept.take(index).x, frozen)), learner(use(samples.x[index], frozen)))


def test_random_operations_stay_random():
    frozen, _, _, kept = some()
    drawn = [frozen(F.dropout(kept.take(BATCHES[0]).x, 0.5)) + torch.zeros(5) for _ in range(4)]
    assert all(not torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])


def test_an_operation_that_is_new_in_a_later_batch_is_carried_out():
    frozen, learner, samples, kept = some()
    for number, index in enumerate(BATCHES):
        outs = [learner(frozen(part.take(index).x).pow(number)) for part in (kept, samples)]
        torch.testing.assert_close(*outs)


def test_tables_stay_within_the_budget():
    frozen, learner, _, kept = some(budget=4 * N * 5 - 1)
    learner(frozen(kept.take(BATCHES[0]).x))
    assert all(n is None or n.table is None for n in kept.cache.nodes.values())
    assert type(kept.take(BATCHES[1]).x) is torch.Tensor  # nothing to look up: no rows


def test_modules_that_are_not_named_are_not_looked_up():
    frozen, learner, samples, kept = some(modules=[Frozen()])
    for index in BATCHES[:2]:
        frozen.weight.data.mul_(2)  # torch does not count this change
        torch.testing.assert_close(learner(frozen(kept.take(index).x)), learner(frozen(samples.x[index])))


def test_without_frozen_modules_samples_stay_as_they_are():
    *_, samples, kept = some(modules=[])
    assert kept is samples


@pytest.mark.parametrize(("method", "options", "tables"), [
    ("pnn", {}, 4), ("lora", {"rank": 2}, 1), ("lora", {"rank": 2, "dropout": 0.5}, 1), ("independent", {}, 0),
    ("seq-lora", {"rank": 2}, 1), ("o-lora", {"rank": 2, "dropout": 0.0}, 1), ("inflora", {"rank": 2}, 2),
    ("sd-lora", {"rank": 2}, 3), ("lora-sub", {"rank": 2}, 1),
    ("ewc-lora", {"rank": 2, "strength": 10.0}, 1), ("lora-mean", {"rank": 2}, 1),
    ("o-lora", {"rank": 2, "dropout": 0.5}, 0)])  # what earlier adapters are given is random
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_training_on_rows_is_the_same_training(method, options, tables, model, monkeypatch):
    info = discover().strategy(method)
    caches = []

    class Noted(OutputCache):
        def __init__(self, *args):
            super().__init__(*args)
            caches.append(self)

    monkeypatch.setattr("clbench.training.lookup.OutputCache", Noted)
    torch.manual_seed(0)  # for dropout
    (fast,) = lead(info, options, [0], RECIPE, model=model)
    found = [sum(n is not None and n.table is not None for n in cache.nodes.values()) for cache in caches]
    assert found[-1] == tables
    monkeypatch.setattr(precompute, "cache_frozen_outputs", lambda samples, *_: samples)
    torch.manual_seed(0)
    (slow,) = lead(info, options, [0], RECIPE, model=model)
    for name, tensor in fast.strategy.state_dict().items():
        torch.testing.assert_close(tensor, slow.strategy.state_dict()[name], rtol=1e-4, atol=1e-6)


class Looks(Strategy):
    def loss(self, batch):
        return super().loss(batch)


def test_a_strategy_that_freezes_nothing_gets_ordinary_tensors():
    b = bench(StrategyInfo("x", Looks, ""), {}, "task")
    samples = b.stream.tasks[0].train
    (given,) = precompute.precompute_inputs([b.strategy], [samples], 0, 2 * len(samples)).samples
    assert not isinstance(given, CachedSamples)


@pytest.mark.parametrize(("value", "start", "cached"), [(None, 2, True), ("1", 2, True), ("0", 0, False)])
def test_the_environment_turns_it_off_and_frozen_first_blocks_with_it(value, start, cached, monkeypatch):
    monkeypatch.delenv("CLBENCH_CACHE_FROZEN", raising=False)
    if value is not None:
        monkeypatch.setenv("CLBENCH_CACHE_FROZEN", value)
    b = bench(discover().strategy("shared-private"), {}, "task")
    b.learn(0)
    b.strategy.requires_grad_(False)
    samples = b.stream.tasks[0].train
    given = precompute.precompute_inputs([b.strategy.train()], [samples], 0, 2 * len(samples))
    assert given.prepared and given.start == start
    assert isinstance(given.samples[0], CachedSamples) is cached


def test_a_cache_lists_what_it_recorded():
    frozen, learner, _, kept = some()
    x = kept.take(BATCHES[0]).x
    learner(frozen(x) * 2)
    assert str(x.cache).splitlines() == [
        "40 samples, 3 operations, in use", "linear -> [5]", "relu -> [5]", "mul -> [5], table"]
    assert repr(x) == repr(kept.x[BATCHES[0]])
