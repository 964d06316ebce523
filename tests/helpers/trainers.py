"""The `Trainer` of transformers with a tiny model and `ForgettingCallback`."""

import torch

from helpers.language_models import codes, make_model, make_tokenizer, quiet

OLD, NEW = codes(1, 5), codes(2, 8)
TEXTS = ["one sentence here", "and a second one"]


def samples(tokenizer, rows):
    made = []
    for row in rows:
        prompt = tokenizer(row["prompt"])["input_ids"]
        response = [*tokenizer(row["response"])["input_ids"], tokenizer.eos_token_id]
        made.append({"input_ids": prompt + response, "labels": [-100] * len(prompt) + response})
    return made


def make_trainer(folder, model=None, steps=6, **settings):
    """Return a trainer of a tiny model with dropout."""
    transformers, _ = quiet()
    tokenizer = make_tokenizer()
    arguments = transformers.TrainingArguments(str(folder), **{
        "max_steps": steps, "per_device_train_batch_size": 3, "learning_rate": 1e-2, "use_cpu": True, "seed": 3,
        "report_to": "none", "disable_tqdm": True, "logging_steps": 2, "save_strategy": "no", **settings})
    return transformers.Trainer(
        model or make_model(attention_dropout=0.2), arguments, transformers.DataCollatorForSeq2Seq(tokenizer),
        samples(tokenizer, NEW), samples(tokenizer, NEW[:2]), processing_class=tokenizer)


def add_callback(trainer, files=None, **options):
    from clbench.hf import ForgettingCallback

    callback = ForgettingCallback(trainer, files or {"old": OLD, "texts": TEXTS}, **options)
    trainer.add_callback(callback)
    return callback


def train(trainer, **options):
    trainer.train(**options)
    return trainer


def forget_log(trainer, key="forget/old/nll"):
    """Return (step, value) for each logged value of a key."""
    return [(entry["step"], entry[key]) for entry in trainer.state.log_history if key in entry]


def lora(model):
    _, peft = quiet()
    config = peft.LoraConfig(r=4, lora_dropout=0.3, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    torch.manual_seed(0)
    return peft.get_peft_model(model, config)
