"""Rebuild strategies from any of a trial's saved adapters, on their base.

On the same machine with the same number of threads, a reloaded strategy gives the same outputs as the original one, bit
for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from clbench import Network, Record, StreamInfo, Task
from clbench.core import seeds
from clbench.core.artifacts import BASE
from clbench.core.errors import SpecError, StoreError, message_of
from clbench.core.objective import RMSE
from clbench.core.registry import Registry
from clbench.data.prepare import Prepare
from clbench.data.samples import Samples
from clbench.strategy.per_task import TaskHead
from clbench.training.building import build_model, build_strategy, channels_last
from clbench_lora.arithmetic import merged
from clbench_lora.layers import LoRALayer
from clbench_lora.peft_format import Adapter, by_module, separated, stored
from clbench_lora.rows import Rows
from clbench_lora.run_adapters import TrialAdapters
from clbench_lora.strategy import LoRA


def rebuild(source: TrialAdapters, tasks: int, prepare: Prepare | None) -> LoRA:
    """Return a trial's strategy with its saved base W, on the CPU, with no task learned yet.

    Because W is loaded, the option `base` of the rebuilt strategy is always `pretrained`, even if the trial's differs.

    Args:
        source: the trial's saved adapters.
        tasks: the total number of tasks to expect.
        prepare: turns raw samples into inputs; None if they are inputs.

    Raises:
        SpecError: adapters of the trial's method cannot be loaded, or their files lack what is needed to infer tasks.
        StoreError: the base does not fit the trial's model.
    """
    source.refuse_language_model("reload", "peft.PeftModel.from_pretrained(base, adapter) loads one")
    trial = source.record.trial
    shape = tuple(source.stream.input_shape)
    with seeds.scope(trial.seed, "init"):
        model, _ = build_model(trial.model, None, shape, source.outputs, source.registry)
    try:
        model.load_state_dict(source.base())
    except RuntimeError as error:
        raise StoreError(f"the base in {source.folder} does not fit model {trial.model}: "
                         f"{message_of(error, 200)}") from None
    stream_info = StreamInfo(
        source.outputs, tasks, trial.scenario, shape,
        seeds.generator(trial.seed, "strategy"), pretrained=True, prepare=prepare or Prepare(),
        is_text=source.registry.model(trial.model.name).text)
    method = trial.method.model_copy(update={"options": {**trial.method.options, "base": "pretrained"}})
    strategy = build_strategy(method, channels_last(model), stream_info, source.registry)
    if not isinstance(strategy, LoRA):
        raise SpecError(f"method {trial.method.name!r} keeps no adapters that can be loaded; only lora's can")
    if strategy.options.infer == "gaussian" and not stream_info.task_given:
        raise SpecError("infer = gaussian has one covariance of all tasks, which the files of adapters do not have; "
                        "load adapters of a trial with infer = entropy, max-logit or prototype")
    return strategy


def load(source: TrialAdapters, tasks: Iterable[int] | None = None, prepare: Prepare | None = None) -> LoRA:
    """Return a strategy that has learned the given tasks (by default all saved ones); its task i is the i-th of them.

    Raises:
        SpecError, StoreError: see `rebuild`; also if an adapter is missing, has another base, or does not fit.
    """
    numbers = source.tasks if tasks is None else list(tasks)
    strategy = rebuild(source, max(len(numbers), len(source.stream.classes)), prepare)
    for number in numbers:
        put(strategy, source.adapter(number))
    return strategy.requires_grad_(False).eval()


def load_model(record: Record, folder: Path, task: int, registry: Registry) -> Network:
    """Return the plain network that is W with a task's adapter and head.

    Raises:
        SpecError: adapters of the trial's options cannot be merged into W (`arithmetic.merged`).
        StoreError: the adapter is missing, has another base, or does not fit; or the trial predicts numbers.
    """
    if record.metric == RMSE.name:
        raise StoreError(f"{record.name} predicts numbers, for which lora saves no adapters: run it with --keep models "
                         "and name no task")
    source = TrialAdapters(record, folder, registry)
    if not (folder.is_dir() if source.of_language_model else source.has_base):
        raise StoreError(f"{folder} has no {'adapters' if source.of_language_model else BASE}: the run's artifacts are "
                         "not there; run the trial again")
    adapter, base = source.adapter(task), source.base()
    model, _ = build_model(record.trial.model, None, tuple(source.stream.input_shape), source.outputs, registry)
    model.load_state_dict(merged(adapter, base))
    return model


def reserve(strategy: LoRA, classes: Sequence[int]) -> None:
    """Add an untrained head and adapters for a task to a strategy."""
    empty = torch.empty(0, dtype=torch.int64)
    strategy.before_task(Task(len(strategy.heads), tuple(classes), Samples(empty, empty, empty)))
    strategy.learned = len(strategy.heads)


@torch.no_grad()
def put(strategy: LoRA, adapter: Adapter) -> None:
    """Add a task with this adapter to a strategy.

    Raises:
        StoreError: layers, ranks or parts of the adapter differ from the strategy's.
    """
    reserve(strategy, adapter.info.classes)
    modules = by_module(strategy.adapted)
    if list(modules) != adapter.layers:
        raise StoreError(f"adapter of task {adapter.number} is on other layers than the trial's method says")
    for name, members in modules.items():
        fill(members, adapter, name)
    head = strategy.heads[-1]
    assert isinstance(head, TaskHead)
    for parameter, stored_tensor in zip((head.weight, head.bias), adapter.head, strict=True):
        parameter.copy_(stored_tensor[list(adapter.info.classes)])
    if adapter.prototype is not None:
        strategy.register_buffer(f"prototype_{len(strategy.heads) - 1}", adapter.prototype)


def fill(members: Sequence[LoRALayer], adapter: Adapter, name: str) -> None:
    """Copy the stored adapter of the layer `name` to the newest adapter of this layer, or of its adapted parts.

    Raises:
        StoreError: a tensor is missing or has another shape, or B has values outside the parts' blocks.
    """
    values = {}
    for part, like in stored(members, -1).items():
        value = adapter.part(name, part)
        if value is None or value.shape != like.shape:
            raise StoreError(f"adapter of task {adapter.number}: {part} of {name} is missing or of another shape "
                             "than the trial's method says")
        values[part] = value
    rows = [layer.base_layer for layer in members if isinstance(layer.base_layer, Rows)]
    for layer, parts in zip(members, separated(rows, values) if rows else [values], strict=True):
        if layer.init == "pissa":  # stored with rank 2r: the adapter, then its start
            a, b = parts["lora_A.weight"], parts["lora_B.weight"]
            layer.pissa_A.copy_(a[layer.rank:])
            layer.pissa_B.copy_(-b[:, layer.rank:])
            parts.update({"lora_A.weight": a[:layer.rank], "lora_B.weight": b[:, :layer.rank]})
        for part, parameter in layer.parameters_of(-1).items():
            parameter.copy_(parts[part].view_as(parameter))  # stored magnitudes of convolutions are [1, out, 1, 1]
    if rows and not torch.equal(stored(members, -1)["lora_B.weight"].cpu(), values["lora_B.weight"].cpu()):
        raise StoreError(f"adapter of task {adapter.number}: lora_B.weight of {name} has numbers outside of its "
                         "parts' blocks, so it is not one of the trial's method")
