import multiprocessing

import pytest
import torch
from helpers.stacks import lead
from helpers.streams import stochastic

from clbench.core import seeds
from clbench.core.hookspecs import StrategyInfo
from clbench.core.registry import discover
from clbench.data import prefetch
from clbench.data.samples import StochasticSamples
from clbench.experiment.spec import Recipe
from clbench.strategy.base import Strategy
from clbench.testing import tiny
from clbench.training.members import Unstackable
from clbench.training.sampling import BatchSampler

RECIPE = Recipe(optimizer="sgd", lr=0.05, batch_size=10, epochs=2)


def ends(method, options, group, monkeypatch, here):
    with monkeypatch.context() as patch, seeds.scope(0):
        patch.setattr(tiny, "tiny_stream", stochastic)
        patch.setattr(prefetch, "can_prefetch", lambda _: not here)
        benches = lead(method, options, group, RECIPE, tasks=2)
        assert all(isinstance(task.train, StochasticSamples) for b in benches for task in b.stream.tasks)
        return [b.strategy.state_dict() for b in benches]


@pytest.mark.parametrize(("method", "options"), [("naive", {}), ("er", {"capacity": 9}), ("lora", {"rank": 2}),
                                                 ("joint", {})])
def test_what_is_prefetched_is_what_would_be_drawn(method, options, monkeypatch):
    info = discover().strategy(method)
    for ours, theirs in zip(ends(info, options, [0], monkeypatch, here=False),
                            ends(info, options, [0], monkeypatch, here=True), strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_seeds_of_such_samples_are_not_stacked(monkeypatch):
    with pytest.raises(Unstackable, match="change randomly with every batch"):
        ends(discover().strategy("naive"), {}, [0, 1], monkeypatch, here=True)


class Noisy(Strategy):
    """Draws in its loss, as dropout does."""

    def loss(self, batch):
        torch.rand(7)
        return super().loss(batch)


def test_draws_do_not_depend_on_what_the_step_draws(monkeypatch):
    plain, noisy = (ends(StrategyInfo("x", cls, ""), {}, [0], monkeypatch, here=False)[0] for cls in (Strategy, Noisy))
    assert all(torch.equal(plain[name], noisy[name]) for name in plain)


def test_on_a_cpu_samples_are_drawn_where_the_step_runs():
    assert not prefetch.can_prefetch(torch.device("cpu"))
    assert prefetch.can_prefetch(torch.device("cuda")) is (prefetch.sys.platform == "linux")


def test_no_process_is_left_and_the_generator_goes_on_from_the_last_step(monkeypatch):
    monkeypatch.setattr(prefetch, "can_prefetch", lambda _: True)
    samples = stochastic("task").tasks[0].train

    def run(taken):
        order = BatchSampler(24, 10, 0, 0)
        with seeds.scope(0):
            with prefetch.prefetch(samples, lambda: order.next_indices(torch.device("cpu")), 5) as drawn:
                twin = BatchSampler(24, 10, 0, 0)
                batches = [twin.next_batch(drawn).x for _ in range(taken)]
            return batches, seeds.state()

    (batches, after), order = run(3), BatchSampler(24, 10, 0, 0)
    with seeds.scope(0):
        assert run(0)[1] == seeds.state()
        assert all(torch.equal(x, order.next_batch(samples).x) for x in batches)
        assert after == seeds.state()
    assert not multiprocessing.active_children()


def test_what_goes_wrong_in_a_transform_is_told(monkeypatch):
    monkeypatch.setattr(prefetch, "can_prefetch", lambda _: True)
    samples = stochastic("task").tasks[0].train

    def draw(i):
        raise ValueError("no such picture")

    broken = StochasticSamples(samples.x, samples.y, samples.tasks, draw)
    with (pytest.raises(ValueError, match="no such picture"),
          prefetch.prefetch(broken, lambda: torch.arange(2), 1) as drawn):
        drawn.take(torch.arange(2))
