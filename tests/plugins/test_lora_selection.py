"""Which layers of a network get adapters: the last blocks, and all but those that cannot have any."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from clbench_lora import AdapterOptions, InfLoRAOptions, LoRAOptions
from clbench_lora.inflora import InfLoRA
from clbench_lora.peft_format import base_tensors, fingerprint
from clbench_lora.selection import adapt, choose, remarks, select
from clbench_lora.strategy import LoRA
from helpers.adapters import enlarge
from helpers.per_task import answer, begin, inputs, learn, make_model, make_stream_info, make_task
from torch import nn

from clbench.accounting.count import count
from clbench.accounting.shapes import stream_of_shapes
from clbench.cli import params
from clbench.core.errors import SpecError
from clbench.core.registry import discover
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.plan import plan
from clbench.experiment.spec import build
from clbench.experiment.trial import Resolved
from clbench.models.builtin import ViTOptions
from clbench.models.network import Block, Network
from clbench.models.vit import vit
from clbench.strategy.subspace import rows
from clbench.training.building import build_model

WHY = "which has no low-rank adapter"


def transformer():
    return vit(ViTOptions(patch=4, width=12, depth=3, heads=3), (1, 8, 8), 6)


class Unit(nn.Module):
    """An inverted residual: pointwise, depthwise, pointwise."""

    def __init__(self, channels, first=nn.Conv2d):
        super().__init__()
        self.conv1 = first(channels, 8, 3, stride=2)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.conv3 = nn.Conv2d(8, channels, 1)

    def forward(self, x):
        return self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))


def inverted(first=nn.Conv2d, classes=6):
    """Return a stem and two inverted residuals, whose last block has a depthwise convolution only."""
    torch.manual_seed(0)  # with some other weights, ReLU sets all features to 0
    blocks = [Block(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()), Block(Unit(4, first), nn.ReLU()),
              Block(Unit(4, first), nn.ReLU()), Block(nn.Conv2d(4, 4, 1, groups=4), nn.Flatten())]
    side = 2 if first is not nn.Conv2d else 1
    model = Network(blocks, nn.Linear(4 * side * side, classes))
    for block in model.blocks:
        for parameter in block.parameters():
            parameter.data *= 3  # so that what is changed is seen in the features
    return model


def layers_of(*blocks):
    return [f"blocks.{block}.body.{name}" for block in blocks
            for name in ("attention.q", "attention.k", "attention.v", "attention.proj", "mlp.0", "mlp.2")]


def test_the_last_blocks_are_chosen_whole():
    assert list(select(transformer(), "blocks:1")) == layers_of(3)
    assert list(select(transformer(), "blocks:2")) == layers_of(2, 3)
    assert list(select(transformer(), "blocks:4")) == ["blocks.0.body.patches", *layers_of(1, 2, 3)]
    assert select(transformer(), "blocks:4").keys() == select(transformer(), "all").keys()
    assert list(select(make_model("cnn"), "blocks:1")) == list(select(make_model("cnn"), "last:1"))
    assert list(select(transformer(), "last:7")) == ["blocks.2.body.mlp.2", *layers_of(3)]
    for number in (0, 5):
        with pytest.raises(SpecError, match=rf"^o-lora: layers = blocks:{number}, but in this model there are Linear "
                                            r"or Conv2d layers in 4 of 4 blocks; choose from blocks:1 to blocks:4$"):
            select(transformer(), f"blocks:{number}", "o-lora")
    with pytest.raises(SpecError, match=r"layers = blocks fits no layer"):  # a regular expression
        select(transformer(), "blocks")


def test_blocks_without_layers_are_not_counted():
    model = transformer()
    model.blocks.append(Block(nn.LayerNorm(12), nn.Identity()))
    assert list(select(model, "blocks:1")) == layers_of(3)
    with pytest.raises(SpecError, match=r"in 4 of 5 blocks; choose from blocks:1 to blocks:4$"):
        select(model, "blocks:5")
    with pytest.raises(SpecError, match=r"in 1 of 1 blocks; choose blocks:1$"):
        select(Network([Block(nn.Linear(2, 2), nn.Identity())], nn.Linear(2, 2)), "blocks:2")


def test_targets_narrow_the_last_blocks():
    assert list(select(transformer(), "blocks:2", targets=["q", "v"])) == [
        f"blocks.{block}.body.attention.{name}" for block in (2, 3) for name in "qv"]
    with pytest.raises(SpecError, match="no selected layer of this model is mlp"):
        select(make_model("cnn"), "blocks:1", targets=["mlp"])


def test_all_means_all_that_can_be_adapted():
    model = inverted()
    assert list(select(model, "all")) == ["blocks.0.body", "blocks.1.body.conv1", "blocks.1.body.conv3",
                                          "blocks.2.body.conv1", "blocks.2.body.conv3"]
    assert remarks(model, AdapterOptions()) == [
        "layers = all leaves out what cannot be adapted: blocks.*.body.conv2 (2 layers), each a convolution in groups, "
        f"{WHY}; blocks.3.body is a convolution in 4 groups, {WHY}"]
    with pytest.raises(SpecError, match=r"^lora: blocks\.1\.body\.conv2 is a convolution in 8 groups, which has no "
                                        r"low-rank adapter; leave it out with layers = <regular expression>$"):
        select(model, ".*")
    assert remarks(model, AdapterOptions(layers=r".*\.conv[13]")) == []
    assert remarks(transformer(), AdapterOptions()) == []


def test_the_last_layers_and_blocks_are_counted_without_those_that_cannot_be_adapted():
    model = inverted()
    assert list(select(model, "last:2")) == ["blocks.2.body.conv1", "blocks.2.body.conv3"]
    assert choose(model, "last:2").left_out == (f"blocks.2.body.conv2 is a convolution in 8 groups, {WHY}; "
                                                f"blocks.3.body is a convolution in 4 groups, {WHY}")
    assert list(select(model, "blocks:2")) == [f"blocks.{i}.body.conv{n}" for i in (1, 2) for n in (1, 3)]
    assert choose(model, "blocks:1").left_out == f"blocks.2.body.conv2 is a convolution in 8 groups, {WHY}"
    with pytest.raises(SpecError, match="have 5 Linear and Conv2d layers that can be adapted; choose from last:1 "):
        select(model, "last:6")
    with pytest.raises(SpecError, match="layers that can be adapted in 3 of 4 blocks; choose "):
        select(model, "blocks:4")
    only = Network([Block(nn.Conv2d(4, 4, 1, groups=2), nn.Flatten())], nn.Linear(4, 2))
    for layers in ("all", "last", "blocks:1"):
        with pytest.raises(SpecError, match=f"layers = {layers} fits no layer of this model that can be adapted: "
                                            r"blocks\.0\.body is a convolution in 2 groups"):
            select(only, layers)


class Halved(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight / 2, self.bias)


class ShiftedWindowAttention(nn.Module):
    """As torchvision's, by its name, and by what it does with the layers."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(4, 12), nn.Linear(4, 4)


def test_layers_whose_weight_is_read_or_changed_are_left_out():
    attention = nn.MultiheadAttention(4, 2)
    parts = nn.ModuleDict({"attn": attention, "window_attn": ShiftedWindowAttention(), "conv": Halved(1, 1, 1),
                           "mlp": nn.Linear(4, 4)})
    model = Network([Block(parts, nn.Identity())], nn.Linear(4, 6))
    assert list(select(model, "all")) == ["blocks.0.body.mlp"]
    left_out = choose(model, "all").left_out
    for said in ("attn.out_proj is part of torch's nn.MultiheadAttention, which reads", "conv is a Halved, which cha",
                 "window_attn.qkv is part of a ShiftedWindowAttention", "window_attn.proj is part of a Shifted"):
        assert f"blocks.0.body.{said}" in left_out
    assert choose(model, "all", targets=["mlp"]).left_out == "", "what is not asked for is not left out"
    with pytest.raises(SpecError, match=r"no layer that is proj can be adapted: blocks\.0\.body\.attn\.out_proj is "):
        select(model, "all", targets=["proj"])
    with pytest.raises(SpecError, match=r"blocks\.0\.body\.attn\.out_proj is part of torch's nn\.MultiheadAttention"):
        select(model, "attention", targets=["proj"])


@pytest.mark.parametrize(("name", "kept", "left_out"), [
    ("torchvision:mobilenet_v2", 35, ["1.conv.0.0 is a convolution in 32 groups", "conv.1.0 (16 layers), each a"]),
    ("torchvision:resnext50_32x4d", 37, [".conv2 (16 layers), each a convolution in groups"]),
    ("torchvision:vit_b_16", 49, []),
    ("torchvision:swin_t", 28, ["attn.qkv (12 layers), each part of a ShiftedWindow", "attn.proj (12 layers), each"]),
    pytest.param("timm:tf_efficientnet_lite0", 33, ["conv_dw (16 layers), each a convolution in groups"],
                 marks=pytest.mark.extra("timm")),
    pytest.param("timm:beit_base_patch16_224", 37, ["attn.qkv (12 layers), each part of an attention with biases"],
                 marks=pytest.mark.extra("timm"))])
def test_networks_of_others_are_adapted_as_far_as_can_be(name, kept, left_out):
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what meta tensors make of initializers
        model, _ = build_model(Resolved(name=name, options={}), None, (3, 224, 224), 6, discover())
    options = AdapterOptions(rank=1)
    notes = remarks(model, options)
    assert len(notes) == bool(left_out) and all(said in notes[0] for said in left_out)
    adapted = adapt(model, options)
    assert len(adapted) == kept
    for layer in adapted.values():
        layer.add()
        layer.active = (0,)
    assert model.eval()(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 6)


def same_convolution(channels, out, size, stride=1, bias=True):
    return pytest.importorskip("timm.layers").Conv2dSame(channels, out, size, stride=stride, bias=bias)


@pytest.mark.extra("timm")
@pytest.mark.parametrize(("side", "stride"), [(8, 2), (9, 2), (7, 3), (5, 1)])
def test_inputs_of_same_convolutions_are_those_that_its_weight_multiplies(side, stride):
    layer = same_convolution(2, 3, 3, stride)
    x = torch.randn(4, 2, side, side + 1)
    out = layer(x)
    product = rows(layer, x) @ layer.weight.flatten(1).T + layer.bias
    torch.testing.assert_close(product, out.flatten(2).transpose(1, 2).flatten(0, 1))


@pytest.mark.extra("timm")
@pytest.mark.parametrize("options", [{}, {"dora": True}, {"bias": True, "alpha": 5.0}], ids=str)
def test_same_convolutions_have_adapters_that_merge(options):
    model = inverted(same_convolution)
    strategy = LoRA(model, make_stream_info(), LoRAOptions(rank=1, base="random", **options))
    begin(strategy, make_task(0))
    enlarge(strategy, 0)
    ours = answer(strategy, 0).logits
    plain = inverted(same_convolution)
    plain.load_state_dict(base_tensors(strategy.model, strategy.adapted))
    before = plain.features(inputs())
    for name, layer in strategy.adapted.items():
        module = plain.get_submodule(name)
        module.weight.data, module.bias.data = layer.merged_weight(0).detach(), layer.merged_bias(0).detach()
    after = plain.features(inputs())
    torch.testing.assert_close(strategy.heads[0](after), ours, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before, after, rtol=1e-3, atol=1e-3)


@pytest.mark.extra("timm")
def test_inflora_measures_the_inputs_of_same_convolutions():
    from timm.layers.padding import pad_same

    strategy = InfLoRA(inverted(same_convolution), make_stream_info(), InfLoRAOptions(rank=1, base="random"))
    task = make_task(0)
    learn(strategy, task)
    moment = strategy.moments(task.train)["blocks.2.body.conv1"]
    with torch.no_grad():
        padded = pad_same(features(strategy, task), [3, 3], [2, 2])
    patches = torch.stack([padded[:, :, i:i + 3, j:j + 3].flatten(1) for i in (0, 2) for j in (0, 2)])
    expected = torch.einsum("pni,pnj->ij", patches.double(), patches.double()) / len(task.train)
    torch.testing.assert_close(moment.double(), expected, rtol=1e-4, atol=1e-5)


def features(strategy, task):
    """Return the outputs of the first two blocks."""
    x = strategy.stream_info.prepare(task.train.x)
    for block in strategy.model.blocks[:2]:
        x = block(x)
    return x


@pytest.mark.extra("peft")
@pytest.mark.extra("timm")
def test_peft_gives_the_same_logits_on_same_convolutions():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what PEFT's own imports complain about
        from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    strategy = LoRA(inverted(same_convolution), make_stream_info(), LoRAOptions(rank=1, base="random", alpha=3.0))
    task = make_task(0)
    begin(strategy, task)
    enlarge(strategy, 0)
    base = base_tensors(strategy.model, strategy.adapted)
    adapter = strategy.adapter(task, "trial", fingerprint(base))
    plain = inverted(same_convolution)
    plain.load_state_dict(base)
    tuned = get_peft_model(plain, LoraConfig(**adapter.config.model_dump())).eval()
    assert not set_peft_model_state_dict(tuned, adapter.tensors).unexpected_keys
    with torch.no_grad():
        torch.testing.assert_close(tuned(inputs())[:, :2], answer(strategy, 0).logits[:, :2], rtol=1e-5, atol=1e-5)


class Reader(nn.Module):
    """Reads the weight of its first layer, and the geometry of its second before it calls it."""

    def __init__(self):
        super().__init__()
        self.read, self.called = nn.Linear(8, 8), nn.Conv2d(1, 2, 2)

    def forward(self, x):
        assert (self.called.kernel_size, self.called.stride, self.read.out_features) == ((2, 2), (1, 1), 8)
        return self.called(F.linear(x, self.read.weight, self.read.bias))


@pytest.mark.parametrize("options", [{}, {"dora": True}, {"alpha": 5.0, "scaling": "rslora"}, {"bias": True}], ids=str)
def test_a_weight_that_is_read_has_the_changes_of_the_active_adapters(options):
    model = Network([Block(Reader(), nn.Flatten())], nn.Linear(98, 6))
    plain = copy.deepcopy(model)
    strategy = LoRA(model, make_stream_info(), LoRAOptions(rank=2, base="random", **options))
    for index in range(2):
        begin(strategy, make_task(index))
        enlarge(strategy, index)
    for task in range(2):
        for name in ("read", "called"):
            module, layer = plain.get_submodule(f"blocks.0.body.{name}"), strategy.adapted[f"blocks.0.body.{name}"]
            module.weight.data, module.bias.data = layer.merged_weight(task).detach(), layer.merged_bias(task).detach()
        ours = answer(strategy, task).logits
        torch.testing.assert_close(strategy.heads[task](plain.features(inputs())), ours, rtol=1e-5, atol=1e-5)
    assert torch.equal(model.blocks[0].body.read.weight, model.blocks[0].body.read.base_layer.weight)
    idle = InfLoRA(Network([Block(Reader(), nn.Flatten())], nn.Linear(98, 6)), make_stream_info(),
                   InfLoRAOptions(rank=1, base="random"))
    with pytest.raises(SpecError, match=r"inflora: blocks\.0\.body\.read is never called, so it has no inputs"):
        begin(idle, make_task(0))


def test_the_record_says_what_was_left_out():
    registry = discover()
    methods = ["lora:rank=1:base=random", "inflora:rank=1:base=random:layers=last:3", "naive"]
    trials = plan(build({"methods": methods, "model": "torchvision:shufflenet_v2_x0_5", "seeds": 1,
                         "benchmark": "split-mnist-5k"}), registry)
    stream = stream_of_shapes(2, 4, (3, 32, 32), "task", 8)
    notes = []
    for one in trials:
        strategy, found = TrialRunner(ExecutionSettings(), "cpu", "a test", registry).build(one.trial, stream)
        assert found == strategy.notes
        notes.append(found)
    assert [len(found) for found in notes] == [1, 1, 0]
    assert notes[0][0].startswith("layers = all leaves out what cannot be adapted: blocks.")
    assert notes[1][0].startswith("layers = last:3 leaves out what cannot be adapted: blocks.")
    assert notes[1][0].endswith(f"stage4.3.branch2.3 is a convolution in 96 groups, {WHY}")
    counted = count(trials[0], stream, registry)
    assert counted.remarks == notes[0] and counted.note is None
    shown = params.show({"model": "x"}, [counted], "text").replace("\n", " ")
    assert f"- {counted.method}: layers = all leaves out what cannot be adapted: " in shown
