"""The parts of a record (`clbench.results.records`)."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)


class RecordPart(BaseModel):
    """Base of the parts of a record. Fields in `LATER` are newer than the first records and not written if empty."""

    LATER: ClassVar[tuple[str, ...]] = ()

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_serializer(mode="wrap")
    def _without_empty(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out empty fields that were added later, so that an older record is written unchanged."""
        fields: dict[str, Any] = write(self)
        return {name: value for name, value in fields.items() if value or name not in self.LATER}


class StreamFacts(RecordPart):
    """The stream a trial ran on."""

    LATER = ("data", "class_names", "mean", "std", "arrivals", "task_names", "common_test")

    classes: list[list[int]] = Field(description="Classes of each task, as output indices of the model.")
    train_samples: list[int] = Field(description="Number of training samples of each task.")
    test_samples: list[int] = Field(description="Number of test samples of each task.")
    input_shape: list[int] = Field(description="Shape of one sample as the model gets it.")
    fingerprint: str = Field(description="Hash of all tensors of the stream.")
    data: str = Field(
        "", description="Hash of the benchmark's data, before the scenario and a validation split; empty in older "
        "records.")
    notes: list[str] = Field([], description="Remarks about the stream that reports repeat.")
    class_names: list[list[str]] = Field(
        [], description="Names of `classes`, in their order; empty if the classes have no names.")
    mean: list[float] = Field(
        [], description="Mean that was subtracted from each column of a table; empty if nothing was standardized.")
    std: list[float] = Field(
        [], description="Standard deviation by which each column of a table was divided; empty if nothing was "
        "standardized.")
    arrivals: list[list[int]] = Field(
        [], description="[i][j]: number of training samples of class j that arrive during task i; in scenario domain, "
        "j is the original task. Empty if they arrive as the benchmark has them.")

    task_names: list[str] = Field([], description="Names of tasks without classes; empty if the tasks have no names.")
    common_test: bool = Field(False, description="Whether all tasks share one test set. Each row of R then has the "
                              "same value in every column.")

    @model_validator(mode="after")
    def _check_names(self) -> StreamFacts:
        """Check that every class of every task has a name, or none has."""
        if self.class_names and [*map(len, self.class_names)] != [*map(len, self.classes)]:
            raise ValueError("class_names has not one name for each class of each task")
        return self

    @property
    def tested(self) -> int:
        """Return the number of test samples in all tasks; a test set that all tasks share counts once."""
        return self.test_samples[0] if self.common_test else sum(self.test_samples)

    @property
    def equally_tested(self) -> float:
        """Return the number of test samples with which equal tasks would give a mean over tasks of the same variance.

        If T tasks have n_t independent test samples, it is T^2 / sum(1 / n_t).
        """
        if self.common_test:
            return self.tested
        return len(self.test_samples) ** 2 / sum(1 / samples for samples in self.test_samples)


class Costs(RecordPart):
    """The costs of a method. Each list has one entry for each task that was trained."""

    trainable: list[int] = Field(
        [], description="Number of parameters with `requires_grad` while the task was trained, in its largest phase.")
    steps: list[int] = Field([], description="Number of optimizer steps.")
    parameters: list[dict[str, int]] = Field(
        [], description="Numbers stored as parameters and buffers after the task, by role.")
    bytes: list[dict[str, int]] = Field(
        [], description="Bytes of parameters and buffers stored after the task, by role.")
    replay_samples: list[int] = Field([], description="Number of samples in the buffer after the task.")
    train_flops: list[int] = Field(
        [], description="FLOPs of training on the task, including the work before its first and after its last step.")
    inference_flops: list[int] = Field(
        [], description="FLOPs of predicting one test sample after the task; the mean over the tasks learned so far.")
    peak_host_bytes: int | None = Field(None, description="Peak memory of the process, in bytes.")
    peak_device_bytes: int | None = Field(
        None, description="Peak memory that torch allocated on the accelerator, in bytes.")


class Timings(RecordPart):
    """Wall time and processor time in seconds, with an entry for each task that was trained.

    Processor time sums over all threads of the trial's process, so it stays comparable if several processes share a
    machine. The processor time of a stack is divided equally among its trials, like its wall time.
    """

    LATER: ClassVar[tuple[str, ...]] = ("curve", "curve_cpu")

    train: list[float] = Field(
        [], description="Seconds of the phases of a task: of steps, of `before_phase` and of what is computed once.")
    consolidate: list[float] = Field([], description="Seconds of `before_task` and `after_task`.")
    evaluate: list[float] = Field(
        [], description="Seconds of evaluation; one more entry for the evaluation before training.")
    train_cpu: list[float] = Field([], description="Processor seconds of the same work as in `train`.")
    consolidate_cpu: list[float] = Field([], description="Processor seconds of `before_task` and `after_task`.")
    evaluate_cpu: list[float] = Field([], description="Processor seconds of evaluation.")
    curve: list[float] = Field(
        [], description="Seconds of evaluations during training (`curve`), which no other time includes.")
    curve_cpu: list[float] = Field([], description="Processor seconds of evaluations during training.")


class ErrorCounts(RecordPart):
    """The error decomposition of one row of R, in test samples. Lists have an entry for each task learned by then.

    `clbench.training.callbacks.error_decomposition` counts the errors. docs/error-analysis.md defines what reports
    show. `corrected` is empty for a method that infers the task. `misguided`, `outdone` and `only_unguided` are empty
    for all other methods.
    """

    LATER: ClassVar[tuple[str, ...]] = ("corrected", "misguided", "outdone", "only_unguided")

    learned: int = Field(description="Number of learned tasks, which is the row of R.")
    samples: list[int] = Field(description="Number of test samples.")
    right: list[int] = Field(description="Number of correct predictions, as in R.")
    given: list[int] = Field(description="Number of correct predictions if the task ID is given.")
    tasks: list[list[int]] = Field(description="[i][j]: number of samples of task i whose highest output, or whose "
                                   "inferred task, belongs to task j.")
    corrected: list[int] = Field([], description="Number of correct predictions after logit-bias correction: the best "
                                 "constant for each task's outputs is added, fitted on the other half.")
    misguided: list[int] = Field([], description="Number of wrong predictions with a wrong inferred task that are "
                                 "correct if the task ID is given.")
    outdone: list[int] = Field([], description="Number of wrong predictions with the right inferred task that are "
                               "correct if the task ID is given.")
    only_unguided: list[int] = Field(
        [], description="Number of correct predictions that are wrong if the task ID is given.")


class Probe(RecordPart):
    """Results of a linear probe: the number of test samples of each task that a ridge classifier gets right.

    The classifier is fitted on the features. `clbench.training.callbacks.probe` counts the samples, and
    docs/error-analysis.md explains how.
    """

    LATER: ClassVar[tuple[str, ...]] = ("missing",)

    own: bool = Field(False, description="Whether features depend on the task and come from the true task's part "
                      "(adapter, column); `together` is then empty.")
    learned: list[int] = Field(
        [], description="Number of correct predictions within the task, just after it was learned.")
    end: list[int] = Field([], description="Number of correct predictions within the task, after the last task.")
    together: list[int] = Field(
        [], description="Number of correct predictions among the classes of all tasks, after the last task.")
    missing: str = Field("", description="Reason if there is no result.")


class Earlier(RecordPart):
    """Accuracy in [0, 1] on the tasks that the parent of a continued trial had learned."""

    before: list[float] = Field(description="Accuracy on each earlier task, before training continued.")
    after: list[list[float]] = Field(description="Accuracy on each earlier task, after each new task.")


class Answer(RecordPart):
    """The answers of a language model to a test prompt, generated greedily."""

    task: int = Field(description="Task of the prompt.")
    prompt: str = Field(description="Text of the prompt.")
    response: str = Field(description="Reference response in the data.")
    learned: str = Field(description="Generated answer just after the task was learned.")
    end: str = Field(description="Generated answer after the last task.")


class Failure(RecordPart):
    """Why a trial has no full R."""

    LATER: ClassVar[tuple[str, ...]] = ("place",)

    type: str = Field(description="Class of the exception.")
    message: str = Field(description="Message of the exception.")
    traceback: str = Field("", description="Traceback.")
    place: str = Field("", description="Place of the error in the plugin's own code: `file:line in function`.")


class Code(RecordPart):
    """The code of a trial's method, benchmark or model, unless it comes with clbench."""

    packages: list[str] = Field(description="Names of the packages or modules, or the path of the file.")
    hash: str = Field(description="Hash of their code without comments, docstrings and layout.")
    release: str = Field("", description="Installed distribution with its version; for a file, its path and hash.")


class Provenance(RecordPart):
    """The code, versions, machine, time and command with which a record was made."""

    versions: dict[str, str] = Field(description="Versions of Python and of the libraries that a result depends on.")
    plugin: str = Field(description="Distribution that provides the method, with its version.")
    git: str | None = Field(
        None, description="Commit of clbench's checkout, followed by `+dirty` if its code had changed.")
    device: str = Field(description="Device that the trial ran on.")
    machine: str = Field(description="Processor, usable cores, system and preloaded libraries.")
    threads: int = Field(description="Number of torch threads.")
    started: AwareDatetime = Field(description="Time at which the trial started.")
    command: str = Field(description="Command that ran the trial.")
    code: dict[str, Code] = Field(
        {}, description="Code of method, benchmark and model, and the configuration of a text model; empty if "
        "unknown, as in older records.")
    weights: str = Field("", description="SHA-256 of the content of the published weights, if the trial names any.")
