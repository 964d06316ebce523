"""What must be equal in all members of a stack: the attributes that a loss reads, replayed samples, random draws."""

from collections import deque
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from helpers.stacks import lead
from torch import nn

from clbench.core.hookspecs import StrategyInfo
from clbench.core.options import Options, Scalar
from clbench.experiment.spec import Recipe
from clbench.strategy.base import Strategy
from clbench.testing import bench
from clbench.testing.tiny import stack_problem
from clbench.training.loop import TrainingLoop
from clbench.training.members import Unstackable, are_equal, differing_attributes, record_reads

RECIPE = Recipe(optimizer="sgd", lr=0.05, batch_size=8, epochs=1)


class Strength(Options):
    strength: Scalar = 1.0


class Copies(Strategy):
    """Copies an option in `__init__`."""

    def __init__(self, model, stream_info, options=None):
        super().__init__(model, stream_info, options)
        self.strength = self.options.strength

    def loss(self, batch):
        return super().loss(batch) + self.strength * self.model.head.weight.square().sum()


class ReadsOption(Copies):
    """Copies it too, but does not read the copy."""

    def loss(self, batch):
        return Strategy.loss(self, batch) + self.options.strength * self.model.head.weight.square().sum()


class Scales(Strategy):
    """Computes a number after each task, and reads it by a property."""

    scale = 0.0

    def after_task(self, task):
        self.scale = float(self.model.head.weight.detach().square().sum())

    @property
    def penalty(self):
        return self.scale * self.model.head.weight.square().sum()

    def loss(self, batch):
        return super().loss(batch) + self.penalty


class OfModule(Strategy):
    """Its adapter has the number."""

    def __init__(self, model, stream_info, options=None):
        super().__init__(model, stream_info, options)
        self.adapter = Factor(float(torch.rand(1, generator=stream_info.generator)))

    def loss(self, batch):
        return self.cross_entropy(self.adapter(self(batch.x)), batch)


class Factor(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


class Replays(Strategy):
    """Calls some of its samples replayed; how many depends on the seed."""

    def prepare_batch(self, batch):
        return replace(batch, replayed=int(torch.randint(1, 4, (1,), generator=self.stream_info.generator)))


class Grows(Strategy):
    """Stores another number of samples with each seed, as a memory by class may if classes return."""

    def __init__(self, model, stream_info, options=None):
        super().__init__(model, stream_info, options)
        self.register_buffer("memory", torch.zeros(0, 2))

    def prepare_batch(self, batch):
        self.memory = torch.zeros(int(torch.randint(1, 100, (1,), generator=self.stream_info.generator)), 2)
        return batch


class Levels(Strategy):
    """Changes a number in each step; it is equal in all seeds in the first step."""

    def before_task(self, task):
        self.level = 0.0

    def prepare_batch(self, batch):
        self.level = float(batch.x.float().mean()) if self.level else 1.0
        return batch

    def loss(self, batch):
        return super().loss(batch) * self.level


class Rates(Strategy):
    def learning_rates(self):
        return {"model.*": self.options.strength}


class NoisyGradients(Strategy):
    def edit_gradients(self, gradients):
        return {name: g + 0.01 * torch.randn_like(g) for name, g in gradients.items()}


@pytest.mark.parametrize(("method", "options", "message"), [
    (Copies, [{"strength": 0.1}, {"strength": 0.2}], "its loss reads the attribute strength, which differs"),
    (Scales, {}, "its loss reads the attribute scale, which differs"),
    (OfModule, {}, r"its loss reads the attribute adapter\.factor, which differs"),
    (Levels, {}, "its loss reads the attribute level, which differs"),
    (Rates, [{"strength": 0.1}, {"strength": 0.2}], "its learning rates differ between the trials"),
    (Replays, {}, "its batches differ in their number of replayed samples"),
    (Grows, {}, r"its buffer memory has different sizes in the trials \(\d+x2, \d+x2\)"),
    (NoisyGradients, {}, "its `edit_gradients` draws random numbers"),
])
def test_what_a_stack_would_take_from_its_first_member_is_refused(method, options, message):
    info = StrategyInfo("own", method, "", Strength)
    with pytest.raises(Unstackable, match=message):
        lead(info, options, [0, 1], RECIPE)
    lead(info, options[:1] if options else {}, [0], RECIPE)


class Draws(Strategy):
    """Draws its samples from torch's generator, in each task and in each phase."""

    def training_samples(self, task):
        return task.train.take(torch.randperm(len(task.train))[:16])

    def phases(self, task):
        return 2

    def before_phase(self, task, phase):
        torch.nn.init.normal_(self.model.head.weight, std=0.1)

    def phase_samples(self, task, phase):
        return task.train.take(torch.randperm(len(task.train))[:16]) if phase else None


@pytest.mark.parametrize(("method", "options"), [
    (Draws, {}), (Copies, {"strength": 0.1}), (ReadsOption, [{"strength": 0.1}, {"strength": 0.2}])])
def test_what_each_member_has_of_its_own_may_differ(method, options):
    info = StrategyInfo("own", method, "", Strength)
    stacked = lead(info, options, [0, 1], RECIPE)
    for seed, member in enumerate(stacked):
        alone, = lead(info, options[seed:seed + 1] if isinstance(options, list) else options, [seed], RECIPE)
        for name, theirs in alone.strategy.state_dict().items():
            torch.testing.assert_close(member.strategy.state_dict()[name], theirs, rtol=1e-4, atol=1e-6)


@dataclass
class Pair:
    first: object
    second: object


class Helper:
    def __init__(self, value):
        self.value = value


@pytest.mark.parametrize(("value", "other"), [
    (1, 2), ("a", "b"), ([1, [2]], [1, [3]]), ({"a": 1}, {"a": 2}), ({"a": 1}, {"b": 1}), (deque([1]), deque([1, 2])),
    (torch.ones(2), torch.zeros(2)), (torch.ones(2), torch.ones(3)), (np.ones(2), np.zeros(2)), (1, 1.5), (None, 1),
    (Pair(torch.ones(2), 1), Pair(torch.ones(2), 2)), (Helper([1]), Helper([2])), ({1}, {2}),
    (nn.Linear(2, 2), nn.Linear(2, 2)), ([nn.Linear(2, 2)], [nn.Linear(2, 2)]),
])
def test_values_are_compared_by_what_they_contain(value, other):
    assert not are_equal(value, other, set())
    assert are_equal(value, value, set())


def test_equal_values_are_the_same_even_if_they_are_other_objects():
    linear = nn.Linear(2, 2)
    for value, other in ((Pair(torch.ones(2), [1]), Pair(torch.ones(2), [1])), (Helper({"a": 1}), Helper({"a": 1})),
                         (torch.Generator(), torch.Generator()), (lambda: 1, lambda: 2), (np.ones(2), np.ones(2))):
        assert are_equal(value, other, set())
    assert are_equal(linear, nn.Linear(2, 2), {id(linear)})  # registered modules are compared on their own


def test_only_watched_attributes_are_noted():
    info = StrategyInfo("own", OfModule, "")
    first, second = (bench(info, {}, "task", seed).strategy for seed in (0, 1))
    assert differing_attributes([first, second]) == {"adapter": {"factor"}}
    assert differing_attributes([first, first]) == {}
    with record_reads(first, {"adapter": {"factor"}, "": {"notes"}}) as found:
        assert first.adapter(torch.ones(1)) == first.adapter.factor
        assert isinstance(first, OfModule) and first.options is not None
    assert found == ["adapter.factor", "adapter.factor"]
    assert type(first) is OfModule and type(first.adapter) is Factor


class Adapts(Strategy):
    """Changes its structure, its phases or what it trains in some trials only, as a method can by its data."""

    change = ""

    def before_task(self, task):
        if self.change == "parameter":
            self.extra = nn.Parameter(torch.zeros(2))
        if self.change == "buffer":
            self.register_buffer("extra", torch.zeros(2))
        self.model.head.bias.requires_grad_(self.change != "frozen")

    def phases(self, task):
        return 2 if self.change == "phases" else 1

    def trainable(self):
        return 3 if self.change == "trainable" else 5


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(("change", "reason"), [
    ("parameter", "only some of the trials have or train extra"),
    ("buffer", "only some of the trials have or train extra"),
    ("frozen", "only some of the trials have or train model.head.bias"),
    ("phases", "its phases differ between the trials")])
def test_trials_with_another_structure_train_alone(change, reason, first):
    benches = [bench(StrategyInfo("adapts", Adapts, ""), {}, "class", seed) for seed in range(2)]
    benches[first].strategy.change = change
    assert stack_problem(benches) == reason


def test_the_trainable_values_of_each_member_are_its_own():
    benches = [bench(StrategyInfo("adapts", Adapts, ""), {}, "class", seed) for seed in range(2)]
    benches[1].strategy.change = "trainable"
    loop = TrainingLoop([b.replica for b in benches], RECIPE)
    loop.train_task(0)
    assert [replica.costs.trainable for replica in loop.replicas] == [[5], [3]]
