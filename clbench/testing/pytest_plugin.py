"""Pytest fixtures for tests of plugins. pytest loads this module wherever clbench is installed, so imports are light.

    def test_it_keeps_the_rules(clbench_check):        # one test for each rule of clbench.testing.CHECKS
        clbench_check("my-method:strength=3")

    def test_it_remembers(clbench_bench):
        bench = clbench_bench("my-method", "task")     # on a tiny stream, trained as by the harness
        bench.learn(0)
        assert bench.strategy ...

`clbench_bench` returns a `clbench.testing.Bench`. Methods are written as on the command line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from clbench.core.scenario import Scenario
    from clbench.testing import Bench


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize each test that uses `clbench_check` by the rules in `CHECKS`."""
    if "clbench_check" in metafunc.fixturenames:
        from clbench.testing import CHECKS

        metafunc.parametrize("clbench_check", CHECKS, indirect=True)


@pytest.fixture
def clbench_check(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Return `check(method)`, which raises if a method `name:option=value` breaks the rule of the test."""
    from clbench.core.options import parse_named
    from clbench.testing import check

    def check_rule(method: str) -> None:
        name, options = parse_named(method)
        check(name, request.param, options)

    return check_rule


@pytest.fixture
def clbench_bench() -> Callable[..., Bench]:
    """Return `bench(method, scenario="task", seed=0, model=None)`, for a method `name:option=value`.

    Without a model, it is the one for checks in the method's declaration (`StrategyInfo.check_model`).
    """
    from clbench.core.options import parse_named
    from clbench.core.registry import discover
    from clbench.testing import bench

    def make(method: str, scenario: Scenario = "task", seed: int = 0, model: str | None = None) -> Bench:
        name, options = parse_named(method)
        return bench(discover().strategy(name), options, scenario, seed, model)

    return make
