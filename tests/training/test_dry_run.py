import dataclasses
import itertools
import math
import types

import pytest
import torch

from clbench.accounting.count import count, count_layer
from clbench.accounting.shapes import stream_of_shapes
from clbench.core.errors import SpecError
from clbench.core.hookspecs import StrategyInfo, hookimpl
from clbench.core.registry import discover
from clbench.data.samples import Samples
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.plan import plan
from clbench.experiment.spec import build
from clbench.experiment.trial import Resolved
from clbench.strategy.base import Strategy
from clbench.strategy.replay import ReplayMemory

REGISTRY = discover()
MNIST = (1, 28, 28)
CIFAR = (3, 32, 32)


def planned(method, model, scenario="task", registry=REGISTRY, **recipe):
    return plan(build({"methods": [method], "model": model, "scenario": scenario, "seeds": 1,
                       "recipe": {"epochs": 1, **recipe}}), registry)[0]


def counted(method, model="mlp", tasks=5, classes=None, input_shape=MNIST, scenario="task", samples=800, **options):
    stream = stream_of_shapes(tasks, classes or 2 * tasks, input_shape, scenario, samples)
    registry = options.pop("registry", REGISTRY)
    return count(planned(method, model, scenario, registry), stream, registry, **options)


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    return TrialRunner(ExecutionSettings(data=tmp_path_factory.mktemp("data")), "cpu", "a test", REGISTRY)


COUNTED = [
    *((method, "mlp:width=32", "task") for method in (
        "naive", "joint", "ewc", "ewc:mode=online:fisher=sampled", "er", "er:capacity=1000",
        "er:capacity=70:balance=class", "er:capacity=1000:update=task", "lora",
        "lora:rank=2:base=random:dora=true", "lora:bias=true", "lora:init=pissa", "pnn", "pnn:reduction=4",
        "shared-private", "shared-private:private_width=7:base=random", "frozen", "independent", "seq-lora", "o-lora",
        "gem", "rwalk", "xdg", "cls-er", "fetril", "er:share=0.3", "seq-lora:replay=0.3:merge=true", "osf",
        "inflora", "ewc-lora", "lora-mean", "ease:adapter=lora", "lae", "mos:adapter=lora", "icarl:capacity=55",
        "acl", "acl:memory=7", "packnet", "ncm", "slda:base=random", "ranpac", "simplecil", "fecam",
        "fecam:covariance=common", "acil", "acil:projections=20:compensation=0.6",
        "generative-replay:width=32:latent=8", "lucir:capacity=55", "podnet:capacity=55:finetune_steps=0.3",
        "dynamic-er:capacity=55")),
    *((method, "cnn:channels=2:depth=1", "class") for method in (
        "ewc:fisher=empirical", "er", "lora:rank=2:infer=prototype", "pnn", "shared-private", "icarl", "osf",
        "podnet:finetune_steps=0.3", "dynamic-er", "acl:private_width=8", "packnet:infer=prototype", "slca",
        "slca++:rank=2", "frozen:infer=gaussian", "inflora:rank=2")),
    *((method, "mlp:width=16", "domain") for method in ("naive", "er", "lora", "pnn", "icarl", "packnet")),
    *((method, "vit-tiny:width=12:depth=2:patch=14", "task") for method in (
        "lora:layers=attention", "pnn", "l2p", "dualprompt", "coda-prompt:components=10", "s-iprompts:infer=gaussian",
        "s-iprompts", "ease:width=5", "lae:adapter=bottleneck", "mos:width=5")),
]


FIRST = ("naive", "ewc", "er", "lora", "pnn", "shared-private", "icarl", "ncm", "l2p", "ease")


def each_once():
    """Return the cases; other methods, and other options or models of one, are a second look."""
    seen = set()
    for case in COUNTED:
        name = case[0].split(":")[0]
        yield pytest.param(*case, marks=[pytest.mark.slow] if name in seen or name not in FIRST else [])
        seen.add(name)


@pytest.mark.parametrize(("method", "model", "scenario"), list(each_once()))
def test_the_counts_are_what_a_run_records(runner, method, model, scenario):
    one = planned(method, model, scenario)
    record = runner.run(one)
    assert record.status == "done", record.failure
    found = counted(method, model, scenario=scenario, samples=record.stream.train_samples[0])
    assert found.note is None
    assert found.trainable == record.costs.trainable
    assert [kept.parameters for kept in found.kept] == record.costs.parameters
    assert [kept.bytes for kept in found.kept] == record.costs.bytes
    assert [kept.replay_samples for kept in found.kept] == record.costs.replay_samples


def test_what_is_not_cached_is_counted_in_every_step():
    one, stream = planned("lora", "mlp", epochs=2), stream_of_shapes(5, 10, MNIST, "task", 800)
    cached, repeated = (count(one, stream, REGISTRY, training=True, cache_bytes=size) for size in (None, 0))
    assert sum(repeated.train_flops) > 1.2 * sum(cached.train_flops)


def test_the_flops_of_a_multilayer_perceptron_are_those_of_its_products():
    widths = [784, 400, 400]
    body = sum(2 * a * b for a, b in itertools.pairwise(widths))
    assert counted("naive").flops == body + 2 * 400 * 10
    adapters = sum(2 * 3 * (a + b) for a, b in itertools.pairwise(widths))
    assert counted("lora:rank=3").flops == body + adapters + 2 * 400 * 2
    assert counted("lora:rank=3", scenario="class").flops == 5 * (body + adapters + 2 * 400 * 2)


def test_the_flops_of_a_convolution_are_those_of_its_positions():
    found = counted("naive", "cnn:channels=8:depth=1", input_shape=CIFAR)
    assert found.flops == 2 * 8 * 3 * 9 * 32 * 32 + 2 * 8 * 16 * 16 * 10


def published(model, tasks, input_shape=CIFAR):
    return counted("naive", model, tasks, 10 * tasks, input_shape).trainable[0]


@pytest.mark.slow
def test_the_networks_have_the_sizes_that_are_published():
    assert published("resnet18", 1) == 11_173_962  # kuangliu's code for CIFAR-10
    assert published("resnet20", 1) == 269_722  # He et al. 2015: 0.27M
    assert published("resnet32", 1) == 464_154  # 0.46M
    assert published("vit-b16", 100, (3, 224, 224)) == 86_567_656  # torchvision's vit_b_16, 1,000 classes


@pytest.mark.parametrize(("shape", "rank", "adapter"), [
    ((1000, 1000), 4, 8_000), ((1000, 1000), 8, 16_000), ((1000, 1000), 16, 32_000), ((1000, 1000), 10, 20_000),
    ((300, 20), 5, 5 * 320), ((64, 32, 3, 3), 4, 4 * (32 * 9 + 64)), ((8, 6, 1, 5), 2, 2 * (6 * 5 + 8))])
def test_one_layer_is_counted_from_its_modules(shape, rank, adapter):
    methods = {"full": Resolved(name="naive"),
               "frozen": Resolved(name="frozen", options={"base": "pretrained"}),
               "lora": Resolved(name="lora", options={"rank": rank, "base": "pretrained"})}
    found = count_layer(shape, list(methods.items()), REGISTRY)
    layer = math.prod(shape)
    assert [(c.method, c.parameters, c.trainable, c.trainable_bytes) for c in found] == [
        ("full", [layer], [layer], [4 * layer]), ("frozen", [layer], [0], [0]),
        ("lora", [layer + adapter], [adapter], [4 * adapter])]


def test_a_layer_that_the_rank_does_not_fit_is_refused():
    with pytest.raises(SpecError, match="rank = 30 exceeds the width 20"):
        count_layer((300, 20), [("lora", Resolved(name="lora", options={"rank": 30, "base": "pretrained"}))], REGISTRY)
    with pytest.raises(SpecError, match="OUTxINxHxW"):
        count_layer((3, 4, 5), [("full", Resolved(name="naive"))], REGISTRY)


def test_a_pretrained_model_is_no_longer_trained():
    first = counted("lora:rank=4:base=task1", pretrained=True).trainable
    assert first[0] > 300_000 > first[1]
    later = counted("lora:rank=4:base=pretrained", pretrained=True).trainable
    assert set(later) == {first[1]} == {4 * (784 + 400) + 4 * (400 + 400) + 401 * 2}
    with pytest.raises(SpecError, match="base = pretrained needs a pretrained model"):
        counted("lora:base=pretrained")


def test_notes_do_not_repeat_the_name_of_the_method():
    assert counted("pnn:start=random", pretrained=True).notes[1].startswith("later columns start from random weights")


def test_classes_that_cannot_be_shared_out_are_refused():
    with pytest.raises(SpecError, match="10 classes cannot be shared out equally among 3 tasks"):
        stream_of_shapes(3, 10, MNIST, "task", 10)


class Looks(Strategy):
    def after_task(self, task):
        if task.index == 2:
            self.register_buffer("kept", torch.zeros(int(self.model.head.weight.abs().sum())))


class BranchesReplay(ReplayMemory):
    """Replay whose loss depends on a value, so a dry run only draws batches."""

    def __init__(self, model, stream_info, options):
        super().__init__(model, stream_info, options, capacity=2000)

    def prepare_batch(self, batch):
        if batch.first_pass:
            self.offer(Samples(batch.x, batch.y, batch.tasks))
        return batch

    def loss(self, batch):
        loss = super().loss(batch)
        return 2 * loss if float(loss) > 9 else loss


class Adds(Strategy):
    def __init__(self, model, stream_info, options):
        super().__init__(model, stream_info, options)
        classes = stream_info.classes
        self.scale = torch.nn.Linear(classes, classes)  # on the CPU; a run moves it to the device
        self.register_buffer("order", torch.arange(stream_info.classes))

    def forward(self, x, task=None):
        return self.scale(super().forward(x, task))[:, self.order.tolist()]


class GrowsOnTheCPU(Strategy):
    """Adds a scale for each task and stores inputs, on the device of the class mask, which keeps its values."""

    roles = (("memory_*", "replay"),)

    def __init__(self, model, stream_info, options):
        super().__init__(model, stream_info, options)
        self.scales = torch.nn.ParameterDict()
        shape = 5, *stream_info.input_shape
        self.register_buffer("memory_x", torch.zeros(shape, dtype=torch.uint8, device=self.class_mask.device))

    def before_task(self, task):
        self.scales.requires_grad_(False)
        new = torch.ones(self.stream_info.classes, device=self.class_mask.device)
        self.scales[str(task.index)] = torch.nn.Parameter(new)

    def prepare_batch(self, batch):
        self.memory_x[0] = batch.x[0]
        return batch

    def forward(self, x, task=None):
        return super().forward(x, task) * self.scales[str(task)]


@hookimpl
def clbench_strategies():
    return [StrategyInfo("looks", Looks, ""), StrategyInfo("adds", Adds, ""),
            StrategyInfo("branches-replay", BranchesReplay, ""), StrategyInfo("grows-on-the-cpu", GrowsOnTheCPU, "")]


@pytest.fixture(scope="module")
def extended():
    plugin = types.ModuleType("others")
    plugin.clbench_strategies = clbench_strategies
    return discover([plugin])


def test_a_method_may_make_layers_where_it_likes_and_read_its_integers(extended):
    found = counted("adds", registry=extended)
    assert found.trainable == [478_410 + 110] * 5
    assert found.kept[-1].bytes == {"base": 4 * 478_520 + 8 * 10}
    assert found.flops == counted("naive").flops + 2 * 10 * 10


def test_tensors_that_are_added_on_the_device_of_the_class_mask_are_counted(extended):
    found = counted("grows-on-the-cpu", registry=extended, training=True)
    assert found.trainable == [478_410 + 10] * 5
    assert found.train_flops == counted("naive", training=True).train_flops
    assert [kept.replay_samples for kept in found.kept] == [5] * 5


def test_a_method_whose_size_depends_on_values_is_counted_as_far_as_it_goes(extended):
    found = counted("looks", registry=extended)
    assert (len(found.trainable), len(found.kept), found.flops) == (3, 2, None)
    assert found.note.startswith("cannot be counted without data after 2 of 5 tasks (RuntimeError: ")
    assert dataclasses.asdict(found.kept[0])["parameters"] == {"base": 478_410}


@pytest.mark.parametrize("repeats", [1, 4])
def test_a_dry_run_draws_all_samples_of_a_pass_if_batches_repeat(extended, repeats):
    found = count(planned("branches-replay", "mlp:width=8", registry=extended, epochs=2, repeats=repeats),
                  stream_of_shapes(2, 4, (1, 8, 8), "task", 300), extended, training=True)
    assert [kept.replay_samples for kept in found.kept] == [300, 600]


@pytest.mark.parametrize("which", ["layers='.*attention\\.(k|v)'", "targets=k+v"])
@pytest.mark.slow
def test_the_published_setting_of_inflora_trains_192_010_parameters_per_task(which):
    found = counted(f"inflora:rank=10:base=pretrained:{which}", "vit-b16", 2, 20, (3, 224, 224), "class",
                    pretrained=True, samples=1)
    assert found.trainable == [192_010] * 2
    assert [kept.parameters["heads"] for kept in found.kept] == [7_690, 2 * 7_690]
