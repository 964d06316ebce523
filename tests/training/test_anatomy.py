"""Parts of errors against brute force, and a planted bias that must be found."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clbench.core.hookspecs import StrategyInfo
from clbench.strategy.base import Prediction, Strategy
from clbench.testing.tiny import bench
from clbench.training.callbacks.error_decomposition import (
    ErrorDecomposition,
    best_constants,
    count_correct,
    divides,
    find_corrected,
    halves,
)
from clbench.training.evaluation import evaluate

TASKS = [[0, 1], [2, 3], [4, 5]]


class Told(Strategy):
    """Answers what it is told: logits of all test samples, and perhaps guessed tasks and logits where it is given."""

    def predict(self, x, task=None):
        rows = self.order[(x.reshape(len(x), -1)[:, None] == self.known[None]).all(2).float().argmax(1)]
        if task is not None and self.own is not None:
            return Prediction(self.own[rows])
        return Prediction(self.logits[rows], None if self.guess is None else self.guess[rows])


def told(logits, guess=None, own=None):
    """Return a bench whose strategy has these logits [72, 6] on the tiny stream's test samples, task after task."""
    b = bench(StrategyInfo("x", Told, ""), {}, "class")
    tests = b.stream.tests
    b.strategy.known = tests.x.reshape(len(tests.y), -1)
    b.strategy.order = torch.arange(len(tests.y))
    b.strategy.logits, b.strategy.guess, b.strategy.own = logits, guess, own
    return b


def take_apart(b, learned=3):
    """Return the counts of a row of R."""
    anatomy, replica = ErrorDecomposition(each=True), b.replica
    counter = anatomy.make_counter(b.stream, "class", learned)
    row = evaluate(b.strategy, b.stream, "class", learned, on_batch=counter.add)
    anatomy.add(replica, counter, learned)
    counts, = replica.errors
    assert [r / n for r, n in zip(counts.right, counts.samples, strict=True)] == row.accuracy[:learned]
    return counts


@given(st.integers(0, 2**31), st.integers(1, 3))
@settings(max_examples=8, deadline=None)
def test_parts_sum_to_the_error_and_agree_with_a_count_by_hand(seed, learned):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(72, 6, generator=generator)
    b = told(logits)
    counts = take_apart(b, learned)
    right, own, pairs = [0] * learned, [0] * learned, [[0] * learned for _ in range(learned)]
    for z, y, t in zip(logits.tolist(), b.stream.tests.y.tolist(), b.stream.tests.tasks.tolist(), strict=True):
        if t < learned:
            winner = max(range(2 * learned), key=lambda c: z[c])
            right[t] += winner == y
            own[t] += max(TASKS[t], key=lambda c: z[c]) == y
            pairs[t][winner // 2] += 1
    assert (counts.right, counts.given, counts.tasks) == (right, own, pairs)
    wrong = sum(counts.samples) - sum(right)
    within, mended, left = (sum(a) - sum(b) for a, b in itertools.pairwise(
        [counts.samples, counts.given, counts.corrected, counts.right][i] for i in (0, 1, 2, 3)))
    assert within + mended + left == wrong
    assert all(c <= g for c, g in zip(counts.corrected, counts.given, strict=True))


@given(st.integers(0, 2**31))
@settings(max_examples=8, deadline=None)
def test_parts_of_a_method_that_infers_the_task_sum_to_the_error(seed):
    generator = torch.Generator().manual_seed(seed)
    logits, own = torch.randn(2, 72, 6, generator=generator)
    guess = torch.randint(0, 3, (72,), generator=generator)
    b = told(logits, guess, own)
    counts = take_apart(b)
    y, t = b.stream.tests.y, b.stream.tests.tasks
    free = logits.argmax(1) == y
    correct_given_task = torch.stack([own[i, TASKS[k]].argmax() + 2 * k == y[i] for i, k in enumerate(t.tolist())])
    lost = correct_given_task & ~free
    by_hand = {"given": correct_given_task, "misguided": lost & (guess != t), "outdone": lost & (guess == t),
               "only_unguided": free & ~correct_given_task}
    for name, which in by_hand.items():
        assert getattr(counts, name) == [int(which[t == k].sum()) for k in range(3)]
    assert not counts.corrected
    assert sum(counts.samples) - sum(counts.right) == (
        sum(counts.samples) - sum(counts.given) + sum(counts.misguided) + sum(counts.outdone)
        - sum(counts.only_unguided))


@pytest.mark.parametrize("size", [0.7, 3.0, 40.0])
def test_a_planted_bias_of_the_head_is_found_with_its_size_and_mended(size):
    b = told(torch.zeros(72, 6))
    y, t = b.stream.tests.y, b.stream.tests.tasks
    clean = torch.nn.functional.one_hot(y, 6) * 1.0 + 0.1 * torch.rand(72, 6, generator=torch.manual_seed(0))
    clean[:12] = clean[:12].roll(1, 1)  # half of the first task is wrong without any bias
    before = take_apart(told(clean))
    biased = clean.clone()
    biased[:, TASKS[2]] += size
    after = take_apart(told(biased))
    assert after.given == before.given
    assert after.corrected == before.corrected
    assert after.right == (before.right if size < 0.9 else [0, 0, 24])
    scores = biased.view(72, 3, 2).amax(2).double()
    found = best_constants(scores[12:], t[12:])
    assert abs(float(found[2] - found[:2].mean()) + size) <= 1.1  # the gap between classes leaves that room
    assert count_correct(scores[12:], t[12:], found) == 60


def test_constants_do_not_mend_what_is_confused_in_both_ways():
    y = told(torch.zeros(72, 6)).stream.tests.y
    logits = torch.nn.functional.one_hot(y, 6).double()
    swapped = torch.arange(72) % 3 == 0
    logits[swapped] = logits[swapped].roll(2, 1)  # a third of each task's samples looks like the next task's
    counts = take_apart(told(logits.float()))
    assert counts.right == counts.corrected == [16, 16, 16]


@given(st.integers(0, 2**31), st.integers(2, 3), st.integers(3, 9))
@settings(max_examples=40, deadline=None)
def test_the_ascent_against_an_exhaustive_search(seed, tasks, samples):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(samples, tasks, generator=generator, dtype=torch.float64)
    task = torch.randint(0, tasks, (samples,), generator=generator)
    found = best_constants(scores, task)
    reached = count_correct(scores, task, found)
    gaps = sorted({float(a - b) for row in scores for a in row for b in row})
    grid = [gaps[0] - 1, gaps[-1] + 1, *((a + b) / 2 for a, b in itertools.pairwise(gaps)),
            *(a + 1e-6 for a in gaps)]
    alone = [max(count_correct(scores, task, found.scatter(0, torch.tensor([k]), found[k] + g)) for g in grid)
             for k in range(tasks)]
    assert max(alone) <= reached  # no single constant can be bettered
    if tasks == 2:
        assert reached == max(count_correct(scores, task, torch.tensor([0.0, g])) for g in grid)


def test_halves_alternate_within_each_class_and_fitting_never_sees_the_samples_it_mends():
    y = torch.randint(0, 4, (50,), generator=torch.Generator().manual_seed(0))
    half = halves(y)
    for c in range(4):
        assert half[y == c].tolist() == [i % 2 for i in range(int((y == c).sum()))]
    scores = torch.randn(50, 2, generator=torch.Generator().manual_seed(1)).double()
    task, correct_within_task = y // 2, torch.ones(50, dtype=torch.bool)
    mended = find_corrected(scores, task, correct_within_task, half)
    changed = replace_rows(scores, half == 0, 9.0)
    assert torch.equal(find_corrected(changed, task, correct_within_task, half)[half == 0],
                       (changed + best_constants(changed[half == 1], task[half == 1])).argmax(1)[half == 0]
                       == task[half == 0])
    assert mended[half == 0].tolist() == ((scores + best_constants(scores[half == 1], task[half == 1])).argmax(1)
                                          == task)[half == 0].tolist()


def replace_rows(scores, rows, factor):
    scores = scores.clone()
    scores[rows] *= factor
    return scores


def test_outputs_that_no_sample_reaches_do_no_harm():
    scores = torch.tensor([[0.0, float("-inf")], [1.0, float("-inf")], [float("-inf"), float("-inf")]])
    task = torch.tensor([0, 1, 1])
    assert count_correct(scores.double(), task, best_constants(scores.double(), task)) == 1


def test_errors_are_laid_to_tasks_only_where_tasks_compete_and_share_no_class():
    stream = bench(StrategyInfo("x", Strategy, ""), {}, "class").stream
    assert divides(stream, "class")
    assert not divides(stream, "task")
    assert not divides(stream, "domain")
    again = replace(stream, tasks=(stream.tasks[0], replace(stream.tasks[1], classes=(1, 2)), stream.tasks[2]))
    assert not divides(again, "class")
