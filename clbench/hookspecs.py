"""The whole plugin surface: what a plugin may return, and the hooks that collect it.

Declarations name their code as "module:attribute", so listing what is installed imports no torch. A plugin that does
not mind the import may give the class or function itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pluggy

from clbench.options import NoOptions, Options

if TYPE_CHECKING:
    from clbench.records import Record

Scenario = Literal["task", "class", "domain"]
hookspec = pluggy.HookspecMarker("clbench")
hookimpl = pluggy.HookimplMarker("clbench")


@dataclass(frozen=True)
class StrategyInfo:
    """A strategy as it stands in `--methods`: `strategy` is a `clbench.Strategy` subclass."""

    name: str
    strategy: str | type
    summary: str
    options: type[Options] = NoOptions
    paper: str = ""
    reference: bool = False  # a bound such as naive or joint, set apart in tables


@dataclass(frozen=True)
class BenchmarkInfo:
    """A benchmark: `build(options, data_dir, seed)` returns an Avalanche benchmark (`train_stream`, `test_stream`)."""

    name: str
    build: str | Callable[..., Any]
    summary: str
    options: type[Options] = NoOptions
    scenarios: Sequence[Scenario] = ("task", "class", "domain")  # the first is the default
    seeded: bool = False  # whether the stream itself depends on the seed whatever its options


@dataclass(frozen=True)
class ModelInfo:
    """A model: `build(options, input_shape, classes)` returns a `clbench.models.Network`."""

    name: str
    build: str | Callable[..., Any]
    summary: str
    options: type[Options] = NoOptions


@dataclass(frozen=True)
class ReportFormat:
    """A report format: `render(report)` takes a `clbench.report.Report` and returns the file's text."""

    name: str
    suffix: str
    render: str | Callable[..., str]
    summary: str


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
def clbench_record(record: Record) -> None:
    """Observe a finished trial (a tracker); called in the main process, once per new record."""
