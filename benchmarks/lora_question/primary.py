"""Print the comparisons that PROTOCOL.md defines for the study `answer`, from its records and without clbench.

    python benchmarks/lora_question/primary.py reports/lora_question/answer [reports/lora_question/answer_budget] \
        > reports/lora_question/answer/primary.md

`clbench report` compares all rows of a study in its own way. This script makes the comparisons that were chosen before
the first trial, with the tests, intervals and verdicts of the protocol. It refuses an incomplete study, records of two
commits, a row whose trials differ in more than the seed, and rows that differ in images, model or shared recipe.
"""

import json
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from scipy import stats

SEEDS, MARGIN = range(10), 2.0  # the margin is in points
SCENARIOS = {"task": "with task IDs", "class": "without task IDs"}
GIVEN = "given"  # the models of scenario `class`, evaluated with task IDs
PRIMARY = ("ewc", "er", "pnn", "shared-private")
SECONDARY = ("ranpac", "ridge", "joint-equal-steps")
TASK_ONLY = "seq-lora"  # this row has no trials without task IDs
ADDED = ("lora-head-rate", TASK_ONLY)  # rows that were added later, under "Deviations"
EXPLORATORY = ("naive", "lora", *PRIMARY, *SECONDARY)  # compared with the added rows
ROWS = ("naive", "lora", *ADDED, *PRIMARY, *SECONDARY)
OWN_PARTS = ("seed", "scenario", "method", "own_recipe")  # parts of a trial in which rows may differ
BUDGET_SEEDS, BUDGET_ROWS = range(3), ("naive", "ewc", "er", "lora", "joint-equal-steps")  # with task IDs only
Accuracies = dict[tuple[str, str], np.ndarray]  # by row and scenario, in percent, one for each seed


def scenarios_of(row: str) -> tuple[str, ...]:
    """Return the scenarios in which the protocol has a row."""
    return ("task",) if row == TASK_ONLY else tuple(SCENARIOS)


def read_records(folder: Path) -> list[dict]:
    """Return the records of a study."""
    return [json.loads(path.read_text()) for path in sorted((folder / "records").glob("*.json"))]


def read(folder: Path, rows: tuple[str, ...], seeds: range, scenarios: tuple[str, ...] = tuple(SCENARIOS)
         ) -> Accuracies:
    """Return the accuracies after the last task [seeds]; NaN for a seed on which the method diverged."""
    found, settings, streams = defaultdict(dict), defaultdict(set), defaultdict(set)
    shared_settings, commits = set(), set()
    for record in read_records(folder):
        trial, status = record["trial"], record["status"]
        row, seed = (record["label"].partition(":")[0], trial["scenario"]), trial["seed"]
        if seed in found[row]:
            sys.exit(f"{row[0]}, scenario {row[1]}, has two records of seed {seed}")
        if status in ("done", "diverged"):
            found[row][seed] = 100 * np.mean(record["R"][-1]) if status == "done" else np.nan
        if status == "done" and trial["scenario"] == "class" and record.get("errors"):
            errors = record["errors"][-1]
            found[row[0], GIVEN][seed] = 100 * np.mean(np.divide(errors["given"], errors["samples"]))
        settings[row].add(json.dumps({**trial, "seed": None}, sort_keys=True))
        shared_settings.add(json.dumps({**trial, **dict.fromkeys(OWN_PARTS)}, sort_keys=True))
        if record["stream"]:  # none if the trial failed before
            streams[trial["scenario"], seed].add(record["stream"]["fingerprint"])
        commits.add(str(record["provenance"]["git"]))
    problems = [f"{row}, scenario {scenario}: {len(found[row, scenario])} of {len(seeds)} seeds"
                for row in rows for scenario in scenarios_of(row)
                if scenario in scenarios and sorted(found[row, scenario]) != list(seeds)]
    problems += [f"{row}, scenario {scenario}: its trials differ in more than the seed"
                 for (row, scenario), values in settings.items() if len(values) > 1]
    problems += [f"scenario {scenario}, seed {seed}: rows have different images"
                 for (scenario, seed), values in streams.items() if len(values) > 1]
    problems += ["rows differ in benchmark, model, weights or shared recipe"] * (len(shared_settings) > 1)
    if problems or len(commits) != 1 or not all(re.fullmatch("[0-9a-f]+", commit) for commit in commits):
        sys.exit("\n".join([f"The study in {folder} is not complete, or is not of one clean commit.", *problems,
                            f"commits: {', '.join(sorted(commits))}"]))
    return {(row, scenario): np.array([found[row, scenario].get(seed, np.nan) for seed in seeds])
            for row in rows for scenario in (*SCENARIOS, GIVEN)}


def summarize(accuracies: Accuracies, rows: tuple[str, ...]) -> list[str]:
    """Return the lines of a table of rows: means and standard deviations over seeds."""
    lines = [f"| row | {' | '.join(SCENARIOS.values())} | trained without task IDs, tested with them |",
             "| :-- | --: | --: | --: |"]
    for row in rows:
        series = [accuracies[row, scenario] for scenario in (*SCENARIOS, GIVEN)]
        cells = ["diverged" if np.isnan(x).any() else f"{x.mean():.2f} ({x.std(ddof=1):.2f})" for x in series]
        cells = [cell if scenario in scenarios_of(row) or np.isfinite(x).any() else ""
                 for cell, x, scenario in zip(cells, series, (*SCENARIOS, GIVEN), strict=True)]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return lines


def holm(p_values: np.ndarray) -> np.ndarray:
    """Return Holm-corrected p-values."""
    stepped = np.maximum.accumulate(np.minimum(1, np.sort(p_values) * np.arange(len(p_values), 0, -1)))
    return stepped[np.argsort(np.argsort(p_values, kind="stable"))]


def verdict(low: float, high: float) -> str:
    """Return the protocol's verdict on LoRA, given the interval of its difference to a rival."""
    if low > MARGIN:
        return "better by more than the margin"
    if high < -MARGIN:
        return "worse by more than the margin"
    if low > -MARGIN:
        return "equivalent" if high < MARGIN else "not worse"
    return "not better" if high < MARGIN else "inconclusive"


def compare(accuracies: Accuracies, ours: str, rivals: tuple[str, ...], corrected: bool) -> list[str]:
    """Return the lines of a table that compares a row with its rivals in its scenarios, as one family of tests."""
    pairs = [(rival, scenario) for scenario in scenarios_of(ours) for rival in rivals]
    differences = [accuracies[ours, scenario] - accuracies[rival, scenario] for rival, scenario in pairs]
    diverged = [int(np.isnan(difference).sum()) for difference in differences]
    tested = [i for i, count in enumerate(diverged) if not count and np.ptp(differences[i]) > 1e-10]
    results = {i: stats.ttest_1samp(differences[i], 0) for i in tested}
    level = 1 - 0.05 / len(pairs) if corrected else 0.95
    # A comparison that is not tested still counts in the family, as if its p-value were 1.
    p_values = holm(np.array([results[i].pvalue if i in results else 1.0 for i in range(len(pairs))]))
    lines = [f"| {ours} minus | task IDs | difference (points) | {100 * level:.6g}% interval |"
             + (" p (Holm) | verdict |" if corrected else ""), "| :-- | :-- | --: | --: |" + " --: | :-- |" * corrected]
    for i, (rival, scenario) in enumerate(pairs):
        cells = [rival, SCENARIOS[scenario]]
        if i in results:
            low, high = results[i].confidence_interval(level)
            cells += [f"{differences[i].mean():+.2f}", f"{low:+.2f} to {high:+.2f}"]
            cells += [f"{p_values[i]:.2g}", verdict(low, high)] if corrected else []
        else:
            reason = f"diverged on {diverged[i]} of 10 seeds" if diverged[i] else "no variance over seeds"
            cells += [f"{np.nanmean(differences[i]):+.2f}", f"not tested: {reason}"] + ["", ""] * corrected
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def rank(accuracies: Accuracies) -> str:
    """Return the rows of the budget question with their means on its seeds, best first."""
    means = {row: accuracies[row, "task"][list(BUDGET_SEEDS)].mean() for row in BUDGET_ROWS}
    return ", ".join(f"{row} {means[row]:.1f}" for row in sorted(means, key=lambda row: -np.nan_to_num(means[row])))


def describe_origin(folder: Path) -> str:
    """Return the commit of a study and the processors that ran its trials, as a sentence."""
    origins = [record["provenance"] for record in read_records(folder)]
    machines = Counter(origin["machine"] for origin in origins)
    return (f"All trials ran at commit {origins[0]['git'][:8]}: "
            + ", ".join(f"{count} on {machine}" for machine, count in machines.most_common()) + ".")


def main(study: Path, *larger_budget: Path) -> None:
    """Print all comparisons of a study and, given the study with 256 steps, the order of the means at both budgets."""
    accuracies = read(study, ROWS, SEEDS)
    print("# Comparisons of the protocol\n\nMean accuracy over the ten tasks after the last one, in percent, over ten "
          "seeds. Each seed has its own training and test images. PROTOCOL.md defines the tests and verdicts. "
          + describe_origin(study))
    print("\nDifferences are the accuracy of `lora` minus that of the other row, in points. The margin is 2 points. "
          "*Worse* or *better by more than the margin*: the whole interval is beyond 2. *Not better*: the whole "
          "interval is below +2, so LoRA may be worse. *Inconclusive*: the interval allows both. P-values have Holm's "
          "correction. Intervals have Bonferroni's, which is wider, so an interval can include 0 although p is "
          "below 0.05.")
    print("\n`naive` is sequential fine-tuning. `joint-equal-steps` trains on all tasks so far, 64 steps per task. "
          "`lora-head-rate` and `seq-lora` were added after the tuning had begun. `shared-private` was underfit.")
    print("\n## Means, and standard deviations over seeds\n", *summarize(accuracies, ROWS), sep="\n")
    print("\n## Primary comparisons\n", *compare(accuracies, "lora", PRIMARY, True), sep="\n")
    print("\n## Secondary comparisons\n", *compare(accuracies, "lora", SECONDARY, True), sep="\n")
    print("\n## Exploratory comparisons, without correction")
    for row in ADDED:
        print("", *compare(accuracies, row, EXPLORATORY, False), sep="\n")
    for folder in larger_budget:
        budgets = {64: accuracies, 256: read(folder, BUDGET_ROWS, BUDGET_SEEDS, ("task",))}
        print(f"\n## Order of the means with task IDs on seeds 0 to 2\n\n256 steps: {describe_origin(folder)}\n\n"
              "| steps per task | methods, best first |\n| --: | :-- |")
        for steps, values in budgets.items():
            print(f"| {steps} | {rank(values)} |")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
