"""Find the bases and adapters that the trials of a run have saved."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from clbench.core.artifacts import BASE, task_folder
from clbench.core.errors import SpecError, StoreError
from clbench.core.files import Files
from clbench.core.registry import Registry, discover, installed
from clbench.models.network import Network
from clbench.report.analysis.readable import find_trials
from clbench.results.records import Record, StreamFacts, predicts_tokens
from clbench.results.store import Store, list_trials
from clbench.training.building import build_model
from clbench_lora.files import (
    ADD_AGAIN,
    INFO,
    RUN_AGAIN,
    check_base,
    check_sizes,
    published_names,
    read_adapter,
    read_base,
)
from clbench_lora.peft_format import Adapter, Origin, fingerprint

METHODS = ("lora", "seq-lora")  # methods that write adapters


@dataclass(frozen=True)
class TrialAdapters:
    """The base and the adapters, one per task, that a trial has saved in `folder`.

    `registry` has the plugins by which the trial's model is built.
    """

    record: Record
    folder: Path
    registry: Registry = field(default_factory=installed, compare=False, repr=False)

    @property
    def name(self) -> str:
        """Return the trial's name: its label and its seed."""
        return self.record.name

    @property
    def stream(self) -> StreamFacts:
        """Return the facts about the trial's stream from its record."""
        if self.record.stream is None:
            raise StoreError(f"record {self.record.key} knows no stream; run the trial again")
        return self.record.stream

    @property
    def outputs(self) -> int:
        """Return C, the number of the model's outputs."""
        return len(set(chain.from_iterable(self.stream.classes)))

    @property
    def of_language_model(self) -> bool:
        """Return whether the trial's model is a language model."""
        return predicts_tokens(self.record)

    def refuse_language_model(self, what: str, instead: str) -> None:
        """Raise a SpecError if the adapters belong to a language model.

        Args:
            what: the command that needs a classifier.
            instead: the error's advice for language models.
        """
        if self.of_language_model:
            raise SpecError(f"{what} is for classifiers, and {self.name} is of a language model; {instead}")

    @property
    def tasks(self) -> list[int]:
        """Return the tasks that have an adapter."""
        matches = (re.fullmatch(r"task(0|[1-9]\d*)", p.name) for p in self.folder.iterdir() if p.is_dir())
        return sorted(int(m[1]) for m in matches if m)

    def base(self) -> dict[str, Tensor]:
        """Return W and the original head, by their names in the model without adapters.

        Without a file, the W of a language model is that of the trial's model, whose own folder or repository has it.

        Raises:
            StoreError: the file is missing or cannot be read.
        """
        if self.of_language_model and not self.has_base:
            return self.model().state_dict()
        return read_base(self.folder / BASE)

    @property
    def has_base(self) -> bool:
        """Return whether W is in the trial's folder, and not only in a language model's own folder or repository."""
        return (self.folder / BASE).is_file()

    def model(self) -> Network:
        """Return the trial's model with the weights that the trial started from."""
        trial = self.record.trial
        return build_model(trial.model, trial.weights, tuple(self.stream.input_shape), self.outputs, self.registry)[0]

    @property
    def size(self) -> int:
        """Return the bytes of the files of W and of the adapters; the folder may also have a saved model and state."""
        adapters = chain.from_iterable(task_folder(self.folder, task).iterdir() for task in self.tasks)
        return sum(path.stat().st_size for path in (self.folder / BASE, *adapters) if path.is_file())

    def architecture(self) -> Network:
        """Return the trial's model without values of its tensors, on the device meta."""
        with torch.device("meta"):
            return build_model(self.record.trial.model, None, tuple(self.stream.input_shape), self.outputs,
                               self.registry)[0]

    @property
    def is_shared(self) -> bool:
        """Return whether the tasks share one adapter, which is saved after each of them."""
        return self.record.trial.method.name == "seq-lora"

    @property
    def names(self) -> dict[str, str]:
        """Return the names of W's tensors in files, by their names in clbench; empty if they are the same."""
        return published_names(self.folder / BASE)

    @cached_property
    def digest(self) -> str:
        """Return the fingerprint of W, computed from the file."""
        return self._digest_and_shapes[0]

    @cached_property
    def _digest_and_shapes(self) -> tuple[str, dict[str, torch.Size]]:
        """Return the fingerprint of W, and the shapes of its tensors by name."""
        base = self.base()
        return fingerprint(base), {name: tensor.shape for name, tensor in base.items()}

    def adapter(self, task: int) -> Adapter:
        """Return a task's adapter, checked against the base.

        Raises:
            StoreError: it is missing, cannot be read, was trained on another base, or its sizes do not fit.
        """
        self.check(task)
        folder, advice = task_folder(self.folder, task), RUN_AGAIN if self.of_language_model else ADD_AGAIN
        adapter = read_adapter(folder, advice)
        check_base(adapter, self.digest, folder)
        check_sizes(adapter, folder, advice, self._digest_and_shapes[1])
        return adapter

    def origin(self, task: int) -> Origin:
        """Return where the task of an adapter comes from."""
        return self.adapter(task).info.origin or Origin(
            benchmark=self.record.trial.benchmark, task=task, fingerprint=self.stream.fingerprint)

    def check(self, task: int) -> None:
        """Raise a StoreError if a task has no adapter."""
        if task not in self.tasks:
            raise StoreError(f"{self.name} has no adapter of task {task + 1}, only of "
                             f"{', '.join(str(saved_task + 1) for saved_task in self.tasks) or '(none)'}")


def trials_with_adapters(run: Path, plugins: Files = ()) -> list[TrialAdapters]:
    """Return the trials of a run folder that have saved adapters, in the order in which they were run.

    Args:
        run: the run folder.
        plugins: files of plugins that are not installed, the same as for the run.

    Raises:
        StoreError: the folder cannot be read.
    """
    store, registry = Store(run), discover(files=plugins)
    records, _ = store.read()
    # Other methods save a base, too, but no adapters.
    trials = [TrialAdapters(r, store.artifacts / r.key, registry) for r in records if r.trial.method.name in METHODS]
    return [trial for trial in trials if trial.has_base or any(trial.folder.glob(f"task*/{INFO}"))]


def find(run: Path | str, trial: str | None = None, plugins: Files = ()) -> TrialAdapters:
    """Return the saved adapters of one trial of a run folder.

    Args:
        run: the run folder.
        trial: the trial, named as in `clbench.load_model`; None if only one trial has saved adapters.
        plugins: files of plugins that are not installed, the same as for the run.

    Raises:
        StoreError: no matching trial has saved adapters, or several trials match.
    """
    sources = trials_with_adapters(Path(run), plugins)
    if not sources:
        raise StoreError(f"no adapters in {run}: only trials of lora, and of seq-lora on language models, leave some; "
                         f"clbench run --methods lora --out {run} makes some")
    records = [source.record for source in sources]
    matches = find_trials(records, trial, sources[0].registry)
    if len(matches) == 1:
        return next(source for source in sources if source.record.key == matches[0].key)
    if not matches:
        raise StoreError(f"no trial {trial!r} with adapters in {run}; there are {list_trials(records, trial or '')}")
    raise StoreError(f"{'several trials saved adapters' if trial is None else f'{trial!r} fits several trials'}: name "
                     f"one of {list_trials(matches)}")
