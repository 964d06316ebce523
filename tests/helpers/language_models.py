"""A tiny causal language model of transformers with a byte tokenizer, files of items, and short training."""

import json
import random
import warnings

import torch

START, END, BEGIN = "<|im_start|>", "<|im_end|>", "<s>"
CHATML = ("{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
          "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
CITIES = ["rome", "oslo", "lima", "bern", "kiev", "cork", "nice", "york", "pisa", "graz", "bonn", "metz"]


def quiet():
    """Import transformers and peft without their warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import peft
        import transformers
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers, peft


def make_tokenizer(bos=False, template=CHATML, extra=()):
    """Return a tokenizer whose tokens are bytes. Its padding token is its EOS token, as in SmolLM2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    transformers, _ = quiet()
    names = [END, START, BEGIN, *extra, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    if bos:
        made.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, 2)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=END, pad_token=END, bos_token=BEGIN if bos else None,
        additional_special_tokens=[START, *extra])
    tokenizer.chat_template = template
    return tokenizer


def make_model(seed=0, layers=2, width=32, vocabulary=259, length=256, **options):
    """Return a Llama with random weights that are large enough for its outputs to differ."""
    transformers, _ = quiet()
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=length, tie_word_embeddings=True,
        bos_token_id=2, eos_token_id=0, pad_token_id=0, initializer_range=0.1, **options)
    return transformers.LlamaForCausalLM(config).eval()


def make_multimodal():
    """Return a Gemma 3 with random weights that also takes images; its sizes are in its text configuration."""
    transformers, _ = quiet()
    torch.manual_seed(0)
    text = {"vocab_size": 259, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14}
    return transformers.Gemma3ForConditionalGeneration(transformers.Gemma3Config(
        text_config=text, vision_config=vision, boi_token_index=255, eoi_token_index=256, image_token_index=258,
        mm_tokens_per_image=4)).eval()


def save(folder, model, tokenizer=None):
    """Save a model with a tokenizer into a folder, and return the folder."""
    model.save_pretrained(str(folder))
    (tokenizer or make_tokenizer()).save_pretrained(str(folder))
    return folder


def load(folder):
    """Return the model in a folder, loaded by transformers."""
    transformers, _ = quiet()
    return transformers.AutoModelForCausalLM.from_pretrained(str(folder)).float().eval()


def write_lines(path, rows):
    """Write rows as JSON lines, and return the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def marked(*tokens):
    """Return tokens as `--show` marks them."""
    left, right = "\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}", "\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK}"
    return "".join(left + token + right for token in tokens)


def codes(seed, count=12):
    """Return prompts that ask for the code of a city; the codes depend on the seed."""
    draw = random.Random(seed)
    return [{"prompt": f"{city}?", "response": "".join(draw.choices("abcd", k=3))} for city in CITIES[:count]]


def train(model, tokenizer, rows, steps, lr=3e-3):
    """Train a model on prompts and responses, all in one batch; the loss is on responses and EOS."""
    pairs = [(tokenizer(row["prompt"])["input_ids"],
              [*tokenizer(row["response"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id])
             for row in rows]
    longest = max(len(p) + len(r) for p, r in pairs)
    ids = torch.tensor([[*p, *r] + [0] * (longest - len(p) - len(r)) for p, r in pairs])
    labels = torch.tensor([[-100] * len(p) + r + [-100] * (longest - len(p) - len(r)) for p, r in pairs])
    mask = torch.tensor([[1] * (len(p) + len(r)) + [0] * (longest - len(p) - len(r)) for p, r in pairs])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        optimizer.step()
    model.eval()
    return model
