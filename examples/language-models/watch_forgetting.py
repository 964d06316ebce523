"""Fine-tune a language model with LoRA, and watch what it forgets.

Run `python watch_forgetting.py BASE OUT new.jsonl old.jsonl english`.
"""
import json
import sys
from pathlib import Path

from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

from clbench.hf import ForgettingCallback

base, out, new, *files = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(base)
lora = LoraConfig(task_type="CAUSAL_LM", r=8, lora_dropout=0.05, target_modules="all-linear")
model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora)
samples = []
for row in map(json.loads, Path(new).read_text(encoding="utf-8").splitlines()):
    prompt = tokenizer(row["prompt"])["input_ids"]
    response = [*tokenizer(row["response"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    samples.append({"input_ids": prompt + response, "labels": [-100] * len(prompt) + response})
settings = TrainingArguments(out, num_train_epochs=3, learning_rate=1e-3, report_to="tensorboard")
trainer = Trainer(model, settings, DataCollatorForSeq2Seq(tokenizer), samples, processing_class=tokenizer)
trainer.add_callback(ForgettingCallback(trainer, files, every=10))
trainer.train()
trainer.save_model()
