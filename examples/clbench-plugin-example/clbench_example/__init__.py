"""Declarations of the plugin: names, options and the place of the code. They do not import torch."""

from collections.abc import Sequence

from pydantic import Field

from clbench import BenchmarkInfo, Options, ReportFormat, StrategyInfo, hookimpl


class NoisyOptions(Options):
    """Options of `noisy-digits`."""

    tasks: int = Field(4, ge=1, description="tasks, each noisier than the one before")
    noise: float = Field(40.0, ge=0, description="standard deviation of the noise that a task adds, of 255 gray values")


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Return the strategy."""
    return [StrategyInfo("mean-imm", "clbench_example.strategy:MeanIMM", "averages the weights over tasks",
                         paper="Lee et al. 2017, arXiv 1703.08475")]


@hookimpl
def clbench_benchmarks() -> Sequence[BenchmarkInfo]:
    """Return the benchmark. All tasks have the same labels, so the scenario is `domain`."""
    return [BenchmarkInfo("noisy-digits", "clbench_example.benchmark:noisy_digits",
                          "the ten digits of 5,000 MNIST images under ever more noise; offline", NoisyOptions,
                          scenarios=("domain",), cached=True)]


@hookimpl
def clbench_report_formats() -> Sequence[ReportFormat]:
    """Return the report format. `clbench report --format rst` writes report.rst."""
    return [ReportFormat("rst", ".rst", "clbench_example.report:render", "the comparison as reStructuredText")]
