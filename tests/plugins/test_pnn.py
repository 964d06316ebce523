import copy
import dataclasses

import pytest
import torch
from clbench_pnn import PNNOptions
from clbench_pnn.lateral import Lateral, joins
from clbench_pnn.strategy import PNN
from helpers.per_task import answer, begin, check_stacking, inputs, learn, make_model, make_stream_info, make_task
from torch import nn

from clbench.core.errors import SpecError
from clbench.models.network import Block, Network
from clbench.training.costs import measure


def pnn(kind="mlp", scenario="task", dtype=torch.float32, seed=0, **options):
    return PNN(make_model(kind, seed=seed, dtype=dtype), make_stream_info(scenario), PNNOptions(**options))


def dense(x, layer):
    return x @ layer.weight.T + (0 if layer.bias is None else layer.bias)


def test_three_columns_by_hand():
    strategy = pnn(dtype=torch.float64)
    for i in range(3):
        begin(strategy, make_task(i))
    x = inputs(dtype=torch.float64)
    names = dict(strategy.named_parameters())
    blocks = [strategy.model.blocks, *(column.blocks for column in strategy.columns)]
    first = [dense(x.flatten(1), b[0].body[1]).relu() for b in blocks]

    def lateral(column, place, earlier):
        at = f"columns.{column - 1}.laterals.{place}."
        scaled = torch.cat([names[at + "alpha"][j] * h for j, h in enumerate(earlier)], 1)
        hidden = (scaled @ names[at + "V.weight"].T + names[at + "V.bias"]).clamp(min=0)
        return hidden @ names[at + "U.weight"].T

    second = [dense(first[0], blocks[0][1].body).relu()]
    second += [(dense(first[k], blocks[k][1].body) + lateral(k, 0, first[:k])).relu() for k in (1, 2)]
    for k in range(3):
        logits = dense(second[k], strategy.heads[k]) + (lateral(k, 1, second[:k]) if k else 0)
        out = strategy.forward_task(x, k)
        torch.testing.assert_close(out[:, 2 * k:2 * k + 2], logits, rtol=0, atol=1e-14)
        assert torch.isfinite(out).sum(1).tolist() == [2] * len(x)


def test_convolution_laterals_by_hand():
    strategy = pnn("cnn", dtype=torch.float64)
    for i in range(2):
        begin(strategy, make_task(i))
    x = inputs(dtype=torch.float64)
    old, new, laterals = strategy.model.blocks, strategy.columns[0].blocks, strategy.columns[0].laterals
    a, b = old[0](x), new[0](x)
    hidden = torch.einsum("rc,nchw->nrhw", laterals[0].V.weight[:, :, 0, 0], laterals[0].alpha[0] * a)
    hidden = (hidden + laterals[0].V.bias[:, None, None]).clamp(min=0)
    added = nn.functional.conv2d(hidden, laterals[0].U.weight, padding=1)
    a, b = old[1](a), new[1].activation(new[1].body(b) + added)
    # the head reads flattened maps: V works on their channels, position by position
    maps = a.reshape(len(x), 8, 2, 2)
    hidden = torch.einsum("rc,nchw->nrhw", laterals[1].V.weight[:, :, 0, 0], laterals[1].alpha[0] * maps)
    hidden = (hidden + laterals[1].V.bias[:, None, None]).clamp(min=0)
    logits = dense(b, strategy.heads[1]) + dense(hidden.flatten(1), laterals[1].U)
    torch.testing.assert_close(strategy.forward_task(x, 1)[:, 2:4], logits, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_old_columns_answer_bitwise_the_same_after_later_tasks(kind):
    strategy = pnn(kind)
    answers, columns = [], []
    for i in range(3):
        learn(strategy, make_task(i))
        answers.append(answer(strategy, i).logits)
        columns.append({n: p.clone() for n, p in strategy.named_parameters()})
    for i, logits in enumerate(answers):
        assert torch.equal(answer(strategy, i).logits, logits)
    assert all(torch.equal(p, columns[2][n]) for earlier in columns for n, p in earlier.items())


def test_first_column_is_the_starting_model_and_later_ones_are_new():
    strategy = pnn()
    assert torch.equal(answer(strategy, 0).logits, make_model()(inputs()))
    begin(strategy, make_task(0))
    weights = make_model().blocks[0].body[1].weight
    assert torch.equal(strategy.model.blocks[0].body[1].weight, weights)
    begin(strategy, make_task(1))
    assert not torch.equal(strategy.columns[0].blocks[0].body[1].weight, weights)
    assert torch.isfinite(answer(strategy, 2).logits).all()


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_columns_that_start_from_the_base_are_the_base_but_for_their_laterals(kind):
    strategy = pnn(kind, start="base")
    base = make_model(kind)
    for i in range(2):
        learn(strategy, make_task(i))
    assert not torch.equal(next(strategy.model.blocks.parameters()), next(base.blocks.parameters()))
    begin(strategy, make_task(2))
    for lateral in strategy.columns[1].laterals:
        nn.init.zeros_(lateral.U.weight)
    features = base.features(inputs())
    expected = features @ strategy.heads[2].weight.T + strategy.heads[2].bias
    torch.testing.assert_close(strategy.forward_task(inputs(), 2)[:, 4:], expected, rtol=0, atol=1e-6)


def test_the_base_that_columns_start_from_is_kept_and_never_trained():
    strategy, plain = pnn(start="base"), pnn()
    for i in range(3):
        assert learn(strategy, make_task(i)) == learn(plain, make_task(i))
    blocks = dict(make_model().blocks.named_parameters())
    assert all(torch.equal(p, blocks[name]) for name, p in strategy.start.named_parameters())
    kept, without = measure(strategy).parameters, measure(plain).parameters
    assert kept == {**without, "base": without["base"] + sum(p.numel() for p in blocks.values())}


def test_random_columns_beside_pretrained_weights_are_noted():
    def notes(start, pretrained):
        stream_info = dataclasses.replace(make_stream_info(), pretrained=pretrained)
        return PNN(make_model(), stream_info, PNNOptions(start=start)).notes

    assert notes("random", True) == ["pnn: later columns start from random weights, as the paper's do; with "
                                     "start = base they start from the pretrained ones"]
    assert notes("base", True) == notes("random", False) == []


def test_a_layer_that_cannot_be_drawn_anew_can_be_copied():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return (x * self.weight).clamp(min=0)

    model = Network([Block(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), Scale())], nn.Linear(5, 6))
    with pytest.raises(SpecError, match=r"blocks\.0\.activation \(Scale\) has no reset_parameters .* start = base"):
        PNN(copy.deepcopy(model), make_stream_info(), PNNOptions())
    strategy = PNN(model, make_stream_info(), PNNOptions(start="base"))
    for i in range(2):
        learn(strategy, make_task(i))
    assert answer(strategy, 1).logits.isfinite().sum() == 10


@pytest.mark.parametrize(("kind", "reduction"), [("mlp", 1), ("mlp", 5), ("mlp", 100), ("cnn", 1), ("cnn", 2)])
def test_trainable_parameters_by_formula(kind, reduction):
    strategy = pnn(kind, reduction=reduction)
    widths = [12, 12] if kind == "mlp" else [4, 8]
    reduced = [max(1, w // reduction) for w in widths]
    positions = [1, 1] if kind == "mlp" else [9, 4]  # of U: 3x3 kernel, then 2x2 flattened positions of the head
    outs = [widths[1], 2]
    blocks = sum(p.numel() for p in make_model(kind).blocks.parameters())
    head = strategy.model.head.in_features * 2 + 2
    total = 0
    for k in range(3):
        laterals = sum(k + k * w * r + r + r * s * out
                       for w, r, s, out in zip(widths, reduced, positions, outs, strict=True)) if k else 0
        assert learn(strategy, make_task(k)) == [blocks + head + laterals]
        total += blocks + laterals
    kept = measure(strategy).parameters
    assert kept == {"base": sum(p.numel() for p in strategy.model.head.parameters()), "columns": total,
                    "heads": 3 * head}


def test_scalars_start_small_and_different():
    strategy = pnn()
    for i in range(3):
        begin(strategy, make_task(i))
    alpha = torch.cat([lateral.alpha for lateral in strategy.columns[1].laterals])
    assert len(set(alpha.tolist())) == 4
    assert 0 < alpha.min() <= alpha.max() < 0.1


def test_normalization_of_old_columns_does_not_drift():
    model = make_model("cnn")
    model.blocks[1].body = nn.Sequential(model.blocks[1].body, nn.BatchNorm2d(8))
    strategy = PNN(model, make_stream_info(), PNNOptions())
    learn(strategy, make_task(0))
    before = copy.deepcopy(model.blocks[1].body[1].state_dict())
    assert before["num_batches_tracked"] == 4
    learn(strategy, make_task(1))
    second = strategy.columns[0].blocks[1].body[1].state_dict()
    assert second["num_batches_tracked"] == 4  # counted from anew in its own column
    assert all(torch.equal(value, before[name]) for name, value in model.blocks[1].body[1].state_dict().items())


def test_lateral_follows_the_geometry_of_the_block():
    geometry = {"stride": 2, "padding": 1, "dilation": 2}
    model = Network([Block(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU()), Block(nn.Conv2d(6, 4, 3, **geometry), nn.ReLU()),
                     Block(nn.Sequential(nn.Flatten(), nn.Linear(36, 5)), nn.ReLU())], nn.Linear(5, 6))
    strategy = PNN(model, make_stream_info(), PNNOptions())
    for i in range(2):
        learn(strategy, make_task(i))
    assert answer(strategy, 1).logits.isfinite().sum() == 10
    kinds = [(type(lateral.V), type(lateral.U)) for lateral in strategy.columns[0].laterals]
    assert kinds == [(nn.Conv2d, nn.Conv2d), (nn.Conv2d, nn.Linear), (nn.Linear, nn.Linear)]


def test_models_without_a_place_for_laterals_are_refused():
    class Residual(Block):
        def forward(self, x):
            return x + super().forward(x)

    two = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    for block, named in ((Residual(nn.Linear(64, 64), nn.ReLU()), "Linear"), (Block(two, nn.ReLU()), "Sequential"),
                         (Block(nn.MultiheadAttention(64, 2), nn.ReLU()), "MultiheadAttention")):
        with pytest.raises(SpecError, match=rf"pnn: no lateral connection is known for blocks\.0 \({named}\)"):
            PNN(Network([block], nn.Linear(64, 6)), make_stream_info(), PNNOptions())
    halved = Network([Block(nn.Linear(64, 64), nn.GLU())], nn.Linear(32, 6))
    with pytest.raises(SpecError, match=r"blocks\.0 gives 64 channels, which what follows it does not read"):
        PNN(halved, make_stream_info(), PNNOptions())


def test_inference_computes_each_column_once_and_answers_the_same():
    strategy = pnn(scenario="class", infer="prototype")
    for i in range(3):
        learn(strategy, make_task(i))
    strategy.eval()
    one_by_one = torch.stack([strategy.forward_task(inputs(), i) for i in range(3)])
    assert torch.equal(strategy.learned_logits(inputs()), one_by_one)
    assert set(answer(strategy).task.tolist()) <= {0, 1, 2}


def test_lateral_joins_every_layer_but_the_first():
    found = joins(make_model("cnn"))
    assert [join.channels for join in found] == [4, 8]
    assert isinstance(Lateral(found[1], 2, 3, 1, torch.zeros(1)).V, nn.Conv2d)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_two_seeds_stacked_equal_one_by_one(kind):
    check_stacking(lambda seed: pnn(kind, scenario="class", seed=seed))
    check_stacking(lambda seed: pnn(kind, seed=seed), tasks=1)
    check_stacking(lambda seed: pnn(kind, seed=seed, start="base"))
