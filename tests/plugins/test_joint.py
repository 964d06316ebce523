import pytest
import torch
from clbench_joint.strategy import Joint
from helpers.methods import make, task
from helpers.streams import stochastic

from clbench.data.samples import Samples, StochasticSamples
from clbench.strategy.base import Task
from clbench.testing import tiny
from clbench.testing.checks import check
from clbench.training.costs import measure


def drawing(index, drawn):
    """Return a task whose samples are drawn anew, shifted by 100, and note which."""
    plain = task(index)

    def draw(i):
        drawn.append((index, i))
        return plain.train.x[i] + 100

    return Task(index, plain.classes, StochasticSamples(plain.train.x, plain.train.y, plain.train.tasks, draw))


@pytest.mark.parametrize("fixed", [(), (1,), (0, 1, 2)])
def test_old_samples_are_drawn_anew_where_new_ones_are(fixed):
    strategy, drawn = make(Joint, None), []
    for index in range(3):
        strategy.before_task(task(index) if index in fixed else drawing(index, drawn))
    samples, rows = strategy.training_samples(task(2)), torch.tensor([30, 0, 12, 11, 35, 23])
    kept = Samples.concat(*(task(index).train for index in range(3)))
    some, expected = samples.take(rows), kept.take(rows)
    shifted = torch.tensor([t not in fixed for t in expected.tasks.tolist()])
    assert torch.equal(some.x, expected.x + 100 * shifted[:, None])
    assert torch.equal(some.y, expected.y) and torch.equal(some.tasks, expected.tasks)
    assert drawn == [pair for pair in ((2, 6), (0, 0), (1, 0), (0, 11), (2, 11), (1, 11)) if pair[0] not in fixed]
    assert samples.is_stochastic is bool(shifted.any())
    assert torch.equal(strategy.kept_x, kept.x) and measure(strategy).replay_samples == 36


def test_samples_that_are_drawn_anew_keep_no_trial_from_going_on_from_a_checkpoint(monkeypatch):
    monkeypatch.setattr(tiny, "tiny_stream", stochastic)
    check("joint", "checkpoint")
