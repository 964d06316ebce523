"""One measurement of `scaling.py`: run the trials of an experiment and return the cost of each task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from contenders_clbench import execute

from clbench.experiment.spec import build


def answer(request: dict[str, Any], started: float) -> dict[str, Any]:
    """Run the trials several times, each time from the start and after a warm-up, and return the cost of each time."""
    return {"runs": [once(request, started) for _ in range(request["repeats"])]}


def once(request: dict[str, Any], started: float) -> dict[str, Any]:
    """Run the trials; return wall seconds, seconds by task (means over trials) and the final number of parameters."""
    run = execute(build(request["spec"]), Path(request["data_dir"]), request["how"], request["threads"], started)
    count = len(run.records)
    per_task = {phase: [sum(values) / count for values in zip(*(getattr(r.timings, phase) for r in run.records),
                                                              strict=True)]
                for phase in ("train", "consolidate", "evaluate")}
    return {"whole": run.whole, **per_task, "parameters": sum(run.records[0].costs.parameters[-1].values())}
