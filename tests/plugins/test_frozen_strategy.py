import pytest
import torch
from clbench_frozen import FrozenOptions
from clbench_frozen.strategy import Frozen
from clbench_lora import LoRAOptions
from clbench_lora.strategy import LoRA
from clbench_shared_private import SharedPrivateOptions
from clbench_shared_private.strategy import SharedPrivate
from helpers.per_task import answer, check_stacking, inputs, learn, make_model, make_stream_info, make_task

from clbench.core.errors import SpecError
from clbench.core.registry import discover
from clbench.training.costs import measure

BLOCKS, HEAD = 64 * 12 + 12 + 12 * 12 + 12, 12 * 2 + 2


def frozen(kind="mlp", scenario="task", pretrained=False, seed=0, **options):
    stream_info = make_stream_info(scenario, pretrained=pretrained)
    return Frozen(make_model(kind, seed=seed), stream_info, FrozenOptions(**options))


def test_only_heads_learn_on_a_base_that_does_not_change():
    strategy = frozen(base="random")
    answers = []
    for i in range(3):
        assert learn(strategy, make_task(i)) == [HEAD]
        answers.append(answer(strategy, i).logits)
    assert all(torch.equal(answer(strategy, i).logits, logits) for i, logits in enumerate(answers))
    assert torch.equal(strategy.shared_features(inputs()), make_model().features(inputs()))
    assert measure(strategy).parameters == {"base": BLOCKS + 12 * 6 + 6, "heads": 3 * HEAD}


def test_a_head_is_trained_as_logistic_regression_on_features():
    strategy, task = frozen(base="random"), make_task(0)
    learn(strategy, task)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = torch.nn.Linear(12, 2)
    features = make_model().features(task.train.x).detach()
    for _ in range(4):
        loss = torch.nn.functional.cross_entropy(head(features), task.train.y)
        for p, g in zip(head.parameters(), torch.autograd.grad(loss, list(head.parameters())), strict=True):
            p.data -= 0.5 * g
    torch.testing.assert_close(strategy.heads[0].weight, head.weight)
    torch.testing.assert_close(strategy.heads[0].bias, head.bias)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_the_base_of_task1_is_that_of_lora(kind):
    strategy = frozen(kind)
    lora = LoRA(make_model(kind), make_stream_info(), LoRAOptions(rank=2))
    trainable = learn(strategy, make_task(0))
    learn(lora, make_task(0))
    assert len(trainable) == 2 and trainable[0] > trainable[1] == strategy.heads[0].weight.numel() + 2
    assert torch.equal(strategy.shared_features(inputs()), lora.shared_features(inputs()))
    assert not torch.equal(strategy.shared_features(inputs()), make_model(kind).features(inputs()))


def test_without_task1_it_is_shared_private_without_private_layers():
    ours, theirs = frozen(base="random", scenario="class"), SharedPrivate(
        make_model(), make_stream_info("class"), SharedPrivateOptions(base="random"))
    for i in range(2):
        learn(ours, make_task(i))
        learn(theirs, make_task(i))
    assert torch.equal(answer(ours).logits, answer(theirs).logits)
    assert torch.equal(answer(ours).task, answer(theirs).task)


def test_refusals_name_the_method_and_it_is_a_reference():
    with pytest.raises(SpecError, match="frozen: base = pretrained needs a pretrained model"):
        frozen(base="pretrained")
    assert learn(frozen(base="pretrained", pretrained=True), make_task(0)) == [HEAD]
    assert discover().strategy("frozen").reference


def test_two_seeds_stacked_equal_one_by_one():
    check_stacking(lambda seed: frozen(seed=seed))
    check_stacking(lambda seed: frozen(seed=seed), tasks=1)
