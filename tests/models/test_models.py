import pytest
import torch
from safetensors.torch import save_file

from clbench.core.errors import DataError
from clbench.core.files import hash_file
from clbench.core.options import NoOptions
from clbench.core.registry import discover
from clbench.experiment.trial import Resolved, Weights
from clbench.models.builtin import CNNOptions, MLPOptions
from clbench.models.small import cnn, linear, mlp
from clbench.models.weights import load_weights
from clbench.training.building import build_model


def test_the_mlp_is_the_published_one():
    model = mlp(MLPOptions(), (1, 28, 28), 10)
    assert sum(p.numel() for p in model.parameters()) == 784 * 400 + 400 + 400 * 400 + 400 + 400 * 10 + 10
    assert model(torch.zeros(3, 1, 28, 28)).shape == (3, 10)


@pytest.mark.parametrize("depth", [0, 2])
def test_initial_weights_of_the_mlp_follow_the_chosen_rule(depth):
    torch.manual_seed(0)
    layers = {}
    for init in ("xavier", "truncated-normal"):
        model = mlp(MLPOptions(depth=depth, init=init), (1, 28, 28), 10).requires_grad_(False)
        layers[init] = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    assert [len(layers[init]) for init in layers] == [depth + 1] * 2
    for layer in layers["xavier"]:
        bound = (6 / sum(layer.weight.shape)) ** 0.5
        assert 0.95 * bound < layer.weight.abs().max() <= bound and not layer.bias.any()
        assert layer.weight.std() == pytest.approx(bound / 3**0.5, rel=0.05)
    for layer in layers["truncated-normal"]:
        assert 0.19 < layer.weight.abs().max() <= 0.2 and bool((layer.bias == 0.1).all())
        # A normal distribution that is cut off at two standard deviations has 0.880 of its standard deviation.
        assert layer.weight.std() == pytest.approx(0.0880, rel=0.05)


def test_the_default_initialization_of_the_mlp_is_not_written():
    assert MLPOptions(width=5).model_dump() == {"width": 5, "depth": 2}
    assert MLPOptions(width=5, init="xavier").model_dump() == {"width": 5, "depth": 2, "init": "xavier"}


@pytest.mark.parametrize(("build", "options"), [(mlp, MLPOptions(width=5, depth=1)), (mlp, MLPOptions(depth=3)),
                                                (cnn, CNNOptions(channels=4)), (cnn, CNNOptions(channels=4, depth=3))])
def test_logits_are_the_head_of_the_features(build, options):
    model = build(options, (3, 32, 32), 7)
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(model(x), model.head(model.features(x)))
    assert model.features(x).shape == (2, model.head.in_features)


def test_linear_is_a_head_alone_and_so_is_an_mlp_without_hidden_layers():
    one, other = linear(NoOptions(), (3, 4, 4), 7), mlp(MLPOptions(depth=0), (3, 4, 4), 7)
    other.load_state_dict(one.state_dict())
    x = torch.rand(2, 3, 4, 4)
    assert not one.has_body and not other.has_body and mlp(MLPOptions(), (3, 4, 4), 7).has_body
    assert torch.equal(one.features(x), x.flatten(1)) and torch.equal(one(x), other(x))
    assert {name: tuple(p.shape) for name, p in one.named_parameters()} == {"head.weight": (7, 48), "head.bias": (7,)}


def test_hidden_layers_that_there_are_not_have_no_width():
    assert MLPOptions(depth=0).model_dump() == {"width": 400, "depth": 0}
    assert MLPOptions.model_validate(MLPOptions(depth=0).model_dump()).depth == 0
    with pytest.raises(ValueError, match="depth = 0 has none; leave width out"):
        MLPOptions(depth=0, width=5)


def test_weights_go_from_a_file_into_a_model(tmp_path):
    source, target = (mlp(MLPOptions(width=6), (1, 4, 4), 5) for _ in range(2))
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    assert load_weights(target, tmp_path / "w.safetensors") == []
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_a_head_of_another_size_starts_untrained(tmp_path):
    source, target = mlp(MLPOptions(width=6), (1, 4, 4), 5), mlp(MLPOptions(width=6), (1, 4, 4), 3)
    head = target.head.weight.clone()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    assert load_weights(target, tmp_path / "w.safetensors") == ["weights: no head of this size, it starts untrained"]
    assert torch.equal(target.blocks[1].body.weight, source.blocks[1].body.weight)
    assert torch.equal(target.head.weight, head)


def test_weights_of_another_model_are_refused(tmp_path):
    save_file(mlp(MLPOptions(width=7), (1, 4, 4), 5).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(DataError, match=r"4 of 4 tensors of another shape: .*bias \(\[7\], the model has \[6\]\)"):
        load_weights(mlp(MLPOptions(width=6), (1, 4, 4), 5), tmp_path / "w.safetensors")
    (tmp_path / "bad").write_bytes(b"not safetensors")
    with pytest.raises(DataError, match="weights"):
        load_weights(mlp(MLPOptions(width=6), (1, 4, 4), 5), tmp_path / "bad")


def test_weights_that_do_not_fit_are_told_apart_and_their_model_is_named(tmp_path):
    source = mlp(MLPOptions(), (1, 4, 4), 5).state_dict()
    save_file(source, tmp_path / "w.safetensors")
    weights = Weights(path=str(tmp_path / "w.safetensors"), sha256=hash_file(tmp_path / "w.safetensors"))
    with pytest.raises(DataError) as caught:
        build_model(Resolved(name="mlp", options={"width": 400, "depth": 3}), weights, (1, 4, 4), 5, discover())
    message = str(caught.value)
    assert "2 of 6 tensors missing: blocks.2.body.bias, blocks.2.body.weight; the model is mlp" in message
    assert message.endswith("; they fit --model mlp")
