"""`ncm`, `simplecil`, `slda` and `ranpac`: against float64 computations by hand, scikit-learn and least squares."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from clbench_prototypes import FeCAMOptions, NCMOptions, RanPACOptions, SimpleCILOptions, SLDAOptions
from clbench_prototypes.closed_form import LinearRule
from clbench_prototypes.fecam import FeCAM
from clbench_prototypes.ncm import NCM
from clbench_prototypes.ranpac import RIDGES, RanPAC
from clbench_prototypes.simplecil import SimpleCIL
from clbench_prototypes.slda import SLDA
from helpers.per_task import answer, inputs, learn, make_model, make_stream_info, make_task
from helpers.training import loop

from clbench.core.errors import SpecError
from clbench.core.registry import discover
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.plan import plan
from clbench.experiment.spec import Recipe, build
from clbench.testing.tiny import bench
from clbench.training.costs import measure
from clbench.training.evaluation import evaluate

KINDS = {"ncm": (NCM, NCMOptions), "simplecil": (SimpleCIL, SimpleCILOptions), "slda": (SLDA, SLDAOptions),
         "ranpac": (RanPAC, RanPACOptions), "fecam": (FeCAM, FeCAMOptions)}
D, C = 12, 6


def closed_form(method, scenario="class", **options):
    cls, declared = KINDS[method]
    return cls(make_model(), make_stream_info(scenario), declared(**{"base": "random", **options}))


def features(x):
    with torch.no_grad():
        return make_model().features(x).double().numpy()


def data(tasks):
    return features(torch.cat([t.train.x for t in tasks])), torch.cat([t.train.y for t in tasks]).numpy()


def one_hot(labels):
    return np.eye(C)[labels]


def learned(method, tasks, **options):
    strategy = closed_form(method, **options)
    for task in tasks:
        assert learn(strategy, task) == []
    return strategy


def test_ncm_gives_the_nearest_mean_and_half_the_squared_distance():
    tasks = [make_task(i) for i in range(3)]
    f, y = data(tasks)
    means = np.stack([f[y == c].mean(0) for c in range(C)])
    distances = ((features(inputs())[:, None] - means) ** 2).sum(2)
    logits = answer(learned("ncm", tasks)).logits.numpy()
    assert (logits.argmax(1) == distances.argmin(1)).all()
    np.testing.assert_allclose(logits - logits[:, :1], (distances[:, :1] - distances) / 2, rtol=1e-9, atol=1e-12)


def test_ncm_normalized_is_icarls():
    tasks = [make_task(i) for i in range(3)]
    f, y = data(tasks)
    f /= np.linalg.norm(f, axis=1, keepdims=True)
    means = np.stack([f[y == c].mean(0) for c in range(C)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    x = features(inputs())
    cosine = x / np.linalg.norm(x, axis=1, keepdims=True) @ means.T
    np.testing.assert_allclose(answer(learned("ncm", tasks, normalize=True)).logits.numpy(), cosine - 0.5, rtol=1e-9)


def test_simplecil_is_the_cosine_with_means_of_features_as_they_are():
    tasks = [make_task(i) for i in range(3)]
    f, y = data(tasks)
    means = np.stack([f[y == c].mean(0) for c in range(C)])
    x = features(inputs())
    cosine = x @ means.T / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(means, axis=1)
    logits = answer(learned("simplecil", tasks)).logits.numpy()
    np.testing.assert_allclose(logits, cosine, rtol=1e-9)
    other = answer(learned("ncm", tasks, normalize=True)).logits.numpy() + 0.5
    assert np.abs(logits - other).max() > 1e-6  # whose means are of features scaled first


@pytest.mark.parametrize("counts", [(24, 24, 24), (20, 31, 57)])
@pytest.mark.parametrize("shrinkage", [1e-4, 0.3])
def test_slda_is_scikit_learns_linear_discriminant_analysis(counts, shrinkage):
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    tasks = [make_task(i, count=n) for i, n in enumerate(counts)]
    f, y = data(tasks)
    within = f - np.stack([f[y == c].mean(0) for c in range(C)])[y]
    spread = np.trace(within.T @ within) / len(f) / D
    # It shrinks towards the identity times the mean variance v, we towards the identity: with s v / (1 - s) = epsilon /
    # (1 - epsilon) its covariance is ours times (1 - s) / (1 - epsilon).
    theirs = shrinkage / (shrinkage + (1 - shrinkage) * spread)
    other = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=theirs).fit(f, y)
    x = features(inputs())
    expected = (other.decision_function(x) - np.log(other.priors_)) * (1 - theirs) / (1 - shrinkage)
    logits = answer(learned("slda", tasks, shrinkage=shrinkage)).logits.numpy()
    np.testing.assert_allclose(logits - logits[:, :1], expected - expected[:, :1], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("given", [None, 50.0])
def test_ranpac_is_ridge_regression_on_all_samples(given):
    tasks = [make_task(i) for i in range(3)]
    strategy = learned("ranpac", tasks, projections=30, ridge=given)
    f, y = data(tasks)
    h = np.maximum(f @ strategy.projection.double().numpy(), 0)
    ridge = strategy.ridge.item() if given is None else given
    system = torch.from_numpy(np.vstack([h, ridge**0.5 * np.eye(30)]))
    right = torch.from_numpy(np.vstack([one_hot(y), np.zeros((30, C))]))
    expected = torch.linalg.lstsq(system, right, driver="gelsd").solution
    torch.testing.assert_close(strategy.weight.T, expected, rtol=1e-6, atol=1e-8)
    x = torch.from_numpy(np.maximum(features(inputs()) @ strategy.projection.double().numpy(), 0))
    torch.testing.assert_close(answer(strategy).logits, x @ strategy.weight.T)


@pytest.mark.parametrize(("count", "projections"), [(40, 100), (150, 20)])  # fewer samples than projections, and more
def test_ranpac_chooses_the_ridge_on_a_fifth_of_the_tasks_training_samples(count, projections):
    strategy = closed_form("ranpac", projections=projections)
    tasks = [make_task(i, count=count) for i in range(2)]
    for task in tasks:
        draws = torch.Generator()
        draws.set_state(strategy.stream_info.generator.get_state())
        learn(strategy, task)
    order = torch.randperm(count, generator=draws).numpy()
    fit, held = order[:int(0.8 * count)], order[int(0.8 * count):]
    assert len(held) == count // 5
    f, y = data(tasks[-1:])
    h = np.maximum(f @ strategy.projection.double().numpy(), 0)
    errors = [np.square(h[held] @ np.linalg.solve(h[fit].T @ h[fit] + ridge * np.eye(projections),
                                                  h[fit].T @ one_hot(y[fit])) - one_hot(y[held])).mean()
              for ridge in RIDGES if ridge >= 1e-4]
    best = RIDGES[4 + int(np.argmin(errors))]
    assert 1e-4 < best < 1e8 and strategy.ridge.item() == best


def test_the_projection_is_the_papers_size_for_its_network_and_drawn_from_the_seed():
    assert closed_form("ranpac").projection.shape == (D, 5 * D)
    assert torch.equal(closed_form("ranpac").projection, torch.randn(D, 5 * D, generator=make_stream_info().generator))
    with torch.device("meta"):
        model = make_model()
        model.head = torch.nn.Linear(768, C)
    assert RanPAC(model, make_stream_info(), RanPACOptions(base="random")).projection.shape == (768, 10_000)


@pytest.mark.parametrize("method", KINDS)
def test_the_order_of_tasks_does_not_matter(method):
    tasks = [make_task(i, count=n) for i, n in enumerate((24, 30, 50))]
    other = [dataclasses.replace(tasks[i], index=position) for position, i in enumerate((2, 0, 1))]
    one, two = (learned(method, order) for order in (tasks, other))
    if method == "ranpac":
        # The ridge r is the last task's. Rounding of G moves a solution by up to eps * cond(G + r I) of itself: with a
        # norm of G of 2e3, 4e-13 at r = 1, far below rtol, but 4e-9 at the r = 1e-4 of the first order, and 4e-5 at
        # the smallest r.
        one.ridge = two.ridge = one.ridge.new_ones(())
    rules = [s.rule() if isinstance(s, LinearRule) else (*map(s.metric, map(s.met.index, range(C))), s.means)
             for s in (one, two)]
    for a, b in zip(*rules, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("method", KINDS)
def test_labels_that_come_back_are_one_class(method):
    parts = [make_task(i, classes=(0, 1)) for i in range(2)]
    whole = dataclasses.replace(parts[0], train=parts[0].train.concat(parts[0].train, parts[1].train))
    one, two = learned(method, parts, scenario="domain"), learned(method, [whole], scenario="domain")
    assert torch.equal(one.counts, torch.tensor([24.0, 24, 0, 0, 0, 0], dtype=torch.float64))
    torch.testing.assert_close(one.sums, two.sums)
    assert answer(one).logits.isneginf().sum(0).tolist() == [0, 0, 5, 5, 5, 5]


@pytest.mark.parametrize("method", KINDS)
def test_the_first_task_trains_the_network_as_naive_does_and_nothing_is_trained_after(method):
    ours, naive = (bench(discover().strategy(name), {}, "class") for name in (method, "naive"))
    for b in (ours, naive):
        b.learn(0)
    network = {n: p.clone() for n, p in ours.strategy.model.state_dict().items()}
    assert all(torch.equal(network[n], p) for n, p in naive.strategy.model.state_dict().items())
    ours.learn(1)
    assert all(torch.equal(network[n], p) for n, p in ours.strategy.model.state_dict().items())
    assert not any(p.requires_grad for p in ours.strategy.parameters())
    done, = loop([ours.strategy], Recipe(iterations=1), [0]).take_task_steps([ours.replica.task(2)])
    assert (done.steps, done.trainable, done.diverged) == (0, 0, None)


@pytest.mark.parametrize("method", KINDS)
def test_a_given_task_that_is_to_come_is_answered_by_the_starting_network(method):
    strategy = learned(method, [make_task(0), make_task(1)], scenario="task")
    assert answer(strategy, 1).logits.isneginf().sum(0).tolist() == [0, 0, 0, 0, 5, 5]
    assert torch.equal(answer(strategy, 2).logits, make_model()(inputs()).detach())
    assert torch.equal(answer(closed_form(method)).logits, make_model()(inputs()).detach())


def test_only_the_classes_of_a_given_task_compete():
    b = bench(discover().strategy("ncm"), {}, "task")
    for index in range(3):
        b.learn(index)
    apart, together = (evaluate(b.strategy, b.stream, scenario, learned=3).accuracy for scenario in ("task", "class"))
    assert all(a >= t for a, t in zip(apart, together, strict=True)) and sum(apart) > sum(together)


def test_what_is_kept_by_formula():
    base = 64 * 12 + 12 + 12 * 12 + 12 + 12 * 6 + 6
    tasks = [make_task(0), make_task(1)]
    kept = {m: measure(learned(m, tasks, **({"projections": 30} if m == "ranpac" else {}))) for m in KINDS}
    assert kept["ncm"].parameters == kept["slda"].parameters == {"base": base, "heads": C * D + C}
    assert kept["simplecil"].bytes == kept["ncm"].bytes
    assert kept["ncm"].bytes == {"base": 4 * base, "heads": 8 * (C * D + C), "prototypes": 8 * (C * D + C)}
    assert kept["slda"].bytes == {**kept["ncm"].bytes, "second moments": 8 * D * D}
    assert kept["ranpac"].bytes == {"base": 4 * base, "heads": 8 * (C * 30 + C + 1), "projection": 4 * D * 30,
                                    "prototypes": 8 * (C * 30 + C), "second moments": 8 * 30 * 30}
    assert all(k.replay_samples == 0 for k in kept.values())


@pytest.mark.parametrize("method", KINDS)
def test_refusals_name_the_method(method):
    with pytest.raises(SpecError, match=f"{method}: base = pretrained needs a pretrained model"):
        closed_form(method, base="pretrained")


def test_a_run_records_no_steps_after_the_first_task_and_stacks():
    spec = build({"methods": ["slda"], "model": "mlp:width=16", "scenario": "class", "seeds": 2,
                  "recipe": {"iterations": 3}})
    planned = plan(spec, discover())
    runner = TrialRunner(ExecutionSettings(data=Path(os.environ["CLBENCH_DATA"])), "cpu", "a test")
    stacked, alone = runner.run_stack(planned), [runner.run(one) for one in planned]
    for record, other in zip(stacked, alone, strict=True):
        assert record.status == "done", record.failure
        assert record.costs.steps == [3, 0, 0, 0, 0] and record.costs.trainable[1:] == [0] * 4
        assert record.costs.trainable[0] == 784 * 16 + 16 + 16 * 16 + 16 + 16 * 10 + 10
        np.testing.assert_allclose(record.R, other.R, atol=0.01)
    assert stacked[0].R != stacked[1].R
