"""`adapt = bottleneck`: RanPAC and APER adapt a pretrained vision transformer in the first task."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from clbench_acil import ACILOptions
from clbench_acil.strategy import ACIL
from clbench_prototypes import APEROptions, RanPACOptions
from clbench_prototypes.ranpac import RanPAC
from clbench_prototypes.simplecil import APER
from clbench_ridge import RidgeOptions
from clbench_ridge.strategy import Ridge
from helpers.per_task import make_model, make_stream_info

from clbench.core.errors import SpecError
from clbench.core.hookspecs import StrategyInfo
from clbench.core.registry import discover
from clbench.experiment.plan import plan
from clbench.experiment.spec import build
from clbench.testing.tiny import MODELS, bench
from clbench.training.costs import measure

KINDS = {"aper": (APER, APEROptions), "ranpac": (RanPAC, RanPACOptions)}


def adapted(method, model="vit", **options):
    """Return a method whose network is taken for a pretrained one."""
    cls, kind = KINDS[method]

    class Given(cls):
        def __init__(self, model, stream_info, options=None):
            super().__init__(model, dataclasses.replace(stream_info, pretrained=True), options)

    return bench(StrategyInfo(method, Given, "", kind), {"adapt": "bottleneck", **options}, "class", model=model)


def planned(method, model="vit-tiny:width=8:depth=2:heads=2:patch=4", pretrained=True):
    spec = build({"methods": [method], "model": model, "scenario": "class", "seeds": 1})
    return plan(spec, discover(), pretrained=pretrained, side=28)[0].trial


@pytest.mark.parametrize(("method", "model", "pretrained", "adapt"), [
    ("ranpac", "vit-tiny:width=8:depth=2:heads=2:patch=4", True, "bottleneck"),
    ("ranpac", "vit-tiny:width=8:depth=2:heads=2:patch=4", False, None), ("ranpac", "mlp", True, None),
    ("ranpac", "cnn", True, None), ("ncm", "vit-tiny:width=8:depth=2:heads=2:patch=4", True, None),
    ("simplecil", "vit-tiny:width=8:depth=2:heads=2:patch=4", True, None),
    ("slda", "vit-tiny:width=8:depth=2:heads=2:patch=4", True, None),
    ("fecam", "vit-tiny:width=8:depth=2:heads=2:patch=4", True, None)])
def test_the_plan_settles_who_has_a_first_session(method, model, pretrained, adapt):
    trial = planned(method, model, pretrained)
    assert trial.method.options.get("adapt") == adapt
    if adapt is None and method == "ranpac":
        assert trial.key == planned("ranpac:adapt=none", model, pretrained).key


def test_aper_is_simplecil_with_bottlenecks_and_both_features_where_it_can_be():
    vit = planned("aper").method.options
    assert vit["adapt"] == "bottleneck" and "both" not in vit  # both = true is the default
    info = discover().strategy("aper")
    assert info.options.stored(vit).both
    mlp = planned("aper", "mlp").method.options
    assert (mlp["adapt"], mlp["both"]) == ("none", False)
    assert not info.options.stored(mlp).both


def test_both_is_refused_if_auto_means_no_adapters():
    assert planned("ranpac:both=true").method.options["both"]
    for model, pretrained in (("mlp", True), ("vit-tiny:width=8:depth=2:heads=2:patch=4", False)):
        with pytest.raises(SpecError, match="both = true has an effect only with adapters, and adapt = auto puts none"):
            planned("ranpac:both=true", model, pretrained)


@pytest.mark.parametrize(("cls", "options"), [
    (APER, APEROptions()), (RanPAC, RanPACOptions()), (ACIL, ACILOptions(adapt="auto"))])
def test_options_that_no_plan_settled_mean_the_same(cls, options):
    for model, adapt, factor in (("vit", "bottleneck", 1 + options.both), ("mlp", "none", 1)):
        network = MODELS[model]((1, 8, 8), 6)
        strategy = cls(network, make_stream_info("class", pretrained=True), options)
        assert (strategy.options.adapt, strategy.options.both) == (adapt, factor == 2)
        assert bool(strategy.adapted) == (adapt == "bottleneck")
        if hasattr(strategy, "projection"):
            assert strategy.projection.shape[0] == factor * network.head.in_features


def test_the_first_task_trains_bottlenecks_of_width_64_and_later_tasks_nothing():
    b = adapted("ranpac", projections=20)
    b.replica.begin(0)
    assert all(layer.adapters[0].dropout.training for layer in b.strategy.adapted.values())
    assert not any(layer.block.training for layer in b.strategy.adapted.values())
    b = adapted("ranpac", projections=20)
    start = {n: t.clone() for n, t in b.strategy.model.state_dict().items()}
    b.learn(0)
    after = {n: t.clone() for n, t in b.strategy.model.state_dict().items()}
    frozen = [n for n in start if n.startswith("blocks.")]
    assert frozen and all(torch.equal(start[n], after[n]) for n in frozen)
    assert not any(m.training for m in b.strategy.model.modules())
    for layer in b.strategy.adapted.values():
        bottleneck, = layer.adapters
        assert bottleneck.down.out_features == 64 and bottleneck.scale == 0.1 and bottleneck.up.weight.abs().max() > 0
    assert b.strategy.phases(b.replica.task(1)) == 0
    b.learn(1)
    assert all(torch.equal(t, after[n]) for n, t in b.strategy.model.state_dict().items())
    assert measure(b.strategy).parameters["adapters"] == sum(
        p.numel() for n, p in b.strategy.named_parameters() if ".adapters." in n)


def test_aper_compares_with_class_means_of_both_features_by_the_closed_form():
    b = adapted("aper", both=True)
    plain = bench(discover().strategy("naive"), {}, "class", model="vit").strategy.model.eval()
    for index in range(2):
        b.learn(index)
    prepare, means = b.strategy.stream_info.prepare, []
    blocks = list(b.strategy.adapted.values())

    def both(x):
        with torch.no_grad():
            features = plain.features(prepare(x)).double()
            hooks = [getattr(inner, "norm2").register_forward_pre_hook(  # noqa: B009
                lambda _, given, at=i: seen.__setitem__(at, given[0])) for i, inner in enumerate(
                    m for m in plain.modules() if hasattr(m, "norm2") and hasattr(m, "mlp"))]
            outs = [m.register_forward_hook(lambda _, __, out, at=i: out + 0.1 * blocks[at].adapters[0].up(F.relu(
                blocks[at].adapters[0].down(seen[at])))) for i, m in enumerate(
                    m for m in plain.modules() if hasattr(m, "norm2") and hasattr(m, "mlp"))]
            seen = {}
            other = plain.features(prepare(x)).double()
            for hook in (*hooks, *outs):
                hook.remove()
        return torch.cat([features, other], 1).numpy()

    for index in range(2):
        task = b.replica.task(index)
        f, y = both(task.train.x), task.train.y.numpy()
        means += [f[y == c].mean(0) for c in task.classes]
    x = b.stream.tasks[0].test.x
    f, m = both(x), np.stack(means)
    wanted = (f / np.linalg.norm(f, axis=1)[:, None]) @ (m / np.linalg.norm(m, axis=1)[:, None]).T
    with torch.no_grad():
        ours = b.strategy(prepare(x)).numpy()[:, :4]
    np.testing.assert_allclose(ours, wanted, atol=1e-5)


@pytest.mark.parametrize("method", KINDS)
def test_a_record_says_that_there_was_no_first_session(method):
    note = f"{method}: without the first session of the paper (adapt = none)"
    assert note in adapted(method, adapt="none", **({"both": False} if method == "aper" else {})).strategy.notes
    assert note not in adapted(method).strategy.notes
    cls, options = KINDS[method]
    untrained = cls(make_model(), make_stream_info("class"), options()).notes  # its base learns the first task
    assert untrained == (["aper: the network has no adapters (adapt = none), so it equals simplecil"]
                         if method == "aper" else [])


# projections = 0


def data(mean=0.0):
    """Return features [90, 12] of three classes in equal numbers, with this mean, and one-hot labels [90, 6]."""
    generator = torch.Generator().manual_seed(0)
    f = torch.randn(90, 12, dtype=torch.float64, generator=generator)
    y = torch.arange(90) % 3
    f[:, 0] += y
    return f - f.mean(0) + mean, F.one_hot(y, 6).double()


def on_features(cls, options, f, y):
    """Return a method with 12 features that has learned these."""
    strategy = cls(make_model(), make_stream_info("class", pretrained=True), options)
    assert strategy.sums.shape[1] == f.shape[1]
    with torch.no_grad():
        strategy.take_in(f, y)
        strategy.refit()
    return strategy


@pytest.mark.parametrize("strength", [1e-3, 1.0, 100.0])
def test_without_random_projections_ranpac_is_ridge_on_centered_features(strength):
    f, y = data()
    ranpac = on_features(RanPAC, RanPACOptions(projections=0, ridge=strength, adapt="none"), f, y)
    ridge = on_features(Ridge, RidgeOptions(strength=strength), f, y)
    torch.testing.assert_close(ranpac.weight[:3], ridge.weight[:3], rtol=1e-9, atol=1e-12)
    # The labels are centered on their mean, 1/3 for each of the three classes.
    torch.testing.assert_close(ridge.score(f)[:, :3] - ranpac.score(ranpac.map(f))[:, :3],
                               torch.full((90, 3), 1 / 3, dtype=torch.float64))
    assert torch.equal(ridge.score(f)[:, :3].argmax(1), ranpac.score(ranpac.map(f))[:, :3].argmax(1))


def test_without_random_projections_the_rule_is_the_authors_solve_with_their_ridge():
    f, y = data(mean=0.7)
    ranpac = on_features(RanPAC, RanPACOptions(projections=0, adapt="none"), f, y)
    ridge = float(ranpac.ridge)
    assert ridge in [10.0**power for power in range(-8, 9)]
    g, q = f.numpy().T @ f.numpy(), f.numpy().T @ y.numpy()
    theirs = np.linalg.solve(g + ridge * np.eye(12), q).T
    np.testing.assert_allclose(ranpac.weight.numpy(), theirs, rtol=1e-6, atol=1e-9)
    assert not measure(ranpac).parameters.get("projection")
    assert torch.equal(ranpac.map(f), f) and (f < 0).any()
