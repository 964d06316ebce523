import pytest
import torch
from helpers.with_teacher import WithTeacher

from clbench.core.errors import PluginError
from clbench.core.hookspecs import StrategyInfo
from clbench.strategy.base import Strategy
from clbench.testing.checks import check
from clbench.testing.tiny import NonConforming


class CountsThemAsTeacher(WithTeacher):
    roles = (("memory_*", "teacher"),)


class Keeps(Strategy):
    """Keeps what `kept` gives of the samples of a task."""

    persistent = True

    def __init__(self, model, stream_info, options):
        super().__init__(model, stream_info, options)
        self.register_buffer("own", torch.empty(0), persistent=self.persistent)

    def kept(self, x):
        return x

    def after_task(self, task):
        self.own = self.kept(task.train.x[:3])


class KeepsInputs(Keeps):
    def kept(self, x):
        return self.stream_info.prepare(x).flatten(1)


class KeepsHalves(KeepsInputs):
    def kept(self, x):
        return super().kept(x).half()


class KeepsBfloat16(KeepsInputs):
    def kept(self, x):
        return super().kept(x).bfloat16()


class KeepsUncounted(Keeps):
    persistent = False


class KeepsAsReplay(KeepsInputs):
    roles = (("own", "replay"),)


class KeepsByTask(KeepsAsReplay):
    def kept(self, x):
        return super().kept(x)[None]


class KeepsAMean(Keeps):
    def kept(self, x):
        return self.stream_info.prepare(x).mean(0)


@pytest.mark.parametrize(("cls", "words"), [
    (CountsThemAsTeacher, "memory_x holds training samples, but its role is 'teacher'"),
    (Keeps, "own holds training samples, but its role is 'base'"),
    (KeepsInputs, "own holds training samples, but its role is 'base'"),
    (KeepsHalves, "own holds training samples, but its role is 'base'"),
    (KeepsBfloat16, "own holds training samples, but its role is 'base'"),
    (KeepsByTask, r"own holds training samples in the shape \[1, 3, 64\], which reports count as 1 samples"),
    (KeepsUncounted, "own holds training samples, but it is not persistent"),
])
def test_samples_that_are_counted_as_something_else_are_found(cls, words):
    with pytest.raises(NonConforming, match=words):
        check(StrategyInfo("mine", cls, ""), "stored-samples")


@pytest.mark.parametrize("cls", [WithTeacher, KeepsAsReplay, KeepsAMean])
def test_samples_that_are_counted_as_replay_pass_and_so_does_what_is_no_sample(cls):
    check(StrategyInfo("mine", cls, ""), "stored-samples")


class FlatRoles(Strategy):
    roles = ("anchor_*", "anchors")


def test_roles_that_are_no_pairs_are_named():
    with pytest.raises(PluginError, match="`roles` of FlatRoles must have pairs"):
        check(StrategyInfo("bad", FlatRoles, "one pair"), "stored-samples")
