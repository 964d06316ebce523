import pytest
import torch
from helpers.stacks import lead
from torch import nn

from clbench.core.errors import PluginError
from clbench.core.hookspecs import StrategyInfo
from clbench.core.registry import discover
from clbench.data.samples import Samples
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.plan import plan
from clbench.experiment.spec import Recipe, build
from clbench.strategy.base import Batch, Strategy, declares
from clbench.testing.tiny import bench
from clbench.training import phase_cache

REGISTRY = discover()
RECIPE = Recipe(optimizer="sgd", lr=0.1, batch_size=8, epochs=2)


def note_inputs(monkeypatch):
    """Return a list to which the inputs of every phase are appended."""
    found, once = [], phase_cache.phase_inputs
    monkeypatch.setattr(phase_cache, "phase_inputs", lambda *a: found.append(r := once(*a)) or r)
    return found


def names(inputs):
    return sorted(getattr(inputs.samples[0], "outputs", {}))


@pytest.mark.parametrize(("method", "options", "model", "blocks", "outputs"), [
    ("shared-private", {}, "mlp", 2, []), ("shared-private", {}, "cnn", 2, []),
    ("frozen", {}, "mlp", 2, []), ("ease", {"adapter": "lora", "dropout": 0.0}, "mlp", 0, []),
    ("lora", {"layers": "last", "rank": 2}, "mlp", 1, ["first adapted layer"]),
    *((method, {"rank": 2, **options}, "mlp", 0, ["first adapted layer"])
      for method, options in (("lora", {}), ("seq-lora", {}), ("o-lora", {"dropout": 0.0}), ("inflora", {}),
                              ("sd-lora", {}), ("lora-sub", {}), ("ewc-lora", {"strength": 10.0}), ("lora-mean", {}))),
    ("lora", {"rank": 2}, "cnn", 0, ["first adapted layer"]),  # an adapted convolution; the methods share its code
    ("inflora", {"rank": 2}, "cnn", 0, ["first adapted layer"]),
    ("lora", {"rank": 2, "dropout": 0.5}, "mlp", 0, ["first adapted layer"]),
    ("lora", {"rank": 2, "dora": True}, "mlp", 0, ["first adapted layer"]),
    ("pnn", {}, "mlp", 0, [f"block {i}, column {j}" for i in range(2) for j in range(2)]),
    ("pnn", {}, "cnn", 0, [f"block {i}, column {j}" for i in range(2) for j in range(2)]),
    ("lwf", {}, "mlp", 0, ["old"]), ("lwf", {"form": "lwf-mc"}, "cnn", 0, ["old"]),
    ("l2p", {"pool": 4, "top": 2, "length": 2}, "vit", 0, ["query"]), ("dualprompt", {}, "vit", 0, ["query"]),
    ("coda-prompt", {"components": 6}, "vit", 0, ["query"]), ("s-iprompts", {}, "vit", 0, []),
    ("naive", {}, "mlp", 0, []), ("er", {}, "mlp", 0, []),
])
@pytest.mark.parametrize("seeds", [pytest.param([0], marks=pytest.mark.slow), [0, 1]])
def test_training_with_caches_is_the_same_training(method, options, model, blocks, outputs, seeds, monkeypatch):
    info = REGISTRY.strategy(method)
    inputs = note_inputs(monkeypatch)
    if len(seeds) > 1 and options.get("dropout"):
        pytest.skip("what draws in its loss is not stacked")
    torch.manual_seed(0)  # for dropout
    fast = lead(info, options, seeds, RECIPE, model=model)
    assert max(i.start for i in inputs) == blocks and names(inputs[-1]) == outputs
    monkeypatch.setenv("CLBENCH_CACHE_FROZEN", "0")
    inputs.clear()
    torch.manual_seed(0)
    slow = lead(info, options, seeds, RECIPE, model=model)
    assert not any(i.cached for i in inputs)
    for a, b in zip(fast, slow, strict=True):
        assert a.strategy.model.start == 0
        for name, tensor in a.strategy.state_dict().items():
            torch.testing.assert_close(tensor, b.strategy.state_dict()[name], rtol=1e-4, atol=1e-6)


class FrozenBlocks(Strategy):
    """A network of which the head alone learns."""

    def before_task(self, task):
        self.model.blocks.requires_grad_(False)

    def train(self, mode=True):
        super().train(mode)
        self.model.blocks.eval()
        return self


class LooksAtItsInputs(FrozenBlocks):
    def loss(self, batch):
        return super().loss(batch) + self.model.head.bias.sum() * batch.x.mean()


class DeclaresWrongly(LooksAtItsInputs):
    inputs_only_through_model = True


class NeedsTheShape(FrozenBlocks):
    inputs_only_through_model = True

    def loss(self, batch):
        return super().loss(batch) + 0 * batch.x[:, 0, 0, 0].sum()


class Drifts(FrozenBlocks):
    """Blocks that change while the head learns, though they require no gradient."""

    def edit_gradients(self, gradients):
        with torch.no_grad():
            next(self.model.blocks.parameters()).add_(0.1)
        return gradients


class EditsByStoredSamples(FrozenBlocks):
    """Adds the gradients of stored samples, which it passes to the model itself."""

    def __init__(self, model, stream_info, options=None):
        super().__init__(model, stream_info, options)
        self.register_buffer("memory_x", torch.empty(0))

    def edit_gradients(self, gradients):
        if not len(self.memory_x):
            return gradients
        loss = self(self.stream_info.prepare(self.memory_x)).square().mean()
        head = self.model.head
        added = dict(zip(("model.head.weight", "model.head.bias"),
                         torch.autograd.grad(loss, (head.weight, head.bias)), strict=True))
        return {name: gradient + added[name] for name, gradient in gradients.items()}

    def after_task(self, task):
        self.memory_x = task.train.x[:4].clone()


@pytest.mark.parametrize("seeds", [[0], [0, 1]])
def test_gradients_are_edited_with_inputs_of_the_whole_network(seeds, monkeypatch):
    info, inputs = StrategyInfo("edits", EditsByStoredSamples, ""), note_inputs(monkeypatch)
    fast = lead(info, {}, seeds, RECIPE)
    assert max(i.start for i in inputs) == 2
    monkeypatch.setenv("CLBENCH_CACHE_FROZEN", "0")
    for a, b in zip(fast, lead(info, {}, seeds, RECIPE), strict=True):
        assert a.strategy.model.start == 0
        torch.testing.assert_close(a.strategy.model.head.weight, b.strategy.model.head.weight, rtol=1e-4, atol=1e-6)


class LearnsWhatIsFrozen(Strategy):
    """Its frozen output is the network's, which learns."""

    def frozen_outputs(self, x):
        return {"logits": self.model(x)}

    def loss(self, batch):
        return super().loss(batch) + self.frozen_outputs_of(batch)["logits"].square().mean()


def learn(strategy, **options):
    lead(StrategyInfo("x", strategy, ""), {}, [0], RECIPE, **options)


def test_a_loss_that_uses_its_inputs_otherwise_is_left_alone_unless_it_declares_not_to():
    b = bench(StrategyInfo("x", LooksAtItsInputs, ""), {}, "task")
    b.learn(0)
    b.strategy.train()
    samples = b.stream.tasks[0].train
    assert phase_cache.frozen_blocks(b.strategy) == 2
    assert phase_cache.phase_inputs([b.strategy], [samples], 0, 2 * len(samples)).start == 0
    learn(FrozenBlocks)
    with pytest.raises(PluginError, match=r"DeclaresWrongly declares inputs_only_through_model, but .* its loss is"):
        learn(DeclaresWrongly)
    with pytest.raises(PluginError, match=r"its loss fails: .*set inputs_only_through_model = False in NeedsTheShape"):
        learn(NeedsTheShape)


def test_what_changes_in_spite_of_its_declaration_ends_the_phase():
    with pytest.raises(PluginError, match="Drifts: the network's first blocks changed while the phase was trained"):
        learn(Drifts)
    with pytest.raises(PluginError, match=r"LearnsWhatIsFrozen: frozen_outputs\['logits'\] changed"):
        learn(LearnsWhatIsFrozen)


class DriftsForOneSample(FrozenBlocks):
    """Only what blocks make of the last sample changes."""

    def frozen_outputs(self, x):
        return {"mark": torch.where((x == self.mark).flatten(1).all(1), self.changed, torch.zeros(()))}

    def before_task(self, task):
        super().before_task(task)
        self.register_buffer("mark", self.stream_info.prepare(task.train.x[-1:])[0])
        self.register_buffer("changed", torch.zeros(()))

    def edit_gradients(self, gradients):
        self.changed += 1
        return gradients


@pytest.mark.parametrize("everything", [False, True])
def test_every_batch_is_compared_on_demand(everything):
    b = bench(StrategyInfo("x", DriftsForOneSample, ""), {}, "task")
    task = b.replica.begin(0)
    b.strategy.train()
    x = torch.arange(40 * 64).reshape(40, 1, 8, 8) % 251  # all differ
    samples = Samples(x.to(torch.uint8), task.train.y[:1].expand(40), task.train.tasks[:1].expand(40))
    b.strategy.mark = b.strategy.stream_info.prepare(samples.x[-1:])[0]
    inputs = phase_cache.phase_inputs([b.strategy], [samples], 0, 80)
    b.strategy.changed += 1
    seed = next(s for s in range(99) if phase_cache.seeds.derive(s, "cache") % 3 == 0)  # the first of three batches
    if everything:
        with pytest.raises(PluginError, match="mark"):
            inputs.verify([b.strategy], seed, everything=True)
    else:
        inputs.verify([b.strategy], seed)


class Sub(LearnsWhatIsFrozen):
    pass


class SubThatDeclares(LooksAtItsInputs):
    inputs_only_through_model = True

    def loss(self, batch):
        return self.cross_entropy(self(batch.x), batch)


def test_an_inherited_declaration_does_not_survive_another_loss():
    of = {cls: bench(StrategyInfo("x", cls, ""), {}, "task").strategy for cls in (
        Strategy, FrozenBlocks, LooksAtItsInputs, Sub, SubThatDeclares)}
    assert [declares(s, "inputs_only_through_model") for s in of.values()] == [True, True, False, False, True]
    assert not any(declares(s, "parts_final") for s in of.values())


def test_frozen_outputs_are_computed_where_they_are_not_stored():
    b = bench(discover().strategy("lwf"), {}, "task")
    b.learn(0)
    b.replica.begin(1)
    batch = b.batch(1)
    batch = Batch(b.stream.prepare(batch.x), batch.y, batch.tasks, 1)
    found = b.strategy.frozen_outputs_of(batch)["old"]
    assert torch.equal(found, b.strategy.old(batch.x)) and not found.requires_grad
    marked = Batch(batch.x, batch.y, batch.tasks, 1, frozen={"old": 3 * found})
    assert torch.equal(b.strategy.frozen_outputs_of(marked)["old"], 3 * found)
    assert not torch.equal(b.strategy.loss(marked), b.strategy.loss(batch))


def frozen_strategy():
    """Return a bench whose strategy has only frozen blocks, and the samples of its first task."""
    b = bench(discover().strategy("shared-private"), {}, "task")
    b.learn(0)
    b.strategy.requires_grad_(False)
    b.strategy.train()
    return b, b.stream.tasks[0].train


def test_no_more_is_stored_than_the_budget():
    b, samples = frozen_strategy()
    assert phase_cache.phase_inputs([b.strategy], [samples], 0, 2 * len(samples)).start == 2
    assert phase_cache.phase_inputs([b.strategy], [samples], 0, 2 * len(samples) - 1).start == 0
    assert phase_cache.phase_inputs([b.strategy], [samples], 0, 2 * len(samples), limit=100).start == 0


def test_what_is_stored_in_bfloat16_is_measured_in_bfloat16():
    b, samples = frozen_strategy()
    autocast = torch.autocast("cpu", torch.bfloat16)
    stored, = phase_cache.phase_inputs([b.strategy], [samples], 0, 2 * len(samples), autocast=autocast).samples
    assert stored.x.dtype == torch.bfloat16
    starts = [phase_cache.phase_inputs([b.strategy], [samples], 0, 2 * len(samples), autocast=autocast,
                                       limit=limit).start for limit in (stored.x.nbytes, stored.x.nbytes - 1)]
    assert starts == [2, 0]


class Both(FrozenBlocks):
    """Frozen blocks, and a large frozen output that is computed from the inputs."""

    def frozen_outputs(self, x):
        return {"wide": x.flatten(1).repeat(1, 50)}


def test_blocks_are_not_cached_without_the_outputs_that_need_the_inputs():
    b = bench(StrategyInfo("x", Both, ""), {}, "task")
    b.replica.begin(0)
    b.strategy.train()
    samples = b.stream.tasks[0].train
    both, neither = (phase_cache.phase_inputs([b.strategy], [samples], 0, 2 * len(samples), limit=budget)
                     for budget in (2**20, 2**13))
    assert both.start == 2 and names(both) == ["wide"]
    assert neither.start == 0 and not neither.cached and neither.prepared


@pytest.mark.parametrize(("megabytes", "prepared"), [(1, False), (1024, True)])
def test_the_execution_settings_say_how_much_is_stored(megabytes, prepared, monkeypatch, tmp_path_factory):
    inputs = note_inputs(monkeypatch)
    runner = TrialRunner(ExecutionSettings(data=tmp_path_factory.getbasetemp() / "cache", cache_mb=megabytes),
                         "cpu", "a test", discover())
    one, = plan(build({"methods": "naive", "model": "mlp:width=8", "seeds": 1, "benchmark": "split-mnist-5k:tasks=2",
                       "recipe": {"epochs": 2, "batch_size": 500}}), runner.registry)
    assert runner.run(one).status == "done"
    assert [i.prepared for i in inputs] == [prepared, prepared]


@pytest.mark.parametrize("method", ["naive", "ewc", "si"])
def test_a_single_pass_in_large_batches_is_prepared_batch_by_batch_to_the_same_weights(method, monkeypatch):
    info, recipe = discover().strategy(method), Recipe(optimizer="sgd", lr=0.1, batch_size=8, epochs=1)
    inputs = note_inputs(monkeypatch)
    states = []
    for large, seeds in ((2**18, [0]), (8 * 64 * 4, [0]), (8 * 64 * 4, [0, 1])):  # 8 images [1, 8, 8] of float32
        monkeypatch.setattr(phase_cache, "LARGE_BATCH", large)
        inputs.clear()
        states.append(lead(info, {}, seeds, recipe)[0].strategy.state_dict())
        assert inputs[0].prepared == (large == 2**18 or len(seeds) > 1)
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name])


@pytest.mark.parametrize("shape", [(1, 5, 4), (3, 5, 4), (3, 1, 1), (6,)])
def test_what_is_stored_is_each_chunk_as_it_would_be_joined(shape):
    b = bench(discover().strategy("naive"), {}, "task")
    x = torch.randint(0, 256, (2 * phase_cache.PREPARED_AT_ONCE + 3, *shape), dtype=torch.uint8)
    samples = Samples(x, torch.zeros(len(x), dtype=torch.long), torch.zeros(len(x), dtype=torch.long))
    joined = torch.cat([b.strategy.stream_info.prepare(part) for part in x.split(100)])
    kept = phase_cache.cache_inputs(b.strategy, samples, 0, False).x
    assert torch.equal(kept, joined) and kept.stride() == joined.stride()


def test_a_learned_module_beside_the_network_does_not_make_blocks_learn():
    b = bench(StrategyInfo("x", FrozenBlocks, ""), {}, "task")
    b.replica.begin(0)
    b.strategy.extra = nn.Linear(2, 2)
    assert phase_cache.frozen_blocks(b.strategy.train()) == 2
