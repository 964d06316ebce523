"""Grids that `clbench tune` widens while the best candidate is at an edge."""

import pytest

from clbench.core.registry import discover
from clbench.execution.samplers import Grid, next_value, sampler_for
from clbench.execution.tuning import rows_of
from clbench.experiment.search import Choices, Range
from clbench.experiment.spec import build


def ask_until_done(grid, score):
    """The candidates of each round, as tuples of values, where a candidate has a score."""
    rounds = []
    while candidates := grid.ask():
        rounds.append([tuple(c.values()) for c in candidates])
        grid.tell([score(**c) for c in candidates])
    return rounds


def grid_of(widen=2, whole=(), refuse=lambda candidate: "", **values):
    return Grid({option: Choices(values=tuple(axis)) for option, axis in values.items()}, whole, widen, refuse)


@pytest.mark.parametrize(("inwards", "whole", "expected"), [
    ([3e-3, 1e-3, 3e-4, 1e-4], False, 1e-2),  # 1, 3, 10, 30 stays so on both sides
    ([1e-2, 3e-3, 1e-3], False, 3e-2),
    ([1e-4, 3e-4, 1e-3], False, 3e-5),
    ([3e-5, 1e-4, 3e-4], False, 1e-5),
    ([3e-5, 1e-5], False, 1e-4),  # of two values half a decade apart too
    ([1e-5, 3e-5], False, 3e-6),
    ([1e-3, 3e-3], False, 3e-4),
    ([1e-2, 3e-3], False, 3e-2),
    ([100.0, 10.0], False, 1000.0),
    ([2.0, 8.0], False, 0.5),
    ([4, 2, 1], True, 8),
    ([1, 2, 4], True, None),  # no whole number follows 1
    ([0.0, 0.5, 1.0], False, -0.5),  # not all positive: the difference at the edge
    ([1e-3, 1e-4, 0.0], False, 1.9e-3),
    ([1001.5, 1001.0], False, 1001.5 * 1001.5 / 1001.0),  # three digits would not be beyond the edge
])
def test_an_axis_is_continued_beyond_its_edge(inwards, whole, expected):
    value = next_value(inwards, whole)
    assert type(value) is type(expected) and (value is None or value == pytest.approx(expected, rel=1e-12))


@pytest.mark.parametrize(("peak", "rounds"), [
    (3e-4, [[1e-4, 3e-4, 1e-3]]),  # the best is inside
    (1e-3, [[1e-4, 3e-4, 1e-3], [3e-3]]),  # at the high end, and the new value is worse
    (3e-3, [[1e-4, 3e-4, 1e-3], [3e-3], [1e-2]]),
    (1.0, [[1e-4, 3e-4, 1e-3], [3e-3], [1e-2]]),  # two steps at most
    (1e-4, [[1e-4, 3e-4, 1e-3], [3e-5]]),
    (1e-9, [[1e-4, 3e-4, 1e-3], [3e-5], [1e-5]]),
])
def test_widening_follows_the_best_to_either_end_for_two_steps(peak, rounds):
    found = ask_until_done(grid_of(lr=[1e-4, 3e-4, 1e-3]), lambda lr: 1 / (1 + max(lr / peak, peak / lr)))
    assert [[values[0] for values in candidates] for candidates in found] == rounds


def test_without_steps_nothing_is_widened_and_more_steps_go_further():
    def widened(widen):
        return ask_until_done(grid_of(widen, lr=[1.0, 10.0]), lambda lr: lr)[1:]

    assert widened(0) == [] and widened(1) == [[(100.0,)]] and widened(3) == [[(100.0,)], [(1000.0,)], [(10000.0,)]]


def test_both_axes_are_widened_in_a_round_with_the_corner():
    grid = grid_of(lr=[1e-5, 3e-5], head_lr=[1e-3, 3e-3])
    rounds = ask_until_done(grid, lambda lr, head_lr: 1 / (1 + max(lr / 1e-4, 1e-4 / lr) + head_lr))
    assert rounds == [
        [(1e-5, 1e-3), (1e-5, 3e-3), (3e-5, 1e-3), (3e-5, 3e-3)],
        [(1e-5, 3e-4), (3e-5, 3e-4), (1e-4, 1e-3), (1e-4, 3e-3), (1e-4, 3e-4)],  # 1e-4, 3e-4 is the corner
        # the best is (1e-4, 3e-4), again a corner
        [(1e-5, 1e-4), (3e-5, 1e-4), (1e-4, 1e-4), (3e-4, 1e-3), (3e-4, 3e-3), (3e-4, 3e-4), (3e-4, 1e-4)]]
    assert grid.added == {"lr": [1e-4, 3e-4], "head_lr": [3e-4, 1e-4]}
    assert grid.notes[0] == ("lr was widened to 1e-4 and 3e-4, because the best mean was at an edge of the values")


def test_values_that_are_no_numbers_or_alone_are_no_edge():
    grid = grid_of(way=["a", "b"], flag=[True, False], mixed=[1, "none"], alone=[3.0])
    assert len(ask_until_done(grid, lambda way, flag, mixed, alone: 1.0)) == 1


@pytest.mark.parametrize("no_result", [0.0, -float("inf")])  # of a metric of which higher or lower values are better
def test_without_any_result_there_is_no_best_to_widen_from(no_result):
    assert ask_until_done(grid_of(lr=[1.0, 10.0]), lambda lr: no_result) == [[(1.0,), (10.0,)]]


def test_a_grid_is_widened_for_a_metric_of_which_lower_values_are_better():
    def nll(lr):
        return 1 + max(lr / 1e-4, 1e-4 / lr)

    rounds = ask_until_done(grid_of(lr=[1e-3, 3e-3]), lambda lr: -nll(lr) if lr < 3e-3 else -float("inf"))
    assert [[values[0] for values in candidates] for candidates in rounds] == [[1e-3, 3e-3], [3e-4], [1e-4]]


def test_the_order_of_the_values_does_not_matter():
    assert ask_until_done(grid_of(lr=[10.0, 1.0, 1.0]), lambda lr: lr)[1:] == [[(100.0,)], [(1000.0,)]]


def test_a_refused_value_is_noted_and_ends_that_side():
    grid = grid_of(refuse=lambda c: "lr: should be less than 2" if c["lr"] >= 2 else "", lr=[0.5, 1.0])
    assert ask_until_done(grid, lambda lr: lr) == [[(0.5,), (1.0,)]]
    assert grid.ask() == [] and grid.notes == ["lr=2 was not tried: lr: should be less than 2"]


def test_a_refused_combination_is_left_out_and_the_others_are_tried():
    refuse = lambda c: "too much" if c["a"] * c["b"] > 150 else ""  # noqa: E731
    grid = grid_of(1, refuse=refuse, a=[1.0, 10.0], b=[1.0, 10.0])
    rounds = ask_until_done(grid, lambda a, b: a + (5 if b == 1 else 0))
    assert rounds[1] == [(1.0, 0.1), (10.0, 0.1), (100.0, 1.0), (100.0, 0.1)]  # (100, 10) is left out
    assert "a=100 b=10 was not tried: too much" in grid.notes


def test_whole_numbers_end_above_zero():
    grid = grid_of(whole=["rank"], rank=[1, 2])
    assert ask_until_done(grid, lambda rank: 1 / rank) == [[(1,), (2,)]]
    assert grid.notes == ["rank was not widened beyond 1: no positive whole number continues the values"]


def test_ranges_and_grids_above_the_trials_are_not_widened():
    pytest.importorskip("optuna")
    for space, trials in (({"a": Choices(values=(1.0, 2.0, 3.0))}, 2), ({"a": Range(low=1, high=2)}, 3)):
        sampler = sampler_for(space, [], trials, widen=2)
        count = 0
        while candidates := sampler.ask():
            count += len(candidates)
            sampler.tell([c["a"] for c in candidates])
        assert not isinstance(sampler, Grid) and count == trials


@pytest.mark.parametrize(("method", "axis", "rounds", "notes"), [
    ("ewc", {"strength": [0.0, 1.0]}, [[(0.0,), (1.0,)]],
     ["strength=-1 was not tried: tune.ewc.strength: "
     "should be greater than or equal to 0, got -1"]),
    ("lora", {"rank": [1, 2]}, [[(1,), (2,)]], ["rank was not widened beyond 1"]),
    ("naive", {"recipe": {"weight_decay": [0.0, 0.1]}}, [[(0.0,), (0.1,)]],
     ["recipe.weight_decay=-0.1 was not tried: recipe.weight_decay: "]),
])
def test_the_limits_of_an_option_are_kept(method, axis, rounds, notes):
    row, = rows_of(build({"methods": [method], "tune": {method: axis}}), discover(), 4, widen=2)
    assert ask_until_done(row.sampler, lambda **c: 1 / (1 + next(iter(c.values())))) == rounds
    assert [note[:len(start)] for note, start in zip(row.sampler.notes, notes, strict=True)] == notes
