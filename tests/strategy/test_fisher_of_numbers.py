"""The Fisher information of a model that predicts a number, against the closed form of a linear model."""

import pytest
import torch
from torch import nn

from clbench.core.errors import SpecError
from clbench.data.samples import Samples
from clbench.models.network import Network
from clbench.strategy.base import Strategy, StreamInfo
from clbench.strategy.fisher import check_kind, diagonal_fisher

N, D = 4000, 3


def linear(scenario="domain", outputs=1, tasks=2):
    torch.manual_seed(0)
    model = Network([nn.Identity()], nn.Linear(D, outputs))
    strategy = Strategy(model, StreamInfo(outputs, tasks, scenario, (D,), torch.Generator(), objective="regression"))
    strategy.class_mask[0, 0] = True
    return strategy


@pytest.fixture
def samples():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, D, generator=generator)
    return Samples(x, x[:, 0] + 0.5 * torch.randn(N, generator=generator), torch.zeros(N, dtype=torch.int64))


@pytest.mark.parametrize("layerwise", [True, False])
def test_exact_is_twice_the_mean_square_of_the_inputs(samples, layerwise):
    fisher = diagonal_fisher(linear(), samples, 0, generator=torch.Generator(), layerwise=layerwise)
    assert torch.allclose(fisher["model.head.weight"][0], 2 * samples.x.square().mean(0), rtol=1e-4)
    assert float(fisher["model.head.bias"]) == pytest.approx(2)


def test_sampled_is_exact_in_expectation(samples):
    fisher = diagonal_fisher(linear(), samples, 0, generator=torch.Generator().manual_seed(2), kind="sampled")
    assert torch.allclose(fisher["model.head.weight"][0], 2 * samples.x.square().mean(0), rtol=0.1)


def test_empirical_has_the_errors(samples):
    strategy = linear()
    fisher = diagonal_fisher(strategy, samples, 0, generator=torch.Generator(), kind="empirical")
    with torch.no_grad():
        errors = strategy(samples.x)[:, 0] - samples.y
    by_hand = (2 * errors[:, None] * samples.x).square().mean(0)
    assert torch.allclose(fisher["model.head.weight"][0], by_hand, rtol=1e-4)


def test_outputs_of_other_tasks_have_none(samples):
    fisher = diagonal_fisher(linear("task", outputs=2), samples, 0, generator=torch.Generator())
    assert bool((fisher["model.head.weight"][1] == 0).all()) and bool((fisher["model.head.weight"][0] > 0).all())


def test_the_predicted_label_is_refused():
    with pytest.raises(SpecError, match="fisher = predicted"):
        check_kind(linear().stream_info, "predicted")
