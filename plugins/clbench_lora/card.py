"""The model card of an exported adapter: a README.md in the format of the Hugging Face Hub and PEFT."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clbench.models.hf_parts import Pool
from clbench.report.formats.markdown import escape

if TYPE_CHECKING:
    from clbench_lora.peft_format import Adapter
    from clbench_lora.run_adapters import TrialAdapters

CARD = "README.md"
POOLED = {"mean": "the mean of the tokens that are not padding", "cls": "the first token",
          "last": "the last token that is not padding"}


def describe_learned_tasks(source: TrialAdapters, task: int) -> str:
    """Return what an adapter saved after a task was trained on: `task 3`, or `tasks 1 to 3` if the tasks share it."""
    return f"tasks 1 to {task + 1}" if source.is_shared and task else f"task {task + 1}"


def card(source: TrialAdapters, adapter: Adapter) -> str:
    """Return the model card of a trial's adapter in Markdown: its origin, its classes by output, and how to load it."""
    trial, info = source.record.trial, adapter.info
    origins = [source.origin(task) for task in (info.mixture if info.task is None else [info.task])]
    benchmark = origins[0].benchmark
    learned = [describe_learned_tasks(source, origin.task) for origin in origins]
    subject = learned[0]
    if info.task is None:
        subject = "a weighted sum of adapters: " + ", ".join(
            f"{tasks} x {weight:g}"
            for tasks, weight in zip(learned, info.mixture.values(), strict=True))
    facts = {"adapter of": f"{subject} of {benchmark}", "scenario": trial.scenario, "model": str(trial.model),
             "pretrained weights": trial.weights.path if trial.weights else "none", "method": str(trial.method),
             "seed": str(trial.seed), "trial": info.trial, "sha256 of the base": info.base}
    if pool := next((module.pool for module in source.architecture().modules() if isinstance(module, Pool)), None):
        facts["input of the head"] = f"{POOLED[pool]}, in the last hidden state (pool={pool})"
    base = adapter.config.base_model_name_or_path
    revision = adapter.config.revision
    commit = f" with `revision=\"{revision}\"`" if revision else ""
    load = (f"Load `{base}` by `transformers.AutoModelForCausalLM.from_pretrained`{commit}, then" if base else
            "`base.safetensors` next to this file has the weights that the adapter was trained on; load them into the "
            "model first, then")
    return "\n".join([
        "---", "library_name: peft", "tags:", "- lora", "- continual-learning", "---", "",
        f"# LoRA adapter: {escape(benchmark.name)}, {escape(subject)}", "",
        *(f"- {name}: {escape(value)}" for name, value in facts.items()), "",
        *(classes(adapter) if adapter.has_head else ()),
        "## How to load it", "", f"{load} `peft.PeftModel.from_pretrained(model, folder)`.", ""])


def classes(adapter: Adapter) -> list[str]:
    """Return the section on an adapter's classes, by output."""
    rows = [f"| {output} | {escape(name)} |"
            for output, name in zip(adapter.info.classes, named(adapter), strict=True)]
    return ["## Classes", "", "| output | class |", "| ---: | :--- |", *rows, "",
            "All other outputs of the head are -inf.", ""]


def named(adapter: Adapter) -> list[str]:
    """Return the names of an adapter's classes, or `class` and the output if they have no names."""
    return list(adapter.info.class_names) or [f"class {output}" for output in adapter.info.classes]
