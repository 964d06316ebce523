"""The interface of plugins: the declarations that a plugin may return, and the hooks that collect them.

Declarations name their code as "module:attribute", so that listing the installed plugins does not import torch. A
plugin may give the class or function itself if the import does not matter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pluggy

from clbench.core.data_sets import DataSet
from clbench.core.errors import PluginError
from clbench.core.objective import CLASSIFICATION, OBJECTIVES, ObjectiveInfo
from clbench.core.options import NoOptions, Options
from clbench.core.pretrained import WeightsSource
from clbench.core.renamed import Renamed, old_keywords, warn
from clbench.core.scenario import SCENARIOS, Scenario

FAMILIES = ("references", "replay", "regularization", "distillation", "parameter isolation", "adapters and prompts",
            "analytic classifiers", "other", "Avalanche strategies")  # in the order in which lists show them

OLD_FAMILIES = {"parts per task": "parameter isolation"}  # until 0.3
BUDGET = {"epochs", "batch_size", "samples"}

hookspec = pluggy.HookspecMarker("clbench")
hookimpl = pluggy.HookimplMarker("clbench")


@old_keywords
@dataclass(frozen=True)
class StrategyInfo:
    """The declaration of a strategy for `--methods`: `strategy` is a `clbench.Strategy` subclass.

    `layer_rows` are the strategy's rows in the table of `clbench params --layer`, as pairs of the row's label and the
    strategy's options. `{rank}` in them stands for each value of `--rank`:
    `(("LoRA r={rank}", "rank={rank}:base=pretrained"),)`.

    `recipe` is the training configuration of its paper or reference code, without the budget:
    `{"optimizer": "adam", "lr": 0.03}`. It applies only if the user asks for it (`recipe = "published"`).

    `budget` is the training budget of the same source: `{"epochs": 20, "batch_size": 128, "samples": 5000}`, where
    `samples` is its number of training samples per task. It is never used for training. Reports compare it with the
    budget of a run on pretrained weights. If `from_scratch` says that the source trains without pretrained weights,
    they compare it with the budget of a run without weights.

    `task_free` says that the method learns from batches in order of arrival and needs neither the ends of tasks nor
    `Task.train`, so it can run with hidden boundaries. If it needs them with some of its options, the options class
    says so (`Options.needs_boundaries`). `parts_per_task` says that the method has a part for each task (adapters,
    columns, heads, prompts), so it cannot learn classes that arrive in several tasks (blur, repeat).

    `display_name` is the method's name in reports, with options in braces: `"LoRA r={rank}"`. Without one, reports use
    its name and the options that differ from the defaults: `lora:rank=8`.

    `family` is one of `FAMILIES`: the group in which lists show the method. They also show the first year in `paper`.

    `objectives` are the names in `clbench.core.objective.OBJECTIVES` that the method can train for.

    `load_model(record, folder, task)` returns the network that predicts for a task. It reads the files that the
    strategy has exported to the trial's folder (`clbench.load_model`). If it has a parameter `registry`, it also gets
    the plugins by which to build the trial's model, which can be in a file.
    """

    name: str
    strategy: str | type
    summary: str
    options: type[Options] = NoOptions
    paper: str = ""
    reference: bool = False  # whether other methods are compared with it, such as a bound; tables show it apart
    check_model: str = "mlp"  # the model of `clbench.testing.MODELS` that conformance checks use
    unavailable: str = ""  # why it cannot be run, or empty; with a reason it is not listed, and errors give the reason
    baseline: bool = False  # full fine-tuning: `clbench params` compares with it, `clbench pretrain` trains by it
    layer_rows: Sequence[tuple[str, str]] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    budget: Mapping[str, int] = field(default_factory=dict)
    from_scratch: bool = False  # whether `budget` is that of a network without pretrained weights
    load_model: str | Callable[..., Any] = ""
    task_free: bool = False
    parts_per_task: bool = False
    display_name: str = ""
    names_code: bool = False  # whether the name gives the place of the code: `package.module:Class`
    family: str = "other"
    objectives: Sequence[str] = (CLASSIFICATION.name,)
    checked_on, unusable = Renamed("check_model"), Renamed("unavailable")  # until 0.3

    def __post_init__(self) -> None:
        """Reject an unknown family and an incomplete budget.

        Raises:
            PluginError: `family` is not one of `FAMILIES`, or a part of `budget` is missing.
        """
        if self.family in OLD_FAMILIES:
            warn(f"family {self.family!r}", repr(OLD_FAMILIES[self.family]))
            object.__setattr__(self, "family", OLD_FAMILIES[self.family])
        if self.family not in FAMILIES:
            raise PluginError(f"method {self.name!r}: there is no family {self.family!r}; choose one of "
                              f"{', '.join(FAMILIES)}")
        if self.budget and (set(self.budget) != BUDGET or min(self.budget.values()) < 1):
            raise PluginError(f"method {self.name!r}: budget needs {', '.join(sorted(BUDGET))}, each above 0; got "
                              f"{dict(self.budget)}")

    @property
    def authors_steps(self) -> int:
        """Return how many optimizer steps the authors take on a task; 0 if that is not declared."""
        if not self.budget:
            return 0
        return self.budget["epochs"] * math.ceil(self.budget["samples"] / self.budget["batch_size"])

    @property
    def year(self) -> str:
        """Return the first year in `paper`; empty if there is none."""
        year = re.search(r"(?<![\d.])(?:19|20)\d\d(?!\d|\.\d)", self.paper)
        return year.group() if year else ""


@dataclass(frozen=True)
class BenchmarkInfo:
    """A benchmark: `build(options, data_dir, seed)` returns an Avalanche benchmark (`train_stream`, `test_stream`).

    With an objective other than classification, it returns a `clbench.data.raw.RawStream`.
    """

    name: str
    build: str | Callable[..., Any]
    summary: str
    options: type[Options] = NoOptions
    scenarios: Sequence[Scenario] = tuple(SCENARIOS)  # the first is the default
    seeded: bool = False  # whether the stream depends on the seed for all values of its options
    # Whether to cache the stream on disk. Options, seed, the code of its package and `files` must fully determine it.
    cached: bool = False
    any_name: bool = False  # whether `name` is a pattern, `images:*`; the call is then `build(name, options, ...)`
    suffixes: Sequence[str] = ()  # with `any_name`: suffixes of files for which it is suggested; "/" is a folder
    names_code: bool = False  # whether the name gives the place of the code: `package.module:function`
    # Data files. If the content of one changes, a cached stream is rebuilt. Either paths below the data folder, or a
    # function (or its `module:attribute`) of name, options and data folder that returns the paths of all files read.
    files: Sequence[str] | Callable[[str, Mapping[str, Any], Path], Sequence[Path]] = ()
    # A function (or its `module:attribute`) of name, options and data folder. It raises a `DataError` if the data are
    # missing or invalid. It is called before anything is trained, so it must be quick and must not import torch.
    check: str | Callable[[str, Mapping[str, Any], Path], object] = ""
    objective: str = CLASSIFICATION.name  # the training objective, unless the options have a property `objective`
    data: DataSet | None = None  # the data set, as `clbench data` shows it

    def objective_with(self, options: Options) -> ObjectiveInfo:
        """Return the training objective of the benchmark with these options."""
        return OBJECTIVES[getattr(options, "objective", None) or self.objective]


@dataclass(frozen=True)
class ModelInfo:
    """A model: `build(options, input_shape, classes)` returns a `clbench.models.Network`.

    With 0 classes, a model of text is a causal language model, whose outputs are its vocabulary.

    If the model has an option named `size`, clbench resizes images to this number of pixels, and `input_shape` contains
    it. A model of text (`text`) takes tokens, int32 [N, L]. Its name ends in `:NAME`, where NAME is the folder or
    repository of the tokenizer. `own_weights(name)` returns the file of weights that the model starts from by default.
    """

    name: str
    build: str | Callable[..., Any]
    summary: str
    options: type[Options] = NoOptions
    any_name: bool = False  # whether `name` is a pattern, `timm:*`; the call is then `build(name, options, ...)`
    weights: str | WeightsSource = "clbench.models.published:HUB"  # where published weights come from
    channels: int | None = None  # the only number of image channels it takes; gray images are repeated to match it
    text: bool = False
    own_weights: str | Callable[[str], Path] = ""


@dataclass(frozen=True)
class ReportFormat:
    """A report format: `render(report)` takes a `clbench.report.Report` and returns the file's text.

    With `ids`, the report names methods as in `--methods` (`lora:rank=8`) instead of by display name, for programs.
    """

    name: str
    suffix: str
    render: str | Callable[..., str]
    summary: str
    ids: bool = False


@dataclass(frozen=True)
class TrackerInfo:
    """An experiment logger for `--log`: `tracker(options, folder)` returns a logger for a run folder.

    The logger is a `clbench.results.tracking.Tracker`. It is created before any trial starts, so that it can raise a
    `PluginError` if something is missing. It must not write anything at that time.
    """

    name: str
    tracker: str | Callable[[Any, Path], Any]
    summary: str
    options: type[Options] = NoOptions


@hookspec
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Return the strategies that this plugin provides."""
    return ()


@hookspec
def clbench_benchmarks() -> Sequence[BenchmarkInfo]:
    """Return the benchmarks that this plugin provides."""
    return ()


@hookspec
def clbench_models() -> Sequence[ModelInfo]:
    """Return the models that this plugin provides."""
    return ()


@hookspec
def clbench_report_formats() -> Sequence[ReportFormat]:
    """Return the report formats that this plugin provides."""
    return ()


@hookspec
def clbench_trackers() -> Sequence[TrackerInfo]:
    """Return the experiment loggers that this plugin provides; a run uses only the loggers that the user names."""
    return ()
