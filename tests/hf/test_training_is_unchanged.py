"""`ForgettingCallback` leaves no trace in training by the real `Trainer` (extra `lm`)."""

import copy
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.language_models import make_model, quiet
from helpers.trainers import add_callback, forget_log, lora, make_trainer, train

from clbench.core.errors import SpecError

# transformers and PEFT call what is deprecated in each other, and PEFT looks for a base that is not in a file.
pytestmark = [pytest.mark.extra("lm"), *map(pytest.mark.filterwarnings, (
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore:Could not find a config file:UserWarning"))]


@pytest.fixture(scope="module", autouse=True)
def quiet_import():
    quiet()


class RandomDraws(torch.nn.Module):
    """A module that draws from all global generators in each forward pass, and returns its input."""

    def forward(self, x):
        random.random(), np.random.rand(), torch.rand(1)
        return x


@pytest.mark.parametrize("adapt", [None, lora], ids=["plain", "peft"])
@pytest.mark.parametrize("settings", [
    {"logging_steps": 1, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 3},
    {"gradient_accumulation_steps": 2, "logging_steps": 3, "logging_first_step": True, "eval_strategy": "epoch",
     "gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False},
     "label_smoothing_factor": 0.1}], ids=["steps", "epochs"])
@pytest.mark.parametrize("every", [None, 1])
def test_training_is_the_same_bit_for_bit(tmp_path, adapt, settings, every):
    logs, weights, modes, draws = [], [], [], []
    for use in (False, True):
        model = make_model(attention_dropout=0.2)
        model.model.norm = torch.nn.Sequential(model.model.norm, RandomDraws())
        trainer = make_trainer(tmp_path / str(use), adapt(model) if adapt else model, **settings)
        if use:
            add_callback(trainer, every=every)
        train(trainer)
        assert bool(forget_log(trainer)) == use
        durations = ("runtime", "per_second")
        logs.append([{k: v for k, v in entry.items() if not k.endswith(durations)}
                     for entry in trainer.state.log_history if "forget/old/nll" not in entry])
        weights.append({name: tensor.clone() for name, tensor in trainer.model.state_dict().items()})
        modes.append([module.training for module in trainer.model.modules()])
        draws.append((random.random(), np.random.rand(), float(torch.rand(1))))
    assert len([entry for entry in logs[0] if "loss" in entry]) >= 2
    assert logs[0] == logs[1]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert modes[0] == modes[1] and draws[0] == draws[1]


def test_modes_gradients_and_the_pending_log_are_left_alone(tmp_path):
    trainer = make_trainer(tmp_path)
    callback = add_callback(trainer, every=1)
    train(trainer)
    model = trainer.model.train()
    model.model.layers[0].eval()  # as some keep frozen parts
    modes = [module.training for module in model.modules()]
    model.lm_head.weight.grad = gradient = torch.ones_like(model.lm_head.weight)
    trainer.control.should_log = True
    callback.on_step_end(trainer.args, trainer.state, trainer.control, model=model)
    assert [module.training for module in model.modules()] == modes
    assert model.lm_head.weight.grad is gradient and bool((gradient == 1).all())
    assert all(p.grad is None for name, p in model.named_parameters() if p is not model.lm_head.weight)
    assert trainer.control.should_log
    broken = copy.deepcopy(model)
    broken.model.layers[1] = None
    with pytest.raises(TypeError):
        callback.on_step_end(trainer.args, trainer.state, trainer.control, model=broken)
    assert broken.training and not broken.model.layers[0].training


def test_running_averages_of_derived_trainers_are_left_alone(tmp_path):
    """SFTTrainer of TRL, for example, logs averages of what it computed since the last entry."""
    trainer = make_trainer(tmp_path)
    steps = []

    class Averaging(type(trainer)):
        def training_step(self, *args, **kwargs):
            steps.append(self.state.global_step)
            return super().training_step(*args, **kwargs)

        def log(self, logs, start_time=None):
            super().log({**logs, "average": sum(steps) / max(1, len(steps))}, start_time)
            steps.clear()

    trainer.__class__ = Averaging
    add_callback(trainer, every=1)
    train(trainer)
    assert [entry["average"] for entry in trainer.state.log_history if "loss" in entry] == [0.5, 2.5, 4.5]
    assert [step for step, _ in forget_log(trainer)] == [0, 1, 2, 3, 4, 5, 6]
    assert not any("average" in entry for entry in trainer.state.log_history if "forget/old/nll" in entry)


def test_only_the_main_process_scores(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path)
    add_callback(trainer, every=1)
    monkeypatch.setattr(trainer, "is_world_process_zero", lambda: False)
    monkeypatch.setattr("clbench.hf.callback.Scorer", None)  # which would fail if it were called
    assert forget_log(train(trainer)) == []


@pytest.mark.parametrize("sharding", ["fsdp", "zero3"])
def test_a_sharded_model_is_refused(tmp_path, monkeypatch, sharding):
    trainer = make_trainer(tmp_path)
    callback = add_callback(trainer)
    if sharding == "fsdp":
        trainer.is_fsdp_enabled = True
    else:
        trainer.is_deepspeed_enabled = True
        plugin = SimpleNamespace(zero_stage=3)
        trainer.accelerator = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin))
    with pytest.raises(SpecError, match="run clbench forget on checkpoints instead"):
        callback.on_train_begin(trainer.args, trainer.state, trainer.control)
    if sharding == "zero3":
        plugin.zero_stage = 2
        callback.on_train_begin(trainer.args, trainer.state, trainer.control)


@pytest.fixture
def new_precision():
    """Let trainers choose their precision, which accelerate keeps for all that follow in a process."""
    from accelerate.state import AcceleratorState

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_MIXED_PRECISION", "no")
        AcceleratorState._reset_state(reset_partial_state=True)
        yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("new_precision")
def test_mixed_precision_needs_no_logits_of_unscored_tokens(tmp_path, monkeypatch):
    from clbench.hf import callback as module

    parts = []

    class Watched(module.Scorer):
        def __init__(self, *args):
            super().__init__(*args)
            parts.append(self.parts)

    exact = make_trainer(tmp_path)
    add_callback(exact)
    train(exact)
    monkeypatch.setattr(module, "Scorer", Watched)
    trainer = make_trainer(tmp_path, bf16=True)
    add_callback(trainer)
    train(trainer)
    assert len(parts) == 2 and None not in parts
    first, precise = forget_log(trainer)[0][1], forget_log(exact)[0][1]
    assert first != precise and first == pytest.approx(precise, rel=0.02)
