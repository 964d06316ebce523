from functools import partial

import pytest
import torch
from helpers import stacks
from helpers.stacks import lead

from clbench.core.errors import SpecError
from clbench.core.hookspecs import StrategyInfo
from clbench.core.registry import discover
from clbench.execution import trial_runner as trial
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.plan import plan
from clbench.experiment.spec import Recipe, build
from clbench.strategy.base import Strategy
from clbench.training.loop import TrainingLoop
from clbench.training.precision import Compiler

REGISTRY = discover()
CPU = torch.device("cpu")
VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])
RECENT = pytest.mark.skipif(VERSION < (2, 6), reason="older compilers leave some losses uncompiled, with a note")
RECIPE = Recipe(optimizer="sgd", lr=0.05, batch_size=10, epochs=2)  # 24 samples: batches of two sizes


def compiled(compiler, monkeypatch, *args, **kwargs):
    """Train as `lead` does, with a compiler."""
    with monkeypatch.context() as patch:
        patch.setattr(stacks, "TrainingLoop", partial(TrainingLoop, compiler=compiler))
        return lead(*args, **kwargs)


def alike(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        for name, tensor in b.strategy.state_dict().items():
            torch.testing.assert_close(a.strategy.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)


@RECENT
@pytest.mark.parametrize("method", [
    name if name in ("er", "lora") else pytest.param(name, marks=pytest.mark.slow)
    for name in sorted(REGISTRY.strategies) if not name.startswith("avalanche:")])
def test_every_loss_is_one_graph_and_is_compiled_anew_as_the_model_grows(method, monkeypatch):
    # Without the machine code, which takes most of the time.
    info, compiler = REGISTRY.strategy(method), Compiler(CPU, "eager")
    recipe = Recipe(optimizer="sgd", lr=0.05, batch_size=8, epochs=1)
    alike(compiled(compiler, monkeypatch, info, {}, [0], recipe, tasks=2), lead(info, {}, [0], recipe, tasks=2))
    assert compiler.notes == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler about itself
def test_a_compiled_stack_of_strengths_learns_what_it_learns_uncompiled(monkeypatch):
    info, compiler = REGISTRY.strategy("ewc"), Compiler(CPU)
    options, recipe = [{"strength": 1.0}, {"strength": 50.0}], Recipe(optimizer="sgd", lr=0.05, batch_size=8, epochs=1)
    alike(compiled(compiler, monkeypatch, info, options, [0, 1], recipe, tasks=1),
          lead(info, options, [0, 1], recipe, tasks=1))
    assert compiler.notes == []


class Branches(Strategy):
    """Looks at its loss, which no graph can."""

    def loss(self, batch):
        loss = super().loss(batch)
        return loss if loss.item() > 0 else -loss


def test_what_cannot_be_compiled_runs_as_it_is_and_is_noted(monkeypatch):
    info, compiler = StrategyInfo("x", Branches, ""), Compiler(CPU, "eager")
    alike(compiled(compiler, monkeypatch, info, {}, [0], RECIPE), lead(info, {}, [0], RECIPE))
    assert len(compiler.notes) == 1 and compiler.notes[0].startswith("not compiled, ran as it is: ")
    assert "\n" not in compiler.notes[0]


def test_the_note_of_a_stack_with_bf16_says_that_stacks_cannot_be_compiled(monkeypatch):
    info, compiler = REGISTRY.strategy("naive"), Compiler(CPU, "eager")
    recipe = RECIPE.model_copy(update={"precision": "bf16"})
    compiled(compiler, monkeypatch, info, {}, [0, 1], recipe, tasks=1)
    note, = compiler.notes
    assert note.startswith("not compiled, ran as it is: with bf16, trials that train together cannot be compiled; "
                           "--stack 1 trains them one by one. Unsupported: ")


@RECENT
def test_notes_go_into_the_record(monkeypatch):
    monkeypatch.setattr(trial, "Compiler", partial(Compiler, backend="eager"))
    runner = TrialRunner(ExecutionSettings(compile=True), "cpu", "a test")
    planned = plan(build({"methods": "naive", "seeds": 1, "recipe": {"iterations": 1}}), runner.registry)[0]
    plain = Strategy.loss
    monkeypatch.setattr(Strategy, "loss", lambda self, batch: plain(self, batch) * (1 if batch.x.sum().item() else 2))
    record = runner.run(planned)
    assert record.status == "done" and len(record.notes) == 1
    assert record.notes[0].startswith("not compiled, ran as it is: GuardOnDataDependentSymNode: Could not guard")


def test_graphs_of_cuda_are_not_replayed_while_gradients_are_added():
    cuda = torch.device("cuda:1")
    assert Compiler(cuda).graphs and not Compiler(cuda, accumulates=True).graphs and not Compiler(CPU).graphs


def test_a_full_memory_is_no_failure_of_the_compiler():
    def loss(x):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    compiler = Compiler(CPU, "eager")
    compiler._compile = lambda function: function
    with pytest.raises(RuntimeError, match="allocate memory"):
        compiler(loss)(torch.zeros(1))
    assert not compiler.notes


def test_a_missing_compiler_is_one_line(monkeypatch):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "no-such-compiler"))
    with pytest.raises(SpecError, match=r"^--compile does not work here \(.*; it needs a C\+\+ compiler.*on CUDA$"):
        Compiler(CPU).probe()
