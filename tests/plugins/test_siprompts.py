"""`s-iprompts`: parts, centroids and the nearest of them by hand, on a tiny vision transformer."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from clbench_l2p import SIPromptsOptions
from clbench_l2p.siprompts import SIPrompts, k_means
from helpers.per_task import (
    answer,
    as_batch,
    begin,
    check_stacking,
    inputs,
    learn,
    make_model,
    make_stream_info,
    make_task,
    steps,
)
from pydantic import ValidationError

from clbench.core.errors import SpecError
from clbench.models.builtin import ViTOptions
from clbench.models.vit import vit
from clbench.training.costs import measure

D, C, L = 8, 6, 3


def transformer(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return vit(ViTOptions(patch=4, width=D, depth=2, heads=2), (1, 8, 8), C)


def siprompts(scenario="domain", seed=0, **options):
    chosen = {"base": "random", "length": L, "clusters": 4, **options}
    return SIPrompts(transformer(seed), make_stream_info(scenario), SIPromptsOptions(**chosen))


def domains(count=3):
    """Tasks that all have the same classes."""
    return [make_task(index, (0, 1, 2)) for index in range(count)]


def by_hand(strategy, x, task):
    """The logits for x with the prompt and head of a task, by the network's blocks."""
    blocks = strategy.model.blocks
    tokens = blocks[0].body(x)
    tokens = torch.cat([tokens[:, :1], strategy.prompts[task][None].repeat(len(x), 1, 1), tokens[:, 1:]], 1)
    for block in blocks[1:]:
        tokens = block.body(tokens)
    features = F.layer_norm(tokens[:, 0], (D,), *blocks[-1].activation[0].parameters(), eps=1e-6)
    return F.linear(features, strategy.heads[task].weight, strategy.heads[task].bias)


def test_a_task_trains_its_prompt_and_head_by_cross_entropy_and_older_ones_stay():
    strategy = siprompts()
    tasks = domains()
    assert learn(strategy, tasks[0]) == [L * D + 3 * D + 3]
    old = [strategy.prompts[0].clone(), strategy.heads[0].weight.clone()]
    begin(strategy, tasks[1])
    bound = 1 / np.sqrt(D)
    assert strategy.prompts[1].abs().max() <= bound and strategy.prompts[1].std() > bound / 3
    batch = as_batch(tasks[1])
    loss, expected = strategy.loss(batch), F.cross_entropy(by_hand(strategy, batch.x, 1), batch.y)
    torch.testing.assert_close(loss, expected)
    trained = {n: p for n, p in strategy.named_parameters() if p.requires_grad}
    assert set(trained) == {"prompts.1", "heads.1.weight", "heads.1.bias"}
    for a, b in zip(*(torch.autograd.grad(of, trained.values()) for of in (loss, expected)), strict=True):
        torch.testing.assert_close(a, b)
        assert a.abs().max() > 0
    steps(strategy, tasks[1])
    assert torch.equal(strategy.prompts[0], old[0]) and torch.equal(strategy.heads[0].weight, old[1])


@pytest.mark.parametrize(("distance", "order"), [("l1", 1), ("l2", 2)])
def test_each_sample_gets_the_part_of_the_task_with_the_nearest_centroid(distance, order):
    strategy = siprompts(distance=distance)
    for task in domains():
        learn(strategy, task)
    x = torch.cat([inputs(8, 3), *(task.train.x[:4] for task in domains())])
    logits, inferred = answer(strategy, None, x)
    assert len(set(inferred.tolist())) == 3
    with torch.no_grad():
        features = strategy.model.features(x).numpy()
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    for i, feature in enumerate(features):
        distances = [np.linalg.norm(feature - strategy.get_buffer(f"prototype_{t}").numpy(), order, axis=1).min()
                     for t in range(3)]
        assert distances[inferred[i]] <= min(distances) + 1e-6
        with torch.no_grad():
            torch.testing.assert_close(logits[i, :3], by_hand(strategy, x[i:i + 1], int(inferred[i]))[0])
    assert torch.isinf(logits[:, 3:]).all()


def test_centroids_are_those_of_k_means_on_features_of_length_one():
    strategy = siprompts(clusters=2)
    task = domains()[0]
    learn(strategy, task)
    with torch.no_grad():
        features = F.normalize(strategy.model.features(task.train.x), dim=1).numpy()
    centroids = strategy.get_buffer("prototype_0").numpy()
    nearest = ((features[:, None] - centroids) ** 2).sum(2).argmin(1)
    np.testing.assert_allclose(centroids, [features[nearest == k].mean(0) for k in range(2)], rtol=1e-5, atol=1e-6)
    assert (np.linalg.norm(centroids, axis=1) < 1).all()  # means of vectors of length 1, which are not scaled again


def test_k_means_finds_the_best_of_all_partitions():
    points = torch.randn(9, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = points.numpy()

    def total(labels):
        groups = [x[[label == k for label in labels]] for k in range(3)]
        return sum(((group - group.mean(0)) ** 2).sum() for group in groups if len(group))

    lowest = min(total(labels) for labels in itertools.product(range(3), repeat=9))
    centroids = k_means(points, 3, torch.Generator().manual_seed(0)).numpy()
    found = ((x[:, None] - centroids) ** 2).sum(2).min(1).sum()
    np.testing.assert_allclose(found, lowest, rtol=1e-12)


def test_k_means_of_few_or_equal_points():
    generator = torch.Generator().manual_seed(0)
    two = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    assert sorted(k_means(two, 5, generator).tolist()) == two.tolist()
    assert k_means(torch.ones(4, 2), 3, generator).tolist() == [[1.0, 1.0]] * 3


def test_a_given_task_has_its_own_part_and_one_not_learned_yet_the_starting_network():
    strategy = siprompts("task")
    x = inputs()
    assert torch.equal(answer(strategy, 0).logits, transformer().eval()(x))
    for index in range(2):
        learn(strategy, make_task(index))
    with torch.no_grad():
        for task in range(2):
            logits = answer(strategy, task).logits
            torch.testing.assert_close(logits[:, 2 * task:2 * task + 2], by_hand(strategy, x, task))
    assert torch.equal(answer(strategy, 2).logits, transformer().eval()(x))
    assert measure(strategy).parameters["prompts"] == 2 * L * D


def test_with_task1_the_network_and_the_head_are_trained_first_without_a_prompt():
    strategy = siprompts(base="task1")
    task = domains()[0]
    begin(strategy, task)
    assert strategy.phases(task) == 2 and not strategy.prompts[0].requires_grad
    assert all(p.requires_grad for p in strategy.model.blocks.parameters())
    with torch.no_grad():
        logits = F.linear(strategy.model.features(task.train.x), strategy.heads[0].weight, strategy.heads[0].bias)
    torch.testing.assert_close(strategy.loss(as_batch(task)), F.cross_entropy(logits, task.train.y))
    strategy.before_phase(task, 1)
    assert not any(p.requires_grad for p in strategy.model.blocks.parameters()) and strategy.prompts[0].requires_grad


def test_two_seeds_stacked_equal_one_by_one():
    check_stacking(lambda seed: siprompts("task", seed))


def test_features_are_scaled_by_default_only_if_something_reads_them():
    assert SIPromptsOptions().infer_normalize
    assert not SIPromptsOptions(infer="entropy").infer_normalize
    with pytest.raises(ValidationError, match="which infer = entropy does not read"):
        SIPromptsOptions(infer="entropy", infer_normalize=True)


def test_a_network_without_tokens_is_refused():
    with pytest.raises(SpecError, match="s-iprompts puts prompts among the tokens of a vision transformer, and this"):
        SIPrompts(make_model(), make_stream_info(), SIPromptsOptions())
