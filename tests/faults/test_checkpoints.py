import json
import re
import sys
import types
from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from clbench.core import identity
from clbench.core.hookspecs import StrategyInfo, hookimpl
from clbench.core.registry import discover
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.plan import plan
from clbench.experiment.spec import build
from clbench.persistence import callbacks, snapshot
from clbench.persistence.strategy_state import SnapshotError, capture, type_in_words
from clbench.results import provenance
from clbench.results.records import Code
from clbench.results.store import STATE
from clbench.strategy.base import Strategy
from clbench.testing.checks import check
from clbench.testing.tiny import NonConforming, bench
from clbench.training.replica import Replica


class Killed(BaseException):
    """Takes the process's death for granted: nothing catches it."""


class StartsOver(Strategy):
    not_resumable = "its state is elsewhere"


class Hides(Strategy):
    def __init__(self, model, stream_info, options):
        super().__init__(model, stream_info, options)
        self.drawn = iter(range(100))


class HidesInside(Strategy):
    def __init__(self, model, stream_info, options):
        super().__init__(model, stream_info, options)
        self.parts = torch.nn.ModuleList([Counting(), torch.nn.ReLU()])

    def after_task(self, task):
        self.parts[0].met[task.index] += 1


class Counting(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.met = Counter()

    def forward(self, x):
        return x


class HidesInTheModel(Strategy):
    def __init__(self, model, stream_info, options):
        super().__init__(model, stream_info, options)
        model.blocks[0].body = torch.nn.Sequential(model.blocks[0].body, Counting())

    def after_task(self, task):
        self.model.blocks[0].body[1].met[task.index] += 1


class GrowsLate(Strategy):
    def after_task(self, task):
        self.register_parameter(f"late_{task.index}", torch.nn.Parameter(torch.zeros(1)))


class Counts(Strategy):
    """Learns less from task to task, by what it keeps in plain attributes."""

    def __init__(self, model, stream_info, options):
        super().__init__(model, stream_info, options)
        self.seen, self.weights, self.most = 0, {0: (1.0,)}, float("-inf")

    def prepare_batch(self, batch):
        self.seen += len(batch.y)
        return batch

    def loss(self, batch):
        return super().loss(batch) * self.weights[batch.task][0]

    def after_task(self, task):
        self.most = max(self.most, float(task.index))
        self.weights[task.index + 1] = (100 / (self.seen + self.most),)


class Scaled(torch.nn.Module):
    def __init__(self, weights):
        super().__init__()
        self.weights = weights

    def forward(self, loss):
        return self.weights[-1] * loss


class Shares(Strategy):
    """Changes a list that another module has too."""

    def __init__(self, model, stream_info, options):
        super().__init__(model, stream_info, options)
        self.weights = [1.0]
        self.scaled = Scaled(self.weights)

    def loss(self, batch):
        return self.scaled(super().loss(batch))

    def after_task(self, task):
        self.weights.append(self.weights[-1] / 2)


class Replaces(Strategy):
    """Trains a new parameter in each task."""

    def __init__(self, model, stream_info, options):
        super().__init__(model, stream_info, options)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def loss(self, batch):
        return super().loss(batch) + (self.scale - 3) ** 2

    def after_task(self, task):
        self.scale = torch.nn.Parameter(torch.ones(()))


class ScalesLoss(Strategy):
    """Trains a parameter without dimensions, whose gradient depends on the seed."""

    def __init__(self, model, stream_info, options):
        super().__init__(model, stream_info, options)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def loss(self, batch):
        return self.cross_entropy(self.scale * self(batch.x, batch.task), batch)


@hookimpl
def clbench_strategies():
    return [StrategyInfo(name, cls, "") for name, cls in (
        ("starts-over", StartsOver), ("hides", Hides), ("hides-inside", HidesInside), ("grows-late", GrowsLate),
        ("hides-in-the-model", HidesInTheModel), ("counts", Counts), ("shares", Shares), ("replaces", Replaces),
        ("scales-loss", ScalesLoss))]


@pytest.fixture(scope="module")
def registry():
    plugin = types.ModuleType("strategies_for_checkpoints")
    plugin.clbench_strategies = clbench_strategies
    return discover([plugin])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(callbacks, "SECONDS", 0.0)
    return tmp_path / "checkpoints"


def planned(registry, method, seeds=1, scenario="class", model="mlp:width=32", **recipe):
    return plan(build({"methods": method, "seeds": seeds, "scenario": scenario, "model": model,
                       "recipe": {"iterations": 6, "batch_size": 32, **recipe}}), registry)


def run(registry, group, data, checkpoints=None, kill_after=None):
    """Run trials as a process of their own would; it may be killed when a task is learned."""
    def hear(progress):
        if progress.task == kill_after:
            raise Killed

    runner = TrialRunner(ExecutionSettings(data=data), "cpu", "a test", registry,
                         data / "artifacts" if checkpoints else None, checkpoints)
    return runner.run_stack(group, hear)


def resumed(registry, group, data, folder, kill_after=3):
    with pytest.raises(Killed):
        run(registry, group, data, folder, kill_after)
    return run(registry, group, data, folder)


@pytest.mark.parametrize("method", [
    "naive", "joint", "er:capacity=40", "ewc", "lora:rank=2", "pnn", "shared-private:infer=prototype", "counts",
    "shares", "replaces",
    *(pytest.param(method, marks=pytest.mark.slow) for method in (
        "inflora:rank=2", "sd-lora:rank=2", "sd-lora:rank=2:magnitudes=layer", "lora-sub:rank=2", "ewc-lora:rank=2",
        "lora-mean:rank=2", "independent"))])
def test_a_trial_that_goes_on_equals_one_that_was_not_killed(registry, tmp_path, folder, method):
    group = planned(registry, method, optimizer_state="keep")
    whole = run(registry, group, tmp_path)
    again = resumed(registry, group, tmp_path, folder)
    assert [r.facts() for r in again] == [r.facts() for r in whole]
    assert len(again[0].timings.train) == 5 and len(again[0].timings.evaluate) == 6
    assert len(again[0].timings.train_cpu) == 5 and len(again[0].timings.evaluate_cpu) == 6
    assert again[0].costs.train_flops == whole[0].costs.train_flops
    assert again[0].last_losses == whole[0].last_losses and len(whole[0].last_losses) == 5
    assert again[0].costs.inference_flops == whole[0].costs.inference_flops
    header = snapshot.read(folder / group[0].trial.key / STATE).header
    assert header.learned == 4
    assert header.progress.started == again[0].provenance.started


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("model", ["mlp:width=32", "cnn:channels=2"])  # weights of convolutions are channels-last
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_trial_or_a_stack_goes_on_with_its_moments(registry, tmp_path, folder, optimizer, model, seeds):
    group = planned(registry, "naive", seeds, model=model, optimizer_state="keep", optimizer=optimizer)
    whole = run(registry, group, tmp_path)
    again = resumed(registry, group, tmp_path, folder)
    assert [r.facts() for r in again] == [r.facts() for r in whole]


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_stack_goes_on_with_the_moments_of_parameters_without_dimensions(registry, tmp_path, folder, optimizer):
    recipe = {"lr": 0.01, "optimizer": optimizer, **({"momentum": 0.9} if optimizer == "sgd" else {})}
    group = planned(registry, "scales-loss", seeds=2, optimizer_state="keep", **recipe)
    whole = run(registry, group, tmp_path)
    again = resumed(registry, group, tmp_path, folder)
    assert whole[0].last_losses != whole[1].last_losses
    assert [r.last_losses for r in again] == [r.last_losses for r in whole]


def test_a_loss_that_draws_gives_the_same_record_alone_in_a_stack_and_resumed(registry, tmp_path, folder):
    group = planned(registry, "lora:rank=2:dropout=0.1", seeds=2)
    alone = [run(registry, [one], tmp_path)[0] for one in group]
    without = run(registry, planned(registry, "lora:rank=2", seeds=1), tmp_path)[0]
    assert alone[0].R != without.R, "dropout makes a difference"
    stacked, again = run(registry, group, tmp_path), resumed(registry, group, tmp_path, folder)
    assert all(r.notes[-1].startswith("ran alone: its loss draws random numbers") for r in stacked)
    for records in (stacked, again):
        assert [{**r.facts(), "notes": []} for r in records] == [{**r.facts(), "notes": []} for r in alone]


def test_members_that_were_stopped_after_different_tasks_go_on_apart(registry, tmp_path, folder):
    group = planned(registry, "naive", seeds=2)
    alone = [run(registry, [one], tmp_path)[0] for one in group]
    for one, kill_after in zip(group, (2, 4), strict=True):
        with pytest.raises(Killed):
            run(registry, [one], tmp_path, folder, kill_after)
    again = run(registry, group, tmp_path, folder)
    assert [r.facts() for r in again] == [r.facts() for r in alone]


@pytest.mark.parametrize(("home", "name"), [(Replica, "retrace"), (Strategy, "load_state_dict")])
def test_want_of_memory_is_no_fault_of_the_checkpoint(registry, tmp_path, folder, monkeypatch, home, name):
    def hungry(*args):
        raise torch.OutOfMemoryError

    group = planned(registry, "naive")
    with pytest.raises(Killed):
        run(registry, group, tmp_path, folder, kill_after=3)
    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr(home, name, hungry)
        run(registry, group, tmp_path, folder)
    header = snapshot.read(folder / group[0].trial.key / STATE).header
    record, = run(registry, group, tmp_path, folder)
    assert (record.notes, record.provenance.started) == ([], header.progress.started)


@pytest.mark.parametrize(("method", "reason"), [
    ("starts-over", "its state is elsewhere"),
    ("hides", "the attribute drawn is a range_iterator, which cannot be saved. Store tensors in parameters or buffers, "
              "and other state in numbers, strings or lists of them"),
    ("hides-inside", "the attribute parts.0.met is a Counter, which cannot be saved. .*"),
    ("hides-in-the-model", "the attribute model.blocks.0.body.1.met is a Counter, which cannot be saved. .*"),
    ("grows-late", "the saved state does not fit: .*|it has other parameters than the saved state, such as .*")])
def test_what_cannot_go_on_starts_over_and_says_why(registry, tmp_path, folder, method, reason):
    group = planned(registry, method)
    whole, = run(registry, group, tmp_path)
    again, = resumed(registry, group, tmp_path, folder)
    *notes, last = again.notes
    assert again.R == whole.R and notes == whole.notes
    assert re.fullmatch(f"started over after an interruption: ({reason})", last)


def test_opting_out_passes_the_check_and_pretending_does_not():
    check(StrategyInfo("starts-over", StartsOver, ""), "checkpoint")
    check(StrategyInfo("counts", Counts, ""), "checkpoint")
    for cls, words in ((Hides, "attribute drawn is a range_iterator.*.*reason in the class attribute not_resumable"),
                       (HidesInside, "attribute parts.0.met is a Counter"),
                       (GrowsLate, "other parameters|does not fit")):
        with pytest.raises(NonConforming, match=words):
            check(StrategyInfo("bad", cls, ""), "checkpoint")


def test_the_part_of_a_container_that_cannot_be_saved_is_named():
    value = [1, {"teacher": torch.ones(1)}]
    assert type_in_words(value, set()) == "list with a dict with a Tensor"


@pytest.mark.parametrize("value", [torch.eye(2).to_sparse(), torch.eye(2, dtype=torch.complex128)])
def test_a_buffer_that_safetensors_cannot_store_is_refused(value):
    strategy = bench(StrategyInfo("naive", Strategy, ""), {}, "class").strategy
    strategy.register_buffer("graph", value)
    with pytest.raises(SnapshotError, match=r"graph is a tensor of torch\.\w+ and torch\.\w+, which safetensors"):
        capture(strategy)


@pytest.mark.parametrize(("change", "reason"), [
    ({"conditions": {"data": "0"}}, "the data changed (0, now "),
    ({"conditions": {"code": "0"}}, "the code changed (0, now "),
    ({"conditions": {"libraries": "torch 0"}}, "the libraries changed (torch 0, now "),
    ({"conditions": {"number of threads": "99"}}, "the number of threads changed (99, now "),
    ({"conditions": {"trial": "0" * 16}}, "the trial changed (0000000000000000, now "),
    ({"progress": {"R": []}}, "the checkpoint's R is not that of its tasks"),
    ({"learned": 4}, "the checkpoint's R is not"), ({"progress": None}, "the checkpoint's R is not"),
    ({"state": {"attributes": {"": {"_parameters": {"dict": []}}}}}, "the saved state sets _parameters"),
    ({"state": {"attributes": {"nowhere": {"x": 1}}}}, "the saved state does not fit"),
    ({"learned": "x"}, "the snapshot cannot be read: another version of clbench wrote it"),
    ({"schema_version": 1}, "the snapshot cannot be read: another version of clbench wrote it")])
def test_a_checkpoint_of_something_else_is_not_gone_on_from(registry, tmp_path, folder, change, reason):
    group = planned(registry, "naive")
    with pytest.raises(Killed):
        run(registry, group, tmp_path, folder, kill_after=3)
    path = folder / group[0].trial.key / STATE
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["clbench"])
    for name, value in change.items():
        header[name] = header[name] | value if isinstance(value, dict) else value
    save_file(load_file(path), path, {"clbench": json.dumps(header)})
    record, = run(registry, group, tmp_path, folder)
    assert record.status == "done"
    assert record.notes[-1].startswith(f"started over after an interruption: {reason}")


def test_a_trial_starts_over_if_the_configuration_of_its_model_changed(registry, tmp_path, folder, monkeypatch):
    group = planned(registry, "naive")
    for digest in ("a", "b"):
        code = {"configuration": Code(packages=["config.json"], hash=digest)}
        monkeypatch.setattr(provenance, "code_of", lambda *_, code=code: code)
        with pytest.raises(Killed) if digest == "a" else nullcontext():
            record, = run(registry, group, tmp_path, folder, kill_after=3 if digest == "a" else None)
    assert record.notes[-1] == "started over after an interruption: the configuration of the model changed (a, now b)"


def test_the_code_is_what_was_imported_and_not_what_an_edit_made_of_it(tmp_path, folder):
    file = tmp_path / "edited_method.py"
    file.write_text("""
from pathlib import Path

from clbench import Strategy, StrategyInfo, hookimpl


class Edited(Strategy):
    def after_task(self, task):
        if task.index == 0:
            with Path(__file__).open("a") as file:
                file.write("edited = True  # while it is trained")


@hookimpl
def clbench_strategies():
    return [StrategyInfo("edited", Edited, "")]
""")
    registry = discover(files=[file])
    group = planned(registry, "edited")
    with pytest.raises(Killed):
        run(registry, group, tmp_path, folder, kill_after=3)
    record, = run(discover(files=[file]), group, tmp_path, folder)
    note, = record.notes
    assert note.startswith("started over after an interruption: the code changed (")
    sys.modules.pop("edited_method")


def test_short_trials_write_none(registry, tmp_path):
    run(registry, planned(registry, "naive"), tmp_path, tmp_path / "checkpoints")
    assert not (tmp_path / "checkpoints").exists()


def test_a_full_disk_stops_no_training(registry, tmp_path, folder, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshot, "save_tensors", full)
    record, = run(registry, planned(registry, "naive"), tmp_path, folder)
    assert record.status == "done"
    assert record.notes == ["no checkpoint could be written: No space left on device"]


@pytest.mark.parametrize("method", ["joint", "er"])
def test_buffers_that_grew_are_loaded_into_a_new_strategy(method):
    learned, new = (bench(discover().strategy(method), {}, "task") for _ in range(2))
    for index in range(2):
        learned.learn(index)
    new.strategy.load_state_dict(learned.strategy.state_dict())
    assert all(torch.equal(t, new.strategy.state_dict()[n]) for n, t in learned.strategy.state_dict().items())
    with pytest.raises(RuntimeError, match="nowhere"):
        new.strategy.load_state_dict({**learned.strategy.state_dict(), "nowhere.x": torch.ones(1)})


def test_libraries_of_models_count_by_their_version_and_are_not_read(monkeypatch):
    strategy = bench(discover().strategy("naive"), {}, "task").strategy
    plain = callbacks.code_of(strategy)
    read = []
    monkeypatch.setattr(identity, "hash_running", lambda *names: read.append(names) or "own code")
    monkeypatch.setattr(callbacks, "version", lambda name: "9.9")
    strategy.model.added = type("Block", (torch.nn.Module,), {"__module__": "timm.layers"})()
    assert callbacks.code_of(strategy) == "own code timm 9.9" and " " not in plain
    assert "clbench" in read[0] and "timm" not in read[0]
