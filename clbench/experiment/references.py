"""References: published settings with their numbers, read from TOML, and the trials that repeat them.

Each cell of a published table is a method in a scenario, with its own recipe if the paper's recipes differ. The file
states the criterion for a reproduced number before anything runs: see `Tolerance` and docs/verify.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from pydantic import Field, RootModel, ValidationError, model_validator

from clbench.core.errors import SpecError, guess, unknown
from clbench.core.files import PACKAGE
from clbench.core.options import Strict
from clbench.core.registry import Registry
from clbench.core.scenario import Scenario
from clbench.experiment import spec
from clbench.experiment.overrides import merge
from clbench.experiment.plan import plan
from clbench.experiment.recipe import combine
from clbench.experiment.spec import MethodSpec, Named, Spec
from clbench.experiment.trial import PlannedTrial, Weights

LISTING = "clbench verify"
STATUS = "status.json"
# ACC is the final average accuracy, AIA the mean of the average accuracies after each task. Pooled accuracies weight
# tasks by their numbers of test samples. They cover the tasks learned so far, or all tasks ("-all").
CellMetric = Literal["ACC", "AIA", "ACC-pooled", "AIA-pooled", "AIA-pooled-all"]
UNKNOWN_WEIGHTS = Weights(path="not given", sha256="")
HALF_UNIT = 0.005 + 1e-9  # half a unit of the second decimal


class Cell(Strict):
    """A published number: the accuracy of a method in a scenario, in percent."""

    scenario: Scenario
    method: MethodSpec
    metric: CellMetric = "ACC"
    published: float = Field(ge=0, le=100)
    runs: tuple[float, ...] = ()  # result of each run, if the source lists them
    sem: float | None = Field(None, gt=0)  # standard error of the mean over the reference's seeds
    sd: float | None = Field(None, gt=0)  # standard deviation over the seeds, instead of `sem`
    allowance: float = Field(0.0, ge=0)  # points added to the tolerance for a stated reason
    reason: str = ""  # reason for the allowance, or source of a standard deviation that the paper does not give
    widest: float | None = Field(None, gt=0)  # replaces the reference's value if the published deviation is large
    gpu: bool = False  # whether the method does not work on a CPU, so that results from one are not judged
    benchmark: Named | None = None  # replaces the experiment's benchmark
    model: Named | None = None  # replaces the experiment's model
    recipe: dict[str, Any] = Field({})  # parts of the recipe that differ from the experiment's

    @property
    def label(self) -> str:
        """Return the method's name in the table."""
        return self.method.label or self.method.name

    @model_validator(mode="after")
    def _check_spread(self) -> Cell:
        """Reject `sem` together with `sd`, neither of them without an allowance, and an allowance without a reason."""
        if self.sem is not None and self.sd is not None:
            raise ValueError("give sem or sd, not both")
        if self.sem is None and self.sd is None and not self.allowance:
            raise ValueError("a number without its spread (sem or sd) needs an allowance in points, and its reason")
        if self.allowance and not self.reason:
            raise ValueError("an allowance needs its reason")
        return self

    @model_validator(mode="after")
    def _check_runs(self) -> Cell:
        """Reject runs whose mean or standard deviation differs from the published value by more than rounding."""
        if self.runs:
            if abs(fmean(self.runs) - self.published) > HALF_UNIT:
                raise ValueError(f"published is {self.published:g}, the mean of the runs {fmean(self.runs):.3f}")
            if self.sd is not None and (len(self.runs) < 2 or abs(stdev(self.runs) - self.sd) > HALF_UNIT):
                raise ValueError(f"sd is {self.sd:g}, that of the runs is another")
        return self


class Tolerance(Strict):
    """The allowed difference between our mean and the published one, in points; fixed before the reference runs."""

    level: float = Field(0.99, gt=0.5, lt=1)  # confidence level of the interval of the difference of the means
    rounding: float = Field(0.005, ge=0)  # half a unit of the last published digit
    widest: float = Field(2.0, gt=0)  # with a wider tolerance agreement could be chance, so it is inconclusive
    amended: str = ""  # how the rule was changed after the first runs, and why


class Reference(Strict):
    """A published table and how to repeat it."""

    title: str
    paper: str
    source: str  # table of the paper
    url: str
    code: str = ""
    weights: str = ""  # pretrained weights that the user must name (`clbench verify NAME --weights FILE`)
    seeds: int = Field(ge=1)  # number of runs behind each published number; a single run has no standard deviation
    notes: tuple[str, ...] = ()  # known differences from the paper's setting
    tolerance: Tolerance = Tolerance()
    experiment: dict[str, Any]  # values as `clbench run` reads them, without scenario and methods
    cells: tuple[Cell, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_cells(self) -> Reference:
        """Reject duplicate cells, keys of the experiment that the cells set, and wrong seeds, runs or tolerances."""
        names = [f"{c.label} in scenario {c.scenario}" + (f", {c.metric}" if c.metric != "ACC" else "")
                 for c in self.cells]
        duplicates = sorted({name for name in names if names.count(name) > 1})
        if duplicates:
            raise ValueError(f"two cells are {duplicates[0]}; give one of their methods a label")
        if cell_keys := sorted({"scenario", "methods"} & set(self.experiment)):
            raise ValueError(f"experiment: {cell_keys[0]} is given by the cells")
        if self.seeds == 1 and any(c.sem is not None or c.sd is not None for c in self.cells):
            raise ValueError("seeds: one run has no spread (sem or sd); a cell needs an allowance instead")
        if wrong_labels := [c.label for c in self.cells if c.runs and len(c.runs) != self.seeds]:
            raise ValueError(f"{wrong_labels[0]}: as many runs are listed as seeds says, or none")
        for c in self.cells:
            if c.allowance + self.tolerance.rounding >= self.max_tolerance(c):
                raise ValueError(f"{c.label}: allowance and rounding alone reach the widest tolerance that decides")
        return self

    def spec(self, cell: Cell, given: dict[str, Any] | None = None) -> Spec:
        """Return a cell as an experiment; `given` settings (seeds, device, workers) override those of the file.

        Raises:
            SpecError: the experiment is not a valid one.
        """
        recipe = combine(self.experiment.get("recipe", {}), cell.recipe)
        replaced = {name: value.model_dump() for name in ("benchmark", "model") if (value := getattr(cell, name))}
        return spec.build({**merge(self.experiment, given or {}), **replaced, "recipe": recipe,
                           "scenario": cell.scenario,
                           "methods": [{**cell.method.model_dump(), "label": cell.label}]}, self.title)

    def max_tolerance(self, cell: Cell) -> float:
        """Return the largest tolerance of a cell, in points, with which agreement counts as reproduced."""
        return cell.widest or self.tolerance.widest

    def choose(self, scenarios: Iterable[str] = (), methods: Iterable[str] = ()) -> list[Cell]:
        """Return the cells of these scenarios and labels; all cells if none are named.

        Raises:
            SpecError: the reference has no such scenario or method.
        """
        problems = []
        for kind, requested, existing in (("scenario", scenarios, [c.scenario for c in self.cells]),
                                          ("method", methods, [c.label for c in self.cells])):
            problems += [f"the table has no {kind} {name!r}{guess(name, existing)} (it has "
                         f"{', '.join(dict.fromkeys(existing))})"
                         for name in requested if name not in existing]
        if problems:
            raise SpecError("\n".join(problems))
        return [c for c in self.cells if (not scenarios or c.scenario in scenarios)
                and (not methods or c.label in methods)]

    def plan(self, cells: Sequence[Cell], registry: Registry, given: dict[str, Any] | None = None,
             dry_run: bool = False) -> list[list[PlannedTrial]]:
        """Return the trials of each cell.

        Args:
            cells: some of the cells of the reference.
            registry: the installed plugins.
            given: settings that override those of the file.
            dry_run: whether nothing will be trained, so that weights need not be given. The trials then have
                `UNKNOWN_WEIGHTS`, and their keys are not those of trials that train.

        Raises:
            SpecError: a cell cannot run as written, or it starts from weights that are not given.
        """
        if not self.weights or (given or {}).get("weights"):
            return [plan(self.spec(cell, given), registry) for cell in cells]
        if not dry_run:
            raise SpecError(f"{self.title} starts from weights {self.weights}: name their file (--weights FILE)")
        planned_cells = [plan(self.spec(cell, given), registry, pretrained=True) for cell in cells]
        return [[replace(p, trial=p.trial.model_copy(update={"weights": UNKNOWN_WEIGHTS})) for p in planned]
                for planned in planned_cells]


class Status(Strict):
    """The cost and the verdicts of a reference that comes with clbench, from `benchmarks/reference_status.py`."""

    flops: float | None = Field(None, gt=0)  # for training and evaluating all cells with one seed; None: not counted
    verdicts: dict[str, int] = Field({})  # number of cells by verdict, from the records in reports/verify


class Statuses(RootModel[dict[str, Status]]):
    """The statuses of references, by name, as the file `status.json` has them."""


def read_reference(path: Path) -> Reference:
    """Read a reference from its file.

    Raises:
        SpecError: the file cannot be read or is not a reference; a line for each mistake.
    """
    try:
        return Reference.model_validate(spec.read_toml(path))
    except ValidationError as error:
        lines = [f"{path}: {'.'.join(map(str, item['loc'])) or 'reference'}: "
                 + item["msg"].removeprefix("Value error, ") for item in error.errors()]
        raise SpecError("\n".join(dict.fromkeys(lines))) from None


def find(name: str) -> tuple[str, Reference]:
    """Return a reference by its name or the path of its TOML file, and the name.

    Raises:
        SpecError: the reference does not exist or is not valid.
    """
    if name.endswith(".toml"):
        return Path(name).stem, read_reference(Path(name))
    paths = shipped()
    if name not in paths:
        raise SpecError(unknown("reference", name, paths, LISTING))
    return name, read_reference(paths[name])


def shipped() -> dict[str, Path]:
    """Return the files of the references that come with clbench, by name."""
    return {path.stem: path for path in sorted(_folder().glob("*.toml"))}


def statuses() -> dict[str, Status]:
    """Return the statuses of references that come with clbench, by name; a reference may have none."""
    file = _folder() / STATUS
    return Statuses.model_validate_json(file.read_text(encoding="utf-8")).root if file.is_file() else {}


def _folder() -> Path:
    """Return the folder of the references: inside the package in an installed wheel, else in the checkout."""
    installed = PACKAGE / "reference"
    return installed if installed.is_dir() else PACKAGE.parent / "benchmarks" / "reference"
