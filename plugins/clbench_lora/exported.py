"""Base of strategies that write their adapters, and W if needed, in PEFT's format."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from clbench import Strategy, Task
from clbench.core.artifacts import BASE, task_folder
from clbench.models.hf_files import published_as
from clbench.strategy.per_task import TaskHead
from clbench_lora.files import noted_fingerprint, write_adapter, write_base
from clbench_lora.layers import LoRALayer
from clbench_lora.peft_format import (
    HEAD,
    Adapter,
    AdapterInfo,
    Origin,
    adapter_of,
    ambiguous_modules,
    base_tensors,
    by_module,
    fingerprint,
)


class ExportedAdapters(Strategy):
    """A strategy with adapters on a frozen W; `adapted` contains its adapted layers by name."""

    adapted: dict[str, LoRALayer]
    options: Any  # has the fields of AdapterOptions and StartOptions, among others
    base_hash = ""  # fingerprint of a published W; empty until it is computed

    @property
    def published_base(self) -> tuple[str, str | None]:
        """Return the folder or repository of a language model that has W, and its commit (`published_as`).

        The name is empty if W is not published.
        """
        if not self.stream_info.predicts_tokens or self.options.base != "pretrained":
            return "", None
        return published_as(self.model.weights_file)

    def write_task(self, folder: Path, task: Task, position: int, head: TaskHead | None) -> None:
        """Write an adapter to the task's folder. With the first task, also write W, unless it is published.

        Args:
            folder: the trial's folder.
            task: the task.
            position: the index of the adapter in its layers.
            head: the task's head; None for a language model.
        """
        base = folder / BASE
        if self.published_base[0]:
            self.base_hash = self.base_hash or fingerprint(base_tensors(self.model, self.adapted))
        elif task.index == 0:
            tensors = base_tensors(self.model, self.adapted)
            write_base(base, tensors, self.published_names(tensors))
        digest = self.base_hash or noted_fingerprint(base)
        write_adapter(task_folder(folder, task.index), self.described(task, folder.name, digest, position, head))

    def described(self, task: Task, trial: str, base: str, position: int, head: TaskHead | None,
                  number: int | None = None, origin: Origin | None = None) -> Adapter:
        """Return a learned task's adapter and head in PEFT's form.

        Args:
            task: the task, with its index in this strategy.
            trial: the key of the trial it belongs to.
            base: the fingerprint of W.
            position: the index of the adapter in its layers.
            head: the task's head; None for a language model.
            number: the task's number in that trial; by default its index.
            origin: where the task comes from, if not from the trial's benchmark.
        """
        modules = [*by_module(self.adapted), *(() if head is None else (HEAD,))]
        info = AdapterInfo(trial=trial, task=task.index if number is None else number, classes=task.classes, base=base,
                           origin=origin, names=self.published_names(modules), class_names=task.class_names)
        prototype = self._buffers.get(f"prototype_{task.index}")
        adapter = adapter_of(self.adapted, position, head, self.stream_info.classes, self.options, info, prototype,
                             *self.published_base)
        names, targets = ({self.model.published_name(name) for name in group}
                          for group in (dict(self.model.named_modules()), adapter.layers))
        exclude = {"exclude_modules": ambiguous_modules(sorted(names), targets)}
        return replace(adapter, config=adapter.config.model_copy(update=exclude))

    def published_names(self, names: Iterable[str]) -> dict[str, str]:
        """Return the names in files of modules or tensors of the model; empty if the model has no published names."""
        return {name: self.model.published_name(name) for name in names} if self.model.published else {}
