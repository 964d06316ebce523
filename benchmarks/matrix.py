"""Train every method on a tiny stream and write the results to a file, so that two commits can be compared.

    python benchmarks/matrix.py run before.json        # in a checkout of one commit
    python benchmarks/matrix.py run after.json         # in a checkout of another, on the same machine
    python benchmarks/matrix.py compare before.json after.json

`run` trains all methods of clbench, two of Avalanche and a plugin from a file once in each scenario. It then trains ten
methods in every combination of alone or vectorized, fp32 or bf16, and given or hidden boundaries. For each trial it
writes the key, the accuracy matrix, the costs, the FLOPs and the last losses. This takes a few minutes on two cores.
`compare` lists every value that differs and exits with 1 if there is one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
SCENARIOS = ("task", "class", "domain")
COMBINED = ("naive", "er", "ewc", "der++", "lwf", "lora", "pnn", "seq-lora", "l2p", "slda")  # in every combination
AVALANCHE = ("avalanche:Replay:mem_size=20", "avalanche:LwF")
MODELS = {"mlp": "mlp:width=16", "vit": "vit-tiny:width=8:depth=2:heads=2:patch=4", "cnn": "cnn:channels=4",
          "resnet20": "resnet20:width=2"}
METHOD = '''\
"""decay: after each task, shrink the weights."""
import torch
from clbench import Options, Strategy, StrategyInfo, hookimpl


class Decay(Strategy):
    @torch.no_grad()
    def after_task(self, task):
        for parameter in self.model.parameters():
            parameter.mul_(0.9)


@hookimpl
def clbench_strategies():
    return [StrategyInfo("decay", Decay, "shrinks the weights after each task", Options)]
'''


def images() -> Any:
    """Return three tasks of two classes of images, 8 x 8 pixels, whose classes differ in one corner."""
    import torch
    from avalanche.benchmarks import tensors_benchmark

    generator = torch.Generator().manual_seed(0)

    def part(task: int, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.arange(samples) % 2 + 2 * task
        x = torch.randint(0, 128, (samples, 1, 8, 8), generator=generator, dtype=torch.uint8)
        for label in range(2 * task, 2 * task + 2):
            x[y == label, 0, label:label + 3, :3] += 120
        return x, y

    return tensors_benchmark(train_tensors=[part(task, 32) for task in range(3)],
                             test_tensors=[part(task, 24) for task in range(3)], task_labels=[0] * 3,
                             complete_test_set_only=False)


def cells() -> list[dict[str, Any]]:
    """Return the settings of every cell: a method, a scenario, and for combinations seeds, precision and boundaries."""
    from clbench.core.registry import discover

    registry = discover()
    ours = [name for name in registry.strategies if registry.origins["method", name].distribution == "clbench"
            and not name.startswith("avalanche:")]
    found: list[dict[str, Any]] = [{"method": method, "scenario": scenario}
                                   for method in (*ours, *AVALANCHE, "decay") for scenario in SCENARIOS]
    for method, seeds, precision, boundaries in itertools.product(COMBINED, (1, 2), ("fp32", "bf16"),
                                                                  ("given", "hidden")):
        found.append({"method": method, "scenario": "class", "seeds": seeds, "precision": precision,
                      "boundaries": boundaries})
    return found


def train(cell: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Train one cell and return its name and its results by seed, or the reason why clbench refuses it."""
    import torch

    import clbench
    from clbench.core.errors import ClbenchError
    from clbench.core.registry import discover

    torch.set_num_threads(1)
    os.chdir(HERE.parents[1])  # a trial's key includes the path of the benchmark
    name = " ".join(f"{key}={value}" for key, value in cell.items())
    method, hidden = cell["method"], cell.get("boundaries") == "hidden"
    info = discover().strategies.get(method.split(":")[0])
    seeds = cell.get("seeds", 1)
    plugin = Path(tempfile.gettempdir()) / "clbench_matrix" / "clbench_decay.py"
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {"epochs": 3}
        if method == "decay":
            plugin.parent.mkdir(exist_ok=True)
            plugin.write_text(METHOD)
            settings |= {"plugins": [plugin]}
        if hidden:
            settings = {"boundaries": "hidden"}
            method += ":base=random" if info and "base" in info.options.model_fields else ""
        try:
            results = clbench.run(
                benchmark="benchmarks/matrix.py:images", methods=[method], scenario=cell["scenario"],
                model=MODELS[info.check_model if info else "mlp"], seeds=seeds, stack=seeds, batch_size=8,
                lr=0.01, precision=cell.get("precision", "fp32"), device="cpu", workers=0, threads=1,
                out=Path(folder) / "run", progress=False, **settings)
        except ClbenchError as error:
            return name, {"refused": str(error).replace(folder, "").replace(str(HERE.parent), "")}
    return name, {str(record.trial.seed): {
        "key": record.key, "status": record.status, "R": record.R, "trainable": record.costs.trainable,
        "steps": record.costs.steps, "bytes": record.costs.bytes, "replay": record.costs.replay_samples,
        "train FLOPs": record.costs.train_flops, "inference FLOPs": record.costs.inference_flops,
        "last losses": record.last_losses, "failure": record.failure and record.failure.message} for record in results}


def run(path: Path, workers: int) -> None:
    """Train every cell and write the results."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        results = dict(pool.map(train, cells(), chunksize=4))
    path.write_text(json.dumps(results, indent=1) + "\n")
    refused = sum("refused" in result for result in results.values())
    print(f"{len(results)} cells, {refused} of them refused, in {path}")


def compare(before: Path, after: Path) -> int:
    """Print every value that differs between two files and return how many there are."""
    old, new = (json.loads(path.read_text()) for path in (before, after))
    differences = [f"{name}: only in {before if name in old else after}" for name in sorted(old.keys() ^ new.keys())]
    for name in old.keys() & new.keys():
        values, others = flat(old[name]), flat(new[name])
        differences += [f"{name}: {part}: {values.get(part)} -> {others.get(part)}"
                        for part in values.keys() | others.keys() if values.get(part) != others.get(part)]
    print(*sorted(differences), sep="\n")
    print(f"{len(old.keys() & new.keys())} cells compared, {len(differences)} differences")
    return len(differences)


def flat(result: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a cell by seed and name."""
    return {f"seed {seed}, {name}": value for seed, values in result.items() if isinstance(values, dict)
            for name, value in values.items()} | {"refused": result.get("refused")}


def main() -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    of_run = commands.add_parser("run", help="train every cell")
    of_run.add_argument("path", type=Path)
    of_run.add_argument("--workers", type=int, default=2)
    of_compare = commands.add_parser("compare", help="compare two files")
    of_compare.add_argument("before", type=Path)
    of_compare.add_argument("after", type=Path)
    given = parser.parse_args()
    if given.command == "compare":
        return int(compare(given.before, given.after) > 0)
    run(given.path, given.workers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
