"""What PEFT itself makes of our files (extra `peft`)."""

import copy
import json
import warnings
from types import SimpleNamespace

import pytest
import torch
from clbench_lora import AdapterOptions, LoRAOptions, adapters, reload
from clbench_lora.arithmetic import combined, merged
from clbench_lora.files import read_adapter
from clbench_lora.run_adapters import TrialAdapters
from clbench_lora.selection import adapt
from clbench_lora.strategy import LoRA
from helpers.adapters import keep, plain
from helpers.per_task import TASKS, answer, inputs, learn, make_stream_info, make_task
from helpers.records import make_record
from safetensors.torch import load_file
from torch import nn

from clbench.core.errors import SpecError
from clbench.models.network import Block, Network
from clbench.models.weights import load_weights

pytestmark = pytest.mark.extra("peft")
CONVOLUTIONS = [
    {}, {"alpha": 5.0, "rank": 3}, {"scaling": "rslora", "rank": 3, "alpha": 5.0}, {"dora": True},
    {"bias": True, "alpha": 5.0, "rank": 3}, {"layers": "last"}, {"dropout": 0.3},
    {"rank_pattern": {r"blocks\.1\..*": 2}, "scaling": "rslora"},
]
LINEAR = [*CONVOLUTIONS, {"init": "pissa", "rank": 3, "alpha": 5.0},
          {"init": "pissa", "rank": 2, "scaling": "rslora", "bias": True}]
CASES = [*(("mlp", o) for o in LINEAR), *(("cnn", o) for o in CONVOLUTIONS),
         ("resnet20", {"rank": 1, "base": "random"}),
         ("resnet20", {"rank": 1, "bias": True, "base": "random"}),
         ("resnet20", {"rank": 2, "dora": True, "layers": "last:4", "base": "random"}),
         ("vit-tiny", {"layers": "attention"}), ("vit-tiny", {"dora": True}),
         ("vit-tiny", {"layers": "attention", "init": "pissa"}), ("vit-tiny", {"targets": ["q", "v", "mlp"]})]
FUSED = [{"targets": ["q", "v"]}, {"targets": ["k"], "dora": True}, {"targets": ["q", "v"], "dora": True},
         {"targets": ["q", "k", "v"], "scaling": "rslora", "rank": 3, "alpha": 5.0},
         {"targets": ["q", "v", "proj", "mlp"], "bias": True, "alpha": 5.0, "rank": 3},
         {"targets": ["q", "v"], "init": "pissa"}, {"targets": ["q", "v"], "rank_pattern": {r".*blocks\.1\..*qkv": 2}},
         {"targets": ["k", "v"], "rank_pattern": {r".*blocks\.1\..*qkv": 1}, "dora": True, "scaling": "rslora"},
         {"targets": ["q", "v"], "layers": "blocks:1"}]


@pytest.fixture(scope="module", autouse=True)
def quiet_import():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what PEFT's own imports complain about
        import peft  # noqa: F401


def by_peft(kind, folder, shape=(1, 8, 8)):
    """Return the model with the adapter of a folder as PEFT loads it."""
    from peft import PeftModel

    model, _ = plain(kind, shape, seed=5)
    load_weights(model, folder / "base.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # lora_bias on layers without a bias: such cannot be merged
        return PeftModel.from_pretrained(model, str(folder), low_cpu_mem_usage=False).eval()


@pytest.mark.parametrize(("kind", "options"), CASES, ids=str)
def test_peft_gives_the_same_logits(tmp_path, kind, options):
    strategy, source = keep(tmp_path, kind, **options)
    adapters.export(source, 1, tmp_path / "to")
    ours = answer(strategy, 1).logits
    loaded = by_peft(kind, tmp_path / "to")
    with torch.no_grad():
        theirs = loaded(inputs())
        unadapted = strategy.heads[1](strategy.shared_features(inputs()))
    assert torch.equal(theirs.isfinite(), ours.isfinite())
    assert (theirs - ours)[:, 2:4].abs().max() <= 1e-5 * max(1.0, ours[:, 2:4].abs().max().item())
    assert (unadapted - ours)[:, 2:4].abs().max() > 1e-3


@pytest.mark.parametrize("options", [{}, {"dora": True}, {"bias": True}, {"layers": "last"}], ids=str)
@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_peft_counts_as_many_parameters_on_the_same_layers(kind, rank, options):
    from peft import LoraConfig, get_peft_model

    wanted = AdapterOptions(rank=rank, **options)
    layers = adapt(plain(kind)[0], wanted)
    for layer in layers.values():
        layer.add()
    config = LoraConfig(r=rank, target_modules=[*layers], use_dora=wanted.dora, lora_bias=wanted.bias)
    theirs, _ = get_peft_model(plain(kind)[0], config).get_nb_trainable_parameters()
    assert theirs == sum(p.numel() for layer in layers.values() for p in layer.parameters_of(0).values())


@pytest.mark.parametrize(("kind", "options"), [("mlp", {}), ("mlp", {"dora": True}), ("cnn", {"dora": True}),
                                               ("cnn", {"bias": True}), ("mlp", {"init": "pissa"})], ids=str)
def test_peft_saves_what_it_loaded_under_the_same_names(tmp_path, kind, options):
    _, source = keep(tmp_path, kind, **options)
    adapters.export(source, 2, tmp_path / "to")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PEFT takes the bias of lora_B for a weight of a wrong shape
        by_peft(kind, tmp_path / "to").save_pretrained(str(tmp_path / "again"))
    ours, theirs = (load_file(tmp_path / f / "adapter_model.safetensors") for f in ("to", "again"))
    assert set(ours) == set(theirs)
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())
    ours, theirs = (json.loads((tmp_path / f / "adapter_config.json").read_text()) for f in ("to", "again"))
    changed = {k for k in ours if ours[k] != theirs[k] and sorted(map(str, ours[k])) != sorted(map(str, theirs[k]))}
    assert not changed - {"inference_mode"}


@pytest.mark.parametrize(("kind", "options"), [("mlp", {"alpha": 5.0}), ("cnn", {"bias": True}),
                                               ("mlp", {"init": "pissa", "rank": 2})], ids=str)
def test_peft_answers_by_a_mixture_as_by_the_sum_of_its_weights(tmp_path, kind, options):
    _, source = keep(tmp_path, kind, **options)
    mixture = adapters.combine(source, [0, 2], [0.5, 0.5], tmp_path / "to")
    model, _ = plain(kind)
    model.load_state_dict(merged(mixture, source.base()))
    with torch.no_grad():
        torch.testing.assert_close(by_peft(kind, tmp_path / "to")(inputs()), model.eval()(inputs()), rtol=1e-5,
                                   atol=1e-5)


class Plain(nn.Module):
    """The network of the next test as its library has it, with its own names."""

    def __init__(self, network):
        super().__init__()
        self.conv1, self.layer1, self.head = network.blocks[0].body, nn.Module(), network.head
        self.layer1.conv1 = network.blocks[1].body

    def forward(self, x):
        return self.head(self.layer1.conv1(self.conv1(x)).mean((2, 3)))


def test_peft_adapts_no_layer_whose_name_only_ends_like_a_target(tmp_path):
    from peft import PeftModel

    network = Network([Block(nn.Conv2d(1, 3, 3), nn.Identity()),
                       Block(nn.Conv2d(3, 4, 3), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))],
                      nn.Linear(4, 6), {"conv1": "blocks.0.body", "layer1.conv1": "blocks.1.body"}, published=True)
    library_model = Plain(copy.deepcopy(network))
    strategy = LoRA(network, make_stream_info("task"), LoRAOptions(rank=2, layers=r"blocks\.0\..*", base="random"))
    for i in range(2):
        learn(strategy, make_task(i))
        strategy.export(tmp_path, make_task(i))
    found = read_adapter(tmp_path / "task1")
    assert (found.layers, found.config.exclude_modules) == (["blocks.0.body"], ["layer1.conv1"])
    assert combined({0: read_adapter(tmp_path / "task0"), 1: found}, [1, 1]).config.exclude_modules == ["layer1.conv1"]
    loaded = PeftModel.from_pretrained(library_model, str(tmp_path / "task1"), low_cpu_mem_usage=False).eval()
    assert {n.partition(".lora_A")[0] for n, _ in loaded.named_parameters() if ".lora_A." in n} == {
        "base_model.model.conv1"}
    with torch.no_grad():
        theirs = loaded(inputs())
    torch.testing.assert_close(theirs[:, 2:4], answer(strategy, 1).logits[:, 2:4], rtol=1e-5, atol=1e-6)


def test_convolutions_that_peft_does_not_know_are_not_exported(tmp_path, monkeypatch):
    _, source = keep(tmp_path, "cnn")
    monkeypatch.setattr(nn.Conv2d, "padding_mode", property(lambda self: "circular", lambda self, value: None),
                        raising=False)
    with pytest.raises(SpecError, match=r"blocks\.0\.body is a convolution .* which PEFT's adapters do not have"):
        adapters.export(source, 0, tmp_path / "to")


def test_attention_of_torchvision_is_not_exported(tmp_path):
    record = make_record("lora", model="torchvision:vit_b_32")
    stream = record.stream.model_copy(update={"input_shape": [3, 32, 32]})
    source = TrialAdapters(record.model_copy(update={"stream": stream}), tmp_path)
    unit = "blocks.1.body.unit"
    adapters.refuse_foreign(source, SimpleNamespace(layers=[f"{unit}.mlp.0"]))
    for layer in ("qkv", "out_proj"):
        with pytest.raises(SpecError, match=rf"{layer} is part of an attention that torchvision .*; use merge instead"):
            adapters.refuse_foreign(source, SimpleNamespace(layers=[f"{unit}.self_attention.{layer}"]))


def colorful(index):
    task = make_task(index)
    object.__setattr__(task.train, "x", task.train.x.expand(-1, 3, -1, -1).repeat(1, 1, 4, 4))
    return task


@pytest.mark.slow
@pytest.mark.extra("timm")
@pytest.mark.parametrize("options", FUSED, ids=str)
def test_timms_own_model_takes_an_adapter_with_plain_peft(tmp_path, options):
    import timm
    from peft import PeftModel

    def timms():
        return timm.create_model("test_vit", num_classes=2 * TASKS, img_size=32).eval()

    strategy, source = keep(tmp_path, "timm:test_vit", tasks=[*map(colorful, range(TASKS))], shape=(3, 32, 32),
                            base="random", **options)
    adapters.export(source, 1, tmp_path / "to")
    x = inputs().expand(-1, 3, -1, -1).repeat(1, 1, 4, 4)
    ours = answer(strategy, 1, x).logits
    plainly = timms()
    plainly.load_state_dict(load_file(tmp_path / "to" / "base.safetensors"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # as in `by_peft`
        tuned = PeftModel.from_pretrained(plainly, str(tmp_path / "to"), low_cpu_mem_usage=False).eval()
    with torch.no_grad():
        theirs = tuned(x)
    assert torch.equal(theirs.isfinite(), ours.isfinite())
    assert (theirs - ours)[:, 2:4].abs().max() <= 1e-5 * max(1.0, ours[:, 2:4].abs().max().item())
    assert (strategy.heads[1](strategy.shared_features(x)) - ours)[:, 2:4].abs().max() > 1e-3

    sizes = {s.name: s.parameters for s in adapters.layer_summaries(source.adapter(1), source.base())}
    for name in (n for n in sizes if n.endswith(".qkv")):
        parts = [layer for part, layer in strategy.adapted.items() if part.startswith(f"{name}.")]
        r = parts[0].rank * (2 if "init" in options else 1)  # pissa's start is stored too
        beside = 3 * 64 * ((strategy.options.dora is True) + (strategy.options.bias is True))
        assert sizes[name] == len(parts) * r * (64 + 3 * 64) + beside  # n r (in + 3 w), as docs/adapters.md has it
    adapters.merge(source, 1, tmp_path / "merged.safetensors")
    plainly = timms()
    plainly.load_state_dict(load_file(tmp_path / "merged.safetensors"))
    with torch.no_grad():
        torch.testing.assert_close(plainly(x)[:, 2:4], ours[:, 2:4], rtol=1e-4, atol=1e-5)
    again = reload.load(source, [1])
    assert torch.equal(answer(again, 0, x).logits, ours)
    adapters.remove(source, 0)
    assert torch.equal(answer(reload.load(source, [1]), 0, x).logits, ours)
