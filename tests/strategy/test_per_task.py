import copy
import dataclasses
import math

import pytest
import torch
from helpers.per_task import answer, begin, inputs, learn, make_model, make_task, make_world
from torch import nn

from clbench.core.errors import SpecError
from clbench.strategy.per_task import PerTaskStrategy, TaskHead, conv_like, infer_task
from clbench.strategy.per_task_options import InferOptions

INF = float("inf")


class HeadsOnly(PerTaskStrategy):
    """The smallest strategy with a part per task: heads on the untouched model."""

    def forward_task(self, x, task):
        return self.heads[task](self.model.features(x))

    def shared_features(self, x):
        return self.model.features(x)


def heads_only(scenario="class", infer="entropy", classes=6):
    return HeadsOnly(make_model(classes=classes), make_world(scenario, classes), InferOptions(infer=infer))


def two_tasks_of_logits():
    # sample 0: task 0 is sure; sample 1: task 1 is sure, though task 0 has the larger logit
    first = [[5.0, 0.0, -INF, -INF], [9.0, 8.9, -INF, -INF]]
    second = [[-INF, -INF, 3.0, 2.9], [-INF, -INF, 4.0, -4.0]]
    return torch.tensor([first, second])


def test_entropy_takes_the_task_that_is_surest():
    assert infer_task("entropy", two_tasks_of_logits()).tolist() == [0, 1]


def test_max_logit_takes_the_largest_logit():
    assert infer_task("max-logit", two_tasks_of_logits()).tolist() == [0, 0]


def test_prototype_takes_the_task_of_the_nearest_mean():
    features = torch.tensor([[0.0, 0.0], [3.0, 4.0], [10.0, 0.0]])
    prototypes = [torch.tensor([[0.0, 1.0], [9.0, 0.0]]), torch.tensor([[3.0, 3.0]])]
    assert infer_task("prototype", torch.zeros(2, 3, 4), features, prototypes).tolist() == [0, 1, 0]


def test_entropy_is_over_the_own_classes_even_where_one_is_certain():
    certain = torch.tensor([[[200.0, 0.0, -INF]], [[-INF, -INF, 0.0]]])
    assert infer_task("entropy", certain).tolist() == [0]


def test_head_places_its_logits_and_adds_the_lateral():
    head = TaskHead(3, (4, 1), 5, torch.zeros(1, dtype=torch.float64))
    x, extra = torch.rand(2, 3, dtype=torch.float64), torch.rand(2, 2, dtype=torch.float64)
    own = x @ head.weight.T + head.bias + extra
    out = head(x, extra)
    assert torch.allclose(out[:, [4, 1]], own, atol=1e-14)
    assert (out[:, [0, 2, 3]] == -INF).all()
    assert "place" not in head.state_dict()


def test_starting_model_answers_what_is_not_learned():
    strategy = heads_only()
    start = make_model()(inputs()).detach()
    nothing = answer(strategy)
    assert torch.equal(nothing.logits, start)
    assert nothing.task.tolist() == [-1] * 5
    learn(strategy, make_task(0))
    assert torch.equal(answer(strategy, task=2).logits, start)
    assert torch.equal(strategy(inputs(), 1), start)
    assert answer(strategy).task.tolist() == [0] * 5  # only learned tasks compete


@pytest.mark.parametrize("infer", ["entropy", "max-logit", "prototype"])
def test_each_sample_gets_the_logits_of_its_inferred_task(infer):
    strategy = heads_only(infer=infer)
    tasks = [make_task(i) for i in range(3)]
    for task in tasks:
        learn(strategy, task)
    x = inputs(64)
    prediction = answer(strategy, x=x)
    assert len(set(prediction.task.tolist())) > 1
    for sample, task in enumerate(prediction.task.tolist()):
        assert torch.equal(prediction.logits[sample], answer(strategy, task, x).logits[sample])
        finite = torch.isfinite(prediction.logits[sample]).nonzero().flatten().tolist()
        assert finite == list(tasks[task].classes)


def test_domain_scenario_gives_the_logits_of_all_classes():
    strategy = heads_only("domain", classes=2)
    for i in range(2):
        learn(strategy, make_task(i, (0, 1)))
    prediction = answer(strategy)
    assert torch.isfinite(prediction.logits).all()
    assert prediction.logits.shape == (5, 2)


def test_prototypes_are_class_means_and_kept_only_when_used():
    strategy = heads_only(infer="prototype")
    task = make_task(0, (3, 1), count=30)
    learn(strategy, task)
    features = strategy.model.features(task.train.x).detach()
    means = torch.stack([features[task.train.y == c].mean(0) for c in (1, 3)])
    torch.testing.assert_close(strategy.state_dict()["prototype_0"], means)
    other = heads_only(infer="entropy")
    learn(other, task)
    assert not any("prototype" in name for name in other.state_dict())


def test_prototypes_are_taken_in_eval_mode_from_prepared_samples_in_chunks(monkeypatch):
    monkeypatch.setattr("clbench.strategy.class_means.CHUNK", 7)
    strategy = heads_only(infer="prototype")
    strategy.world = dataclasses.replace(strategy.world, prepare=lambda x: x / 2)
    strategy.model.blocks[1].body = nn.Sequential(strategy.model.blocks[1].body, nn.Dropout(0.5))
    task = make_task(0, count=30)
    begin(strategy, task)
    strategy.train()
    strategy.after_task(task)
    assert strategy.training
    strategy.eval()
    features = strategy.model.features(task.train.x / 2)
    means = torch.stack([features[task.train.y == c].mean(0) for c in (0, 1)])
    torch.testing.assert_close(strategy.get_buffer("prototype_0"), means)


def test_prediction_changes_nothing():
    strategy = heads_only(infer="prototype")
    for i in range(2):
        learn(strategy, make_task(i))
    before = copy.deepcopy(strategy.state_dict())
    strategy.predict(inputs())
    strategy.predict(inputs(), 1)
    assert all(torch.equal(value, before[name]) for name, value in strategy.state_dict().items())


def test_entropy_refuses_tasks_of_one_class():
    with pytest.raises(SpecError, match=r"single class.*max-logit or prototype"):
        learn(heads_only(), make_task(0, (2,)))
    learn(heads_only(infer="max-logit"), make_task(0, (2,)))
    learn(heads_only("task"), make_task(0, (2,)))


def test_tasks_are_learned_in_order():
    with pytest.raises(ValueError, match="expected task 0, got 1"):
        learn(heads_only(), make_task(1))


def test_conv_like_keeps_the_geometry():
    layer = nn.Conv2d(3, 8, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2), padding_mode="reflect")
    new = conv_like(layer, 3, 2)
    x = torch.rand(2, 3, 16, 16)
    assert new(x).shape[2:] == layer(x).shape[2:]
    assert (new.padding_mode, new.bias, new.weight.numel()) == ("reflect", None, math.prod((2, 3, 3, 5)))
