"""What a method declares wrongly fails its check and its trials; what it could declare is suggested."""

import pytest

import clbench
from clbench.core.hookspecs import StrategyInfo
from clbench.strategy.base import Strategy
from clbench.strategy.per_task import PerTaskStrategy
from clbench.testing import NonConforming, check, suggest

HEAD = '''
from clbench import Options, Strategy, StrategyInfo, hookimpl
from clbench.strategy.per_task import PerTaskStrategy
'''
TAIL = '''

@hookimpl
def clbench_strategies():
    return [StrategyInfo("wrong", {name}, "declares wrongly", Options)]
'''
LEARNS = '''

class Learns(Strategy):
    """Declares the logits of the network that learns as frozen."""

    def frozen_outputs(self, x):
        return {"logits": self.model(x)}

    def loss(self, batch):
        return super().loss(batch) + self.frozen_outputs_of(batch)["logits"].square().mean()
'''
CHANGES = '''

class Changes(PerTaskStrategy):
    """Declares the parts of learned tasks as final, and scales all of them after each task."""

    parts_final = True
    factor = 1.0

    def __init__(self, model, stream_info, options=None):
        super().__init__(model, stream_info)

    def after_task(self, task):
        super().after_task(task)
        self.factor = self.factor + 1

    def forward_task(self, x, task):
        return self.heads[task](self.model.features(x)) * self.factor

    def shared_features(self, x):
        return self.model.features(x)
'''
SUMS = '''
class Sums(Strategy):
    loss_is_mean = True

    def __init__(self, model, stream_info, options=None):
        super().__init__(model, stream_info)

    def loss(self, batch):
        return 20 * super().loss(batch) ** 2
'''
WRONG = {"Learns": (LEARNS, r"frozen_outputs\['logits'\] changed"),
         "Changes": (CHANGES, "declares parts_final, but part 0 gives other outputs")}


def class_of(name):
    scope = {}
    exec(HEAD + WRONG[name][0], scope)
    return scope[name]


def test_a_loss_that_is_no_mean_over_samples_fails_the_check():
    scope = {}
    exec(HEAD + SUMS, scope)
    with pytest.raises(NonConforming, match=r"Sums declares loss_is_mean = True, but the loss of a batch is \d"):
        check(StrategyInfo("sums", scope["Sums"], ""), "declarations")


class NormalizesTheBatch(Strategy):
    def forward(self, x, task=None):
        out = self.model(x)
        return out - out.mean(0)


def test_an_inherited_declaration_is_not_called_the_methods_own():
    words = "NormalizesTheBatch inherits loss_is_mean = True from Strategy, but .* = False in NormalizesTheBatch"
    with pytest.raises(NonConforming, match=words):
        check(StrategyInfo("normalizes", NormalizesTheBatch, ""), "declarations")


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_declaration_fails_the_check(name):
    with pytest.raises(NonConforming, match=WRONG[name][1]):
        check(StrategyInfo("wrong", class_of(name), ""), "declarations")


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_declaration_fails_a_run(name, tmp_path):
    file = tmp_path / f"clbench_wrong_{name.lower()}.py"
    file.write_text(HEAD + WRONG[name][0] + TAIL.format(name=name))
    record, = clbench.run(methods="wrong", plugins=[file], workers=0, benchmark="split-mnist-5k:tasks=2", epochs=2,
                          model="mlp:width=8", scenario="task", seeds=1, device="cpu", out=tmp_path / "run")
    assert record.status == "failed" and record.failure.type == "PluginError"
    with pytest.raises(AssertionError, match=WRONG[name][1]):
        raise AssertionError(record.failure.message)


class SaysNothing(Strategy):
    """A frozen network with a forward of its own."""

    def __init__(self, model, stream_info, options=None):
        super().__init__(model, stream_info, options)
        self.model.blocks.requires_grad_(False)

    def forward(self, x, task=None):
        return self.model(x) + 1


class SaysNo(SaysNothing):
    inputs_only_through_model = False


class Parts(PerTaskStrategy):
    def __init__(self, model, stream_info, options=None):
        super().__init__(model, stream_info)

    def forward_task(self, x, task):
        return self.heads[task](self.model.features(x))

    def shared_features(self, x):
        return self.model.features(x)


class Asserts(SaysNothing):
    def predict(self, x, task=None):
        assert x.shape[1:] == self.stream_info.input_shape
        return super().predict(x, task)


@pytest.mark.parametrize(("cls", "fact"), [(Asserts, None), (SaysNothing, "inputs_only_through_model"), (SaysNo, None),
                                           (Parts, "parts_final"), (Strategy, None)])
def test_what_would_hold_and_save_much_is_suggested(cls, fact):
    info = StrategyInfo("x", cls, "")
    check(info, "declarations")
    lines = suggest(info)
    assert [f"could declare {fact} = True" in line for line in lines] == ([True] if fact else [])
