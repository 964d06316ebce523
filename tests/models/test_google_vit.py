"""Google's .npz files of vision transformers, and timm's names, against timm's own loader."""

import numpy as np
import pytest
import torch

from clbench.core.errors import DataError
from clbench.models.builtin import ViTOptions
from clbench.models.vit import vit
from clbench.models.weights import load_weights, read_weights, timm_tensors

WIDTH, HEADS, HIDDEN, DEPTH, PATCH, SIDE = 12, 3, 20, 2, 4, 16
OPTIONS = ViTOptions(width=WIDTH, heads=HEADS, depth=DEPTH, patch=PATCH, mlp_ratio=HIDDEN / WIDTH)


def google_arrays(classes=5, **more):
    """Return random arrays with the names and shapes of google-research/vision_transformer."""
    generator = np.random.default_rng(0)
    tokens, head = (SIDE // PATCH) ** 2 + 1, WIDTH // HEADS
    shapes = {"cls": (1, 1, WIDTH), "embedding/kernel": (PATCH, PATCH, 3, WIDTH), "embedding/bias": (WIDTH,),
              "Transformer/posembed_input/pos_embedding": (1, tokens, WIDTH),
              "Transformer/encoder_norm/scale": (WIDTH,), "Transformer/encoder_norm/bias": (WIDTH,),
              "head/kernel": (WIDTH, classes), "head/bias": (classes,)}
    for i in range(DEPTH):
        block = f"Transformer/encoderblock_{i}"
        attention = f"{block}/MultiHeadDotProductAttention_1"
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            shapes |= {f"{block}/{norm}/scale": (WIDTH,), f"{block}/{norm}/bias": (WIDTH,)}
        for part in ("query", "key", "value"):
            shapes |= {f"{attention}/{part}/kernel": (WIDTH, HEADS, head), f"{attention}/{part}/bias": (HEADS, head)}
        shapes |= {f"{attention}/out/kernel": (HEADS, head, WIDTH), f"{attention}/out/bias": (WIDTH,),
                   f"{block}/MlpBlock_3/Dense_0/kernel": (WIDTH, HIDDEN), f"{block}/MlpBlock_3/Dense_0/bias": (HIDDEN,),
                   f"{block}/MlpBlock_3/Dense_1/kernel": (HIDDEN, WIDTH), f"{block}/MlpBlock_3/Dense_1/bias": (WIDTH,)}
    shapes |= more
    return {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def ours(classes=5):
    return vit(OPTIONS, (3, SIDE, SIDE), classes).eval()


@pytest.mark.slow
@pytest.mark.extra("timm")
def test_an_npz_file_gives_the_network_that_timms_own_loader_gives(tmp_path):
    from timm.models.vision_transformer import VisionTransformer

    np.savez(tmp_path / "ViT.npz", **google_arrays())
    theirs = VisionTransformer(img_size=SIDE, patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS,
                               mlp_ratio=HIDDEN / WIDTH, num_classes=5).eval()
    theirs.load_pretrained(str(tmp_path / "ViT.npz"))
    model = ours()
    assert load_weights(model, tmp_path / "ViT.npz") == []
    x = torch.randn(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(x), theirs(x), rtol=1e-4, atol=1e-5)
    tensors = read_weights(tmp_path / "ViT.npz")
    assert tensors.keys() == theirs.state_dict().keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in theirs.state_dict().items())


@pytest.mark.extra("timm")
def test_the_built_in_vision_transformer_reads_a_file_of_timms(tmp_path):
    from safetensors.torch import save_file
    from timm.models.vision_transformer import VisionTransformer

    theirs = VisionTransformer(img_size=SIDE, patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS,
                               mlp_ratio=HIDDEN / WIDTH, num_classes=7).eval()
    save_file(theirs.state_dict(), tmp_path / "timm.safetensors")
    model = ours()
    assert load_weights(model, tmp_path / "timm.safetensors") == ["weights: no head of this size, it starts untrained"]
    x = torch.randn(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model.features(x), theirs.forward_head(theirs.forward_features(x), pre_logits=True),
                                   rtol=1e-4, atol=1e-5)


def test_attention_of_a_block_is_the_sum_over_heads_of_flax():
    arrays = google_arrays()
    tensors = timm_tensors(arrays)
    x = np.random.default_rng(1).normal(size=(5, WIDTH)).astype(np.float32)
    name = "Transformer/encoderblock_1/MultiHeadDotProductAttention_1"
    q = np.einsum("ld,dhk->lhk", x, arrays[f"{name}/query/kernel"]) + arrays[f"{name}/query/bias"]
    qkv = x @ tensors["blocks.1.attn.qkv.weight"].numpy().T + tensors["blocks.1.attn.qkv.bias"].numpy()
    np.testing.assert_allclose(qkv[:, :WIDTH], q.reshape(5, WIDTH), rtol=1e-4, atol=1e-5)
    heads = np.random.default_rng(2).normal(size=(5, HEADS, WIDTH // HEADS)).astype(np.float32)
    out = np.einsum("lhk,hkd->ld", heads, arrays[f"{name}/out/kernel"])
    np.testing.assert_allclose(heads.reshape(5, WIDTH) @ tensors["blocks.1.attn.proj.weight"].numpy().T, out,
                               rtol=1e-4, atol=1e-5)


def test_the_layer_before_the_head_and_a_head_of_another_size_are_left_out(tmp_path):
    arrays = google_arrays(classes=21, **{"pre_logits/kernel": (WIDTH, WIDTH), "pre_logits/bias": (WIDTH,)})
    np.savez(tmp_path / "ViT.npz", **arrays)
    assert load_weights(ours(), tmp_path / "ViT.npz") == ["weights: no head of this size, it starts untrained"]


@pytest.mark.parametrize(("change", "message"), [
    (lambda a: a.pop("cls"), "it has no array cls"),
    (lambda a: a.update(strange=np.zeros(3)), "no part of a vision transformer reads: strange"),
    (lambda a: [a.pop(n) for n in list(a) if "encoderblock_0" in n], "a later one is missing"),
    (lambda a: [a.pop(n) for n in list(a) if "encoderblock" in n], "no Transformer/encoderblock_0")])
def test_another_file_is_refused_in_a_line(change, message, tmp_path):
    arrays = google_arrays()
    change(arrays)
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load_weights(ours(), tmp_path / "other.npz")


def test_a_file_that_is_no_zip_or_has_pickles_is_refused(tmp_path):
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 broken")
    np.savez(tmp_path / "objects.npz", cls=np.array([{}], dtype=object))
    for name in ("broken.npz", "objects.npz"):
        with pytest.raises(DataError, match=f"{name} cannot be read"):
            load_weights(ours(), tmp_path / name)
