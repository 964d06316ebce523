"""Compare LoRA on a causal language model with transformers' Trainer with PEFT.

    python benchmarks/speed/language.py --model SmolLM2-135M-Instruct --tasks TASKS

All contenders train rank 8 on q and v, on the same batches with the same padding, except that `grouped by length` draws
other batches. They evaluate nll and exact match of
the same test items before and after training. TASKS is a folder with one task, as in `--benchmark instructions:TASKS`.
Each measurement has a separate process, and contenders take turns.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any

import processes
from processes import MeasurementError, ask, write
from table import facts
from tabulate import tabulate

THEIRS = "Trainer with PEFT, plain evaluation"
CONTENDERS = ("clbench", THEIRS, "clbench 4 seeds stacked", "clbench last quarter, blocks:8",
              "clbench grouped by length")
HEAD = ["contender", "training tokens/s", "÷ Trainer", "evaluation tokens/s", "÷ plain loop", "peak MB"]
REPORTS = Path(__file__).resolve().parents[2] / "reports" / "speed"


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="folder or repository of the model, as in hf:NAME")
    add("--tasks", required=True, help="folder with one task")
    add("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME",
        help=f"some contenders of {'; '.join(CONTENDERS)}")
    add("--epochs", type=int, default=1)
    add("--batch-size", type=int, default=8)
    add("--threads", type=int, default=1, help="cores and threads of every contender")
    add("--device", default="cpu", help="cpu or cuda")
    add("--repeats", type=int, default=5)
    add("--out", type=Path, default=REPORTS, help="folder of language.md and language.json")
    return parser.parse_args()


def rows_of(measured: list[dict[str, Any]]) -> list[list[str]]:
    """Return the rows of the table: medians, and medians of the ratios within each round."""
    rounds: dict[int, dict[str, dict[str, Any]]] = {}
    for m in measured:
        if "error" not in m:
            rounds.setdefault(m["round"], {})[m["contender"]] = m

    def rate(m: dict[str, Any], kind: str) -> float:
        return float(m[f"{kind}_tokens"] / m[f"{kind}_seconds"])

    rows = []
    for name in CONTENDERS:
        own = [of[name] for of in rounds.values() if name in of]
        if not own:
            continue
        row = [name]
        for kind in ("train", "test"):
            ratios = [rate(of[name], kind) / rate(of[THEIRS], kind) for of in rounds.values()
                      if name in of and THEIRS in of]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else "-"
            row += [f"{statistics.median(rate(m, kind) for m in own):,.0f}", spread]
        rows.append([*row, f"{statistics.median(m['peak_bytes'] for m in own) / 2**20:,.0f}"])
    return rows


def main() -> None:
    """Measure all contenders round by round."""
    given = arguments()
    measured: list[dict[str, Any]] = []
    for number in range(given.repeats):
        for name in given.only:
            request = {"contender": name, "model": given.model, "tasks": str(Path(given.tasks).resolve()),
                       "epochs": given.epochs, "batch_size": given.batch_size, "threads": given.threads,
                       "device": given.device}
            try:
                answer = ask("contenders_language", request, given.threads)
            except MeasurementError as error:
                answer = {"error": str(error)}
            measured.append({"round": number, "contender": name, **answer})
            print(measured[-1], file=sys.stderr)
    machine = {**processes.machine(given.threads), "date": datetime.date.today().isoformat(),
               "cores and threads": given.threads, "command": shlex.join(["python", *sys.argv])}
    table = tabulate(rows_of(measured), HEAD, tablefmt="github", disable_numparse=True,
                     colalign=["left", *["right"] * (len(HEAD) - 1)])
    failed = [f"{m['contender']}: failed, {m['error']}" for m in measured if "error" in m]
    text = "\n\n".join(["# LoRA on a language model, side by side", "Tokens without padding per second (on a CPU, per "
                        "second of processor time), medians over repeats. Ratios are medians, with the smallest and "
                        "the largest, over the rounds.",
                        facts(machine), table, *failed]) + "\n"
    write(given.out, "language", text, {"machine": machine, "measured": measured})


if __name__ == "__main__":
    main()
