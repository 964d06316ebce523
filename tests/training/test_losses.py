import pytest
import torch

from clbench.core.errors import PluginError, SpecError
from clbench.core.hookspecs import StrategyInfo
from clbench.core.registry import discover
from clbench.experiment.spec import Recipe
from clbench.strategy.base import Strategy
from clbench.testing.tiny import bench
from clbench.training.loop import TrainingLoop
from clbench.training.replica import divergence, last_tenths

RECIPE = Recipe(iterations=20, batch_size=16)


def trained(method, seeds, recipe=RECIPE, **options):
    benches = [bench(discover().strategy(method), options, "task", seed) for seed in seeds]
    trainer = TrainingLoop([b.replica for b in benches], recipe)
    return [trainer.train_task(index) for index in range(2)]


def test_the_tenths_are_those_of_the_last_phase():
    losses = torch.cat([torch.full((50,), 9.0), torch.arange(40.0)])
    assert last_tenths(losses, 40) == (33.5, 37.5)
    assert last_tenths(torch.tensor([5.0, 3.0, 2.0]), 3) == (3.0, 2.0)  # a tenth is one step at least
    assert last_tenths(torch.tensor([5.0]), 1) == () == last_tenths(torch.zeros(0), 0)


def test_losses_that_are_not_finite_have_no_tenths():
    losses = torch.tensor([1.0, float("nan"), 1.0, 1.0])
    assert last_tenths(losses, 4) == ()
    assert "step 1" in str(divergence(losses, 0))
    assert "step 1" in str(divergence(losses[:, None], 0)) and divergence(torch.zeros(2, 1), 0) is None


@pytest.mark.parametrize("method", ["naive", "er", "ewc"])
def test_seeds_in_a_stack_have_the_losses_that_each_has_alone(method):
    together, alone = trained(method, (0, 1)), [trained(method, (seed,)) for seed in (0, 1)]
    for task in range(2):
        for member in range(2):
            found = together[task][member].last_losses
            assert found == pytest.approx(alone[member][task][0].last_losses, rel=1e-4)
            assert len(found) == 2


def test_the_two_numbers_are_means_of_losses_that_fall():
    (before, last), = [result.last_losses for (result,) in trained("naive", (0,))[:1]]
    assert 0 < last < before < 2


def test_a_method_without_steps_has_none():
    first, second = trained("ncm", (0,))
    assert first[0].last_losses and second[0].steps == 0 and second[0].last_losses == ()


def test_a_loop_of_its_own_has_them_too():
    class Own(type(bench(discover().strategy("naive"), {}, "task", 0).strategy)):
        def fit(self, task, budget):
            return torch.linspace(2.0, 1.0, 20)

    own = bench(discover().strategy("naive"), {}, "task", 0)
    own.strategy.__class__ = Own
    trainer = TrainingLoop([own.replica], RECIPE)
    (result,) = trainer.train_task(0)
    assert result.last_losses == pytest.approx((1.0 + 2.5 / 19, 1.0 + 0.5 / 19))
    for name, value in {"repeats": 2, "accumulate": 2, "head_decay": "learning", "group_by_length": True}.items():
        loop = TrainingLoop([own.replica], RECIPE.model_copy(update={name: value}))
        with pytest.raises(SpecError, match=f"Own trains by a loop of its own: {name} does not go with it"):
            loop.train_task(1)


@pytest.mark.parametrize(("losses", "kind"), [([torch.tensor(1.0)], "list"), (None, "NoneType")])
def test_a_loop_of_its_own_must_return_a_tensor(losses, kind):
    class Own(Strategy):
        def fit(self, task, budget):
            return losses

    own = bench(StrategyInfo("own", Own, ""), {}, "task", 0)
    with pytest.raises(PluginError, match=rf"`fit` of Own must return a tensor, not {kind}"):
        TrainingLoop([own.replica], RECIPE).train_task(0)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_loop_of_its_own_gets_the_context_of_the_precision(precision, dtype):
    class Own(Strategy):
        def fit(self, task, budget):
            samples = task.train.take(budget.following())
            x = self.stream_info.prepare(samples.x)
            for _ in range(2):
                with budget.autocast:
                    self.found = self.model(x).dtype
            assert self.model(x).dtype == torch.float32
            return torch.ones(1)

    own = bench(StrategyInfo("own", Own, ""), {}, "task", 0)
    TrainingLoop([own.replica], RECIPE.model_copy(update={"precision": precision})).train_task(0)
    assert own.strategy.found == dtype
