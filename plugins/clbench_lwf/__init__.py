"""`lwf`: learning without forgetting (Li & Hoiem 2016, arXiv 1606.09282)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from clbench import Options, Scalar, SearchValues, StrategyInfo, hookimpl
from clbench.core.scenario import Outputs
from clbench.strategy.common_options import FixedOutputsOptions

Form = Literal["new-classes", "all-seen", "zero-padded", "all", "lwf-mc"]


class LwFOptions(FixedOutputsOptions):
    """Options of `lwf`; the defaults are the paper's."""

    BEFORE: ClassVar[Mapping[str, Any]] = {"form": "all-seen"}
    LATER: ClassVar[tuple[str, ...]] = ("weights",)

    strength: Annotated[Scalar, SearchValues(0.3, 1.0, 3.0, 10.0)] = Field(
        1.0, ge=0, description="lambda_o: weight of the distillation loss of old tasks")
    temperature: Scalar = Field(2.0, gt=0, description="T: temperature of the distillation; if it is not given, form = "
                                "lwf-mc uses 1")
    form: Form = Field("new-classes", description="outputs that compete in the label loss and in the distillation. "
                       "new-classes: labels among the task's classes, distillation among the old ones (the paper); "
                       "all-seen: labels among all classes so far, distillation among the old ones; zero-padded: both "
                       "among all classes so far, with targets of 0 for new outputs (van de Ven & Tolias); all: both "
                       "among all classes of the stream (van de Ven's code since 2022); lwf-mc: no outputs compete, "
                       "each has its own sigmoid (Rebuffi et al.). The first four differ only in scenario class")

    weights: Literal["constant", "by-task", "by-task-mean", "by-old-tasks"] = Field(
        "constant", description="weights of the label loss and of the distillation in task t. constant: 1 and "
        "strength; by-task: 1 / t and strength T^2 (1 - 1 / t), with the mean over old tasks, as in van de Ven's code "
        "until 2022; by-task-mean: as by-task, but the distillation is also a mean over outputs, as in that code until "
        "May 2019 and in the results published with it; by-old-tasks: 1 and, in scenarios task and domain, strength (t "
        "- 1) times the mean over old tasks, as in that code since 2022")

    deciding = frozenset({"temperature"})

    @property
    def fixed_outputs(self) -> Outputs:
        """Return the outputs that compete with a label in this form; in `lwf-mc`, each has a sigmoid of its own."""
        if self.form == "all":
            return "all"
        return "own" if self.form in ("new-classes", "lwf-mc") else "seen"

    def settled(self, pretrained: bool, network: Callable[[], Any] | None = None) -> Options:
        """Return these options, with LwF.MC's own temperature, 1, if no temperature is chosen."""
        uses_paper_temperature = self.form == "lwf-mc" and "temperature" not in self.model_fields_set
        return self.model_copy(update={"temperature": 1.0}) if uses_paper_temperature else self


@hookimpl
def clbench_strategies() -> Sequence[StrategyInfo]:
    """Declare the strategy."""
    return (StrategyInfo("lwf", "clbench_lwf.strategy:LwF",
                         "distills the old network's outputs on the new task's samples", LwFOptions,
                         "Li & Hoiem 2016, arXiv 1606.09282", display_name="LwF", family="distillation"),)
