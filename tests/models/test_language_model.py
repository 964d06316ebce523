"""Language models as networks: logits as of transformers, blocks, tied weights, weights from files (extra `lm`)."""

import pytest
import torch
from helpers.language_models import make_model, make_multimodal, quiet, save
from safetensors.torch import load_file, save_file

from clbench.core.errors import DataError, SpecError
from clbench.models.builtin import TextModelOptions
from clbench.models.language_model import LanguageModel, language_model
from clbench.models.weights import load_weights

pytestmark = pytest.mark.extra("lm")


def network_of(folder, length=64, **options):
    """Return the network of a folder with its weights."""
    network = language_model(f"hf:{folder}", TextModelOptions(**options), (length,))
    notes = load_weights(network, folder / "model.safetensors")
    assert notes == []
    return network.eval()


def logits_of(network, x):
    with torch.no_grad():
        return network.head(network(x))


def make_gemma():
    """Return a tiny Gemma 3 with random weights."""
    transformers, _ = quiet()
    return transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(
        vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, max_position_embeddings=64, sliding_window=64,
        layer_types=["sliding_attention", "full_attention"])).eval()


def random_tokens(seed=0, rows=3, length=20, vocabulary=259):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, vocabulary, (rows, length), generator=generator, dtype=torch.int32)
    x[1, length // 2:] = -1
    return x


@pytest.mark.parametrize("tied", [True, False])
def test_a_decoder_has_a_block_for_each_layer_and_the_logits_of_transformers(tmp_path, tied):
    model = make_model()
    if not tied:
        transformers, _ = quiet()
        config = transformers.LlamaConfig(**{**model.config.to_dict(), "tie_word_embeddings": False})
        model = transformers.LlamaForCausalLM(config).eval()
    network = network_of(save(tmp_path, model))
    assert isinstance(network, LanguageModel) and len(network.blocks) == 3 and network.tied is tied
    x = random_tokens()
    there = x >= 0
    with torch.no_grad():
        expected = model(input_ids=x.clamp(min=0).long(), attention_mask=there.long()).logits
    torch.testing.assert_close(logits_of(network, x)[there], expected[there], rtol=1e-5, atol=1e-5)


def test_a_model_published_in_bfloat16_is_trained_in_float32(tmp_path):
    make_model().to(torch.bfloat16).save_pretrained(tmp_path)
    network = network_of(tmp_path)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32} and network.tied


@pytest.mark.parametrize("kind", ["opt", "llama", "biogpt"])
def test_the_option_dropout_also_sets_rates_that_a_model_has_as_numbers(tmp_path, kind):
    transformers, _ = quiet()
    model = make_model(attention_dropout=0.3)
    if kind == "opt":
        model = transformers.OPTForCausalLM(transformers.OPTConfig(
            vocab_size=259, hidden_size=32, word_embed_proj_dim=32, ffn_dim=64, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=64, dropout=0.1))
    if kind == "biogpt":
        model = transformers.BioGptForCausalLM(transformers.BioGptConfig(
            vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=64))
    folder, x = save(tmp_path, model), random_tokens()
    for dropout, is_random in ((0.0, False), (None, True), (0.2, True)):
        torch.manual_seed(0)
        network = language_model(f"hf:{folder}", TextModelOptions(dropout=dropout), (64,)).train()
        assert torch.equal(logits_of(network, x), logits_of(network, x)) is not is_random


def test_tokens_after_a_text_do_not_change_what_comes_before(tmp_path):
    network = network_of(save(tmp_path, make_model()))
    x = random_tokens()
    torch.testing.assert_close(logits_of(network, x[1:2, :10]), logits_of(network, x)[1:2, :10], rtol=1e-5, atol=1e-5)


def test_a_tied_head_is_one_parameter(tmp_path):
    model = make_model()
    network = network_of(save(tmp_path, model))
    assert sum(p.numel() for p in network.parameters()) == sum(p.numel() for p in model.parameters())
    assert network.head.weight is network.blocks[0].body.embed_tokens.weight


@pytest.mark.parametrize("kind", ["gpt2", "neox", "window", "gemma3"])
def test_other_models_are_one_block(tmp_path, kind):
    transformers, _ = quiet()
    torch.manual_seed(0)
    if kind == "gpt2":
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
            vocab_size=259, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)).eval()
    elif kind == "neox":  # its head has another name
        model = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(
            vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=64)).eval()
    elif kind == "gemma3":  # its layers have position embeddings of two kinds
        model = make_gemma()
    else:  # attention that does not reach back far enough
        model = transformers.MistralForCausalLM(transformers.MistralConfig(
            vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, sliding_window=4)).eval()
    network = network_of(save(tmp_path, model))
    assert len(network.blocks) == 1
    x = random_tokens(length=16)
    there = x >= 0
    with torch.no_grad():
        expected = model(input_ids=x.clamp(min=0).long(), attention_mask=there.long()).logits
    torch.testing.assert_close(logits_of(network, x)[there], expected[there], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["mistral", "qwen2"])
def test_texts_that_are_longer_than_the_sliding_window_get_the_logits_of_transformers(tmp_path, kind):
    """General texts may be longer than all items. Only the last layer of Qwen2 has the window here."""
    transformers, _ = quiet()
    small = {"vocab_size": 259, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "sliding_window": 17,
             "initializer_range": 0.2}
    torch.manual_seed(0)
    model = (transformers.MistralForCausalLM(transformers.MistralConfig(**small)) if kind == "mistral" else
             transformers.Qwen2ForCausalLM(transformers.Qwen2Config(
                 **small, use_sliding_window=True, max_window_layers=1))).eval()
    network = network_of(save(tmp_path, model), length=16)
    assert len(network.blocks) == 3
    for length in (17, 40):
        x = random_tokens(length=length)
        there = x >= 0
        with torch.no_grad():
            expected = model(input_ids=x.clamp(min=0).long(), attention_mask=there.long()).logits
        torch.testing.assert_close(logits_of(network, x)[there], expected[there], rtol=1e-5, atol=1e-5)


def test_models_have_the_same_blocks_without_values(tmp_path):
    transformers, _ = quiet()
    small = {"vocab_size": 259, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    scaled = transformers.GraniteForCausalLM(transformers.GraniteConfig(**small, embedding_multiplier=12.0))
    eager = transformers.Gemma2ForCausalLM(transformers.Gemma2Config(
        **small, head_dim=8, final_logit_softcapping=None, attn_implementation="eager"))
    experts = transformers.MixtralForCausalLM(transformers.MixtralConfig(**small, num_local_experts=4))
    models = [(make_model(), 3), (make_gemma(), 1), (scaled, 1), (eager, 1), (experts, 3)]
    for number, (model, count) in enumerate(models):
        folder = save(tmp_path / str(number), model)
        assert len(language_model(f"hf:{folder}", TextModelOptions(), (64,)).blocks) == count
        with torch.device("meta"):
            assert len(language_model(f"hf:{folder}", TextModelOptions(), (64,)).blocks) == count


def test_a_mixture_of_experts_has_the_logits_of_transformers(tmp_path):
    """transformers 5 joins the weights of experts when it loads a model, and divides them when it saves it."""
    transformers, _ = quiet()
    torch.manual_seed(0)
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(
        vocab_size=259, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, max_position_embeddings=64, initializer_range=0.2)).eval()
    network, x = network_of(save(tmp_path, model)), random_tokens()
    there = x >= 0
    with torch.no_grad():
        expected = model(input_ids=x.clamp(min=0).long(), attention_mask=there.long()).logits
    torch.testing.assert_close(logits_of(network, x)[there], expected[there], rtol=1e-5, atol=1e-5)


def test_files_have_the_names_of_transformers(tmp_path):
    model = make_model()
    network = network_of(save(tmp_path, model))
    names = {network.published_name(name) for name, _ in network.named_parameters()}
    assert names == {name for name, _ in model.named_parameters()}


def test_a_head_that_is_missing_is_refused(tmp_path):
    transformers, _ = quiet()
    config = transformers.LlamaConfig(**{**make_model().config.to_dict(), "tie_word_embeddings": False})
    folder = save(tmp_path, transformers.LlamaForCausalLM(config))
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor for name, tensor in weights.items() if name != "lm_head.weight"},
              folder / "model.safetensors")
    network = language_model(f"hf:{folder}", TextModelOptions(), (64,))
    with pytest.raises(DataError, match=r"the weights of the language model have no lm_head\.weight"):
        load_weights(network, folder / "model.safetensors")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_quantized_weights_are_refused_because_their_scales_are_in_other_tensors(tmp_path, dtype):
    folder = save(tmp_path, make_model())
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    scale = weights[name].abs().max() / 127
    weights |= {name: (weights[name] / scale).to(dtype), f"{name}_scale_inv": scale}
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(DataError, match=r"are quantized \(.*up_proj\.weight is (float8_e4m3fn|int8)\)"):
        network_of(folder)


def test_a_model_that_also_takes_images_is_refused_with_what_to_do(tmp_path):
    """The size of the vocabulary and the number of positions are in its text configuration."""
    save(tmp_path, make_multimodal())
    with pytest.raises(SpecError, match="takes at most 64 tokens"):
        network_of(tmp_path, length=65)
    with pytest.raises(DataError, match=r"if it also takes images, save only its language model$"):
        network_of(tmp_path)


def test_what_is_no_causal_model_is_refused(tmp_path):
    transformers, _ = quiet()
    config = transformers.ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32)
    config.save_pretrained(str(tmp_path))
    with pytest.raises(SpecError, match="is no causal language model"):
        language_model(f"hf:{tmp_path}", TextModelOptions(), (16,))
    save(tmp_path / "llama", make_model(length=32))
    with pytest.raises(SpecError, match="takes at most 32 tokens, the benchmark has 64"):
        language_model(f"hf:{tmp_path / 'llama'}", TextModelOptions(), (64,))
    with pytest.raises(SpecError, match="leave pool out"):
        language_model(f"hf:{tmp_path / 'llama'}", TextModelOptions(pool="last"), (16,))
