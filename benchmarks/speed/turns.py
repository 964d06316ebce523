"""Run trials with and without a change in turns on one machine, for scripts that measure the gain of a change."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from clbench import Record
from clbench.core.registry import discover
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.plan import plan
from clbench.experiment.spec import Spec


def in_turns(spec: Spec, threads: int, script: str,
             before: Callable[[], AbstractContextManager[object]]) -> dict[str, list[tuple[Record, Record]]]:
    """Run each trial inside the context `before` and without it; return pairs of records by the method's label."""
    registry = discover()
    runner = TrialRunner(ExecutionSettings(threads=threads), "cpu", script, registry)
    found: dict[str, list[tuple[Record, Record]]] = {}
    for one in plan(spec, registry):
        with before():
            old = runner.run(one)
        new = runner.run(one)
        assert old.status == new.status == "done", (old.failure, new.failure)
        found.setdefault(one.label, []).append((old, new))
    return found
