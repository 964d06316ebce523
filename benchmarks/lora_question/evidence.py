"""Read the committed studies with LoRA and their rows, and select the row that represents a method in a study."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from clbench.core.errors import ClbenchError
from clbench.core.scenario import scenario_rules
from clbench.experiment.trial import Trial
from clbench.report.analysis.readable import name_settings
from clbench.report.columns import with_task_ids
from clbench.results import metrics
from clbench.results.records import Record
from clbench.results.store import Store

ROOT = Path(__file__).resolve().parents[2]
LORA, DEFAULT_RANK = "lora", 4
MODEL_NAMES = {"mlp": "MLP", "resnet20": "ResNet-20", "timm:vit_small_patch14_dinov2": "ViT-S/14",
               "timm:efficientnet_lite0": "EfficientNet-Lite0", "hf:all-MiniLM-L6-v2": "MiniLM"}
BENCHMARK_NAMES = {"split-cifar100": "Split-CIFAR-100", "split-mnist": "Split-MNIST", "split-newsgroups":
                   "Split-Newsgroups", "permuted-mnist": "Permuted-MNIST", "split-mnist-5k": "Split-MNIST-5k"}
DRAWS = ("test_per_class", "train_draw", "test_draw")  # options that choose the images of a stream
DESCRIPTIVE = ("lora_question/answer_budget",)  # folders whose study has no verdicts, by its protocol
Measure = Callable[[Record], float]


def accuracy(record: Record) -> float:
    """Return the final average accuracy in percent."""
    return 100 * metrics.acc(record.R)


def accuracy_with_ids(record: Record) -> float | None:
    """Return the final average accuracy in percent if the task ID is given; None if the record does not have it."""
    known = with_task_ids(record)
    return None if known is None else 100 * known


@dataclass(frozen=True)
class Row:
    """The finished trials of one method in one study, by seed."""

    label: str
    trials: Mapping[int, Record]
    own_label: bool = False  # whether the study's file gives the row a label
    tuned_elsewhere: bool = False  # whether a study that differs only in its test samples tuned the method

    @property
    def first(self) -> Record:
        """Return the trial of the first seed."""
        return self.trials[min(self.trials)]

    @property
    def name(self) -> str:
        """Return the name of the method."""
        return self.first.trial.method.name

    @property
    def tuned(self) -> bool:
        """Return whether a search chose the options or the training configuration."""
        return self.tuned_elsewhere or self.first.searched is not None

    @property
    def learning_rate(self) -> float:
        """Return the learning rate of training."""
        return self.first.trial.trained_by.lr

    @property
    def trainable(self) -> int:
        """Return the number of parameters that the last task trains."""
        return self.first.costs.trainable[-1]

    @property
    def storage(self) -> int:
        """Return the bytes that the method stores after the last task."""
        return sum(self.first.costs.bytes[-1].values())

    @property
    def parameters(self) -> list[int]:
        """Return the number of stored parameters after each task."""
        return [sum(roles.values()) for roles in self.first.costs.parameters]

    def option(self, name: str) -> Any:
        """Return the value of an option; None if the method has no such option."""
        return self.first.trial.method.options.get(name)

    def options_except(self, *names: str) -> dict[str, Any]:
        """Return all other options."""
        return {name: value for name, value in self.first.trial.method.options.items() if name not in names}

    def mean(self, measure: Measure = accuracy, seeds: Iterable[int] | None = None) -> float:
        """Return the mean of a measure over the seeds, or over some of them."""
        return fmean(measure(self.trials[seed]) for seed in (self.trials if seeds is None else seeds))


@dataclass(frozen=True)
class Study:
    """A section of a committed report: one stream, scenario, backbone and training configuration, with its methods."""

    folder: str  # path below reports/
    rows: tuple[Row, ...]

    @property
    def trial(self) -> Trial:
        """Return the definition of the first trial."""
        return self.rows[0].first.trial

    @property
    def scenario(self) -> str:
        """Return the scenario."""
        return self.trial.scenario

    @property
    def setting(self) -> tuple[str, ...]:
        """Return what defines the study's setting: stream, scenario, backbone and LoRA's number of steps per task.

        Which images of the stream are drawn, and how many for the test, does not count.
        """
        trial = self.trial
        options = {name: value for name, value in trial.benchmark.options.items() if name not in DRAWS}
        return (trial.benchmark.name, str(sorted(options.items())), *trial.environment[1:4],
                f"steps={self.rows_of(LORA)[0].first.costs.steps}")

    @property
    def scenario_title(self) -> str:
        """Return the scenario as it is written in prose, such as Class-IL."""
        return scenario_rules(self.scenario).title

    @property
    def pretrained(self) -> bool:
        """Return whether the network starts from published weights or a pretrained backbone."""
        return self.trial.weights is not None

    @property
    def name(self) -> str:
        """Return the study's folder and scenario, which identify it."""
        return f"{self.folder.removeprefix('lora_question/')} ({self.scenario_title})"

    @property
    def description(self) -> str:
        """Return the stream and the backbone."""
        trial = self.trial
        size = trial.model.options.get("size")
        backbone = MODEL_NAMES.get(trial.model.name, trial.model.name) + (f" at {size} px" if size else "")
        backbone += ", pretrained" if self.pretrained else ""
        all_images = ", all test images" if trial.benchmark.options.get("test_per_class", "all") is None else ""
        return f"{BENCHMARK_NAMES.get(trial.benchmark.name, trial.benchmark.name)}, {backbone}{all_images}"

    @property
    def report(self) -> str:
        """Return the path of the report, from the project's root."""
        return f"reports/{self.folder}/report.md"

    def rows_of(self, *names: str) -> list[Row]:
        """Return the rows of some methods, in the order of the names."""
        return [row for name in names for row in self.rows if row.name == name]

    def variants(self, *names: str) -> list[Row]:
        """Return the rows of some methods, but only the best one of rows that differ only in training configuration.

        Rows with a label of their own, such as `lora-head-rate`, are left out if there is one without. In Task-IL, rows
        that also differ in their way to infer the task count as one row too.
        """
        groups: dict[tuple[str, str], list[Row]] = {}
        for row in self.rows_of(*names):
            options = row.options_except("infer") if self.scenario == "task" else row.options_except()
            groups.setdefault((row.name, str(options)), []).append(row)
        return [best_row([row for row in rows if not row.own_label] or rows) for rows in groups.values()]

    def main_row(self, *names: str) -> Row | None:
        """Return the row that represents some methods: the one with the highest mean accuracy.

        LoRA is represented by a row of rank 4 if the study has one.
        """
        rows = self.variants(*names)
        if names == (LORA,):
            rows = [row for row in rows if row.option("rank") == DEFAULT_RANK] or rows
        return best_row(rows) if rows else None


def best_row(rows: Iterable[Row]) -> Row:
    """Return the row with the highest mean accuracy."""
    return max(rows, key=lambda row: row.mean())


def read_studies(reports: Path = ROOT / "reports") -> list[Study]:
    """Return the sections with LoRA of all committed reports on accuracy, in the order of their folders."""
    studies: list[Study] = []
    folders = sorted(path.parent for path in reports.glob("**/records"))
    for folder in [path for path in folders if str(path.relative_to(reports)) not in DESCRIPTIVE]:
        records, problems = Store(folder).read()
        if problems:
            raise ClbenchError(f"{folder} has unreadable records: {problems}")
        own_labels = {record.key for record in records if record.label.partition(":")[0] != record.trial.method.name}
        for setting in name_settings(records):
            rows = tuple(Row(methods.label, {record.trial.seed: record for record in methods.done},
                             methods.done[0].key in own_labels)
                         for methods in sorted(setting.methods, key=lambda methods: methods.label) if methods.done)
            if any(row.name == LORA and not row.first.metric for row in rows):  # an empty metric means accuracy
                studies.append(Study(str(folder.relative_to(reports)), rows))
    if any(row.first.until for study in studies for row in study.rows):
        raise ClbenchError("the intervals of these pages do not account for `--until decided`")
    tuned = {(study.setting, row.first.trial.method_config) for study in studies for row in study.rows if row.tuned}
    return [replace(study, rows=tuple(
        replace(row, tuned_elsewhere=(study.setting, row.first.trial.method_config) in tuned) for row in study.rows))
        for study in studies]
