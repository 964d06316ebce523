"""Methods on stored features: what a report of few steps, few seeds or few test samples may and may not claim."""

import base64
import zlib

import numpy as np
import pytest
from scipy import stats

import clbench
from clbench.report import build
from clbench.report.analysis.grouping import group_by_setting
from clbench.report.analysis.paired_tests import all_pairs
from clbench.report.columns import ACC

CLASSES, TRAIN = 6, 40  # training samples of each class


def clusters(draws, y):
    """Unit-length vectors around a mean of each class, as sentence embeddings are."""
    x = draws[0].normal(size=(CLASSES, 64))[y] + 1.6 * draws[1].normal(size=(len(y), 64))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def projected(draws, y):
    """Noisy images with a bright bar at a place of their class, through a random projection and a ReLU."""
    images = 0.35 * draws[1].random(size=(len(y), 12, 12))
    images[np.arange(len(y)), 2 * y] += 0.25 * draws[1].random(size=(len(y), 12))
    return np.maximum(images.reshape(len(y), -1) @ draws[0].normal(size=(144, 96)) / 12, 0)


def features(path, kind, test):
    """Write a file of features with so many test samples."""
    draws = np.random.default_rng(0), np.random.default_rng(1)
    y = np.arange(CLASSES * TRAIN + test) % CLASSES
    x = kind(draws, y).astype(np.float32)
    np.savez(path, X_train=x[test:], y_train=y[test:], X_test=x[:test], y_test=y[:test])
    return f"arrays:{path}:tasks=3"


def run(benchmark, out, **given):
    return clbench.run(benchmark=benchmark, model="linear", methods="naive,er,ncm,slda", scenario="class", workers=0,
                       out=out, **given)


@pytest.mark.parametrize("kind", [clusters, projected])
@pytest.mark.parametrize("test", [20, 2000])
@pytest.mark.slow
def test_nothing_is_claimed_that_the_features_do_not_show(tmp_path, kind, test):
    records = run(features(tmp_path / "features.npz", kind, test), tmp_path / "run", seeds=3, epochs=10)
    section, = build(records, ids=True).sections
    rows = {row.label: row for row in section.comparison.rows}
    facts, (setting,) = section.facts, group_by_setting(records)
    # twenty steps are too few for a head, and closed forms take none
    assert {label for label, row in rows.items() if "△" in row.marks} == setting.cautions.keys() == {"er", "naive"}
    assert facts.baseline.other == "naive"
    for pair in facts.baseline.pairs:  # whoever is better than a naive that is underfit
        text = section.comparison.cells("difference to naive")[list(rows).index(pair.method)].text
        assert pair.verdict != "better" or "△" in text
    for table in section.comparisons:  # whoever loses in any of them
        for row in table.rows:
            verdict = row.cells[-1].text
            loser = {"significantly better": table.title.split(" minus ")[1].split(",")[0],
                     "significantly worse": row.label}.get(" ".join(verdict.split()[:2]))
            assert loser not in setting.cautions or "△" in verdict
    # both closed forms give one result whatever the seed: it is tested over the test samples, which seeds share
    right = {label: next(r for r in records if r.label == label).items.matrix()[0].astype(float)
             for label in ("ncm", "slda")}
    pair, = (p for p in all_pairs(setting)[ACC].pairs if {p.first, p.second} == right.keys())
    assert pair.test == "crossed" or pair.equal
    if not pair.equal:
        difference = right["ncm"] - right["slda"]
        sizes = np.array(records[0].stream.test_samples)
        weights = test / (len(sizes) * sizes)  # of a sample of each task, because ACC weights tasks equally
        task_of = np.frombuffer(zlib.decompress(base64.b64decode(records[0].items.task_of)), np.uint16)
        assert np.array_equal(np.bincount(task_of), sizes)
        mean = facts.accuracy["ncm"] - facts.accuracy["slda"]
        assert mean == pytest.approx(np.mean(weights[task_of] * difference))
        t = mean / stats.sem(weights[task_of] * (difference - mean))
        assert pair.p == pytest.approx(2 * stats.t.sf(abs(t), test - 1), rel=1e-3)
    # without knowing them there are two numbers, and no test
    section, = build([r.model_copy(update={"items": None}) for r in records], ids=True).sections
    if section.facts.accuracy["ncm"] != section.facts.accuracy["slda"]:
        answer = next(text for about, text in section.headline if about == "Answer")
        assert "significantly better than all" not in answer and "not tested" in answer
        assert section.facts.best.untested
    assert any(note.startswith("Every seed gave the same result") and f"{test:,} test samples" in note
               for note in section.notes)


def test_without_a_budget_a_linear_model_learns_its_tasks(tmp_path):
    benchmark = features(tmp_path / "features.npz", clusters, 200)
    record, = clbench.run(benchmark=benchmark, model="linear", methods="er", scenario="class", workers=0, seeds=1,
                          out=tmp_path / "run")
    assert record.trial.recipe.epochs == 300 and not group_by_setting([record])[0].cautions
