import copy
import itertools

import pytest
import torch
from helpers.stacks import lead

from clbench.core.errors import DivergedError, PluginError
from clbench.core.hookspecs import StrategyInfo
from clbench.core.registry import discover
from clbench.experiment.spec import Recipe
from clbench.strategy.base import Strategy
from clbench.testing.tiny import bench
from clbench.training.callbacks.evaluation import EvaluationCallback
from clbench.training.loop import TrainingLoop

REGISTRY = discover()
SEEDS = [0, 1, 2]
METHODS = [
    ("naive", {}), ("joint", {}), ("ewc", {"strength": 10.0}), ("ewc", {"mode": "online", "strength": 10.0}),
    ("er", {"capacity": 20}), ("lora", {"rank": 2}), ("pnn", {}), ("shared-private", {"private_width": 5}),
    ("er", {"capacity": 20, "share": 0.3}), ("seq-lora", {"rank": 2, "replay": 0.3, "capacity": 20, "merge": True}),
    ("seq-lora", {"rank": 2}), ("o-lora", {"rank": 2, "dropout": 0.0}), ("inflora", {"rank": 2}), ("frozen", {}),
    ("sd-lora", {"rank": 2}), ("sd-lora", {"rank": 2, "magnitudes": "layer"}), ("lora-sub", {"rank": 2}),
    ("independent", {}), ("ewc-lora", {"rank": 2, "strength": 10.0}), ("lora-mean", {"rank": 2}),
    ("si", {}), ("mas", {}), ("l2", {}), ("lwf", {}), ("a-gem", {"capacity": 20}), ("der", {"capacity": 20}),
    ("gem", {"capacity": 20}), ("rwalk", {"interval": 3}), ("xdg", {"strength": 1.0}), ("cls-er", {"capacity": 20}),
    ("fetril", {}), ("acil", {"projections": 20, "compensation": 0.6}), ("generative-replay", {"width": 16}),
    ("der++", {"capacity": 20}), ("er-ace", {"capacity": 20}),
    ("er-ace", {"capacity": 20, "head": "cosine"}),
    ("packnet", {}), ("ncm", {}), ("fecam", {}), ("icarl", {"capacity": 20}), ("acl", {}), ("acl", {"memory": 3}),
    ("slca", {}), ("slca++", {"rank": 2}),
    ("lora", {"rank": 2, "infer": "gaussian"}), ("ease", {"adapter": "lora", "width": 2, "dropout": 0.0}),
    ("lae", {"width": 2, "decay": 0.7}), ("mos", {"adapter": "lora", "width": 2, "dropout": 0.0}),
    ("gdumb", {"capacity": 20}), ("mir", {"capacity": 20, "replayed": 3}), ("hat", {}), ("gpm", {"samples": 12}),
]
QUICK = ("naive", "ewc", "er", "lora", "pnn", "shared-private", "si", "lwf", "a-gem", "gem", "cls-er", "acil", "icarl",
         "generative-replay", "slca++", "ease", "mos", "mir", "gpm")  # what the fast tests stack


@pytest.mark.parametrize(("method", "options"), [
    pytest.param(*one, marks=() if one[0] in QUICK else pytest.mark.slow) for one in METHODS])
@pytest.mark.parametrize(("model", "recipe"), [
    ("mlp", Recipe(optimizer="adam", lr=1e-2, batch_size=8, epochs=2, optimizer_state="keep")),
    pytest.param("cnn", Recipe(optimizer="sgd", lr=0.05, momentum=0.9, batch_size=8, epochs=2, schedule="cosine"),
                 marks=pytest.mark.slow)], ids=["mlp-adam", "cnn-sgd"])
def test_a_stack_of_seeds_equals_seed_by_seed(method, options, model, recipe):
    # In float64: Adam steps by lr whatever a gradient's size, so where gradients are little but rounding, a weight ends
    # anywhere within lr * steps of where it ends alone. What float32 rounds by 1e-7, float64 rounds by 1e-16.
    info = REGISTRY.strategy(method)
    stacked = lead(info, options, SEEDS, recipe, model=model, double=True)
    for seed, member in zip(SEEDS, stacked, strict=True):
        alone = lead(info, options, [seed], recipe, model=model, double=True)[0]
        ours, theirs = member.strategy.state_dict(), alone.strategy.state_dict()
        assert ours.keys() == theirs.keys()
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-8, atol=1e-9, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize(("method", "options"), [
    ("bic", {"capacity": 20}), ("wa", {"capacity": 20}), ("lucir", {"capacity": 20}), ("podnet", {"capacity": 20}),
    ("dynamic-er", {"capacity": 20}),
])
def test_corrections_between_old_and_new_classes_stack_too(method, options):
    info, recipe = REGISTRY.strategy(method), Recipe(optimizer="sgd", lr=0.05, batch_size=8, epochs=2)
    stacked = lead(info, options, SEEDS, recipe, "class", double=True)
    for seed, member in zip(SEEDS, stacked, strict=True):
        alone = lead(info, options, [seed], recipe, "class", double=True)[0].strategy.state_dict()
        for name, ours in member.strategy.state_dict().items():
            torch.testing.assert_close(ours, alone[name], rtol=1e-8, atol=1e-9, msg=lambda m, n=name: n + m)


class Grouped(Strategy):
    """A slow body, and a second phase of a quarter of the steps on half of the samples."""

    def learning_rates(self):
        return {"model.head.*": 1.0, "model.*": 0.1}

    def phases(self, task):
        return (3, 1)

    def phase_samples(self, task, phase):
        return task.train.take(torch.arange(12)) if phase else None


def test_learning_rates_and_phases_of_their_own_stack():
    info = StrategyInfo("grouped", Grouped, "")
    recipe = Recipe(optimizer="sgd", lr=0.05, momentum=0.9, batch_size=8, epochs=2, optimizer_state="keep")
    stacked = lead(info, {}, SEEDS, recipe, double=True)
    for seed, member in zip(SEEDS, stacked, strict=True):
        alone = lead(info, {}, [seed], recipe, double=True)[0]
        for name, theirs in alone.strategy.state_dict().items():
            torch.testing.assert_close(member.strategy.state_dict()[name], theirs, rtol=1e-8, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "options"), [
    ("naive", {}), ("joint", {}), ("ewc", {"strength": 10.0, "fisher": "empirical"}), ("er", {"capacity": 20}),
    ("lora", {"rank": 2}), ("pnn", {}), ("shared-private", {}), ("independent", {}),
    ("ease", {"adapter": "lora", "width": 1, "dropout": 0.0}),
])
@pytest.mark.parametrize("model", ["resnet20", "vit"])
def test_batch_norm_and_attention_stack_too(method, options, model):
    info = REGISTRY.strategy(method)
    # Small steps: batch norm over maps of one pixel in a batch of 8 blows float noise up.
    recipe = Recipe(optimizer="sgd", lr=0.002, batch_size=8, iterations=4)
    stacked = lead(info, options, SEEDS[:2], recipe, model=model, tasks=2)
    for seed, member in zip(SEEDS, stacked, strict=False):
        alone = lead(info, options, [seed], recipe, model=model, tasks=2)[0]
        ours, theirs = member.strategy.state_dict(), alone.strategy.state_dict()
        assert ours.keys() == theirs.keys() and any("running_mean" in n for n in ours) is (model == "resnet20")
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=2e-5, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize(("method", "options"), [
    ("ewc", [{"strength": 30.0}, {"strength": 300.0}, {"strength": 0.0}]),
    ("ewc", [{"mode": "online", "strength": 200.0, "gamma": 0.5}, {"mode": "online", "strength": 200.0},
             {"mode": "online", "strength": 20.0}]),
    ("si", [{"strength": 1.0}, {"strength": 300.0, "damping": 0.1}, {"strength": 30.0}]),
    ("mas", [{"strength": 10.0}, {"strength": 100.0}, {"strength": 0.0}]),
    ("l2", [{"strength": 0.5}, {"strength": 3.0}, {"strength": 0.0}]),
    ("lwf", [{"strength": 0.1}, {"strength": 9.0}, {"strength": 9.0, "temperature": 0.5}]),
    ("der++", [{"capacity": 9, "alpha": 0.0}, {"capacity": 9, "beta": 2.0}, {"capacity": 9}]),
    ("hat", [{"strength": 0.0}, {"strength": 30.0}, {}]),
    ("o-lora", [{"rank": 2, "dropout": 0.0, "lambda_orth": 0.0}, {"rank": 2, "dropout": 0.0},
                {"rank": 2, "dropout": 0.0, "lambda_orth": 3.0}]),
])
@pytest.mark.parametrize("seeds", [[0, 0, 0], SEEDS])
def test_a_stack_of_strengths_equals_one_by_one(method, options, seeds):
    # Not Adam: it steps as far for a gradient that is all float noise, where the penalty holds a weight, as for any.
    info, recipe = REGISTRY.strategy(method), Recipe(optimizer="sgd", lr=0.05, batch_size=8, epochs=2)
    stacked = lead(info, options, seeds, recipe)
    ends = []
    for own, seed, member in zip(options, seeds, stacked, strict=True):
        ours, theirs = (b.strategy.state_dict() for b in (member, lead(info, own, [seed], recipe)[0]))
        assert member.strategy.options == bench(info, own, "task").strategy.options
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=2e-5, msg=lambda m, n=name: n + m)
        ends.append(torch.cat([p.flatten() for p in member.strategy.parameters()]))
    assert all((a - b).abs().max() > 3e-4 for a, b in itertools.combinations(ends, 2))  # the options do something


def test_members_own_their_storage_again_after_training():
    info = REGISTRY.strategy("er")
    members = lead(info, {"capacity": 20}, SEEDS, Recipe(lr=1e-2, batch_size=8, epochs=1), tasks=1)
    storages = [t.untyped_storage().data_ptr() for b in members for t in b.strategy.state_dict().values() if t.numel()]
    assert len(set(storages)) == len(storages)


class HalvesGradients(Strategy):
    def edit_gradients(self, gradients):
        return {name: g / 2 for name, g in gradients.items()}


def test_edited_gradients_are_those_stepped_with():
    recipe = Recipe(optimizer="sgd", lr=0.05, batch_size=8, epochs=1)
    half = Recipe(optimizer="sgd", lr=0.025, batch_size=8, epochs=1)
    plain = lead(StrategyInfo("naive", Strategy, ""), {}, SEEDS, half)
    for seeds_ in (SEEDS, SEEDS[:1]):
        edited = lead(StrategyInfo("half", HalvesGradients, ""), {}, seeds_, recipe)
        for a, b in zip(edited, plain, strict=False):
            for p, q in zip(a.strategy.parameters(), b.strategy.parameters(), strict=True):
                torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("edited", "words"), [
    (lambda gradients: dict(list(gradients.items())[:-1]), "is missing"),
    (lambda gradients: {**gradients, "x": torch.ones(1)}, "'x' is not one of them"),
])
@pytest.mark.parametrize("seeds_", [SEEDS, SEEDS[:1]])
def test_edited_gradients_with_other_names_are_an_error(edited, words, seeds_):
    class Renames(Strategy):
        def edit_gradients(self, gradients):
            return edited(gradients)

    with pytest.raises(PluginError, match=f"Renames must return the same names that it gets, and .*{words}"):
        lead(StrategyInfo("renames", Renames, ""), {}, seeds_, Recipe(batch_size=8, epochs=1))


class Explodes(Strategy):
    """Its loss becomes NaN in task 1 for the seed whose first weight is largest."""

    def before_task(self, task):
        if task.index == 0:
            self.register_buffer("bad", torch.tensor(1.0))
        elif self.explode:
            self.bad = torch.tensor(float("nan"))

    def loss(self, batch):
        return super().loss(batch) * self.bad


@pytest.mark.parametrize("state", ["keep", "reset"])
def test_one_member_that_diverges_leaves_the_others_as_they_would_be_alone(state):
    recipe = Recipe(optimizer="adam", lr=1e-2, batch_size=8, epochs=1, optimizer_state=state)
    ends = {}
    for group in (SEEDS, [0], [2]):
        benches = [bench(StrategyInfo("explodes", Explodes, ""), {}, "task", seed) for seed in group]
        for b, seed in zip(benches, group, strict=True):
            b.strategy.explode = seed == 1
        trainer = TrainingLoop([b.replica for b in benches], recipe)
        for index in range(3):
            results = trainer.train_task(index)
            alive = [b for b, r in zip(benches, results, strict=True) if r.diverged is None]
            if len(alive) < len(benches):
                assert index == 1
                assert "NaN or infinite in task 2, step 0" in str(results[1].diverged)
            assert [replica.seed for replica in trainer.replicas] == [b.seed for b in alive]
            benches = alive
        ends[tuple(group)] = [b.strategy for b in benches]
    for member, seed in zip(ends[tuple(SEEDS)], (0, 2), strict=True):
        for p, q in zip(member.parameters(), ends[(seed,)][0].parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-3, atol=2e-5)


class ReplacesOnce(Explodes):
    """Trains a parameter that `after_task` removes, with the same values in all seeds."""

    def before_task(self, task):
        super().before_task(task)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def loss(self, batch):
        return super().loss(batch) + (self.scale - 3) ** 2

    def after_task(self, task):
        del self.scale


@pytest.mark.parametrize("state", ["keep", "reset"])
def test_a_member_can_diverge_in_a_stack_whose_after_task_removes_trained_parameters(state):
    recipe = Recipe(optimizer="adam", lr=1e-2, batch_size=8, epochs=1, optimizer_state=state)
    benches = [bench(StrategyInfo("replaces", ReplacesOnce, ""), {}, "task", seed) for seed in SEEDS]
    for b in benches:
        b.strategy.explode = b.seed == 1
    trainer = TrainingLoop([b.replica for b in benches], recipe)
    for index in range(3):
        trainer.train_task(index)
    assert [replica.seed for replica in trainer.replicas] == [0, 2]


@pytest.mark.parametrize("group", [[1], SEEDS])
def test_a_trial_whose_after_task_diverges_ends_alone(group):
    class Diverges(Strategy):
        def after_task(self, task):
            if self.explode and task.index == 1:
                raise DivergedError("the features are not finite")

    benches = [bench(StrategyInfo("diverges", Diverges, ""), {}, "task", seed) for seed in group]
    for b in benches:
        b.strategy.explode = b.seed == 1
    replicas = [b.replica for b in benches]
    TrainingLoop(replicas, Recipe(lr=1e-2, batch_size=8, epochs=1), [EvaluationCallback()]).run()
    failed = replicas[group.index(1)]
    assert (failed.failure.type, failed.failure.message) == ("DivergedError", "the features are not finite")
    assert len(failed.R) == 2
    assert all(replica.failure is None and len(replica.R) == 4 for replica in replicas if replica is not failed)


@pytest.mark.parametrize(("method", "options"), [
    ("l2p", {"pool": 4, "top": 2, "length": 2}), ("dualprompt", {"e_length": 3}),
    ("coda-prompt", {"components": 6, "ortho": 0.1}), ("s-iprompts", {"length": 3}),
])
def test_prompts_stack(method, options):
    info = REGISTRY.strategy(method)
    recipe = Recipe(optimizer="adam", lr=1e-2, batch_size=8, iterations=4)
    stacked = lead(info, options, SEEDS[:2], recipe, model="vit", tasks=2, double=True)
    for seed, member in zip(SEEDS, stacked, strict=False):
        alone = lead(info, options, [seed], recipe, model="vit", tasks=2, double=True)[0]
        for name, theirs in alone.strategy.state_dict().items():
            torch.testing.assert_close(member.strategy.state_dict()[name], theirs, rtol=1e-8, atol=1e-9)


def test_weights_of_convolutions_keep_their_memory_format_in_a_stack():
    recipe = Recipe(optimizer="sgd", lr=0.05, batch_size=8, epochs=1)
    alone, stacked = (lead(REGISTRY.strategy("naive"), {}, seeds_, recipe, tasks=2, model="cnn")[0]
                      for seeds_ in ([0], SEEDS[:2]))
    strides = [{name: p.stride() for name, p in b.strategy.named_parameters()} for b in (alone, stacked)]
    assert strides[0] == strides[1]
    assert strides[0]["model.blocks.1.body.weight"] == (36, 1, 12, 4)


def test_frozen_outputs_of_a_stack_are_still_equal_bit_for_bit_after_training():
    recipe = Recipe(optimizer="adam", lr=1e-2, batch_size=8, iterations=6)  # the check needs several passes
    lead(REGISTRY.strategy("l2p"), {"base": "random"}, SEEDS[:2], recipe, model="vit", double=True)


class FollowsWeights(Strategy):
    """All seeds start from the same weights, as pretrained ones; a teacher follows them in each step."""

    def __init__(self, model, stream_info, options=None):
        super().__init__(model, stream_info, options)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        self.teacher = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def prepare_batch(self, batch):
        for average, weight in zip(self.teacher.parameters(), self.model.parameters(), strict=True):
            average.lerp_(weight, 0.5)
        return batch

    def loss(self, batch):
        logits = self.model(batch.x)
        return self.cross_entropy(logits, batch) + (logits - self.teacher(batch.x)).square().mean()


def test_frozen_parameters_that_begin_equal_and_change_in_place_are_those_of_each_member():
    info = StrategyInfo("follows", FollowsWeights, "")
    recipe = Recipe(optimizer="sgd", lr=0.05, batch_size=8, epochs=2)
    stacked = lead(info, {}, SEEDS, recipe, double=True)
    for seed, member in zip(SEEDS, stacked, strict=True):
        alone = lead(info, {}, [seed], recipe, double=True)[0].strategy.state_dict()
        for name, ours in member.strategy.state_dict().items():
            torch.testing.assert_close(ours, alone[name], rtol=1e-8, atol=1e-9, msg=lambda m, n=name: n + m)
