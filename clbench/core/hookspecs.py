"""Everything a plugin can bring: the declarations it may return, and the hooks that collect them.

Declarations name their code as "module:attribute", so listing what is installed imports no torch. A plugin that does
not mind the import may give the class or function itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pluggy

from clbench.core.moved import Renamed, old_keywords
from clbench.core.options import NoOptions, Options
from clbench.core.scenario import SCENARIOS, Scenario

hookspec = pluggy.HookspecMarker("clbench")
hookimpl = pluggy.HookimplMarker("clbench")


@old_keywords
@dataclass(frozen=True)
class StrategyInfo:
    """A strategy as named in `--methods`: `strategy` is a `clbench.Strategy` subclass."""

    name: str
    strategy: str | type
    summary: str
    options: type[Options] = NoOptions
    paper: str = ""
    reference: bool = False  # whether it is a bound such as naive or joint, set apart in tables
    check_model: str = "mlp"  # the model of `clbench.testing.MODELS` that checks use, if the method needs a certain one
    unavailable: str = ""  # why it cannot be run, if so: it is not listed, and asking for it gives this reason
    checked_on, unusable = Renamed("check_model"), Renamed("unavailable")  # until 0.3


@dataclass(frozen=True)
class BenchmarkInfo:
    """A benchmark: `build(options, data_dir, seed)` returns an Avalanche benchmark (`train_stream`, `test_stream`)."""

    name: str
    build: str | Callable[..., Any]
    summary: str
    options: type[Options] = NoOptions
    scenarios: Sequence[Scenario] = tuple(SCENARIOS)  # the first is the default
    seeded: bool = False  # whether the stream depends on the seed whatever its options are
    cached: bool = False  # whether it is cached on disk, which requires that options, seed and its package define it
    any_name: bool = False  # whether `name` is a pattern, `images:*`: it is then `build(name, options, ...)`


@dataclass(frozen=True)
class ModelInfo:
    """A model: `build(options, input_shape, classes)` returns a `clbench.models.Network`."""

    name: str
    build: str | Callable[..., Any]
    summary: str
    options: type[Options] = NoOptions
    any_name: bool = False  # whether `name` is a pattern, `timm:*`: it is then `build(name, options, ...)`


@dataclass(frozen=True)
class ReportFormat:
    """A report format: `render(report)` takes a `clbench.report.Report` and returns the file's text."""

    name: str
    suffix: str
    render: str | Callable[..., str]
    summary: str


@dataclass(frozen=True)
class TrackerInfo:
    """A tracker as named in `--log`: `tracker(options, folder)` returns one for a run folder.

    It is a `clbench.results.tracking.Tracker`, made before any trial starts, so that it can say what is missing (a
    `PluginError`), and then writes nothing.
    """

    name: str
    tracker: str | Callable[[Any, Path], Any]
    summary: str
    options: type[Options] = NoOptions


@hookspec
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Return the strategies that this plugin brings."""
    return ()


@hookspec
def clbench_benchmarks() -> Sequence[BenchmarkInfo]:
    """Return the benchmarks that this plugin brings."""
    return ()


@hookspec
def clbench_models() -> Sequence[ModelInfo]:
    """Return the models that this plugin brings."""
    return ()


@hookspec
def clbench_report_formats() -> Sequence[ReportFormat]:
    """Return the report formats that this plugin brings."""
    return ()


@hookspec
def clbench_trackers() -> Sequence[TrackerInfo]:
    """Return the trackers that this plugin brings; each is off until a run names it."""
    return ()
