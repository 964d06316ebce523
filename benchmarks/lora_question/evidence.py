"""What a claim is tested by: committed studies, their methods' results, and differences that are paired by seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from clbench.report.analysis.grouping import by_setting
from clbench.report.analysis.readable import row_ids
from clbench.report.formatting import number
from clbench.results import metrics
from clbench.results.records import Record
from clbench.results.sequential import interval_of
from clbench.results.stats import Interval
from clbench.results.store import Store

MARGIN = 0.02  # ACC that a method may be worse and still be called as good
Verdict = Literal["holds", "does not hold", "not decided"]
PRETRAINED, NOT_PRETRAINED = "on pretrained bases", "on bases that are not pretrained"
MEANINGS = {"task": "with the task id", "class": "without the task id", "domain": "where tasks share their classes"}
NAMES = {"mlp": "MLP", "resnet20": "ResNet-20", "timm:vit_small_patch14_dinov2": "ViT-S/14",
         "timm:efficientnet_lite0": "EfficientNet-Lite0", "hf:all-MiniLM-L6-v2": "MiniLM"}
BASES = {"task1": "trained on task 1", "random": "random weights"}


@dataclass(frozen=True)
class Row:
    """A method's finished trials in one study, by seed."""

    label: str
    trials: Mapping[int, Record]
    searched_there: bool = False  # whether a study that trains the same, and is tested on other samples, searched it

    @property
    def searched(self) -> bool:
        """Tell whether its options come from a search."""
        return self.searched_there or self.first.searched is not None

    @property
    def name(self) -> str:
        """Return the strategy's name."""
        return self.first.trial.method.name

    @property
    def first(self) -> Record:
        """Return the trial of the first seed."""
        return self.trials[min(self.trials)]

    def option(self, name: str) -> Any:
        """Return the value of an option; None if the method has no such."""
        return self.first.trial.method.options.get(name)

    def but(self, *names: str) -> dict[str, Any]:
        """Return all other options."""
        return {name: value for name, value in self.first.trial.method.options.items() if name not in names}

    @property
    def lr(self) -> float:
        """Return the learning rate that it was trained with."""
        return self.first.trial.trained_by.lr

    @property
    def trainable(self) -> int:
        """Return what the last task trained."""
        return self.first.costs.trainable[-1]

    def values(self, of: Callable[[Record], float]) -> dict[int, float]:
        """Return a figure of each seed."""
        return {seed: of(record) for seed, record in self.trials.items()}

    def mean(self, of: Callable[[Record], float]) -> float:
        """Return a figure's mean over seeds."""
        return fmean(self.values(of).values())


@dataclass(frozen=True)
class Study:
    """A section of a committed report: one benchmark, scenario, model and recipe, and its methods."""

    folder: str  # under reports/
    rows: tuple[Row, ...]

    @property
    def first(self) -> Record:
        """Return some trial."""
        return self.rows[0].first

    @property
    def scenario(self) -> str:
        """Return the scenario."""
        return self.first.trial.scenario

    @property
    def stream(self) -> tuple[str, ...]:
        """Return what it shares with a study of another scenario on the same benchmark, model and recipe."""
        benchmark, _, *rest = self.first.trial.setting
        return benchmark, *rest

    @property
    def training(self) -> tuple[str, ...]:
        """Return what it shares with a study that is tested on other samples: its setting without their number."""
        benchmark = self.first.trial.benchmark
        options = {name: value for name, value in benchmark.options.items() if name != "test_per_class"}
        return benchmark.name, str(sorted(options.items())), *self.first.trial.setting[1:]

    @property
    def pretrained(self) -> bool:
        """Tell whether the network comes with weights."""
        return self.first.trial.weights is not None

    @property
    def base(self) -> str:
        """Return what trained the weights that LoRA keeps frozen."""
        if self.pretrained:
            return "pretrained"
        bases = {row.option("base") for row in self.named("lora")}
        return " or ".join(words for base, words in BASES.items() if base in bases)

    @property
    def model(self) -> str:
        """Return the network's name, with what tells two studies of one network apart."""
        model = self.first.trial.model
        size = model.options.get("size")
        return NAMES.get(model.name, model.name) + (f" at {size} px" if size else "")

    @property
    def where(self) -> str:
        """Return the setting in a few words, with a link to its report."""
        benchmark = self.first.trial.benchmark
        tested = ", all test images" if benchmark.options.get("test_per_class", "all there are") is None else ""
        name = f"{benchmark.name}, {self.model}, {self.scenario}{tested}"
        return f"[{name}](../reports/{self.folder}/report.md)"

    @property
    def facts(self) -> tuple[str, ...]:
        """Return what the table of settings says of it."""
        trial = self.first.trial
        recipe = trial.recipe
        seeds = {len(row.trials) for row in self.rows}
        count = str(max(seeds)) if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
        steps = {row.first.costs.steps[0] for row in self.rows if row.name in ("naive", "lora")}
        searched = [row for row in self.rows if row.searched]
        return (self.where, str(len(self.first.R[0])), self.base, count,
                f"{recipe.optimizer}, lr {recipe.lr:g}", " or ".join(f"{n:,}" for n in sorted(steps)),
                "all" if len(searched) == len(self.rows) else f"{len(searched)} of {len(self.rows)} rows")

    def named(self, name: str, **options: Any) -> list[Row]:
        """Return the rows of a strategy, those with these options."""
        return [row for row in self.rows if row.name == name
                and all(row.option(key) == value for key, value in options.items())]


@dataclass(frozen=True)
class Finding:
    """What one study says of a claim."""

    setting: str
    text: str
    verdict: Verdict
    traits: Mapping[str, str] = field(default_factory=dict)  # of the setting, by which settings can be told apart


@dataclass(frozen=True)
class Claim:
    """A sentence, the rule that it is judged by, and the test that applies the rule to all studies."""

    sentence: str
    rule: str
    test: Callable[[Sequence[Study]], Iterable[Finding]]
    planned: tuple[str, ...] = ()  # experiments beside this file that will test it
    remark: str = ""


def studies(reports: Path) -> list[Study]:
    """Return the sections of the committed reports that have `lora` in them, in the order of their folders.

    Of sections that share benchmark, scenario, model, recipe and a row, the one with most methods.
    """
    found: list[Study] = []
    for folder in sorted(path.parent for path in reports.glob("**/records")):
        records, problems = Store(folder).read()
        assert not problems, problems
        called = row_ids(records)
        for setting in by_setting(records):
            rows = tuple(Row(called.get(m.label, m.label), {r.trial.seed: r for r in m.done})
                         for m in sorted(setting.methods, key=lambda m: m.label) if m.done)
            if any(row.name == "lora" for row in rows):
                found.append(Study(str(folder.relative_to(reports)), rows))
    known = {(study.training, row.first.trial.row) for study in found for row in study.rows if row.searched}
    found = [replace(study, rows=tuple(replace(row, searched_there=(study.training, row.first.trial.row) in known)
                                       for row in study.rows)) for study in found]
    kept: list[Study] = []
    for study in sorted(found, key=lambda study: -len(study.rows)):
        if not any(repeats(study, other) for other in kept):
            kept.append(study)
    return sorted(kept, key=found.index)


def repeats(study: Study, other: Study) -> bool:
    """Tell whether two sections have a setting and a row in common."""
    return study.first.trial.setting == other.first.trial.setting and bool(
        {row.first.trial.row for row in study.rows} & {row.first.trial.row for row in other.rows})


def gaps(first: Row, second: Row, of: Callable[[Record], float] = lambda r: metrics.acc(r.R)) -> dict[int, float]:
    """Return the difference first - second for each seed of both."""
    one, other = first.values(of), second.values(of)
    return {seed: round(one[seed] - other[seed], 12) for seed in sorted(one.keys() & other.keys())}


def paired(first: Row, second: Row, of: Callable[[Record], float] = lambda r: metrics.acc(r.R)) -> Interval | None:
    """Return the mean difference first - second over the seeds of both, with its interval; None without such seeds."""
    differences = list(gaps(first, second, of).values())
    return interval_of(differences, first.first.until or second.first.until) if differences else None


def points(over: Interval) -> str:
    """Write a difference in points with the ends of its interval."""
    mean = f"{100 * over.mean:+.1f}"
    if over.low is None or over.high is None:
        return f"{mean} (one seed)"
    return f"{mean} [{100 * over.low:+.1f}, {100 * over.high:+.1f}]"


def percent(value: float) -> str:
    """Write an accuracy."""
    return f"{number(value, 'percent')} %"


def times(ratio: float) -> str:
    """Write a ratio."""
    return f"{ratio:,.0f}" if ratio >= 9.95 else f"{ratio:.1f}"


def above(over: Interval, bound: float) -> Verdict:
    """Judge whether a difference is above a bound: all of its interval, none, or part of it."""
    if over.low is None or over.high is None or over.low <= bound <= over.high:
        return "not decided"
    return "holds" if over.low > bound else "does not hold"


def within(over: Interval, bound: float) -> Verdict:
    """Judge whether a difference is within a bound to both sides: all of its interval, none, or part of it."""
    if over.low is None or over.high is None:
        return "not decided"
    if -bound < over.low and over.high < bound:
        return "holds"
    return "does not hold" if over.low > bound or over.high < -bound else "not decided"


def traits(study: Study) -> dict[str, str]:
    """Return by what settings can be told apart."""
    return {"id": MEANINGS[study.scenario], "base": PRETRAINED if study.pretrained else NOT_PRETRAINED}


def told(findings: Sequence[Finding]) -> str:
    """Return the verdict over some settings with the counts behind it, as in `does not hold (3 no, 1 open)`."""
    words: dict[Verdict, str] = {"holds": "yes", "does not hold": "no", "not decided": "open"}
    counts = {word: sum(f.verdict == verdict for f in findings) for verdict, word in words.items()}
    return f"{summary(findings)} ({', '.join(f'{n} {word}' for word, n in counts.items() if n)})"


def summary(findings: Sequence[Finding]) -> str:
    """Return the verdict over the decided settings: all, none, those with one trait, or how many of each kind."""
    yes = [f for f in findings if f.verdict == "holds"]
    no = [f for f in findings if f.verdict == "does not hold"]
    if not findings:
        return "not tested yet"
    if not yes and not no:
        return "not decided"
    if not yes or not no:
        return "holds" if yes else "does not hold"
    for trait in yes[0].traits:
        kinds = {f.traits[trait] for f in yes}
        if len(kinds) == 1 and not kinds & {f.traits[trait] for f in no}:
            return f"holds only {kinds.pop()}"
    counts: dict[str, list[bool]] = {where: [] for where in MEANINGS.values()}
    for finding in findings:
        if finding.verdict != "not decided":
            counts.setdefault(finding.traits.get("id", "decided"), []).append(finding.verdict == "holds")
    return "holds in " + ", ".join(f"{sum(held)} of {len(held)} {where}" for where, held in counts.items() if held)
