"""Check everything that needs a GPU, in less than nine minutes: `python benchmarks/speed/gpu.py`.

The script checks that every method gives the same accuracies as on the CPU, within noise. It does the same for stacks,
compiled losses, mixed precision and samples streamed from the host. It also runs pretrained transformers and makes the
speed tables. Without a GPU, the script prints a message and stops. `--device cpu` only tests the script itself.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import processes
import torch
from table import facts
from tabulate import tabulate

import clbench
from clbench.core.files import default_data_dir
from clbench.core.registry import discover
from clbench.execution import trial_runner as runner
from clbench.results import metrics
from clbench.results.records import Record

REPORTS = Path(__file__).resolve().parents[2] / "reports" / "speed"
LIMIT = 540  # seconds for all sections
# Two accuracies on 1,000 images from the same distribution differ by more than this once in 10,000 times.
NOISE = 4 * (2 * 0.25 / 1000) ** 0.5
COMMON: dict[str, Any] = {"benchmark": "split-mnist-5k", "model": "mlp:width=64", "iterations": 60, "batch_size": 32}
OPTIONS = {"er": ":capacity=200", "icarl": ":capacity=200", "l2p": ":pool=4:top=2:length=2",
           "avalanche:ER_AML": ":mem_size=400"}  # it needs a batch of each class
Section = Callable[["Proof"], list[list[Any]]]


class Proof:
    """The device, the folders, the remaining time and the failures so far."""

    def __init__(self, found: argparse.Namespace) -> None:
        """Start the clock."""
        self.device, self.weights, self.data, self.limit = found.device, found.weights, found.data, found.limit
        self.began = time.time()
        self.failed: list[str] = []

    @property
    def left(self) -> float:
        """Return the remaining seconds."""
        return self.limit - (time.time() - self.began)

    def run(self, device: str, **settings: Any) -> tuple[dict[str, Record], float]:
        """Run an experiment and return its records by label, scenario and seed, and the seconds it took."""
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            records = clbench.run(out=folder, device=device, data=self.data, **{**COMMON, **settings})
            return ({f"{r.label} {r.trial.scenario} {r.trial.seed}": r for r in records}, time.perf_counter() - began)

    def agree(self, name: str, ours: Record, theirs: Record, tolerance: float = NOISE) -> list[Any]:
        """Return a row that compares two records' accuracy; a difference beyond noise is a failure."""
        problem = next((f"{r.status}: {r.failure.message if r.failure else ''}" for r in (ours, theirs)
                        if r.status != "done"), "")
        alone = [note for note in ours.notes if note.startswith("ran alone")]
        values = [] if problem else [metrics.acc(r.R) for r in (ours, theirs)]
        if not problem and abs(values[0] - values[1]) > tolerance:
            problem = f"differs by more than {tolerance:.3f}"
        if problem:
            self.failed.append(f"{name}: {problem}")
        return [name, *(f"{100 * v:.1f}" for v in values), *[""] * (2 - len(values)), problem or "; ".join(alone)]


def methods(proof: Proof) -> list[list[Any]]:
    """Compare every method with the CPU, in a scenario without task IDs."""
    chosen = [name + OPTIONS.get(name, "") for name, info in sorted(discover().strategies.items())
              if info.check_model == "mlp"]
    there, _ = proof.run(proof.device, methods=chosen, scenario="class", seeds=1, workers=4)
    here, _ = proof.run("cpu", methods=chosen, scenario="class", seeds=1)
    return [proof.agree(key, there[key], here[key]) for key in here]


def stacks(proof: Proof) -> list[list[Any]]:
    """Compare eight seeds as one stack with eight seeds one after another."""
    rows = []
    for method in ("naive", "ewc", "er:capacity=200", "lora", "pnn"):
        settings = {"methods": [method], "scenario": "class", "seeds": 8, "workers": 0}
        together, fast = proof.run(proof.device, stack=8, **settings)
        alone, slow = proof.run(proof.device, stack=1, **settings)
        rows += [proof.agree(key, together[key], alone[key]) for key in list(together)[:2]]
        rows.append([f"{method}: stack {slow / fast:.1f} times as fast", "", "", ""])
    return rows


def arithmetic(proof: Proof) -> list[list[Any]]:
    """Compare mixed precision, tf32 and compiled losses with float32."""
    plain, _ = proof.run(proof.device, methods="naive,lora", scenario="task", seeds=1, workers=0)
    rows = []
    for name, settings in {"bf16": {"precision": "bf16"}, "tf32": {"precision": "tf32"}, "compiled": {"compile": True},
                           }.items():
        if name == "tf32" and proof.device == "cpu":
            continue
        other, seconds = proof.run(proof.device, methods="naive,lora", scenario="task", seeds=1, workers=0, **settings)
        rows += [[*proof.agree(f"{name}: {key}", other[key], plain[key])[:-1], f"{seconds:.0f} s"] for key in plain]
    return rows


def streaming(proof: Proof) -> list[list[Any]]:
    """Compare samples that stay on the host with samples on the device."""
    settings = {"methods": "naive,er:capacity=200", "scenario": "class", "seeds": 1, "workers": 0}
    resident, _ = proof.run(proof.device, **settings)
    room = runner.room_for_samples
    runner.room_for_samples = lambda _: 1
    try:
        streamed, _ = proof.run(proof.device, **settings)
    finally:
        runner.room_for_samples = room
    return [proof.agree(key, streamed[key], resident[key], 0.02) for key in resident]


def pretrained(proof: Proof) -> list[list[Any]]:
    """Compare a pretrained vision transformer of timm with the CPU."""
    if proof.weights is None or not (proof.data / "cifar100.safetensors").is_file():
        return [["left out: needs --weights and CIFAR-100", "", "", ""]]
    settings = {"methods": "lora:layers=attention,seq-lora:layers=attention,inflora:layers=attention,"
                           "ewc:fisher=sampled:fisher_samples=20,er,ranpac",  # exact takes 1 s per image
                "benchmark": "split-cifar100:tasks=2:held_out=80:train_per_class=20:test_per_class=20",
                "model": "timm:vit_small_patch14_dinov2:size=56", "weights": str(proof.weights / "vit_s14.safetensors"),
                "scenario": "class", "seeds": 1, "epochs": 2, "iterations": None, "batch_size": 32}
    there, fast = proof.run(proof.device, workers=0, **settings)
    here, slow = proof.run("cpu", **settings)
    rows = [proof.agree(key, there[key], here[key], 2 * NOISE) for key in here]
    return [*rows, [f"all six: {fast:.0f} s, on the CPU {slow:.0f} s", "", "", ""]]


def scripts(proof: Proof) -> list[list[Any]]:
    """Run the scripts that measure waiting times and make the speed tables."""
    here, device = Path(__file__).parent, ["--device", proof.device]
    commands = {"waiting": ["waiting.py", *device, "--data", str(proof.data)],
                "compare": ["compare.py", *device, "--model", "mlp", "--quick", "--data", str(proof.data)]}
    if proof.weights is not None and (proof.data / "cifar100.safetensors").is_file():
        commands |= {f"pretrained {precision}": [
            "pretrained.py", *device, "--weights", str(proof.weights), "--precision", precision, "--repeats", "1",
            "--batch-size", "64", "--size", "112", "--data", str(proof.data)] for precision in ("fp32", "bf16")}
    rows = []
    for name, command in commands.items():
        try:
            done = subprocess.run([sys.executable, str(here / command[0]), *command[1:]], capture_output=True,
                                  text=True, timeout=max(1.0, proof.left), check=False)
        except subprocess.TimeoutExpired:
            rows.append([f"{name}: stopped, no time left", "", "", ""])
            continue
        if done.returncode:
            proof.failed.append(f"{name}: {done.stderr.strip().splitlines()[-1:]}")
        rows += [[line[:110], "", "", ""] for line in done.stdout.strip().splitlines()[-8:]]
    return rows


SECTIONS: dict[str, Section] = {"methods": methods, "stacks": stacks, "arithmetic": arithmetic, "streaming": streaming,
                                "pretrained": pretrained, "scripts": scripts}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sections and write the report after each one; return 1 after a failure, and 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--device", default="cuda")
    add("--weights", type=Path, help="folder that benchmarks/weights/fetch.py has filled")
    add("--data", type=Path, default=default_data_dir(), help="folder of data sets")
    add("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    add("--limit", type=float, default=LIMIT, help="seconds after which no section begins")
    add("--out", type=Path, default=REPORTS, help="folder of gpu.md and gpu.json")
    found = parser.parse_args(argv)
    if found.device.startswith("cuda") and not torch.cuda.is_available():
        print("there is no GPU here that torch can use: nothing was proved")
        return 2
    found.data, found.weights = found.data.resolve(), found.weights and found.weights.resolve()
    proof = Proof(found)
    parts = ["# On the GPU" if found.device != "cpu" else "# A rehearsal on the CPU", facts(processes.machine(2))]
    kept: dict[str, Any] = {}
    for name in found.only:
        began = time.time()
        rows = SECTIONS[name](proof) if proof.left > 0 else [["left out: no time left", "", "", ""]]
        kept[name] = {"seconds": time.time() - began, "rows": rows}
        parts += [f"## {name} ({time.time() - began:.0f} s)", str(SECTIONS[name].__doc__),
                  tabulate(rows, ["", "device", "beside", "note"], tablefmt="github", disable_numparse=True)]
        print("\n".join(parts[-3:]), flush=True)
        found.out.mkdir(parents=True, exist_ok=True)
        (found.out / "gpu.json").write_text(json.dumps({"failed": proof.failed, "sections": kept}, indent=1))
        told = "\n".join(f"- {line}" for line in proof.failed) or "Nothing failed."
        (found.out / "gpu.md").write_text("\n\n".join([*parts, "## Failures", told]) + "\n")
    print("\n".join(proof.failed) or "nothing failed")
    return bool(proof.failed)


if __name__ == "__main__":
    sys.exit(main())
