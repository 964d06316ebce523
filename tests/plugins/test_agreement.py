"""clbench and Avalanche's Naive, led through the same stream in the same batches, come to the same weights and R."""

import copy
import itertools

import pytest
import torch
from helpers import tiny_benchmarks
from torch import nn
from torch.utils.data import DataLoader

from clbench.core.registry import discover
from clbench.data.samples import Samples
from clbench.execution.trial_runner import TrialRunner, run_replicas
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.plan import plan
from clbench.experiment.spec import build
from clbench.training.callbacks.evaluation import EvaluationCallback
from clbench.training.replica import Replica
from clbench.training.sampling import BatchSampler

SEED, EPOCHS, BATCH = 3, 2, 16


def ours(optimizer, folder):
    """Return R, the weights and the model as it was before training."""
    recipe = {"optimizer": optimizer, "lr": 0.05 if optimizer == "sgd" else 3e-3, "epochs": EPOCHS, "batch_size": BATCH,
              "optimizer_state": "keep", **({"momentum": 0.9} if optimizer == "sgd" else {})}
    planned, = plan(build({"benchmark": "helpers.tiny_benchmarks:shifting", "scenario": "domain", "methods": ["naive"],
                           "model": "mlp:width=20:depth=2", "seeds": [SEED], "recipe": recipe}), discover())
    runner = TrialRunner(ExecutionSettings(data=folder), "cpu", "")
    stream = runner.stream(planned.trial)
    strategy, notes = runner.build(planned.trial, stream)
    before = copy.deepcopy(strategy.model)
    member = Replica.of(planned, strategy, stream, notes)
    run_replicas([member], [EvaluationCallback()])
    return member.R, strategy.model, before, recipe


def theirs(model, recipe):
    """Return R of Avalanche's Naive; only the order of the samples is clbench's."""
    from avalanche.evaluation.metrics import accuracy_metrics
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import Naive

    class InOurOrder(Naive):
        def make_train_dataloader(self, **_):
            data = self.adapted_dataset
            self.dataloader = DataLoader(data, batch_sampler=Passes(len(data), self.experience.current_experience))

    kind, extra = ((torch.optim.SGD, {"momentum": recipe["momentum"]}) if recipe["optimizer"] == "sgd"
                   else (torch.optim.Adam, {}))
    measure = EvaluationPlugin(accuracy_metrics(experience=True), loggers=[])
    strategy = InOurOrder(model=model, optimizer=kind(model.parameters(), lr=recipe["lr"], **extra),
                          criterion=nn.CrossEntropyLoss(), train_mb_size=BATCH, train_epochs=EPOCHS, eval_mb_size=64,
                          evaluator=measure)
    benchmark = tiny_benchmarks.shifting()

    def row():
        found = strategy.eval(benchmark.test_stream)
        return [value for name, value in sorted(found.items()) if name.startswith("Top1_Acc_Exp")]

    matrix = [row()]
    for experience in benchmark.train_stream:
        strategy.train(experience)
        matrix.append(row())
    return matrix


class Passes:
    """The batches of clbench's `BatchSampler`, pass after pass, as places in the data."""

    def __init__(self, count, task):
        self.places = Samples(*[torch.arange(count)] * 3)
        self.order = BatchSampler(count, BATCH, SEED, task)

    def __len__(self):
        return -(-len(self.places) // BATCH)

    def __iter__(self):
        return (self.order.next_batch(self.places).x.tolist() for _ in range(len(self)))


@pytest.mark.filterwarnings("ignore:No loggers specified")
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_naive_and_avalanches_naive_agree(optimizer, tmp_path):
    matrix, trained, before, recipe = ours(optimizer, tmp_path)
    other = theirs(before, recipe)
    for mine, their in zip(trained.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(mine, their, rtol=1e-5, atol=1e-6)
    assert matrix == [pytest.approx(row, abs=1e-6) for row in other]
    assert max(matrix[-1]) > max(matrix[0]) + 0.2, "nothing was learned, so nothing was compared"
    assert all(a != b for a, b in itertools.pairwise(matrix))
