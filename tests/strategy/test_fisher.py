import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clbench.core.errors import DivergedError
from clbench.data.samples import Samples
from clbench.models.builtin import CNNOptions, MLPOptions
from clbench.models.network import Block, Network
from clbench.models.small import cnn, mlp
from clbench.strategy.base import Strategy, StreamInfo
from clbench.strategy.fisher import diagonal_fisher, draw_labels
from clbench.strategy.per_sample_gradients import mean_gradients, per_sample_layers

CLASSES, TASKS = 5, 2


def stream_info(shape=(1, 6, 6), **extra):
    return StreamInfo(CLASSES, TASKS, "class", shape, torch.Generator().manual_seed(3), **extra)


def make(network, shape=(1, 6, 6), **extra):
    strategy = Strategy(network, stream_info(shape, **extra)).double()
    strategy.class_mask[0, [0, 2, 4]] = True
    strategy.class_mask[1, :4] = True
    return strategy


def data(n=7, shape=(1, 6, 6)):
    g = torch.Generator().manual_seed(5)
    tasks = torch.arange(n) % TASKS
    y = torch.where(tasks == 0, 2 * torch.randint(0, 3, (n,), generator=g), torch.randint(0, 4, (n,), generator=g))
    return Samples(torch.randn(n, *shape, generator=g, dtype=torch.float64), y, tasks)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def hand_loop(strategy, samples, weights):
    """weights(log_p, n) -> {label: weight}; autograd.grad on one sample at a time."""
    names = [n for n, p in strategy.named_parameters() if p.requires_grad]
    params = [p for p in strategy.parameters() if p.requires_grad]
    total = {n: torch.zeros_like(p) for n, p in zip(names, params, strict=True)}
    for i in range(len(samples)):
        x = strategy.stream_info.prepare(samples.x[i:i + 1]).double()
        on = strategy.class_mask[samples.tasks[i]].nonzero().flatten()
        log_p = F.log_softmax(strategy(x)[0, on], 0)
        for label, weight in weights(dict(zip(on.tolist(), log_p.detach().exp().tolist(), strict=True)), i).items():
            gradients = torch.autograd.grad(log_p[on.tolist().index(label)], params, retain_graph=True,
                                            allow_unused=True)
            for n, g in zip(names, gradients, strict=True):
                if g is not None:
                    total[n] += weight * g.square()
    return {n: t / len(samples) for n, t in total.items()}


def close(a, b, rtol=1e-10):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=rtol, atol=1e-14, msg=name)


class Tokens(nn.Module):
    def forward(self, x):
        return x.flatten(1).reshape(len(x), 4, -1)


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(1)


class Twice(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.scale * self.inner(torch.tanh(self.inner(x)))


class Borrowed(nn.Module):
    """A layer whose weight is also used behind its back."""

    def __init__(self, width):
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, x):
        return F.linear(torch.tanh(self.inner(x)), self.inner.weight)


def small_mlp():
    return mlp(MLPOptions(width=8), (1, 6, 6), CLASSES)


def small_cnn():
    return cnn(CNNOptions(channels=2), (1, 6, 6), CLASSES)


def odd_conv():
    conv = nn.Conv2d(1, 3, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), bias=False)
    return Network([Block(conv, nn.Sequential(nn.ReLU(inplace=True), nn.Flatten()))], nn.Linear(3 * 3 * 4, CLASSES))


def grouped():
    convs = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, groups=2))
    return Network([Block(convs, nn.Sequential(nn.Tanh(), nn.Flatten()))], nn.Linear(4 * 2 * 2, CLASSES))


def tokens():
    return Network([Block(nn.Sequential(Tokens(), nn.Linear(9, 6), nn.LayerNorm(6)), nn.Sequential(nn.Tanh(), Mean()))],
                   nn.Linear(6, CLASSES))


def shared():
    return Network([Block(nn.Sequential(nn.Flatten(), nn.Linear(36, 6), nn.Dropout(0.5)), nn.Tanh()),
                    Block(Twice(6), nn.Tanh()), Block(Borrowed(6), nn.Tanh())], nn.Linear(6, CLASSES))


NETWORKS = [small_mlp, small_cnn, odd_conv, grouped, tokens, shared]


@pytest.mark.parametrize("build", NETWORKS)
@pytest.mark.parametrize("layerwise", [True, False])
def test_exact_equals_a_loop_over_samples_and_labels(build, layerwise):
    torch.manual_seed(0)
    strategy, samples = make(build()), data()
    got = diagonal_fisher(strategy, samples, 0, generator=gen(), layerwise=layerwise)
    strategy.eval()
    close(got, hand_loop(strategy, samples, lambda p, _: p))


@pytest.mark.parametrize("build", [small_mlp, tokens])
@pytest.mark.parametrize("layerwise", [True, False])
def test_empirical_equals_a_loop_over_true_labels(build, layerwise):
    torch.manual_seed(1)
    strategy, samples = make(build()), data()
    got = diagonal_fisher(strategy, samples, 0, generator=gen(), kind="empirical", layerwise=layerwise)
    close(got, hand_loop(strategy, samples, lambda p, i: {int(samples.y[i]): 1.0}))


@pytest.mark.parametrize("layerwise", [True, False])
def test_predicted_equals_a_loop_over_the_most_probable_labels(layerwise):
    torch.manual_seed(1)
    strategy, samples = make(mlp(MLPOptions(width=5, depth=1), (1, 6, 6), CLASSES)), data()
    got = diagonal_fisher(strategy, samples, 0, generator=gen(), kind="predicted", layerwise=layerwise)
    close(got, hand_loop(strategy, samples, lambda p, i: {max(p, key=p.get): 1.0}))
    true = diagonal_fisher(strategy, samples, 0, generator=gen(), kind="empirical")
    assert any(not torch.allclose(got[name], true[name]) for name in got)


def test_layers_with_a_closed_form_are_told_from_those_without():
    torch.manual_seed(0)
    found = {}
    for build in NETWORKS:
        strategy = make(build()).eval()
        layers = per_sample_layers(strategy, dict(strategy.named_parameters()), data().x[:4], 0)
        found[build.__name__] = sorted(layer.weight.removeprefix("model.").removesuffix(".weight") for layer in layers)
    assert found == {
        "small_mlp": ["blocks.0.body.1", "blocks.1.body", "head"],
        "small_cnn": ["blocks.0.body", "blocks.1.body", "head"],
        "odd_conv": ["blocks.0.body", "head"],
        "grouped": ["blocks.0.body.0", "head"],
        "tokens": ["blocks.0.body.1", "head"],
        "shared": ["blocks.0.body.1", "head"],
    }


class Mixing(nn.Module):
    """Samples meet: no row of a layer before it belongs to one sample alone."""

    def forward(self, x):
        return x - x.mean(0, keepdim=True)


def test_layers_in_which_samples_meet_get_no_closed_form():
    torch.manual_seed(0)
    strategy = make(Network([Block(nn.Sequential(nn.Flatten(), nn.Linear(36, 4)), Mixing())], nn.Linear(4, CLASSES)))
    layers = per_sample_layers(strategy, dict(strategy.named_parameters()), data().x[:4], 0)
    assert [layer.weight for layer in layers] == ["model.head.weight"]


@pytest.mark.parametrize("layerwise", [True, False])
def test_softmax_regression_in_closed_form(layerwise):
    torch.manual_seed(2)
    strategy = make(Network([Block(nn.Flatten(), nn.Identity())], nn.Linear(9, CLASSES)), (1, 3, 3))
    samples = data(6, (1, 3, 3))
    got = diagonal_fisher(strategy, samples, 0, generator=gen(), layerwise=layerwise)
    x = strategy.stream_info.prepare(samples.x).double()
    p = torch.softmax(strategy.mask(strategy(x), samples.tasks), 1).detach()
    # d log p_c / d W_ij = (delta_ic - p_i) x_j, so sum_c p_c (delta_ic - p_i)^2 = p_i (1 - p_i)
    variance = p * (1 - p)
    torch.testing.assert_close(got["model.head.bias"], variance.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(got["model.head.weight"], variance.T @ x.flatten(1).square() / 6, rtol=1e-12, atol=0)


def test_sampled_draws_active_labels_from_the_model():
    torch.manual_seed(0)
    log_p = torch.log_softmax(torch.tensor([1.0, -torch.inf, 0.0, 2.0, -torch.inf]), 0)
    n = 20_000
    labels = draw_labels(log_p.expand(n, -1), torch.rand(n, generator=gen()))
    counts = torch.bincount(labels, minlength=5)
    assert counts[1] == counts[4] == 0
    p = log_p.exp()
    assert (counts / n - p).abs().max() < 4 * math.sqrt(0.25 / n)


def test_a_draw_of_almost_one_gives_the_last_active_label():
    log_p = torch.log_softmax(torch.tensor([[0.1, 0.2, -torch.inf], [-torch.inf, 0.3, 0.4]]), 1)
    top = torch.tensor([1 - 2**-24, 1 - 2**-24])
    assert draw_labels(log_p, top).tolist() == [1, 2]
    assert draw_labels(log_p, torch.zeros(2)).tolist() == [0, 1]


@pytest.mark.parametrize("layerwise", [True, False])
def test_sampled_uses_one_drawn_label_per_sample(layerwise):
    torch.manual_seed(0)
    strategy, samples = make(small_mlp()), data()
    got = diagonal_fisher(strategy, samples, 0, generator=gen(9), kind="sampled", layerwise=layerwise)
    u = torch.rand(len(samples), generator=gen(9)).tolist()

    def drawn(p, i):
        acc = 0.0
        for label, value in p.items():
            acc += value
            if u[i] < acc:
                return {label: 1.0}
        raise AssertionError

    close(got, hand_loop(strategy, samples, drawn))


def test_sampled_tends_to_exact():
    torch.manual_seed(0)
    strategy, one = make(small_mlp()), data(1)
    many = one.take(torch.zeros(4000, dtype=torch.int64))
    exact = diagonal_fisher(strategy, one, 0, generator=gen())
    sampled = diagonal_fisher(strategy, many, 0, generator=gen(), kind="sampled")
    for name in exact:
        assert (sampled[name] - exact[name]).norm() < 0.1 * exact[name].norm(), name


def test_limit_takes_that_many_samples_by_the_generator():
    torch.manual_seed(0)
    strategy, samples = make(small_mlp()), data(9)
    chosen = torch.randperm(9, generator=gen(4))[:3]
    close(diagonal_fisher(strategy, samples, 0, generator=gen(4), limit=3),
          diagonal_fisher(strategy, samples.take(chosen), 0, generator=gen()))
    close(diagonal_fisher(strategy, samples, 0, generator=gen(4), limit=9),
          diagonal_fisher(strategy, samples, 0, generator=gen()))


@pytest.mark.parametrize("kind", ["exact", "sampled", "empirical", "predicted"])
@pytest.mark.parametrize("layerwise", [True, False])
def test_chunks_do_not_change_the_result(monkeypatch, kind, layerwise):
    torch.manual_seed(0)
    strategy, samples = make(small_cnn()), data(7)
    whole = diagonal_fisher(strategy, samples, 0, generator=gen(), kind=kind, layerwise=layerwise)
    monkeypatch.setattr("clbench.strategy.per_sample_gradients.LARGEST_CHUNK", 3)
    close(diagonal_fisher(strategy, samples, 0, generator=gen(), kind=kind, layerwise=layerwise), whole)
    monkeypatch.setattr("clbench.strategy.per_sample_gradients.MOST_VALUES", 1)  # one sample at a time
    close(diagonal_fisher(strategy, samples, 0, generator=gen(), kind=kind, layerwise=layerwise), whole)


def test_modes_gradients_parameters_and_global_randomness_are_left_alone():
    torch.manual_seed(0)
    strategy, samples = make(grouped()), data()
    strategy.train()
    strategy.model.blocks[0].eval()
    modes = [m.training for m in strategy.modules()]
    state = {k: v.clone() for k, v in strategy.state_dict().items()}
    rng = torch.get_rng_state()
    with torch.no_grad():
        diagonal_fisher(strategy, samples, 0, generator=gen(), kind="sampled", limit=4)
    assert [m.training for m in strategy.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in strategy.state_dict().items())
    assert all(p.grad is None for p in strategy.parameters())
    assert torch.equal(torch.get_rng_state(), rng)
    assert not strategy.model.head._forward_hooks


def test_only_trainable_parameters_and_frozen_ones_change_nothing():
    torch.manual_seed(0)
    strategy, samples = make(small_mlp()), data()
    whole = diagonal_fisher(strategy, samples, 0, generator=gen())
    for name, p in strategy.named_parameters():
        p.requires_grad_(name in ("model.blocks.0.body.1.bias", "model.head.weight"))
    part = diagonal_fisher(strategy, samples, 0, generator=gen())
    close(part, {n: whole[n] for n in ("model.blocks.0.body.1.bias", "model.head.weight")})


def test_raw_samples_are_prepared_and_float32_models_agree_with_float64():
    torch.manual_seed(0)
    strategy = make(small_mlp(), prepare=lambda x: x.float() / 255)
    raw = Samples(torch.randint(0, 256, (7, 1, 6, 6), dtype=torch.uint8), data().y, data().tasks)
    got = diagonal_fisher(strategy, raw, 0, generator=gen())
    close(got, hand_loop(strategy, raw, lambda p, _: p))
    single = diagonal_fisher(strategy.float(), raw, 0, generator=gen())
    assert all(v.dtype == torch.float32 for v in single.values())
    close({n: v.double() for n, v in single.items()}, got, rtol=2e-4)


def test_confident_models_and_impossible_labels_give_no_nan():
    torch.manual_seed(0)
    strategy, samples = make(small_mlp()).float(), data()
    with torch.no_grad():
        strategy.model.head.bias[2] = 500.0
    for layerwise in (True, False):
        for v in diagonal_fisher(strategy, samples, 0, generator=gen(), layerwise=layerwise).values():
            assert torch.isfinite(v).all()


def test_nothing_to_measure_is_refused():
    strategy = make(small_mlp())
    with pytest.raises(ValueError, match="needs samples"):
        diagonal_fisher(strategy, data().take(torch.empty(0, dtype=torch.int64)), 0, generator=gen())
    strategy.requires_grad_(False)
    with pytest.raises(ValueError, match="trainable parameters"):
        diagonal_fisher(strategy, data(), 0, generator=gen())


@pytest.mark.parametrize("kind", ["exact", "sampled", "empirical", "predicted"])
def test_a_model_that_gives_nan_has_diverged(kind):
    strategy = make(small_mlp())
    with torch.no_grad():
        strategy.model.head.bias[0] = float("nan")
    with pytest.raises(DivergedError, match="NaN after task 2"):
        diagonal_fisher(strategy, data(), 1, generator=gen(), kind=kind)


def test_what_a_chunk_needed_is_not_kept_for_the_next():
    strategy = make(tokens())
    sums = mean_gradients(strategy, data(), 0, read=lambda logits, _: logits.log_softmax(1),
                          seeds=lambda out, _: [torch.ones_like(out)], measure=torch.square)
    assert any(name.endswith("bias") for name in sums) and not any(total.requires_grad for total in sums.values())
