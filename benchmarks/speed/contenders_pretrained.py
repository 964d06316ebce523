"""LoRA on a pretrained model of timm: by clbench, by two loops with PEFT, and by Avalanche with the same PEFT model."""

from __future__ import annotations

import resource
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from contenders_clbench import in_workers, warm_up
from torch import Tensor, nn
from work import Clock, Pictures, device_bytes, peak_bytes

from clbench.core.pretrained import read_weights_info
from clbench.core.registry import discover
from clbench.data import datasets
from clbench.data.common_options import PerClassOptions
from clbench.data.datasets import PARTS, Images, chosen_rows
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.plan import plan
from clbench.experiment.spec import Spec, build
from clbench.models.weights import read_weights
from clbench.results.records import Record

CLASSES, RANK, LR = 10, 8, 1e-3  # CLASSES is the number of classes per task
TEST_BATCH = 64
Request = dict[str, Any]


def answer(request: Request, started: float) -> dict[str, Any]:
    """Measure one contender."""
    if request["contender"].startswith("clbench"):
        return by_clbench(request, started)
    by = by_avalanche if request["contender"].startswith("Avalanche") else by_hand
    clock = Clock(torch.device(request["device"]))
    train, test = tasks_of(request)
    by(request, train, test, clock)
    rounds, images = request["tasks"] + 1, sum(len(part.y) for part in train) * request["epochs"]
    return {"train_seconds": clock.seconds["train"], "train_images": images, "test_seconds": clock.seconds["test"],
            "test_images": rounds * sum(len(part.y) for part in test), "peak_bytes": peak_bytes(),
            "device_bytes": device_bytes(request["device"])}


def spec_of(request: Request, seeds: int, layers: str) -> Spec:
    """Return the experiment as a clbench spec."""
    options = {"tasks": request["tasks"], "held_out": 100 - CLASSES * request["tasks"],
               "train_per_class": request["per_class"], "test_per_class": request["per_class"] // 4,
               "augment": request["augment"]}
    return build({"benchmark": {"name": "split-cifar100", "options": options}, "scenario": "task",
                  "model": {"name": request["model"], "options": {"size": request["size"]}},
                  "weights": request["weights"],
                  "methods": [{"name": "lora", "options": {"rank": RANK, "layers": layers}}],
                  "seeds": [seeds * request["seed"] + i for i in range(seeds)], "device": request["device"],
                  "recipe": {"optimizer": "adam", "lr": LR, "epochs": request["epochs"],
                             "batch_size": request["batch_size"], "precision": request["precision"]}})


def by_clbench(request: Request, started: float) -> dict[str, Any]:
    """Measure one trial, or four seeds as a stack, one after another or in workers."""
    how = request["contender"].removeprefix("clbench").strip()
    layers = how if how.startswith("blocks") else "attention" if "vit" in request["model"] else "all"
    spec = spec_of(request, 4 if "seeds" in how else 1, layers)
    if "workers" in how:
        records = in_workers(spec, Path(request["data_dir"]), {"workers": request["threads"], "threads": 1, "stack": 1},
                             started).records
    else:
        registry = discover()
        planned = plan(spec, registry)
        runner = TrialRunner(ExecutionSettings(data=Path(request["data_dir"])), spec.device, "", registry)
        runner.prepare(planned[0].trial)
        stacked = "stacked" in how
        warm_up(runner, planned if stacked else planned[:1])
        records = runner.run_stack(planned) if stacked else [runner.run(one) for one in planned]
    check(records)
    side_by_side = request["threads"] if "workers" in how else 1
    facts = records[0].stream
    assert facts is not None
    tests = sum(facts.test_samples) * len(records[0].R)
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 * side_by_side if side_by_side > 1 else 0
    return {"train_seconds": sum(sum(r.timings.train) for r in records) / side_by_side,
            "train_images": len(records) * sum(facts.train_samples) * request["epochs"],
            "test_seconds": sum(sum(r.timings.evaluate) for r in records) / side_by_side,
            "test_images": len(records) * tests, "peak_bytes": peak_bytes() + workers,
            "device_bytes": device_bytes(request["device"])}


def check(records: Sequence[Record]) -> None:
    """Check that all trials succeeded, and that none of a stack ran alone.

    Raises:
        RuntimeError: a trial failed or ran alone.
    """
    for record in records:
        alone = [note for note in record.notes if note.startswith("ran alone")]
        if record.status != "done" or alone:
            raise RuntimeError(alone[0] if alone else str(record.failure and record.failure.message))


def tasks_of(request: Request) -> tuple[list[Images], list[Images]]:
    """Return the training and test images of each task, uint8."""
    options = PerClassOptions(train_per_class=request["per_class"], test_per_class=request["per_class"] // 4)
    training_and_test = []
    for images, part in zip(datasets.cifar("CIFAR100", Path(request["data_dir"])), PARTS, strict=True):
        rows = chosen_rows(images.y, options, part, seed=0)
        tasks = images.y[rows] // CLASSES
        training_and_test.append([Images(images.x[rows[tasks == task]], images.y[rows[tasks == task]])
                                  for task in range(request["tasks"])])
    return training_and_test[0], training_and_test[1]


def model_of(request: Request) -> nn.Module:
    """Return timm's model with the weights and a head for all classes, wrapped by PEFT."""
    import timm
    from peft import LoraConfig, get_peft_model

    inner = request["model"].partition(":")[2]
    sized = {"img_size": request["size"]} if timm.get_pretrained_cfg(inner).fixed_input_size else {}
    overlay = {"state_dict": read_weights(Path(request["weights"]))}
    model = timm.create_model(inner, pretrained=True, pretrained_cfg_overlay=overlay,
                              num_classes=CLASSES * request["tasks"], **sized)
    head = next(name for name, module in model.named_modules() if module is model.get_classifier())
    layers = ([name for name, module in model.named_modules() if name.endswith(("attn.qkv", "attn.proj"))]
              or [name for name, module in model.named_modules() if name != head and
                  (isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1))])
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=layers, modules_to_save=[head])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned: nn.Module = get_peft_model(model, config).to(request["device"])
    return tuned


def autocast(request: Request) -> AbstractContextManager[Any]:
    """Return the autocast context of the requested precision."""
    on = request["precision"] == "bf16"
    return torch.autocast(torch.device(request["device"]).type, torch.bfloat16) if on else nullcontext()


def frozen_statistics(model: nn.Module) -> nn.Module:
    """Set a model to training mode except its batch normalization, which belongs to the frozen backbone."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def by_hand(request: Request, train: Sequence[Images], test: Sequence[Images], clock: Clock) -> None:
    """Train a new model on each task and evaluate all tests, with tensors on the device or a loader of PIL images."""
    info = read_weights_info(Path(request["weights"]))
    assert info is not None and info.preprocessing is not None
    mean, std = info.preprocessing.mean, info.preprocessing.std
    device, size = torch.device(request["device"]), request["size"]
    loads = "DataLoader" in request["contender"]
    at_hand = [Images(part.x.to(device), part.y.to(device)) for part in (*train, *test)]
    mean_at, std_at = (torch.tensor(values, device=device)[:, None, None] for values in (mean, std))

    def prepared(x: Tensor) -> Tensor:
        resized = F.interpolate(x.float().div_(255), (size, size), mode="bicubic", antialias=True)
        return (resized.clamp_(0, 1) - mean_at) / std_at

    def batches(number: int, count: int, shuffle: bool) -> Iterator[tuple[Tensor, Tensor]]:
        part = at_hand[number]
        if not loads:
            order = torch.randperm(len(part.y), device=device) if shuffle else torch.arange(len(part.y), device=device)
            for index in torch.split(order, count):
                yield prepared(part.x[index]), part.y[index]
            return
        from torchvision import transforms

        images = (*train, *test)[number]
        resize = transforms.Resize(size, transforms.InterpolationMode.BICUBIC)
        normalize = transforms.Normalize(mean, std)
        pictures = Pictures(images, transforms.Compose([resize, transforms.ToTensor(), normalize]))
        for x, y in torch.utils.data.DataLoader(pictures, count, shuffle=shuffle, num_workers=2):
            yield x.to(device), y.to(device)

    def evaluate(model: nn.Module) -> None:
        model.eval()
        with clock.phase("test"), torch.no_grad(), autocast(request):
            for number in range(len(train), len(at_hand)):
                right = torch.zeros((), dtype=torch.int64, device=device)
                for x, y in batches(number, TEST_BATCH, shuffle=False):
                    right += (model(x).argmax(1) == y).sum()
                int(right)

    def learn(model: nn.Module, number: int, steps: int | None = None) -> None:
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=LR, fused=True)
        frozen_statistics(model)
        losses = []
        for _ in range(request["epochs"]):
            for done, (x, y) in enumerate(batches(number, request["batch_size"], shuffle=True)):
                if done == steps:
                    return
                with autocast(request):
                    loss = F.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
        torch.stack(losses).isfinite().all().item()

    learn(model_of(request), 0, steps=2)  # warm-up
    clock.seconds.clear()
    for number in range(len(train)):
        model = model_of(request)
        if number == 0:
            evaluate(model)
        with clock.phase("train"):
            learn(model, number)
        evaluate(model)


def by_avalanche(request: Request, train: Sequence[Images], test: Sequence[Images], clock: Clock) -> None:
    """Train one PEFT model with Avalanche's Naive, with transforms that are typical for its users."""
    from avalanche.benchmarks import nc_benchmark
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import Naive
    from torchvision import transforms

    info = read_weights_info(Path(request["weights"]))
    assert info is not None and info.preprocessing is not None
    kind = transforms.Compose([transforms.Resize(request["size"], transforms.InterpolationMode.BICUBIC),
                               transforms.ToTensor(),
                               transforms.Normalize(info.preprocessing.mean, info.preprocessing.std)])

    whole = [Pictures(Images(torch.cat([p.x for p in parts]), torch.cat([p.y for p in parts])))
             for parts in (train, test)]
    benchmark = nc_benchmark(*whole, len(train), task_labels=False, shuffle=False, train_transform=kind,
                             eval_transform=kind, fixed_class_order=list(range(CLASSES * len(train))))
    model = model_of(request)
    strategy = Naive(model=model, criterion=nn.CrossEntropyLoss(), train_mb_size=request["batch_size"],
                     optimizer=torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=LR),
                     train_epochs=request["epochs"], eval_mb_size=TEST_BATCH, device=torch.device(request["device"]),
                     evaluator=EvaluationPlugin())
    with autocast(request):
        with clock.phase("test"):
            strategy.eval(benchmark.test_stream)
        for experience in benchmark.train_stream:
            with clock.phase("train"):
                strategy.train(experience)
            with clock.phase("test"):
                strategy.eval(benchmark.test_stream)
