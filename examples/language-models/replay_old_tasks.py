"""Fine-tune a language model on one task after another. A fifth of the samples are replayed from earlier tasks.

Run `python replay_old_tasks.py BASE OUT first.jsonl second.jsonl third.jsonl`.
"""
import json
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

from clbench.hf import replay_mix

base, out, *files = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(base)
model = AutoModelForCausalLM.from_pretrained(base)
settings = TrainingArguments(out, num_train_epochs=3, learning_rate=1e-4, save_strategy="no", report_to="none")
old_tasks = []
for file in files:
    new_task = []
    for row in map(json.loads, Path(file).read_text(encoding="utf-8").splitlines()):
        prompt = tokenizer(row["prompt"])["input_ids"]
        response = [*tokenizer(row["response"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        new_task.append({"input_ids": prompt + response, "labels": [-100] * len(prompt) + response})
    samples = replay_mix(new_task, old_tasks, share=0.2, seed=0) if old_tasks else new_task
    trainer = Trainer(model, settings, DataCollatorForSeq2Seq(tokenizer), samples, processing_class=tokenizer)
    trainer.train()
    old_tasks.append(new_task)
trainer.save_model()
