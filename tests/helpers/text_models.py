"""Folders with tiny text models of transformers and a tokenizer of a few words, and files of texts in these words."""

import csv
import random

import torch

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "a", "dog", "cat", "barks", "purrs", "loudly", "now", "stars",
         "shine", "moons", "glow", "far", "near"]
TOPICS = {"dogs": "dog barks loudly", "cats": "cat purrs now", "stars": "stars shine far", "moons": "moons glow near"}


def save_tokenizer(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]",
                                                        special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
                            sep_token="[SEP]").save_pretrained(str(folder))


def save_model(folder, kind, seed=0):
    """Save a tiny model of a kind with random weights, and a tokenizer; return the model of transformers."""
    import transformers

    small = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 32, "max_position_embeddings": 24, "pad_token_id": 0}
    configs = {
        "bert": lambda: transformers.BertConfig(**small),
        "roberta": lambda: transformers.RobertaConfig(**small),
        "electra": lambda: transformers.ElectraConfig(**small, embedding_size=8),
        "mpnet": lambda: transformers.MPNetConfig(**{**small, "pad_token_id": 1}),
        "albert": lambda: transformers.AlbertConfig(**small, embedding_size=8),
        "deberta": lambda: transformers.DebertaV2Config(**small, relative_attention=True, pos_att_type=["p2c", "c2p"]),
        "distilbert": lambda: transformers.DistilBertConfig(
            vocab_size=len(WORDS), dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=24),
        "data2vec": lambda: transformers.Data2VecTextConfig(**{**small, "pad_token_id": 1}),
        "esm": lambda: transformers.EsmConfig(**small, mask_token_id=1, token_dropout=True),
        "neox": lambda: transformers.GPTNeoXConfig(**small),
        "gpt2": lambda: transformers.GPT2Config(vocab_size=len(WORDS), n_embd=16, n_layer=2, n_head=2, n_positions=24,
                                                pad_token_id=0),
        "llama": lambda: transformers.LlamaConfig(**small, num_key_value_heads=1),
        "mistral": lambda: transformers.MistralConfig(**small, num_key_value_heads=1, sliding_window=10),
        "nomic": lambda: transformers.NomicBertConfig(**small),
        "eurobert": lambda: transformers.EuroBertConfig(**small),
        "qwen": lambda: transformers.Qwen2Config(**small, num_key_value_heads=2),
    }
    torch.manual_seed(seed)
    model = transformers.AutoModel.from_config(configs[kind]()).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases too, which are initialized to zero
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(str(folder))
    save_tokenizer(folder)
    return model


def write_texts(path, topics=TOPICS, count=16, sites=("here",), seed=0):
    """Write texts that contain the words of their topic after random other words."""
    draw = random.Random(seed)
    rows = []
    for i in range(count):
        for label, words in topics.items():
            filler = draw.choices(["the", "a", "now", "loudly"], k=draw.randint(0, 5))
            rows.append([" ".join([*filler, *words.split()]), label, sites[i % len(sites)]])
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["text", "label", "site"], *rows])
