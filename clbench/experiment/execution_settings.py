"""How an experiment's trials are run: one object, made once from a file, the command line or Python."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Field, field_validator, model_validator

from clbench.core.errors import unknown
from clbench.core.files import default_data_dir, expand_home
from clbench.core.options import Strict, format_value

Executor = Literal["local", "ray"]
AnatomyRows = Literal["last", "each"]
Keep = Literal["nothing", "models", "state"]


@dataclass(frozen=True)
class Flag:
    """Details of a field for help texts that its name, type, bounds and description do not give."""

    metavar: str | None = None
    default: str = ""  # description of the default, if it is None


class ExecutionSettings(Strict):
    """How trials are run; nothing here is part of a trial's key.

    Each field is a flag (`clbench.cli.common_options`), a key of a file's [execution] table and an argument of
    `clbench.run`. The managing process of a run uses the object (`clbench.execution`), and every worker gets the same
    object (`TrialRunner.settings`).
    """

    model_config = ConfigDict(allow_inf_nan=False)
    data: Annotated[Path | None, Flag("DIR", "CLBENCH_DATA, or the user's cache folder")] = Field(
        None, description="Folder of data sets.")
    workers: Annotated[int | None, Flag(
        default="one per core, one on an accelerator, as many as a cluster has room for")] = Field(
        None, ge=0, description="Number of worker processes; 0 runs trials in this process.")
    threads: Annotated[int | None, Flag(default="cores / workers; 1 on a cluster")] = Field(
        None, ge=1, description="torch threads per worker.")
    stack: Annotated[int | None, Flag(default="1 on a CPU, as many as fit on an accelerator")] = Field(
        None, ge=1, description="Number of trials of a method (seeds, and values of an option such as ewc.strength) "
        "that train together, vectorized.")
    executor: Executor = Field("local", description="Executor of the workers. local: this machine; ray: a Ray cluster, "
                               "with one CPU per thread of each worker (docs/scaling.md).")
    address: Annotated[str | None, Flag("HOST:PORT", "RAY_ADDRESS, or the one that was started on this machine")] = (
        Field(None, description="Address of the Ray cluster."))
    gpus: Annotated[float | None, Flag("N", "1 where there are any, unless the device is the CPU")] = Field(
        None, ge=0, description="GPUs of the Ray cluster for each worker; with 0.25, four workers share one GPU.")
    compile: bool = Field(
        False, description="Compile each phase's loss with torch.compile. This takes seconds to minutes per phase and "
        "pays off for long trainings on CUDA.")
    verify_data: bool = Field(False, description="Read all data files to check whether a cached stream was made from "
                              "them, instead of only the files with a changed size or time.")
    verify_caches: bool = Field(
        False, description="Compute everything that clbench caches a second time, in every phase and evaluation, and "
        "compare the results. This tests what a method declares about itself (docs/writing-a-strategy.md).")
    cache_mb: int = Field(1024, ge=0, description="Megabytes (2**20 bytes) per worker for caching prepared inputs and "
                          "outputs of frozen layers, which otherwise are computed again in every pass.")
    evaluate_every: Annotated[int | None, Flag("N", "only after each task")] = Field(
        None, ge=1, description="Record the metrics during training on a task: after each of its first 50 steps, then "
        "every N steps (docs/metrics.md). Training stays the same, bit for bit.")
    evaluate_samples: int = Field(200, ge=1, description="Number of test samples per task for --evaluate-every, the "
                                  "same samples for all methods. A task with fewer samples uses all of them.")
    anatomy: AnatomyRows = Field("last", description="Tasks after which errors are decomposed, in scenario class. "
                                 "last: the last task; each: each task (docs/error-analysis.md).")
    probe: bool = Field(
        False, description="Measure the accuracy of a linear probe on the features, in scenarios class and domain. It "
        "takes two more passes over all samples, without gradients (docs/error-analysis.md).")
    general: Annotated[list[str], Flag("FILE", "none")] = Field(
        [], description="Texts that belong to no task, scored before training and after each task of a language model: "
        "a .jsonl, .json or .txt file, or english, which comes with clbench; repeatable.")
    keep: Keep = Field("nothing", description="Files to save of each trained network. models: the models, to predict "
                       "in Python and for clbench export; state: also everything that clbench continue needs to "
                       "continue training (docs/save-models.md).")
    retries: int = Field(1, ge=0, description="Number of retries of a trial whose worker died.")

    @property
    def data_dir(self) -> Path:
        """Return the folder of data sets."""
        return self.data or default_data_dir()

    @property
    def cache_bytes(self) -> int:
        """Return `cache_mb` in bytes."""
        return self.cache_mb * 2**20

    @field_validator("data")
    @classmethod
    def _expand_home(cls, value: Path | None) -> Path | None:
        """Expand `~`, because no shell expands it in a file."""
        return value and expand_home(value)

    @field_validator("general", mode="before")
    @classmethod
    def _split_at_commas(cls, value: Any) -> Any:
        """Split text at commas into a list."""
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @field_validator("executor", mode="before")
    @classmethod
    def _check_executor(cls, value: Any) -> Any:
        """Reject an unknown executor and suggest similar names."""
        if isinstance(value, str) and value not in get_args(Executor):
            raise ValueError(unknown("executor", value, get_args(Executor), "clbench run --help"))
        return value

    @model_validator(mode="after")
    def _check_curve(self) -> ExecutionSettings:
        """Reject a number of samples for accuracies during training without an interval."""
        if self.evaluate_every is None and self.evaluate_samples != type(self).model_fields["evaluate_samples"].default:
            raise ValueError("--evaluate-samples applies only with --evaluate-every: add --evaluate-every N, or leave "
                             "it out")
        return self

    @model_validator(mode="after")
    def _check_place(self) -> ExecutionSettings:
        """Reject settings that do not apply to the chosen executor."""
        if self.executor == "local" and (self.address is not None or self.gpus is not None):
            raise ValueError("--address and --gpus apply only to a Ray cluster: add --executor ray, or leave them out")
        if self.executor == "ray" and self.workers == 0:
            raise ValueError("--workers 0 runs trials in this process and --executor ray on a cluster: leave one of "
                             "them out")
        return self


def flag(name: str) -> Flag:
    """Return the `Flag` of a field, or an empty one."""
    return next((m for m in ExecutionSettings.model_fields[name].metadata if isinstance(m, Flag)), Flag())


def meaning(name: str) -> str:
    """Return the help text of a field: its description, and its default if it has one."""
    field = ExecutionSettings.model_fields[name]
    default = "" if isinstance(field.default, bool) else flag(name).default or format_value(field.default)
    return f"{field.description}  [default: {default}]" if default else field.description or ""
