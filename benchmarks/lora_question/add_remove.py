"""Remove each task's adapter from a run, train it again, and check that all logits are the same bit for bit.

`python benchmarks/lora_question/add_remove.py RUN --out FILE.json`, with a run folder that has trials of lora. The
script works on a copy of the folder. It skips the first task if that task trains the backbone, because a task that is
added later does not.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from clbench_lora import reload
from clbench_lora.evaluate import add
from clbench_lora.run_adapters import TrialAdapters, trials_with_adapters
from json_results import merge_results
from torch import Tensor

from clbench.core.artifacts import task_folder
from clbench.data.stream import Stream
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.execution_settings import ExecutionSettings


def logits(source: TrialAdapters, stream: Stream) -> dict[int, Tensor]:
    """Return the logits [N, C] of each saved adapter for the test samples of its task."""
    strategy = reload.load(source, source.tasks, stream.prepare).eval()
    outputs = {}
    with torch.no_grad():
        for place, task in enumerate(source.tasks):
            x = stream.tasks[task].test
            batches = stream.tests.batches(len(x), task)
            outputs[task] = torch.cat([strategy.predict(batch[0], place).logits for batch in batches])
    return outputs


def remove_and_add(source: TrialAdapters, runner: TrialRunner) -> list[dict[str, Any]]:
    """Remove each task that did not train the backbone and add it again; return whether logits stayed the same."""
    stream = runner.stream(source.record.trial)
    before, rows = logits(source, stream), []
    first = int(source.record.trial.method.options["base"] in ("auto", "task1")
                and source.record.trial.weights is None)
    for task in source.tasks[first:]:
        shutil.rmtree(task_folder(source.folder, task))
        without = logits(source, stream)
        add(source, task, device="cpu")
        again = logits(source, stream)
        rows.append({
            "trial": source.name, "task": task + 1, "samples": sum(len(value) for value in before.values()),
            "others same without it": all(torch.equal(before[t], without[t]) for t in without),
            "others same with it again": all(torch.equal(before[t], again[t]) for t in without),
            "it is the same again": torch.equal(before[task], again[task])})
    return rows


def main() -> None:
    """Check all trials of a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json",
                        help="file of the results; results on other benchmarks and models in it stay")
    arguments = parser.parse_args()
    runner = TrialRunner(ExecutionSettings(threads=1), "cpu", "add_remove.py")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "run"
        shutil.copytree(arguments.run, copy)
        rows = [row for source in trials_with_adapters(copy) for row in remove_and_add(source, runner)]
    first = trials_with_adapters(arguments.run)[0].record
    result = {"benchmark": first.trial.benchmark.name, "model": first.trial.model.name, "method": first.label,
              "pretrained": first.trial.weights is not None, "versions": first.provenance.versions, "rows": rows}
    merge_results([result], arguments.out, by=("benchmark", "model"))
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
