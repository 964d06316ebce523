"""The committed study of the stability gap says what its records give."""

import sys

import pytest
from helpers import ROOT
from helpers.curves import make_curve

sys.path.insert(0, str(ROOT / "benchmarks"))
import stability_gap

from clbench.results.stats import mean_interval
from clbench.results.store import Store


@pytest.fixture(scope="module")
def records():
    found, problems = Store(ROOT / "reports" / "stability_gap").read()
    assert not problems
    return found


def test_its_table_is_that_of_the_records(records):
    assert stability_gap.table(records) in (ROOT / "reports/stability_gap/gap.md").read_text()


def test_er_falls_below_what_it_was_and_becomes_and_naive_does_not_recover(records):
    """Counted anew from the right answers; all tasks have 200 test samples."""
    apart = {"er": [], "naive": []}
    for record in (r for r in records if r.label in apart):
        falls, rises = [], []
        for t in range(1, 5):
            old = [sum(record.curve.right[t][j][p] for j in range(t)) / (200 * t)
                   for p, step in enumerate(record.curve.steps[t]) if 0 < step <= 100]
            falls.append(sum(record.curve.after[t - 1]) / (200 * t) - min(old))
            rises.append(sum(record.curve.after[t][:t]) / (200 * t) - min(old))
        apart[record.label].append((sum(falls) / 4, sum(rises) / 4))
    falls, rises = (mean_interval(side) for side in zip(*apart["er"], strict=True))
    assert falls.n == rises.n == 10 and falls.low > 0.3 and rises.low > 0.2
    assert max(rise for _, rise in apart["naive"]) < 0.01


def test_the_step_of_the_others_knows_nothing_of_a_seeds_own_least():
    """Two seeds that are lowest at different steps are each asked at the other's."""
    one, other = make_curve(), make_curve()
    one.right[1][0][3], other.right[1][0][7] = 10, 20
    assert stability_gap.of_others([one, other], 0, 1) == 0.6 and stability_gap.early(one, 1)[3] == 0.1
