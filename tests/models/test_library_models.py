"""Models of timm and torchvision as networks, against the libraries' own."""

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn

from clbench.core.errors import DataError, SpecError
from clbench.core.registry import discover
from clbench.experiment.trial import Resolved
from clbench.models.library import Stage, chain, cut
from clbench.models.network import Network, TokenNetwork
from clbench.models.torchvision_models import SelfAttention
from clbench.models.weights import MisfitError, fill, load_weights
from clbench.training.building import build_model

TIMM = pytest.mark.extra("timm")
# name, pixels, blocks, whether lateral connections can be attached to them
TIMMS = [("test_vit", 32, 7, True), ("test_vit2", 32, 9, True), ("test_vit3", 32, 1, False),
         ("vit_tiny_patch16_224", 32, 13, True), ("deit3_small_patch16_224", 32, 13, True),
         ("vit_small_patch14_reg4_dinov2", 28, 13, True), ("vit_medium_patch16_gap_256", 32, 13, True),
         ("test_resnet", 32, 5, True), ("test_efficientnet", 32, 5, True), ("test_convnext", 64, 4, True),
         ("mobilenetv3_small_100", 32, 5, True), ("test_byobnet", 64, 5, True),
         ("vit_relpos_small_patch16_224", 32, 1, False), ("test_vit4", 32, 10, True),
         ("vitamin_small_224", 64, 15, True)]


def built(name, side, classes=4):
    return build_model(Resolved(name=name), None, (3, side, side), classes, discover())[0].eval()


def timms(name, side, classes=4, **options):
    import timm

    fixed = {"img_size": side} if timm.get_pretrained_cfg(name).fixed_input_size else {}
    return timm.create_model(name, num_classes=classes, **fixed, **options).eval()


def check_same(ours, theirs, side, blocks):
    """Check that a network computes what a library's model does with the same weights, and gives them its names."""
    assert fill(ours, theirs.state_dict(), "the library's") == []
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    assert {ours.published_name(name) for name in ours.state_dict()} == set(theirs.state_dict())
    assert len(ours.blocks) == blocks


@TIMM
@pytest.mark.parametrize(("name", "side", "blocks", "ports"), [
    pytest.param(*one, marks=() if one[0].startswith("test_") else pytest.mark.slow) for one in TIMMS])
def test_a_model_of_timm_in_blocks_gives_timms_logits(name, side, blocks, ports):
    theirs, ours = timms(name, side), built(f"timm:{name}", side)
    check_same(ours, theirs, side, blocks)
    assert all((getattr(block.body, "ports", None) is not None) is ports for block in ours.blocks)


@pytest.mark.parametrize(("name", "side", "blocks"), [("resnet18", 32, 5), ("resnet50", 32, 5), ("vit_b_16", 32, 13),
                                                      ("mobilenet_v3_small", 32, 1)])
def test_a_model_of_torchvision_in_blocks_gives_torchvisions_logits(name, side, blocks):
    sized = {"image_size": side} if name.startswith("vit") else {}
    theirs, ours = torchvision.models.get_model(name, num_classes=4, **sized).eval(), built(f"torchvision:{name}", side)
    check_same(ours, theirs, side, blocks)


@pytest.mark.parametrize(("name", "side"), [("googlenet", 32), ("inception_v3", 75)])
def test_auxiliary_heads_are_left_out(name, side):
    theirs = torchvision.models.get_model(name, num_classes=4, transform_input=True, init_weights=False).eval()
    ours = built(f"torchvision:{name}", side)
    fill(ours, theirs.state_dict(), "the library's")
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    assert ours.train()(x).shape == (2, 4)


@TIMM
def test_a_model_with_two_classifiers_is_refused():
    with pytest.raises(SpecError, match=r"adds the outputs of a second classifier .* choose another model"), \
            torch.device("meta"):
        built("timm:volo_d1_224", 224)


@TIMM
@pytest.mark.parametrize(("name", "trained", "side"), [("test_vit", 160, 48), ("vit_small_patch14_reg4_dinov2", 28, 42),
                                                       ("test_efficientnet", 160, 32)])
@pytest.mark.slow
def test_weights_of_another_size_load_as_timm_loads_them(tmp_path, name, trained, side):
    given = timms(name, trained, classes=7)
    state = {n: t.half() if t.is_floating_point() else t for n, t in given.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    ours = built(f"timm:{name}", side)
    assert load_weights(ours, tmp_path / "w.safetensors") == ["weights: no head of this size, it starts untrained"]
    full = {n: t.float() if t.is_floating_point() else t for n, t in state.items()}
    theirs = timms(name, side, pretrained=True, pretrained_cfg_overlay={"state_dict": full})
    theirs.reset_classifier(0)
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours.features(x), theirs(x), rtol=1e-5, atol=1e-5)
    save_file({n: t for n, t in state.items() if not n.endswith("norm.weight")}, tmp_path / "less.safetensors")
    if name != "test_efficientnet":
        with pytest.raises(DataError, match=r"do not fit the model: .*norm\.weight"):
            load_weights(built(f"timm:{name}", side), tmp_path / "less.safetensors")


@TIMM
def test_weights_that_the_library_cannot_convert_do_not_fit():
    for name, given in (("torchvision:vit_b_16", {"encoder.pos_embedding": torch.zeros(1, 51, 768)}),
                        ("timm:test_convnext", torchvision.models.resnet18().state_dict())):
        with pytest.raises(MisfitError, match=r"weights f do not fit the model: they cannot be converted for it \("):
            fill(built(name, 64), given, "f")


@pytest.mark.slow
def test_torchvisions_position_embedding_is_resampled_as_torchvision_does_it():
    from torchvision.models.vision_transformer import interpolate_embeddings

    given = torchvision.models.vit_b_16(image_size=64, num_classes=4)
    theirs = torchvision.models.vit_b_16(image_size=32, num_classes=4).eval()
    theirs.load_state_dict(interpolate_embeddings(32, 16, given.state_dict()))
    ours = built("torchvision:vit_b_16", 32)
    assert fill(ours, given.state_dict(), "file") == []
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


@TIMM
def test_names_with_a_tag_are_names_and_heads_are_what_timm_calls_so():
    model = built("timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k", 32)
    assert isinstance(model, TokenNetwork) and model.head.in_features == 192
    assert isinstance(built("timm:vit_base_patch16_siglip_224", 32), Network)
    with pytest.raises(SpecError, match=r"no timm model 'vit_tiny_patch16_224\.augreg'; did you mean"):
        built("timm:vit_tiny_patch16_224.augreg", 32)
    with pytest.raises(SpecError, match="its classifier is not one linear layer but tuple"):
        built("timm:deit_tiny_distilled_patch16_224", 32)
    with pytest.raises(SpecError, match=r"takes square images with 3 channels.*timm:test_vit:size=224"):
        build_model(Resolved(name="timm:test_vit"), None, (3, 32, 40), 4, discover())


def test_what_is_no_chain_is_not_cut():
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.b(self.a(x)) + x

    class Branches(Skips):
        def forward(self, x):
            return self.a(x) if x.sum() > 0 else self.b(x)

    assert chain(Skips()) is None and chain(Branches()) is None
    assert cut(Skips(), [Stage("a", 3, 1), Stage("b", 3, 1)], 3) is None
    plain = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    assert [name for name, _ in chain(plain)] == ["0", "1"]
    assert cut(plain, [Stage("1", 3, 1), Stage("0", 3, 1)], 3) is None  # not in this order
    assert cut(plain, [Stage("c", 3, 1)], 3) is None


@TIMM
def test_a_base_that_a_run_pretrained_has_timms_names(tmp_path):
    model = built("timm:test_vit", 32)
    save_file({model.published_name(n): t for n, t in model.state_dict().items() if not n.startswith("head.")},
              tmp_path / "base.safetensors")
    theirs = timms("test_vit", 32, classes=0)
    theirs.load_state_dict(load_file(tmp_path / "base.safetensors"))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.features(x), theirs(x))
    assert model.published_name("blocks.3.body.unit.attn.qkv") == "blocks.2.attn.qkv"


@pytest.mark.parametrize("bias", [True, False])
def test_attention_in_plain_layers_is_torchs(bias):
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(12, 3, bias=bias, batch_first=True).double()
    x = torch.randn(4, 5, 12, dtype=torch.float64, requires_grad=True)
    expected, _ = theirs(x, x, x, need_weights=False)
    found, _ = SelfAttention(theirs)(x, x, x, need_weights=False)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(out.sin().sum(), x)[0] for out in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)
    with pytest.raises(NotImplementedError, match="only self-attention"):
        SelfAttention(theirs)(x, x + 1, x)
