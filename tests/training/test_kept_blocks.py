import pytest
import torch

from clbench.core.hookspecs import StrategyInfo
from clbench.core.registry import discover
from clbench.strategy.base import Prediction, Strategy
from clbench.testing.checks import TASKS, bench
from clbench.training import kept_blocks
from clbench.training.evaluation import evaluate
from clbench.training.kept_answers import KeptAnswers

VIT = {"l2p": {"pool": 4, "top": 2, "length": 2}, "dualprompt": {}, "coda-prompt": {}}
pytestmark = pytest.mark.usefixtures("small_batches")
METHODS = [("ncm", {}), ("ncm", {"base": "random"}), ("slda", {}), ("simplecil", {}), ("fecam", {}),
           ("ranpac", {"projections": 20}), ("naive", {}),
           ("seq-lora", {"rank": 2, "layers": "last"}), ("icarl", {"capacity": 20}), *VIT.items()]


@pytest.mark.parametrize("scenario", ["task", "class", "domain"])
@pytest.mark.parametrize(("method", "options"), METHODS)
def test_every_row_is_the_one_computed_anew(method, options, scenario):
    b = bench(discover().strategy(method), options, scenario)
    kept = KeptAnswers()
    for learned in range(TASKS + 1):
        if learned:
            b.learn(learned - 1)
        for _ in range(2):
            assert evaluate(b.strategy, b.stream, scenario, learned, kept) == evaluate(b.strategy, b.stream, scenario,
                                                                                       learned)
    assert b.strategy.model.start == 0


@pytest.mark.parametrize(("scenario", "few"), [("task", 5 * TASKS), ("class", 5)])
@pytest.mark.parametrize("method", ["ncm", "slda", "ranpac", "simplecil", "fecam"])
def test_a_frozen_base_runs_once_on_all_samples_and_then_on_a_few(method, scenario, few):
    b = bench(discover().strategy(method), {"base": "random"}, scenario)
    kept = KeptAnswers()
    found = []
    for learned in range(1, TASKS + 1):
        b.learn(learned - 1)
        seen = []
        handle = b.strategy.model.blocks[0].register_forward_hook(lambda _, args, out, s=seen: s.append(len(args[0])))
        evaluate(b.strategy, b.stream, scenario, learned, kept)
        handle.remove()
        found.append(sum(seen))
    assert found == [24 * TASKS + 2 * few, *[2 * few] * (TASKS - 1)]


def test_blocks_that_have_changed_run_again():
    b = bench(discover().strategy("ncm"), {"base": "random"}, "class")
    kept = KeptAnswers()
    b.learn(0)
    before = evaluate(b.strategy, b.stream, "class", 1, kept)
    with torch.no_grad():
        next(b.strategy.model.blocks.parameters()).neg_()
    after = evaluate(b.strategy, b.stream, "class", 1, kept)
    assert after == evaluate(b.strategy, b.stream, "class", 1) and before != after


class Looks(Strategy):
    """A frozen network whose answers depend on the inputs in another way, too."""

    def __init__(self, model, world, options=None):
        super().__init__(model, world, options)
        self.model.blocks.requires_grad_(False)

    def predict(self, x, task=None):
        return Prediction(self.model(x) + x.flatten(1).mean(1, keepdim=True) * torch.arange(self.world.classes))


def test_a_strategy_that_does_something_else_with_its_inputs_is_left_alone():
    b = bench(StrategyInfo("x", Looks, ""), {}, "class")
    kept = KeptAnswers()
    for learned in (1, 2):
        b.learn(learned - 1)
        row = evaluate(b.strategy, b.stream, "class", learned, kept)
        assert row == evaluate(b.strategy, b.stream, "class", learned)
    assert kept.blocks.useless and not kept.blocks.outputs


def test_no_more_is_kept_than_there_is_room_for_and_nothing_where_it_is_turned_off(monkeypatch):
    b = bench(discover().strategy("ncm"), {"base": "random"}, "task")
    b.learn(0)
    size = 24 * b.strategy.model.head.in_features * 4
    monkeypatch.setattr(kept_blocks, "BYTES", 2 * size)
    kept = KeptAnswers()
    rows = [evaluate(b.strategy, b.stream, "task", 1, kept) for _ in range(2)]
    assert rows[0] == rows[1] == evaluate(b.strategy, b.stream, "task", 1)
    assert list(kept.blocks.outputs) == [0, 1]
    monkeypatch.setenv("CLBENCH_CACHE_FROZEN", "0")
    kept = KeptAnswers()
    assert evaluate(b.strategy, b.stream, "task", 1, kept) == rows[0] and not kept.blocks.outputs
