"""A finished trial of lora, made in milliseconds: the strategy, its record and its files, as a run writes them."""

import torch
from clbench_lora import LoRAOptions
from clbench_lora.adapters import TrialAdapters
from clbench_lora.strategy import LoRA

from clbench.core import seeds
from clbench.core.registry import discover
from clbench.experiment.trial import Resolved
from clbench.results.records import Record
from clbench.results.store import Store
from clbench.training.building import build_model, channels_last
from helpers.per_task import TASKS, learn, make_stream_info, make_task
from helpers.records import make_record

MODELS = {"mlp": {"width": 12, "depth": 2}, "cnn": {"channels": 4, "depth": 2}, "resnet20": {"width": 4},
          "vit-tiny": {"width": 12, "depth": 2, "heads": 3}, "timm:test_vit": {}}


def plain(kind, shape=(1, 8, 8), seed=0):
    registry = discover()
    options = registry.model(kind).options.model_validate(MODELS[kind]).model_dump()
    with seeds.scope(seed, "init"):
        model, _ = build_model(Resolved(name=kind, options=options), None, shape, 2 * TASKS, registry)
    return model, Resolved(name=kind, options=options)


@torch.no_grad()
def enlarge(strategy, task):
    """Add noise to a task's adapter and head, so that both are far from their initial values."""
    generator = torch.Generator().manual_seed(task)
    parts = [p for layer in strategy.adapted.values() for p in layer.parameters_of(task).values()]
    for parameter in (*parts, *strategy.heads[task].parameters()):
        parameter += 0.2 * torch.randn(parameter.shape, generator=generator).to(parameter)


def keep(run, kind="mlp", scenario="task", seed=0, tasks=None, dtype=torch.float32, shape=(1, 8, 8), **options):
    """Train a few steps per task, enlarge the adapters and export them as a run does; return strategy and adapters.
    """
    model, resolved = plain(kind, shape, seed=seed)
    strategy = LoRA(channels_last(model).to(dtype), make_stream_info(scenario), LoRAOptions(**options))
    made = make_record("lora", seed, scenario=scenario, tasks=TASKS, label=f"lora:{kind}",
                       options=strategy.options.model_dump())
    trial = made.trial.model_copy(update={"model": resolved})
    classes = [list(t.classes) for t in tasks or map(make_task, range(TASKS))]
    stream = made.stream.model_copy(update={"classes": classes, "input_shape": list(shape)})
    record = Record.model_validate({**made.model_dump(by_alias=True), "trial": trial.model_dump(), "key": trial.key,
                                    "stream": stream.model_dump()})
    Store(run).write(record)
    folder = Store(run).artifacts / record.key
    for i in range(TASKS):
        task = make_task(i) if tasks is None else tasks[i]
        if dtype == torch.float64:
            object.__setattr__(task.train, "x", task.train.x.double())
        learn(strategy, task, seed)
        enlarge(strategy, i)
        strategy.export(folder, task)
    return strategy, TrialAdapters(record, folder)
