"""The ridge probe against numpy, what it says of planted changes, and that a trial does not notice it."""

import numpy as np
import pytest
import torch
from torch import nn

from clbench.core.hookspecs import StrategyInfo
from clbench.core.registry import discover
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.plan import plan
from clbench.experiment.spec import build
from clbench.persistence import callbacks
from clbench.results.records import Probe
from clbench.strategy.base import Strategy
from clbench.testing.tiny import bench
from clbench.training.callbacks import probe
from clbench.training.callbacks.error_decomposition import ErrorDecomposition
from clbench.training.callbacks.probe import STRENGTHS, Moments
from clbench.training.evaluation import evaluate


def by_hand(x, labels):
    """Return weight and bias of ridge regression by normal equations, its strength by GCV with the whole hat matrix."""
    n, d = x.shape
    centered, targets = x - x.mean(0), labels - labels.mean(0)
    scale = np.trace(centered.T @ centered) / d
    best = None
    for strength in STRENGTHS:
        inverse = np.linalg.inv(centered.T @ centered + strength * scale * np.eye(d))
        hat = centered @ inverse @ centered.T
        error = ((targets - hat @ targets)**2).sum() / (n - 1 - np.trace(hat))**2
        if best is None or error < best[0]:
            best = error, inverse @ centered.T @ targets
    weight = best[1]
    return weight, labels.mean(0) - x.mean(0) @ weight


@pytest.mark.parametrize(("n", "d", "noise"), [(60, 5, 0.1), (60, 5, 3.0), (30, 12, 1.0)])
def test_ridge_from_sums_is_that_of_normal_equations(n, d, noise):
    rng = np.random.default_rng(n + d)
    y = np.arange(n) % 3
    x = rng.normal(size=(n, d)) * noise + 5 + rng.normal(size=(3, d))[y]
    labels = np.eye(3)[y]
    pieces = [Moments.of(*map(torch.tensor, (x[i::2], labels[i::2]))) for i in (0, 1)]
    weight, bias = (pieces[0] + pieces[1]).ridge()
    expected, intercept = by_hand(x, labels)
    np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(bias.numpy(), intercept, rtol=1e-6, atol=1e-9)


def test_features_that_say_nothing_and_classes_that_do_not_occur():
    labels = torch.eye(3, dtype=torch.float64)[[0, 0, 1]]
    weight, bias = Moments.of(torch.ones(3, 2, dtype=torch.float64), labels).ridge()
    scores = torch.ones(1, 2, dtype=torch.float64) @ weight + bias
    assert scores[0, :2].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert scores[0, 2] == float("-inf")


def trained():
    """Return a bench in scenario class whose network has learned all tasks together."""
    b = bench(StrategyInfo("x", Strategy, ""), {}, "class")
    train = [task.train for task in b.stream.tasks]
    x, y = b.stream.prepare(torch.cat([t.x for t in train])), torch.cat([t.y for t in train])
    optimizer = torch.optim.Adam(b.strategy.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(b.strategy.model(x), y).backward()
        optimizer.step()
    return b


def seen(b, after=lambda _: None):
    """Return the anatomy of a network that has learned everything, changed after the first two tasks were looked at."""
    anatomy, replica = ErrorDecomposition(probed=True), b.replica
    for learned in (1, 2, 3):
        if learned == 3:
            after(b.strategy)
        counter = anatomy.make_counter(b.stream, "class", learned)
        evaluate(b.strategy, b.stream, "class", learned, on_batch=counter.add if counter else None)
        anatomy.add(replica, counter, learned)
    return replica.errors[0], replica.probe


def lost_to(counts):
    """Return how many samples are wrong in their own task, mended by constants, and neither."""
    samples, given, corrected, right = (sum(part) for part in (counts.samples, counts.given, counts.corrected,
                                                               counts.right))
    return samples - given, corrected - right, given - corrected


def test_a_planted_bias_is_called_bias_and_no_drift():
    clean, _ = seen(trained())

    def lift(strategy):
        with torch.no_grad():
            strategy.model.head.bias[:2] += 50

    counts, found = seen(trained(), lift)
    assert counts.right[0] == counts.samples[0]
    assert sum(counts.right) == counts.samples[0]
    assert counts.corrected == clean.corrected
    assert lost_to(counts)[1] >= 40
    assert found.end == found.learned  # features are as they were


def test_a_planted_drift_of_features_is_not_called_bias():
    def drift(strategy):
        body = next(m for m in reversed(list(strategy.model.blocks.modules())) if isinstance(m, nn.Linear))
        with torch.no_grad():  # all units but one become noise that no longer depends on what is seen
            body.weight[1:] = 0

    clean, before = seen(trained())
    counts, found = seen(trained(), drift)
    assert lost_to(counts)[1] <= 4
    assert lost_to(counts)[0] + lost_to(counts)[2] >= 20
    assert sum(found.learned[:2]) - sum(found.end[:2]) >= 8
    assert before.learned == before.end
    assert sum(before.together) >= sum(clean.right) - 2


def test_identical_networks_give_identical_parts():
    first, second = seen(trained()), seen(trained())
    assert first == second


@pytest.mark.parametrize(("method", "own"), [("naive", False), ("icarl", False), ("slda", False), ("lora", True),
                                             ("pnn", True), ("frozen", False), ("seq-lora", False), ("lucir", False),
                                             ("avalanche:Naive", False)])
def test_the_features_of_methods(method, own):
    b = bench(discover().strategy(method), {}, "class")
    found = Probe()
    for index in range(3):
        b.learn(index)
        found = probe.add_probe(b.strategy, b.stream, index + 1, found)
    assert (found.own, found.missing, bool(found.together)) == (own, "", not own)
    assert len(found.learned) == len(found.end) == 3
    assert sum(found.learned) > 50


class Closed(Strategy):
    """Answers without the model."""

    def predict(self, x, task=None):
        return super().predict(x, task)._replace(logits=x.flatten(1)[:, :6])

    def forward(self, x, task=None):
        return x.flatten(1)


def test_a_method_that_shows_no_features_says_so_once():
    b = bench(StrategyInfo("x", Closed, ""), {}, "class")
    found = probe.add_probe(b.strategy, b.stream, 1, Probe())
    assert "Closed shows no features" in found.missing
    assert probe.add_probe(b.strategy, b.stream, 2, found) is found


def test_a_model_of_another_library_that_hides_its_head_ends_no_trial():
    b = bench(discover().strategy("avalanche:FeatureReplay"), {}, "class")
    b.learn(0)
    assert "shows no features" in probe.add_probe(b.strategy, b.stream, 1, Probe()).missing


def planned(method="er", seeds=1, scenario="class"):
    return plan(build({"methods": method, "seeds": seeds, "scenario": scenario, "model": "mlp:width=16",
                       "recipe": {"iterations": 4, "batch_size": 32}}), discover())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return a folder of data that all tests here share."""
    return tmp_path_factory.mktemp("data")


def records(group, data, checkpoints=None, hear=lambda _: None, **settings):
    runner = TrialRunner(ExecutionSettings(data=data, **settings), "cpu", "a test", checkpoints=checkpoints)
    return runner.run_stack(group, hear)


def test_training_does_not_notice_what_is_looked_at(data):
    plain, = records(planned(), data)
    looked, = records(planned(), data, probe=True, anatomy="each")
    assert plain.facts() == looked.facts()
    assert plain.last_losses == looked.last_losses  # bit for bit
    assert [row.learned for row in looked.errors] == [1, 2, 3, 4, 5]
    assert looked.errors[-1:] == plain.errors
    assert plain.probe is None
    assert len(looked.probe.end) == len(looked.probe.learned) == len(looked.probe.together) == 5


def test_a_trial_that_goes_on_has_the_anatomy_of_one_that_was_not_killed(data, tmp_path, monkeypatch):
    monkeypatch.setattr(callbacks, "SECONDS", 0.0)
    whole, = records(planned(), data, probe=True, anatomy="each")

    class Killed(BaseException):
        pass

    def hear(progress):
        if progress.task == 4:
            raise Killed

    for asked, note in (({"probe": True, "anatomy": "each"}, ""), ({}, "lacks what this run asks for")):
        folder = tmp_path / f"checkpoints{len(asked)}"
        with pytest.raises(Killed):
            records(planned(), data, folder, hear, **asked)
        again, = records(planned(), data, folder, probe=True, anatomy="each")
        assert (again.errors, again.probe) == (whole.errors, whole.probe)
        assert any(note in n for n in again.notes) if note else not again.notes


def test_members_of_a_stack_are_taken_apart_one_by_one(data):
    group = planned("naive", seeds=2)
    stacked = records(group, data, probe=True)
    for one, together in zip(group, stacked, strict=True):
        alone, = records([one], data, probe=True)
        assert sum(abs(a - b) for a, b in zip(alone.errors[0].given, together.errors[0].given, strict=True)) <= 3
        assert len(together.probe.end) == 5


def test_scenarios_without_competing_tasks_have_the_probe_alone_or_nothing(data):
    domain, = records(planned(scenario="domain"), data, probe=True, anatomy="each")
    assert not domain.errors
    assert len(domain.probe.together) == 5
    task, = records(planned(scenario="task"), data, probe=True)
    assert (task.errors, task.probe) == ([], None)
