"""Within a task no step waits for the device. Tensors on `meta` have no values: whatever reads one back fails."""

import contextlib

import pytest
import torch
from helpers.training import loop
from torch.utils._python_dispatch import TorchDispatchMode

from clbench.core import seeds
from clbench.core.registry import discover
from clbench.data.prepare import CropFlip
from clbench.experiment.spec import Recipe
from clbench.strategy.base import Strategy, Task
from clbench.testing.tiny import bench
from clbench.training import loop as training
from clbench.training import phase_cache, precision, stacked_step

REGISTRY = discover()
META = torch.device("meta")


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch):
    monkeypatch.setattr(precision, "autocast_context", lambda *_, **__: contextlib.nullcontext())  # `meta` has none


METHODS = [("naive", {}), ("joint", {}), ("ewc", {}), ("er", {"capacity": 10}), ("lora", {"rank": 2, "dropout": 0.5}),
           ("pnn", {}), ("shared-private", {}), ("seq-lora", {"rank": 2}), ("o-lora", {"rank": 2, "dropout": 0.1}),
           ("ewc-lora", {"rank": 2}), ("slca++", {"rank": 2}), ("lora-mean", {"rank": 2}),
           ("frozen", {}), ("independent", {}), ("si", {}), ("mas", {}), ("l2", {}), ("lwf", {}),
           ("a-gem", {"balance": "reservoir"}), ("der", {"capacity": 10}), ("der++", {"capacity": 10}),
           ("er-ace", {"capacity": 10}), ("icarl", {"capacity": 10}), ("acl", {"memory": 3}), ("packnet", {}),
           ("bic", {"capacity": 20}), ("wa", {"capacity": 10}), ("lucir", {"capacity": 10}),
           ("gem", {"capacity": 10}),  # but for the products that its quadratic problem needs
           ("podnet", {"capacity": 10, "finetune_steps": 0.0, "imprint": False}),  # imprints between tasks
           ("dynamic-er", {"capacity": 10}),
           ("mir", {"capacity": 20, "replayed": 3}), ("hat", {}), ("rwalk", {"interval": 2}), ("xdg", {}),
           ("cls-er", {"capacity": 10}), ("fetril", {}), ("generative-replay", {"width": 16}),
           ("l2p", {"pool": 4, "top": 2, "length": 2}), ("dualprompt", {}), ("coda-prompt", {"components": 6}),
           ("s-iprompts", {}), ("ease", {"width": 3, "dropout": 0.1}),
           ("lae", {"width": 2}), ("mos", {"width": 3, "dropout": 0.0})]
PROMPTS = ("l2p", "dualprompt", "coda-prompt", "s-iprompts")
# A stack computes what its members would alone; these have dropout, edit gradients, replay or prepare batches.
QUICK = ("ewc", "gem", "pnn", "shared-private", "lucir", "slca++")  # what the fast tests try
ALONE = ("naive", "ease", "a-gem", "er", "mir", "icarl", "bic", "lora", "l2p")


class Copies(TorchDispatchMode):
    """Notes the copies to the device that the host would wait for."""

    def __init__(self):
        super().__init__()
        self.waited = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.overloadpacket._qualified_op_name
        # A plain number becomes a tensor on its way through vmap; that is a kernel's argument and no copy.
        if (name == "aten::_to_copy" and isinstance(args[0], torch.Tensor) and args[0].device.type == "cpu"
                and out.device == META and not kwargs.get("non_blocking")):
            self.waited.append(args[0].shape)
        return out


def on_meta(method, options, seed):
    """Return a member on the device in its second task, and that task."""
    b = bench(REGISTRY.strategy(method), options, "task", seed, "vit" if method in (*PROMPTS, "ease", "mos") else "cnn")
    b.learn(0)
    b.strategy.to(META)
    stream = b.stream.to(META)
    task = Task(1, stream.tasks[1].classes, stream.tasks[1].train)
    with seeds.scope(seed, "strategy", 1):
        b.strategy.before_task(task)
    return b.strategy, task


@pytest.mark.parametrize(("method", "options", "count"), [
    *(pytest.param(*one, 2, marks=() if one[0] in QUICK else pytest.mark.slow) for one in METHODS),
    *((*one, 1) for one in METHODS if one[0] in ALONE)])
def test_no_step_of_a_built_in_method_waits_for_the_device(method, options, count, monkeypatch):
    monkeypatch.setattr(stacked_step, "share_equal", lambda *_, **__: set())  # looks at values, once in a phase
    if count > 1 and "dropout" in options:
        options = {**options, "dropout": 0.0}  # what draws in its loss is not stacked
    members = [on_meta(method, options, seed) for seed in range(count)]
    # Reads the losses when the task is over.
    monkeypatch.setattr(training, "on_host", lambda losses: torch.zeros(losses.shape))
    monkeypatch.setattr(phase_cache, "require_same_loss", lambda *_: None)  # reads a loss before the first step
    trainer = loop([s for s, _ in members], Recipe(batch_size=8, iterations=4), list(range(count)), CropFlip())
    with Copies() as copies:
        trained = trainer.take_task_steps([task for _, task in members])
    assert [t.steps for t in trained] == [4] * count
    assert copies.waited == []


@pytest.mark.parametrize(("method", "options"), [
    ("ncm", {}), ("simplecil", {}), ("slda", {}), ("ranpac", {"projections": 20}), ("fecam", {}),
    ("acil", {"projections": 20, "compensation": 0.6}),
    ("fecam", {"covariance": "common"})])
def test_what_trains_nothing_does_not_wait_for_the_device_either(method, options):
    strategy, task = on_meta(method, options, 0)
    with Copies() as copies:
        assert loop([strategy], Recipe(iterations=9), [0]).take_task_steps([task])[0].steps == 0
        strategy.after_task(task)
    assert copies.waited == []


class Peeks(Strategy):
    def loss(self, batch):
        loss = super().loss(batch)
        return loss if loss > 0 else -loss


def test_a_step_that_waits_would_be_seen(monkeypatch):
    b = bench(REGISTRY.strategy("naive"), {}, "task")
    strategy = b.strategy.to(META)
    strategy.__class__ = Peeks
    task = Task(0, b.stream.tasks[0].classes, b.stream.to(META).tasks[0].train)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        loop([strategy], Recipe(iterations=1), [0]).take_task_steps([task])
    with Copies() as copies:
        torch.zeros(2).to(META), torch.ones(3).to(META, non_blocking=True)
    assert copies.waited == [(2,)]
