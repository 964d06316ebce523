"""LoRA on a causal language model: by clbench, by transformers' Trainer with PEFT, and by a plain loop."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from work import device_bytes, peak_bytes

from clbench.core.registry import discover
from clbench.data.own.instruction_streams import instructions
from clbench.data.own_options import InstructionOptions
from clbench.data.raw import Split
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.plan import plan
from clbench.experiment.spec import build
from clbench.models.hf_files import folder_of
from clbench.models.scoring import IGNORED, round_up
from clbench.training.sampling import BatchSampler

RANK, LR, MULTIPLE, TEST_BATCH = 8, 1e-3, 16, 32
Request = dict[str, Any]


def answer(request: Request, started: float) -> dict[str, Any]:
    """Measure one contender."""
    torch.set_num_threads(request["threads"])
    warnings.simplefilter("ignore")
    found = by_clbench(request) if request["contender"].startswith("clbench") else by_transformers(request)
    return {**found, "peak_bytes": peak_bytes(), "device_bytes": device_bytes(request["device"])}


def by_clbench(request: Request) -> dict[str, Any]:
    """Train and evaluate as a worker does, with one seed or a stack of seeds."""
    seeds = 4 if "4 seeds" in request["contender"] else 1
    layers = {"layers": request["contender"].split()[-1]} if "blocks:" in request["contender"] else {}
    spec = build({"benchmark": {"name": f"instructions:{request['tasks']}", "options": {}}, "scenario": "task",
                  "model": f"hf:{request['model']}", "seeds": seeds, "device": request["device"],
                  "methods": [{"name": "seq-lora", "options": {"rank": RANK, "targets": ["q", "v"], **layers}}],
                  "recipe": {"optimizer": "adamw", "lr": LR, "weight_decay": 0.0, "epochs": request["epochs"],
                             "batch_size": request["batch_size"],
                             "group_by_length": "grouped" in request["contender"]}})
    records = TrialRunner(ExecutionSettings(), request["device"], "").run_stack(plan(spec, discover()))
    assert all(record.status == "done" for record in records), records[0].failure
    tokens = counted(request)
    cpu = "_cpu" if request["device"] == "cpu" else ""
    seconds = {kind: sum(sum(getattr(record.timings, f"{kind}{cpu}")) for record in records)
               for kind in ("train", "evaluate")}
    return {"train_seconds": seconds["train"], "train_tokens": seeds * tokens[0],
            "test_seconds": seconds["evaluate"], "test_tokens": seeds * tokens[1]}


def clock(device: str) -> float:
    """Return the time in seconds: process time on a CPU, so that other processes do not count, else wall time."""
    return time.process_time() if device == "cpu" else time.perf_counter()


def splits(request: Request) -> tuple[Split, Split]:
    """Return the training and test items of the first task."""
    name = f"instructions:{request['tasks']}"
    raw = instructions(name, InstructionOptions(tokenizer=request["model"]), Path(request["tasks"]), 0)
    return raw.train[0], raw.test[0]


def order(request: Request, samples: int) -> list[int]:
    """Return the items in the order in which clbench draws them."""
    sampler = BatchSampler(samples, request["batch_size"], 0, 0)
    steps = request["epochs"] * -(-samples // request["batch_size"])
    return torch.cat([sampler.next_indices(torch.device("cpu")) for _ in range(steps)]).tolist()


def counted(request: Request) -> tuple[int, int]:
    """Return the numbers of trained and tested tokens without padding. Tests are before and after training."""
    train, test = splits(request)
    lengths = (train.x >= 0).sum(1)
    return int(lengths[order(request, len(lengths))].sum()), 2 * int((test.x >= 0).sum())


def padded(rows: Sequence[Tensor]) -> Tensor:
    """Return rows [L] of different lengths as a batch, padded on the right as in clbench."""
    longest = round_up(max(map(len, rows)), MULTIPLE)
    return torch.stack([torch.cat([row, row.new_full((longest - len(row),), IGNORED)]) for row in rows])


def collate(items: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Return a batch in the format of transformers."""
    ids, labels = (padded([item[part] for item in items]) for part in (0, 1))
    there = ids != IGNORED
    return {"input_ids": ids.clamp(min=0), "attention_mask": there.long(), "labels": labels}


def by_transformers(request: Request) -> dict[str, Any]:
    """Train with transformers' Trainer on the same batches, and evaluate with a plain loop."""
    import peft
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    train, test = splits(request)

    def items(split: Split) -> list[tuple[Tensor, Tensor]]:
        return [(x[x >= 0].long(), y[x >= 0].long()) for x, y in zip(split.x, split.y, strict=True)]

    class InOrder(transformers.Trainer):  # type: ignore[misc, name-defined]
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    folder = str(folder_of(request["model"]))
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = peft.get_peft_model(base.to(request["device"]), peft.LoraConfig(
        r=RANK, lora_alpha=RANK, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    tests = items(test)
    test_seconds = evaluate(model, tests, request["device"])
    known = items(train)
    steps = [known[i] for i in order(request, len(known))]
    trainer = InOrder(model=model, train_dataset=steps, data_collator=collate, args=transformers.TrainingArguments(
        output_dir="/tmp/clbench-speed", per_device_train_batch_size=request["batch_size"], num_train_epochs=1,
        learning_rate=LR, lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=0.0, save_strategy="no",
        logging_strategy="no", report_to="none", disable_tqdm=True, use_cpu=request["device"] == "cpu",
        remove_unused_columns=False, optim="adamw_torch"))
    began = clock(request["device"])
    trainer.train()
    train_seconds = clock(request["device"]) - began
    test_seconds += evaluate(model, tests, request["device"])
    tokens = counted(request)
    return {"train_seconds": train_seconds, "train_tokens": tokens[0], "test_seconds": test_seconds,
            "test_tokens": tokens[1]}


@torch.no_grad()
def evaluate(model: Any, items: Sequence[tuple[Tensor, Tensor]], device: str) -> float:
    """Return the seconds of a loop that computes nll and exact match from all logits."""
    model.eval()
    began = clock(device)
    for start in range(0, len(items), TEST_BATCH):
        batch = {name: part.to(device) for name, part in collate(items[start:start + TEST_BATCH]).items()}
        labels = batch.pop("labels")[:, 1:]
        logits = model(**batch, use_cache=False).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED,
                                                   reduction="none")
        there = labels != IGNORED
        ((losses.sum(1) / there.sum(1)).tolist(), ((logits.argmax(-1) == labels) | ~there).all(1).tolist())
    return clock(device) - began
