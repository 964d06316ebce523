"""Networks of text against the models of transformers that they are made of (extra `text`)."""

import json
import warnings

import pytest
import torch
from helpers.text_models import WORDS, save_model

from clbench.core import tokens
from clbench.core.errors import DataError, SpecError
from clbench.core.files import hash_file
from clbench.core.registry import discover
from clbench.experiment.trial import Resolved, Weights
from clbench.models.builtin import TextModelOptions
from clbench.models.hf_files import weights_of
from clbench.models.hf_models import text_model
from clbench.models.network import Prefix, TokenNetwork
from clbench.training.building import build_model
from clbench.training.precision import FoldedAttention

pytestmark = pytest.mark.extra("text")
KINDS = ["bert", "roberta", "electra", "llama", "qwen", "deberta", "distilbert", "gpt2", "mpnet", "albert",
         "mistral", "esm"]
ONE_BLOCK = KINDS[5:]


@pytest.fixture(scope="module", autouse=True)
def quiet_import():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def built(folder, length=12, pool=None, pretrained=True, **options):
    """Return the network of a model in a folder."""
    weights = None
    if pretrained:
        path = str(weights_of(f"hf:{folder}"))
        weights = Weights(path=path, sha256=hash_file(path))
    network, _ = build_model(Resolved(name=f"hf:{folder}", options={"pool": pool, "dropout": 0.0, **options}), weights,
                             (length,), 4, discover())
    return network.eval()


def batch():
    """Return three texts of 12, 7 and 3 tokens."""
    x = torch.randint(4, len(WORDS), (3, 12), generator=torch.Generator().manual_seed(0), dtype=tokens.DTYPE)
    x[1, 7:], x[2, 3:] = tokens.NO_TOKEN, tokens.NO_TOKEN
    return x


def theirs(model, x, pool):
    """Return the features that the library's model gives, pooled by plain loops."""
    there = x >= 0
    with torch.no_grad():
        hidden = model(input_ids=x.masked_fill(~there, model.config.pad_token_id or 0).long(),
                       attention_mask=there.long()).last_hidden_state
    rows = [h[:n] for h, n in zip(hidden, there.sum(1).tolist(), strict=True)]
    return torch.stack([{"mean": r.mean(0), "cls": r[0], "last": r[-1]}[pool] for r in rows])


@pytest.mark.parametrize("pool", ["mean", "cls", "last"])
@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_the_library(tmp_path, kind, pool):
    model = save_model(tmp_path, kind)
    network = built(tmp_path, pool=pool)
    with torch.no_grad():
        torch.testing.assert_close(network.features(batch()), theirs(model, batch(), pool), rtol=1e-4, atol=1e-5)
    assert len(network.blocks) == (1 if kind in ONE_BLOCK else 3)


def test_weights_that_the_library_renames_when_it_loads_a_model_are_loaded(tmp_path):
    if not hasattr(transformers := pytest.importorskip("transformers"), "NomicBertConfig"):
        pytest.skip(f"transformers {transformers.__version__} has no such model")
    model = save_model(tmp_path, "nomic")
    with torch.no_grad():
        torch.testing.assert_close(built(tmp_path).features(batch()), theirs(model, batch(), "mean"), rtol=1e-4,
                                   atol=1e-5)


def test_an_encoder_with_the_parts_of_a_decoder_is_one_block_and_pools_by_the_mean(tmp_path):
    if not hasattr(transformers := pytest.importorskip("transformers"), "EuroBertConfig"):
        pytest.skip(f"transformers {transformers.__version__} has no such model")
    model = save_model(tmp_path, "eurobert")
    network = built(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(network.features(batch()), theirs(model, batch(), "mean"), rtol=1e-4, atol=1e-5)
    with torch.device("meta"):
        assert len(network.blocks) == len(text_model(f"hf:{tmp_path}", TextModelOptions(), (12,), 4).blocks) == 1


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama"])
def test_places_behind_the_last_token_change_nothing(tmp_path, kind):
    save_model(tmp_path, kind)
    network = built(tmp_path)
    x = batch()[1:]
    with torch.no_grad():
        torch.testing.assert_close(network.features(x[:, :7]), network.features(x), rtol=1e-5, atol=1e-6)


def test_the_padding_token_of_a_decoder_does_not_change_its_blocks(tmp_path):
    save_model(tmp_path, "llama")
    config = json.loads((tmp_path / "config.json").read_text())
    for padding in (None, 11):
        (tmp_path / "config.json").write_text(json.dumps({**config, "pad_token_id": padding}))
        assert len(built(tmp_path, pretrained=False).blocks) == 3


@pytest.mark.parametrize("kind", ["llama", "qwen"])
def test_decoders_run_in_stacks_and_stay_as_they_were(tmp_path, kind):
    save_model(tmp_path, kind)
    network, x = built(tmp_path), batch()
    before = {name: tensor.clone() for name, tensor in network.named_buffers()}
    weights = {name: torch.stack([t, 1.1 * t]) for name, t in (*network.named_parameters(), *network.named_buffers())}
    with torch.no_grad(), FoldedAttention():
        stacked = torch.func.vmap(lambda part: torch.func.functional_call(network, part, (x,)))(weights)
    assert before and all(torch.equal(tensor, before[name]) for name, tensor in network.named_buffers())
    for member in range(2):
        alone = torch.func.functional_call(network, {name: part[member] for name, part in weights.items()}, (x,))
        torch.testing.assert_close(stacked[member], alone)


def test_a_text_in_two_parts_and_prefixes_of_nothing_give_the_same(tmp_path):
    save_model(tmp_path, "bert")
    network = built(tmp_path)
    assert isinstance(network, TokenNetwork)
    nothing = Prefix(torch.zeros(3, 0, 16), torch.zeros(3, 0, 16))
    with torch.no_grad():
        expected = network.features(batch())
        for prefixes in (None, {0: nothing, 1: nothing}):
            found = network.pooled(network.encode(network.embed(batch()), prefixes))
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        keys = torch.randn(3, 2, 16)
        other = network.pooled(network.encode(network.embed(batch()), {1: Prefix(keys, keys)}))
    assert (other - expected).abs().max() > 1e-3


def test_without_weights_a_model_begins_untrained(tmp_path):
    save_model(tmp_path, "bert")
    torch.manual_seed(1)
    fresh = built(tmp_path, pretrained=False).features(batch())
    assert (fresh - built(tmp_path).features(batch())).abs().max() > 0.1


def test_what_cannot_be_had_is_said(tmp_path):
    with pytest.raises(DataError, match=r"nowhere' was not found, because .*nowhere has no config\.json"):
        built(tmp_path / "nowhere")
    save_model(tmp_path, "bert")
    with pytest.raises(SpecError, match="takes at most 24 tokens, the benchmark has 25; choose length=24 or less"):
        built(tmp_path, length=25)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"no model\.safetensors in .*--weights none"):
        weights_of(f"hf:{tmp_path}")


@pytest.mark.parametrize(("kind", "unused"), [("mpnet", 2), ("data2vec", 2), ("roberta", 1), ("esm", 1),
                                              ("bert", 0)])
def test_positions_before_the_first_token_are_not_used(tmp_path, kind, unused):
    """RoBERTa and its variants have unused positions up to that of padding; they have 24 here."""
    save_model(tmp_path, kind)
    most = 24 - unused
    built(tmp_path, length=most, pretrained=False)(torch.full((1, most), 4, dtype=tokens.DTYPE))
    with pytest.raises(SpecError, match=f"takes at most {most} tokens"):
        built(tmp_path, length=most + 1, pretrained=False)


@pytest.mark.parametrize("settings", [{"pooling_mode_cls_token": True}, {"pooling_mode": "cls"},
                                      {"pooling_mode": ["cls"], "include_prompt": True}])
def test_sentence_transformers_say_how_tokens_are_pooled(tmp_path, settings):
    model = save_model(tmp_path, "bert")
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    with torch.no_grad():
        torch.testing.assert_close(built(tmp_path).features(batch()), theirs(model, batch(), "cls"), rtol=1e-4,
                                   atol=1e-5)


@pytest.mark.parametrize("others", ["max_tokens", "mean_tokens", "weightedmean_tokens"])
def test_pooling_that_is_not_known_is_refused(tmp_path, others):
    save_model(tmp_path, "bert")
    (tmp_path / "1_Pooling").mkdir()
    settings = {"pooling_mode_cls_token": others == "mean_tokens", f"pooling_mode_{others}": True}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(SpecError, match=rf"pools by .*pooling_mode_{others} .*choose pool=mean, pool=cls or pool=last"):
        built(tmp_path)
    built(tmp_path, pool="mean")
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode": ["cls", "mean"]}')
    with pytest.raises(SpecError, match="pools by cls and mean"):
        built(tmp_path)
