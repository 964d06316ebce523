import copy
import random
from collections import deque
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F

from clbench.core.errors import ClbenchError, PluginError, SpecError
from clbench.core.hookspecs import StrategyInfo
from clbench.core.options import Options, Scalar
from clbench.strategy.base import Batch, Prediction, Strategy
from clbench.strategy.common_options import OutputsOptions
from clbench.testing.checks import CHECKS, check, describe
from clbench.testing.tiny import NonConforming, bench


class HidesATensor(Strategy):
    def after_task(self, task):
        self.means = {task.index: task.train.x.float().mean(0)}


class HoldsSamples(Strategy):
    not_resumable = "its samples are in an attribute"

    def after_task(self, task):
        self.stored = self.kept(task)

    def kept(self, task):
        return task.train.take(torch.arange(3))


class HoldsADeque(HoldsSamples):
    def kept(self, task):
        return deque([task.train.x[:1]])


class HoldsAnArray(HoldsSamples):
    def kept(self, task):
        return [task.train.x.numpy()]


class HoldsAModel(HoldsSamples):
    def kept(self, task):
        return [copy.deepcopy(self.model)]


class HoldsItsLayers(HoldsSamples):
    def kept(self, task):
        return [self.model.head]


class HoldsSamplesInTheClass(Strategy):
    stored: ClassVar = []

    def after_task(self, task):
        self.stored.append(task.train.take(torch.arange(3)))


class LeavesEvalMode(Strategy):
    def prepare_batch(self, batch):
        self.model.eval()
        return batch


class HidesSteps(Strategy):
    reported = 0

    def after_task(self, task):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
        for _ in range(4):
            optimizer.step()
        self.count_steps(self.reported)


class ReportsSteps(HidesSteps):
    reported = 4


class ReturnsNoBatch(Strategy):
    def prepare_batch(self, batch):
        pass


class ImpureLoss(Strategy):
    def loss(self, batch):
        return super().loss(batch) + torch.rand((), generator=self.stream_info.generator)


class LossThatCounts(Strategy):
    def __init__(self, model, stream_info, options):
        super().__init__(model, stream_info, options)
        self.register_buffer("calls", torch.zeros(()))

    def loss(self, batch):
        self.calls += 1
        return super().loss(batch)


class LearnsFromTests(Strategy):
    def __init__(self, model, stream_info, options):
        super().__init__(model, stream_info, options)
        self.register_buffer("seen", torch.zeros(()))

    def predict(self, x, task=None):
        self.seen += len(x)
        return super().predict(x, task)


class LossThatCountsInANumber(Strategy):
    calls = 0

    def loss(self, batch):
        self.calls += 1
        return super().loss(batch)


class LearnsFromTestsInAList(Strategy):
    def __init__(self, model, stream_info, options):
        super().__init__(model, stream_info, options)
        self.counts = [1] * stream_info.classes

    def predict(self, x, task=None):
        prediction = super().predict(x, task)
        for label in prediction.logits.argmax(1).tolist():
            self.counts[label] += 1
        return prediction


class LearnsFromTheFirstTest(Strategy):
    brightness = None

    def predict(self, x, task=None):
        self.brightness = self.brightness or x.mean().item()
        return super().predict(x, task)

    def loss(self, batch):
        return super().loss(batch) * (self.brightness or 1)


class RemembersItsTask(Strategy):
    """It stores the task of the latest call, which the next call replaces."""

    current = None

    def forward(self, x, task=None):
        self.current = task
        return super().forward(x, task)


class GlobalRandomness(Strategy):
    def prepare_batch(self, batch):
        torch.rand(3)
        return batch


class PythonsRandomness(Strategy):
    def after_task(self, task):
        random.random()


class WrongShape(Strategy):
    def forward(self, x, task=None):
        return super().forward(x, task)[:, :2]


class CentersTheBatch(Strategy):
    def predict(self, x, task=None):
        out = self(x, task)
        return Prediction(out - out.mean(0))


class Votes(Strategy):
    """It predicts the same task for all samples of a batch, which come in the order of tasks."""

    def predict(self, x, task=None):
        out = self(x, task)
        if task is None and out.shape[1] == 6:
            voted = x[:, 0].mean(2).argmax(1).mode().values // 2  # the bright bar is at the row of the class
            out = out.masked_fill(torch.arange(6) // 2 != voted, float("-inf"))
        return Prediction(out)


class RandomStart(Strategy):
    def __init__(self, model, stream_info, options):
        super().__init__(model, stream_info, options)
        self.register_buffer("noise", torch.rand(3, generator=torch.Generator().manual_seed(torch.seed())))


class SharesOnCopy(Strategy):
    def __deepcopy__(self, memo):
        return self


class ClosesOverANumber(Strategy):
    """Its loss calls a function that has a number of its own trial."""

    def __init__(self, model, stream_info, options=None):
        super().__init__(model, stream_info, options)
        factor = float(torch.rand(1, generator=stream_info.generator))
        self.scaled = lambda logits: factor * logits

    def loss(self, batch):
        return self.cross_entropy(self.scaled(self(batch.x, batch.task)), batch)


class Strength(Options):
    strength: Scalar = 1.0


class KeepsANumberInTheClass(Strategy):
    """All its objects share a number, which each of them sets from an option."""

    strength = 0.0

    def __init__(self, model, stream_info, options=None):
        super().__init__(model, stream_info, options)
        type(self).strength = self.options.strength

    def loss(self, batch):
        return super().loss(batch) + self.strength * self.model.head.weight.square().sum()


class TrainsNothing(Strategy):
    def loss(self, batch):
        return super().loss(batch) * 0


@pytest.mark.parametrize(("cls", "name", "words"), [
    (HidesATensor, "state", "means holds a Tensor that is neither parameter, buffer nor registered module"),
    (HoldsSamples, "state", "stored holds a Tensor that is neither"),
    (HoldsADeque, "state", "stored holds a Tensor that is neither"),
    (HoldsAnArray, "state", "stored holds a ndarray that is neither"),
    (HoldsAModel, "state", "stored holds a Network that is neither"),
    (HoldsSamplesInTheClass, "state", "HoldsSamplesInTheClass.stored holds a Tensor that is neither"),
    (LeavesEvalMode, "loss-is-pure", "leaves model in eval mode"),
    (HidesSteps, "budget", "after_task took 4 optimizer steps in task 1, and reported 0: call self.count_steps"),
    (ImpureLoss, "loss-is-pure", "it is not pure"),
    (LossThatCounts, "loss-is-pure", "loss changes calls"),
    (LearnsFromTests, "predict-changes-nothing", "predict changes seen"),
    (LossThatCountsInANumber, "loss-is-pure", "loss changes calls"),
    (LearnsFromTestsInAList, "predict-changes-nothing", "predict changes counts"),
    (LearnsFromTheFirstTest, "predict-changes-nothing", "an evaluation before training changes model"),
    (GlobalRandomness, "given-generator", "prepare_batch draws from a global generator of torch"),
    (PythonsRandomness, "given-generator", "after_task draws from a global generator of torch, NumPy or Python"),
    (WrongShape, "logits", r"logits are \[24, 2\], expected \[24, 6\]"),
    (CentersTheBatch, "logits", "scenario task, task 1 after 0 tasks: the logits of a sample depend on the other"),
    (Votes, "logits", "scenario class, all tasks after . tasks: the logits of a sample depend on the other samples"),
    (RandomStart, "repeatable", "changes noise"),
    (SharesOnCopy, "copy", "training a deep copy changes"),
    (TrainsNothing, "trains", "task 1 changed no parameter"),
    (ClosesOverANumber, "stack", "has other values if seeds 0 and 1 train together"),
    (KeepsANumberInTheClass, "stack", "as parameters, buffers or options of type Scalar"),
])
def test_each_check_catches_what_it_is_for(cls, name, words):
    with pytest.raises(NonConforming, match=words):
        check(StrategyInfo("bad", cls, "breaks a rule", options=Strength), name)


@pytest.mark.parametrize("name", CHECKS)
def test_the_base_passes(name):
    check(StrategyInfo("good", Strategy, "fine-tuning"), name)


def test_reported_steps_after_a_task_are_right():
    check(StrategyInfo("good", ReportsSteps, "takes more steps"), "budget")


def test_a_method_that_returns_no_batch_is_told_so():
    with pytest.raises(PluginError, match="prepare_batch of ReturnsNoBatch must return a Batch, not None"):
        check(StrategyInfo("bad", ReturnsNoBatch, "returns nothing"), "trains")


def test_registered_layers_in_a_list_are_counted_already():
    check(StrategyInfo("good", HoldsItsLayers, "stores its own layers"), "state")


def test_a_stored_task_of_the_latest_call_is_no_learning():
    for name in ("loss-is-pure", "predict-changes-nothing"):
        check(StrategyInfo("good", RemembersItsTask, "stores the latest task"), name)


@pytest.mark.parametrize("model", ["cnn", "resnet20"])
def test_the_weights_that_are_checked_lie_as_those_of_a_run(model):
    strategy = bench(StrategyInfo("good", Strategy, "fine-tuning"), {}, "task", model=model).strategy
    kernels = [p for p in strategy.parameters() if p.dim() == 4]
    assert kernels and all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)


class ReturnsLogits(Strategy):
    def predict(self, x, task=None):
        return self(x, task)


class LossPerSample(Strategy):
    def loss(self, batch):
        return F.cross_entropy(self(batch.x), batch.y, reduction="none")


class LossWithoutGradient(Strategy):
    def loss(self, batch):
        with torch.no_grad():
            return super().loss(batch)


class ChangesLabels(Strategy):
    def before_task(self, task):
        task.train.y.copy_(task.train.y.flip(0))


class ChangesLaterLabels(Strategy):
    def before_task(self, task):
        if task.index == 2:
            task.train.y.copy_(task.train.y.flip(0))


class ChangesInputs(Strategy):
    def predict(self, x, task=None):
        return Prediction(self.model(x.mul_(0.5)))


@pytest.mark.parametrize(("cls", "name", "words"), [
    (ChangesLabels, "logits", "ChangesLabels or its model changed training samples of task 1 in place"),
    (ChangesLaterLabels, "logits", "ChangesLaterLabels or its model changed training samples of task 3 in place"),
    (ChangesInputs, "predict-changes-nothing", "ChangesInputs or its model changed the inputs of `predict` in place"),
])
def test_shared_samples_must_not_be_changed(cls, name, words):
    with pytest.raises(PluginError, match=words):
        check(StrategyInfo("bad", cls, "changes samples"), name)


class AnchorWithGradient(Strategy):
    def after_task(self, task):
        self.register_buffer("anchor", self.model.head.weight.clone())


class AnchorInPlace(Strategy):
    def after_task(self, task):
        self.register_buffer("anchor", self.model.head.weight.detach())


@pytest.mark.parametrize(("cls", "words"), [
    (AnchorWithGradient, "the buffer anchor of AnchorWithGradient has a gradient"),
    (AnchorInPlace, "the buffer anchor of AnchorInPlace shares the memory of model.head.weight"),
])
def test_buffers_that_follow_parameters_are_named(cls, words):
    with pytest.raises(PluginError, match=words):
        check(StrategyInfo("bad", cls, "no copy"), "trains")


class DropsItsOptions(Strategy):
    def __init__(self, model, stream_info, options):
        super().__init__(model, stream_info)


class SetsItsOptions(DropsItsOptions):
    def __init__(self, model, stream_info, options):
        super().__init__(model, stream_info, options)
        self.options = options


@pytest.mark.parametrize(("cls", "chosen"), [(DropsItsOptions, "seen"), (SetsItsOptions, "own")])
def test_an_option_outputs_without_effect_is_refused(cls, chosen):
    words = f"{cls.__name__} does not pass its options on, so `outputs` has no effect"
    with pytest.raises(PluginError, match=words):
        check(StrategyInfo("bad", cls, "drops options", OutputsOptions), "trains", {"outputs": chosen})


class AddsATeacherLate(Strategy):
    def after_task(self, task):
        self.teacher = copy.deepcopy(self.model).requires_grad_(False)


def test_a_module_that_is_added_too_late_is_named():
    with pytest.raises(NonConforming, match=r"such as teacher\..*in __init__, before_task or before_phase only"):
        check(StrategyInfo("bad", AddsATeacherLate, "adds a module"), "checkpoint")


@pytest.mark.parametrize(("cls", "words"), [
    (ReturnsLogits, r"`predict` of ReturnsLogits returned a Tensor; it must return clbench.Prediction\(logits\)"),
    (LossPerSample, r"`loss` of LossPerSample returned a tensor of shape \[8\]; it must return a scalar"),
    (LossWithoutGradient, "`loss` of LossWithoutGradient returned a value that depends on no trained parameter"),
])
@pytest.mark.parametrize("name", ["logits", "predict-changes-nothing", "checkpoint"])
def test_a_hook_that_returns_something_else_is_named(cls, words, name):
    with pytest.raises(PluginError, match=words):
        check(StrategyInfo("bad", cls, "returns something else"), name)


def test_declarations_fail_for_the_same_reason_as_other_rules():
    messages = set()
    for name in ("state", "declarations"):
        with pytest.raises((NonConforming, PluginError)) as caught:
            check(StrategyInfo("bad", LossPerSample, "returns something else"), name)
        messages.add(str(caught.value))
    assert len(messages) == 1


class TrainsItsTeacher(Strategy):
    def __init__(self, model, stream_info, options):
        super().__init__(model, stream_info, options)
        self.teacher = copy.deepcopy(model)
        self.scale = torch.nn.Parameter(torch.ones(3))

    def loss(self, batch):
        return super().loss(batch) + F.mse_loss(self(batch.x), self.teacher(batch.x))


class Branches(Strategy):
    def loss(self, batch):
        loss = super().loss(batch)
        return loss / 2 if loss > 1 else loss


class OwnLoop(Strategy):
    def __init__(self, model, stream_info, options):
        super().__init__(model, stream_info, options)
        model.blocks.requires_grad_(False)

    def fit(self, task, budget):
        return torch.zeros(2)


class TakesTooManySteps(Strategy):
    reported = 2

    def fit(self, task, budget):
        optimizer, losses = budget.optimizer(self.parameters()), []
        for _ in range(2 * budget.steps):
            part = task.train.take(budget.following())
            batch = Batch(self.stream_info.prepare(part.x), part.y, part.tasks, task.index)
            optimizer.zero_grad()
            losses.append(self.loss(batch))
            losses[-1].backward()
            optimizer.step()
        return torch.stack(losses).detach()[:self.reported * budget.steps]


class ReportsFewerSteps(TakesTooManySteps):
    reported = 1


class KeepsToItsBudget(TakesTooManySteps):
    def fit(self, task, budget):
        return super().fit(task, replace(budget, steps=budget.steps // 2))

    def after_task(self, task):
        self.count_steps(9)  # not part of the budget of `fit`


@pytest.mark.parametrize("cls", [TakesTooManySteps, ReportsFewerSteps])
def test_a_loop_that_exceeds_its_budget_is_told(cls):
    with pytest.raises(NonConforming, match=r"^`fit` took 10 optimizer steps in task 1, but its budget is 5 "):
        check(StrategyInfo("bad", cls, "too many steps"), "budget")
    check(StrategyInfo("good", KeepsToItsBudget, "half of the steps"), "budget")


class DrawsInItsLoop(KeepsToItsBudget):
    def prepare_batch(self, batch):
        return replace(batch, x=batch.x + torch.rand(1))

    def loss(self, batch):
        return super().loss(self.prepare_batch(batch))


def test_methods_that_only_an_own_loop_calls_may_draw():
    for name in ("loss-is-pure", "given-generator"):
        check(StrategyInfo("good", DrawsInItsLoop, "has a loop of its own"), name)


class NeedsClasses(Strategy):
    def before_task(self, task):
        self.scale = 1 / len(task.classes)


class NeedsWholeTargets(Strategy):
    def loss(self, batch):
        return super().loss(batch) + 0 * F.one_hot(batch.y).sum()


class RefusesText(Strategy):
    def __init__(self, model, stream_info, options):
        super().__init__(model, stream_info, options)
        if stream_info.predicts_tokens:
            raise SpecError("choose another option")


@pytest.mark.parametrize(("cls", "objective", "words"), [
    (NeedsClasses, "causal-lm", "objective causal-lm, task 1: ZeroDivisionError: division by zero"),
    (NeedsWholeTargets, "regression", "objective regression, task 1: RuntimeError: one_hot"),
])
def test_a_declared_objective_that_does_not_work_is_told(cls, objective, words):
    with pytest.raises(NonConforming, match=words):
        check(StrategyInfo("bad", cls, "", objectives=("classification", objective)), "objectives")
    check(StrategyInfo("good", cls, ""), "objectives")


def test_an_objective_that_works_or_that_options_refuse_is_no_violation():
    for cls in (Strategy, RefusesText):
        check(StrategyInfo("good", cls, "", objectives=("classification", "causal-lm", "regression")), "objectives")


class NoSteps(Strategy):
    def phases(self, task):
        return 0


class Misspells(Strategy):
    def after_tasks(self, task):
        self.register_buffer("anchor", self.model.head.weight.detach().clone())


ALONE = "seeds of this method train one by one, also with --stack: "


@pytest.mark.parametrize(("cls", "lines"), [
    (Strategy, ["trains model.* (1,014 parameters)"]),
    (TrainsItsTeacher, ["trains scale (3 parameters), model.* (1,014) and teacher.* (1,014)"]),
    (NoSteps, ["trains no parameters"]),
    (OwnLoop, ["trains model.* (78 parameters)", f"{ALONE}OwnLoop trains by a loop of its own, one seed at a time"]),
    (Misspells, ["trains model.* (1,014 parameters)",
                 "clbench does not call `after_tasks` of Misspells; is it meant to be `after_task`?"]),
    (Branches, ["trains model.* (1,014 parameters)", f"{ALONE}its loss cannot be computed for several "
                "trials at once (vmap: It looks like you're attempting to use a Tensor in some data-dependent control "
                "flow. We don't support that yet)"]),
])
def test_what_is_trained_and_what_cannot_be_stacked_is_said(cls, lines):
    assert describe(StrategyInfo("x", cls, "")) == lines


def test_what_is_no_strategy_is_refused():
    with pytest.raises(NonConforming, match="not a subclass"):
        check(StrategyInfo("bad", dict, "no strategy"), "logits")
    with pytest.raises(ClbenchError, match="no check 'x'"):
        check("naive", "x")
