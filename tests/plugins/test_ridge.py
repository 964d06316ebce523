"""`ridge` against scikit-learn's RidgeClassifier, and by least squares in float64."""

import numpy as np
import pytest
import torch
from clbench_ridge import RidgeOptions
from clbench_ridge.strategy import Ridge
from helpers.per_task import answer, inputs, learn, make_model, make_stream_info, make_task


def features(x):
    with torch.no_grad():
        return make_model().features(x).double().numpy()


def learned(tasks, strength, scenario="class"):
    strategy = Ridge(make_model(), make_stream_info(scenario), RidgeOptions(base="random", strength=strength))
    for task in tasks:
        assert learn(strategy, task) == []
    return strategy


@pytest.mark.parametrize("strength", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("counts", [(24, 24, 24), (20, 31, 57)])
def test_ridge_is_scikit_learns_ridge_classifier_on_all_samples(counts, strength):
    from sklearn.linear_model import RidgeClassifier

    tasks = [make_task(i, count=n) for i, n in enumerate(counts)]
    labels = torch.cat([t.train.y for t in tasks]).numpy()
    theirs = RidgeClassifier(alpha=strength).fit(features(torch.cat([t.train.x for t in tasks])), labels)
    logits = answer(learned(tasks, strength)).logits.numpy()
    np.testing.assert_allclose(2 * logits - 1, theirs.decision_function(features(inputs())), rtol=1e-6, atol=1e-8)


def test_ridge_minimizes_the_penalized_squared_error_and_ignores_classes_not_met():
    tasks = [make_task(i) for i in range(2)]  # classes 0 to 3 of 6
    f, y = features(torch.cat([t.train.x for t in tasks])), np.eye(6)[torch.cat([t.train.y for t in tasks]).numpy()]
    centered = f - f.mean(0)
    # Least squares with sqrt(lambda) times the identity below the samples is ridge regression.
    rows, right = np.vstack([centered, np.sqrt(0.5) * np.eye(f.shape[1])]), np.vstack([y, np.zeros((f.shape[1], 6))])
    weight = np.linalg.lstsq(rows, right, rcond=None)[0]
    logits = answer(learned(tasks, 0.5)).logits.numpy()
    np.testing.assert_allclose(logits[:, :4], ((features(inputs()) - f.mean(0)) @ weight + y.mean(0))[:, :4],
                               rtol=1e-8, atol=1e-10)
    assert np.isneginf(logits[:, 4:]).all()
