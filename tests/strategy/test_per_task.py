import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from helpers.per_task import answer, begin, inputs, learn, make_model, make_stream_info, make_task
from pydantic import ValidationError
from torch import nn

from clbench.core.errors import SpecError
from clbench.strategy.base import StreamInfo
from clbench.strategy.common_options import InferOptions
from clbench.strategy.gaussians import chunk_size
from clbench.strategy.per_task import PerTaskStrategy, TaskHead, conv_like, infer_task
from clbench.training.costs import measure

INF = float("inf")


class HeadsOnly(PerTaskStrategy):
    """The smallest strategy with a part per task: heads on the untouched model."""

    def forward_task(self, x, task):
        return self.heads[task](self.model.features(x))

    def shared_features(self, x):
        return self.model.features(x)


def heads_only(scenario="class", infer="entropy", classes=6, **options):
    settings = InferOptions(infer=infer, **options)
    return HeadsOnly(make_model(classes=classes), make_stream_info(scenario, classes), settings)


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


@pytest.mark.parametrize("infer", ["entropy", "max-logit", "prototype", "gaussian"])
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
    monkeypatch.setattr("clbench.strategy.gaussians.CHUNK", 7)
    strategy = heads_only(infer="prototype")
    strategy.stream_info = dataclasses.replace(strategy.stream_info, prepare=lambda x: x / 2)
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


def densities(features, labels, tasks, x, shrinkage=1e-4):
    """The log-density at x [N, D] of each (task, class), in NumPy: Gaussians of one covariance, by their inverse."""
    groups = sorted({(t, c) for t, c in zip(tasks.tolist(), labels.tolist(), strict=True)})
    means = [features[(tasks == t) & (labels == c)].mean(0) for t, c in groups]
    centered = features - np.stack([means[groups.index((t, c))] for t, c in zip(tasks, labels, strict=True)])
    covariance = (1 - shrinkage) * centered.T @ centered / len(features) + shrinkage * np.eye(features.shape[1])
    inverse = np.linalg.inv(covariance)
    scores = np.stack([-np.einsum("nd,de,ne->n", x - m, inverse, x - m) / 2 for m in means], 1)
    return np.array([t for t, _ in groups]), scores


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("scenario", "classes"), [("class", [(3, 0), (5, 1), (2, 4)]), ("domain", [(0, 1)] * 3)])
def test_gaussian_takes_the_task_of_the_likeliest_class(normalize, scenario, classes, monkeypatch):
    monkeypatch.setattr("clbench.strategy.gaussians.CHUNK", 7)
    strategy = heads_only(scenario, "gaussian", 6 if scenario == "class" else 2, infer_normalize=normalize).double()
    tasks = [make_task(i, own, count=31) for i, own in enumerate(classes)]
    tasks = [dataclasses.replace(t, train=dataclasses.replace(t.train, x=t.train.x.double())) for t in tasks]
    seen, x = [], inputs(80, dtype=torch.float64)
    strategy.stream_info = dataclasses.replace(strategy.stream_info, prepare=torch.Tensor.double)
    for task in tasks:
        strategy.after_task(begin(strategy, task) or task)
        seen.append(task)
        features = strategy.model.features(torch.cat([t.train.x for t in seen])).detach().numpy()
        at = strategy.model.features(x).detach().numpy()
        if normalize:
            features, at = (f / np.linalg.norm(f, axis=1, keepdims=True) for f in (features, at))
        labels, of = (torch.cat([getattr(t.train, part) for t in seen]).numpy() for part in ("y", "tasks"))
        owners, scores = densities(features, labels, of, at)
        wanted = owners[scores.argmax(1)]
        assert answer(strategy, x=x).task.tolist() == wanted.tolist()
    assert len(set(wanted.tolist())) == 3
    # The rule itself: differences of log-densities between classes, whatever the order of the rows.
    ours = strategy.gaussians
    rule = (torch.from_numpy(at) @ ours.weight.T + ours.bias).detach().numpy()
    order = [int(i) for t, own in enumerate(classes) for i in 2 * t + np.argsort(np.argsort(own))]
    scores = scores[:, order]
    np.testing.assert_allclose(rule - rule[:, :1], scores - scores[:, :1], rtol=1e-7, atol=1e-7)


def test_gaussians_survive_a_checkpoint_and_weigh_no_class_without_samples():
    strategy = heads_only(infer="gaussian")
    for i in range(2):
        learn(strategy, make_task(i))
    third = make_task(2)
    begin(strategy, third)
    strategy.after_task(dataclasses.replace(third, train=third.train.take((third.train.y == 4).nonzero().flatten())))
    assert torch.isneginf(strategy.gaussians.bias).tolist() == [False] * 5 + [True]
    again = heads_only(infer="gaussian")
    for i in range(3):
        begin(again, make_task(i), seed=7)
    again.load_state_dict(strategy.state_dict())
    again.learned = 3
    assert torch.equal(answer(again).task, answer(strategy).task)
    assert {t.dtype for n, t in again.gaussians.named_buffers() if n != "task"} == {torch.float64}
    assert measure(strategy).bytes["second moments"] == 8 * 12 * 12
    assert measure(strategy).bytes["prototypes"] == 8 * 6 * (12 + 1 + 12 + 1 + 1)


def test_normalized_prototypes_are_nearest_in_direction():
    strategy = heads_only(infer="prototype", infer_normalize=True)
    for i in range(3):
        learn(strategy, make_task(i))
    x = inputs(64)
    unit = torch.nn.functional.normalize(strategy.model.features(x).detach(), dim=1)
    cosines = []
    for i in range(3):
        task = make_task(i)
        features = torch.nn.functional.normalize(strategy.model.features(task.train.x).detach(), dim=1)
        means = torch.stack([features[task.train.y == c].mean(0) for c in task.classes])
        cosines.append((unit @ torch.nn.functional.normalize(means, dim=1).T).amax(1))
    assert answer(strategy, x=x).task.tolist() == torch.stack(cosines).argmax(0).tolist()
    plain = heads_only(infer="prototype")
    for i in range(3):
        learn(plain, make_task(i))
    assert not torch.equal(answer(plain, x=x).task, answer(strategy, x=x).task)


@pytest.mark.parametrize("infer", ["entropy", "max-logit"])
def test_features_are_scaled_only_where_they_are_read(infer):
    with pytest.raises(ValidationError, match=f"which infer = {infer} does not read; leave it out, or infer by"):
        InferOptions(infer=infer, infer_normalize=True)
    assert "infer_normalize" not in InferOptions(infer="prototype").model_dump()  # keys stay as they were


def test_prediction_changes_nothing():
    strategy = heads_only(infer="prototype")
    for i in range(2):
        learn(strategy, make_task(i))
    before = copy.deepcopy(strategy.state_dict())
    strategy.predict(inputs())
    strategy.predict(inputs(), 1)
    assert all(torch.equal(value, before[name]) for name, value in strategy.state_dict().items())


def test_entropy_refuses_tasks_of_one_class():
    with pytest.raises(SpecError, match=r"single class.*max-logit or prototype or gaussian"):
        learn(heads_only(), make_task(0, (2,)))
    learn(heads_only(infer="max-logit"), make_task(0, (2,)))
    learn(heads_only("task"), make_task(0, (2,)))


def test_tasks_are_learned_in_order():
    with pytest.raises(ValueError, match="expected task 1, got task 2"):
        learn(heads_only(), make_task(1))


def test_conv_like_keeps_the_geometry():
    layer = nn.Conv2d(3, 8, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2), padding_mode="reflect")
    new = conv_like(layer, 3, 2)
    x = torch.rand(2, 3, 16, 16)
    assert new(x).shape[2:] == layer(x).shape[2:]
    assert (new.padding_mode, new.bias, new.weight.numel()) == ("reflect", None, math.prod((2, 3, 3, 5)))


@pytest.mark.parametrize(("shape", "text", "expected"), [
    ((1, 28, 28), False, 1024), ((3, 56, 56), False, 1024), ((3, 224, 224), False, 111), ((128,), True, 1024)])
def test_features_of_large_images_are_computed_in_small_chunks(shape, text, expected):
    stream_info = StreamInfo(6, 3, "class", shape, torch.Generator(), is_text=text)
    assert chunk_size(stream_info) == expected
