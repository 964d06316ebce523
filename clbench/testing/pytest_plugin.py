"""Fixtures for the tests of plugins; pytest loads this wherever clbench is installed, so it imports nothing heavy.

    def test_it_keeps_the_rules(clbench_check):        # one test for each rule of clbench.testing.CHECKS
        clbench_check("my-method:strength=3")

    def test_it_remembers(clbench_bench):
        bench = clbench_bench("my-method", "task")     # on a tiny stream, as the harness leads it
        bench.learn(0)
        assert bench.strategy ...

`clbench_bench` gives a `clbench.testing.Bench`; methods are written as on the command line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from clbench.core.scenario import Scenario
    from clbench.testing import Bench


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test for each rule of one that uses `clbench_check`."""
    if "clbench_check" in metafunc.fixturenames:
        from clbench.testing import CHECKS

        metafunc.parametrize("clbench_check", CHECKS, indirect=True)


@pytest.fixture
def clbench_check(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Return `check(method)`, which raises, in words, where `name:option=value` breaks the rule at hand."""
    from clbench.core.options import parse_named
    from clbench.testing import check

    def check_rule(method: str) -> None:
        name, options = parse_named(method)
        check(name, request.param, options)

    return check_rule


@pytest.fixture
def clbench_bench() -> Callable[..., Bench]:
    """Return `bench(method, scenario="task", seed=0, model="mlp")`: `name:option=value` on a tiny stream."""
    from clbench.core.options import parse_named
    from clbench.core.registry import discover
    from clbench.testing import bench

    def make(method: str, scenario: Scenario = "task", seed: int = 0, model: str = "mlp") -> Bench:
        name, options = parse_named(method)
        return bench(discover().strategy(name), options, scenario, seed, model)

    return make
