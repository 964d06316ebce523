import copy

import pytest
import torch
from clbench_shared_private import SharedPrivateOptions
from clbench_shared_private.strategy import SharedPrivate
from helpers.per_task import answer, check_stacking, inputs, learn, make_model, make_stream_info, make_task
from torch import nn

from clbench.core.errors import SpecError
from clbench.training.costs import measure

ENCODER, HEAD = 64 * 12 + 12 + 12 * 12 + 12, 12 * 2 + 2


def shared_private(kind="mlp", scenario="task", pretrained=False, seed=0, **options):
    return SharedPrivate(make_model(kind, seed=seed), make_stream_info(scenario, pretrained=pretrained),
                         SharedPrivateOptions(**options))


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("width", [None, 7])
def test_old_tasks_answer_bitwise_the_same_after_later_tasks(kind, width):
    strategy = shared_private(kind, private_width=width)
    answers = []
    for i in range(3):
        learn(strategy, make_task(i))
        answers.append(answer(strategy, i).logits)
    for i, logits in enumerate(answers):
        assert torch.equal(answer(strategy, i).logits, logits)


def test_encoder_learns_on_the_first_task_only():
    strategy = shared_private()
    assert learn(strategy, make_task(0)) == [ENCODER + HEAD]
    first = strategy.shared_features(inputs()).detach()
    assert not torch.equal(first, make_model().features(inputs()))
    assert not any(p.requires_grad for p in strategy.model.parameters())
    assert learn(strategy, make_task(1)) == [HEAD]
    assert torch.equal(strategy.shared_features(inputs()), first)
    assert measure(strategy).parameters == {"base": ENCODER + 12 * 6 + 6, "heads": 2 * HEAD}


def test_random_base_never_learns():
    strategy = shared_private(base="random")
    assert learn(strategy, make_task(0)) == [HEAD]
    assert torch.equal(strategy.shared_features(inputs()), make_model().features(inputs()))


def test_pretrained_base_needs_weights():
    with pytest.raises(SpecError, match="shared-private: base = pretrained needs a pretrained model"):
        shared_private(base="pretrained")
    assert learn(shared_private(base="pretrained", pretrained=True), make_task(0)) == [HEAD]


def test_private_hidden_layer_by_formula_and_by_hand():
    strategy = shared_private(private_width=7, base="random")
    assert learn(strategy, make_task(0)) == [12 * 7 + 7 + 7 * 2 + 2]
    weight, bias, head = strategy.private[0][0].weight, strategy.private[0][0].bias, strategy.heads[0]
    hidden = (make_model().features(inputs()) @ weight.T + bias).clamp(min=0)
    torch.testing.assert_close(answer(strategy, 0).logits[:, :2], (hidden @ head.weight.T + head.bias).detach())


def test_normalization_of_the_encoder_does_not_drift_once_frozen():
    model = make_model("cnn")
    model.blocks[0].body = nn.Sequential(model.blocks[0].body, nn.BatchNorm2d(4))
    strategy = SharedPrivate(model, make_stream_info(), SharedPrivateOptions())
    norm = model.blocks[0].body[1]
    learn(strategy, make_task(0))
    before = copy.deepcopy(norm.state_dict())
    assert before["num_batches_tracked"] > 0
    learn(strategy, make_task(1))
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


def test_features_computed_once_give_the_same_answers():
    strategy = shared_private(scenario="class", private_width=5)
    for i in range(2):
        learn(strategy, make_task(i))
    strategy.eval()
    one_by_one = torch.stack([strategy.forward_task(inputs(), i) for i in range(2)])
    assert torch.equal(strategy.learned_logits(inputs()), one_by_one)
    assert set(answer(strategy).task.tolist()) <= {0, 1}


@pytest.mark.parametrize("width", [None, 7])
def test_two_seeds_stacked_equal_one_by_one(width):
    check_stacking(lambda seed: shared_private(private_width=width, seed=seed))
    check_stacking(lambda seed: shared_private(private_width=width, seed=seed), tasks=1)
