"""Write the tables of README.md and should-i-use-lora.md from committed records: `python docs/readme_table.py`.

`facts` returns the numbers that the prose of the two pages may use. A test compares tables and numbers with the pages.
"""

from __future__ import annotations

from functools import cache
from itertools import combinations
from statistics import fmean

from pages import table
from results_facts import REPORTS, ROOT, read

from clbench.core.registry import discover
from clbench.report.analysis.families import Family
from clbench.report.analysis.grouping import Setting, group_by_setting
from clbench.report.analysis.method_records import underfit_share
from clbench.report.columns import ACC, BYTES, COMPUTE, FORGETTING, MEASURES, TRAINABLE, Measure
from clbench.report.formatting import join_names, number
from clbench.results.records import Record
from clbench.results.stats import ALPHA, mean_interval

# A study in reports/lora_question/, with its scenario if it has two (`answer:task`), and the label of a method in it.
Method = tuple[str, str]

BEGIN = "<!-- table: written by `python docs/readme_table.py` from the records in reports/ -->"
END = "<!-- end of table -->"
HEADER = ["method", "accuracy (%)", "forgetting (points)", "trainable parameters per task", "storage",
          "training compute"]
NAMES = {  # display names of the rows of README's table, by label
    "lora:recipe.lr=3e-3": "LoRA r=4 (one per task)",
    "seq-lora:recipe.lr=1e-3:recipe.head_lr=0.01": "Seq-LoRA r=4 (one LoRA for all tasks)",
    "ewc:strength=1e3:fisher=sampled:fisher_samples=100:recipe.lr=1e-5:recipe.head_lr=0.01": "EWC (penalty on weights)",
    "er:capacity=500:recipe.lr=3e-6:recipe.head_lr=3e-3": "ER (replays 500 stored images)",
    "pnn:start=base:recipe.lr=1e-5:recipe.head_lr=0.01": "PNN (a copy of the backbone per task)",
    "shared-private:private_width=128:recipe.lr=1e-3": "Shared-private (a small network per task)",
}
VERDICTS = {"better": "significantly better", "worse": "significantly worse", "open": "no significant difference"}
RANKS = (1, 2, 4, 8, 16, 32, 64)

# The methods that the pages compare.
ANSWER, CLASS = "answer:task", "answer:class"
LORA, SHARED_LORA, EWC, ER, PNN, SHARED = ((ANSWER, label) for label in NAMES)
HEAD_RATE = "lora-head-rate"  # LoRA r=4 with a learning rate of its own for the head
NAIVE = (ANSWER, "naive:recipe.lr=3e-6:recipe.head_lr=3e-3")
RIDGE, RANPAC = (ANSWER, "ridge:strength=1e3"), (ANSWER, "ranpac:ridge=1e6")
FULL_RANPAC, FULL_LORA = ("vision_task_full", RANPAC[1]), ("vision_task_full", LORA[1])
FULL_PROBE = ("vision_task_full", "frozen:recipe.lr=0.01")
CLASS_LORA, CLASS_JOINT = (CLASS, "lora:infer=gaussian:recipe.lr=3e-3"), (CLASS, "joint-equal-steps")
TEXT_LORA, TEXT_PROBE = ("text_task", "lora:rank=1:recipe.lr=3e-3"), ("text_task", "frozen:recipe.lr=0.03")
TEXT_CLASS_LORA = ("text_class", "lora:infer=gaussian:rank=1:recipe.lr=3e-3")
TEXT_CLASS_RANPAC = ("text_class", "ranpac:ridge=1e3")
RATES = ("", ":recipe.lr=3e-3")  # learning rates in the labels of the study of ranks: 1e-3 (the default) and 3e-3
RANK_4 = ("ranks", "lora:rank=4:recipe.lr=3e-3")
COPY, WORSE_COPY = ("ranks", "independent:recipe.lr=1e-5"), ("ranks", "independent:recipe.lr=3e-5")
FAMILY_LORA, FAMILY_SHARED_LORA, SD_LORA = (("vision_family_task", label) for label in (
    "lora:rank=10:recipe.lr=3e-3", "seq-lora:rank=10",
    "sd-lora:recipe.optimizer=sgd:recipe.lr=8e-3:recipe.momentum=0.9"))
SGD_LORA, SGD_SD_LORA = ("sgd", "lora:rank=10"), ("sgd", "sd-lora")
FAMILY_CLASS_LORA, CLASS_EWC_LORA, CLASS_SD_LORA = (("vision_family_class", label) for label in (
    "lora:infer=gaussian:rank=10:recipe.lr=3e-3", "ewc-lora:align=true:fisher_samples=100",
    "sd-lora:recipe.optimizer=sgd:recipe.lr=8e-3:recipe.momentum=0.9"))
UNTRAINED = ("base", "lora:base=task1")  # only the first task has trained the backbone
PRETRAINED = ("layers", "lora:layers=all:recipe.lr=1e-3")  # with the same rank, layers and learning rate
PIXELS_LORA, PIXELS_HIGH = ("permuted_ranks", "lora:rank=4"), ("permuted_ranks", "lora:rank=256")
PIXELS_COPY = ("permuted_ranks", "independent")

LEARNING = next(m for m in MEASURES if m.column.title == "learning accuracy")
PLANNED = REPORTS / "lora_question/answer/primary.md"  # written by benchmarks/lora_question/primary.py
RIVALS = {"ewc": "EWC", "er": "ER", "pnn": "PNN", "shared-private": "shared-private", "ranpac": "RanPAC",
          "ridge": "ridge classifier", "joint-equal-steps": "joint training"}
PLANNED_LINK = "[Planned comparisons](../reports/lora_question/answer/primary.md)"


def main() -> None:
    """Write the tables into both pages."""
    for page, text in TABLES.items():
        path = ROOT / page
        before, after = path.read_text(encoding="utf-8").split(BEGIN)[0], path.read_text(encoding="utf-8").split(END)[1]
        path.write_text(f"{before}{BEGIN}\n{text()}\n{END}{after}", encoding="utf-8")


def comparison() -> str:
    """Return README's table: the methods of `NAMES` on Split-CIFAR-100 with task IDs."""
    rows = sorted(((ANSWER, label) for label in NAMES), key=lambda method: -mean(method))
    return table(HEADER, [[NAMES[row[1]], with_interval(row, ACC), with_interval(row, FORGETTING),
                           parameters(row), number(mean(row, BYTES), "bytes"), number(mean(row, COMPUTE), "flops")]
                          for row in rows]).replace("| --- |" + " --- |" * 5, "| :-- |" + " --: |" * 5)


def answers() -> str:
    """Return the table of should-i-use-lora.md: questions, their answers, and the evidence from records."""
    known = facts()
    rows = [
        ("What should I try first?", "A classifier on the frozen backbone: RanPAC, a ridge classifier, or on text a "
         "linear probe. They need less compute.",
         f"Ridge classifier {percent(RIDGE)}, RanPAC {percent(RANPAC)}, LoRA r=4 {percent(LORA)}. RanPAC, the "
         f"costlier of the two, needs {known['compute of RanPAC relative to LoRA']}% of LoRA's compute. "
         f"{PLANNED_LINK}: LoRA compared with {planned('with task IDs', 'ridge', 'ranpac')}. With all test images: "
         f"RanPAC {percent(FULL_RANPAC)}, LoRA r=4 {percent(FULL_LORA)}: {compared(FULL_RANPAC, FULL_LORA, 'RanPAC')}. "
         f"Linear probe {percent(FULL_PROBE)}: {compared(FULL_LORA, FULL_PROBE, 'LoRA')} ({source(FULL_LORA)})."),
        ("With task IDs and a pretrained backbone?", "LoRA forgets nothing and trains few parameters.",
         f"LoRA r=4 {percent(RANK_4)}, one full model per task {percent(COPY)}, both at the better of two learning "
         f"rates: {compared(RANK_4, COPY, 'LoRA')}, with {known['parameters of a copy relative to LoRA']} times fewer "
         f"trained parameters. The rates were chosen by test accuracy, and the full models have one rate for backbone "
         f"and head, which is probably too low for the head ({source(RANK_4)})."),
        ("Is it more accurate than its rivals?", f"On images no, with {known['steps per task']} steps "
         "per task: if all are tuned by the same rule, EWC and ER are clearly more accurate, and PNN slightly. "
         "Shared-private is less accurate, but it was underfit.",
         f"EWC {percent(EWC)}, ER {percent(ER)}, PNN {percent(PNN)}, LoRA r=4 {percent(LORA)}, shared-private "
         f"{percent(SHARED)}. {PLANNED_LINK}: LoRA compared with "
         f"{planned('with task IDs', 'ewc', 'er', 'pnn', 'shared-private')}. With a separate learning rate for the "
         f"head, as its rivals have, LoRA r=4 has {percent((ANSWER, HEAD_RATE))}. Its difference to PNN is then not "
         f"clear (exploratory). Sequential fine-tuning has "
         f"{percent(NAIVE)}, and one LoRA r=4 for all tasks {percent(SHARED_LORA)}. Right after a task is "
         f"learned, these two have {percent(NAIVE, LEARNING)} and {percent(SHARED_LORA, LEARNING)} on it, and one LoRA "
         f"per task {percent(LORA, LEARNING)}; this was not tested ({source(LORA)})."),
        ("With task IDs, on text?", "A linear probe is enough here.",
         f"Linear probe {percent(TEXT_PROBE)}, LoRA r=1 {percent(TEXT_LORA)}: "
         f"{compared(TEXT_LORA, TEXT_PROBE, 'LoRA')} ({source(TEXT_LORA)})."),
        ("Without task IDs?", "LoRA alone is not enough. Classifiers on the frozen backbone, ER and PNN were more "
         "accurate, but far below joint training.",
         f"LoRA r=4 {percent(CLASS_LORA)}, joint training with as many steps {percent(CLASS_JOINT)}. {PLANNED_LINK}: "
         f"LoRA compared with {planned('without task IDs', *RIVALS)} ({source(CLASS_LORA)}). On text: LoRA r=1 "
         f"{percent(TEXT_CLASS_LORA)}, RanPAC {percent(TEXT_CLASS_RANPAC)}: "
         f"{compared(TEXT_CLASS_LORA, TEXT_CLASS_RANPAC, 'LoRA')} ({source(TEXT_CLASS_LORA)})."),
        ("Which rank?", "Start with 4 and tune the learning rate, which matters more.",
         f"Ranks {RANKS[0]} to {RANKS[-1]}, each at the better of two learning rates: "
         f"{known['lowest accuracy of a rank']}% to {known['highest accuracy of a rank']}%. {ranks_compared()} With "
         f"the worse of the two rates, rank {RANKS[0]} loses "
         f"{known['points that the rate costs the lowest rank']} points and rank {RANKS[-1]} loses "
         f"{known['points that the rate costs the highest rank']} ({source(RANK_4)}). Without "
         f"pretraining, rank 256 {percent(PIXELS_HIGH)}, rank 4 {percent(PIXELS_LORA)}: "
         f"{compared(PIXELS_HIGH, PIXELS_LORA, 'rank 256')} ({source(PIXELS_LORA)})."),
        ("Which variant of LoRA?", "On images with task IDs, a variant whose tasks share adapters: SD-LoRA, or one "
         "LoRA for all tasks with a separate learning rate for the head. Without task IDs, no variant is clearly "
         "better. [Other studies](claims/shared-adapters.md) have other results.",
         f"With a separate learning rate for the head: one LoRA r=4 for all tasks {percent(SHARED_LORA)}, one per task "
         f"{percent((ANSWER, HEAD_RATE))} (exploratory, {source(LORA)}). With one rate for adapters and head: one LoRA "
         f"r=10 for all tasks {percent(FAMILY_SHARED_LORA)}, one per task {percent(FAMILY_LORA)}, SD-LoRA r=10 "
         f"{percent(SD_LORA)}. {compared(SD_LORA, FAMILY_LORA, 'SD-LoRA')} than one LoRA per task "
         f"({source(SD_LORA)}). SD-LoRA was trained with SGD. LoRA "
         f"with SGD reaches {percent(SGD_LORA)}: {compared(SGD_SD_LORA, SGD_LORA, 'SD-LoRA')} ({source(SGD_LORA)}). "
         f"Without task IDs: EWC-LoRA r=10 {percent(CLASS_EWC_LORA)}, LoRA r=10 {percent(FAMILY_CLASS_LORA)}, SD-LoRA "
         f"r=10 {percent(CLASS_SD_LORA)}. EWC-LoRA and LoRA: "
         f"{compared(CLASS_EWC_LORA, FAMILY_CLASS_LORA, 'EWC-LoRA')}. SD-LoRA and LoRA: "
         f"{compared(CLASS_SD_LORA, FAMILY_CLASS_LORA, 'SD-LoRA')} ({source(CLASS_EWC_LORA)})."),
        ("What does it cost?", "It trains few parameters, but needs more compute than frozen features.",
         f"LoRA r=4 trains {parameters(LORA)} parameters per task and stores {added(LORA)} for each. It needs "
         f"{known['compute of LoRA relative to fine-tuning']}% of the training compute of sequential fine-tuning "
         f"({source(LORA)})."),
        ("When should I not use it?", "If the backbone does not fit the tasks.",
         f"Permuted pixels without pretraining: LoRA r=4 {percent(PIXELS_LORA)}, one full model per task "
         f"{percent(PIXELS_COPY)}: {compared(PIXELS_LORA, PIXELS_COPY, 'LoRA')}; LoRA r=256 {percent(PIXELS_HIGH)}: "
         f"{compared(PIXELS_HIGH, PIXELS_COPY, 'LoRA')} ({source(PIXELS_LORA)}). A ViT without pretrained weights: "
         f"LoRA r={rank(UNTRAINED)} on all layers {percent(UNTRAINED)} ({source(UNTRAINED)}); with them "
         f"{percent(PRETRAINED)} ({source(PRETRAINED)}). Full fine-tuning was not run there, so other methods may "
         "lose as much."),
    ]
    return table(["question", "answer", "evidence"], rows)


def facts() -> dict[str, str]:
    """Return the numbers that prose may use, by a description of each number."""
    record, trial = records(LORA)[0], records(LORA)[0].trial
    benchmark, model = dict(trial.benchmark.options), dict(trial.model.options)
    best = [mean(best_rate(rank)) for rank in RANKS]
    return {
        "methods": str(len(discover().strategies)),
        "margin of the planned comparisons, in points": "2",
        "training images per class": str(benchmark["train_per_class"]),
        "pixels": str(model["size"]),
        "steps per task": str(record.costs.steps[0]),
        "accuracy of fine-tuning": f"{100 * mean(NAIVE):.1f}",
        "accuracy of the ridge classifier": f"{100 * mean(RIDGE):.1f}",
        "accuracy of joint training without task IDs": f"{100 * mean(CLASS_JOINT):.1f}",
        "accuracy of LoRA without task IDs": f"{100 * mean(CLASS_LORA):.1f}",
        "points by which EWC is more accurate than LoRA": f"{100 * (mean(EWC) - mean(LORA)):.1f}",
        "points by which Seq-LoRA is more accurate than LoRA with a rate for the head":
            f"{100 * (mean(SHARED_LORA) - mean((ANSWER, HEAD_RATE))):.1f}",
        "parameters of fine-tuning relative to LoRA": f"{mean(NAIVE, TRAINABLE) / mean(LORA, TRAINABLE):.0f}",
        "parameters of a copy relative to LoRA": f"{mean(COPY, TRAINABLE) / mean(RANK_4, TRAINABLE):.0f}",
        "compute of LoRA relative to fine-tuning": f"{100 * mean(LORA, COMPUTE) / mean(NAIVE, COMPUTE):.0f}",
        "compute of RanPAC relative to LoRA": f"{100 * mean(RANPAC, COMPUTE) / mean(LORA, COMPUTE):.0f}",
        "lowest accuracy of a rank": f"{100 * min(best):.1f}",
        "highest accuracy of a rank": f"{100 * max(best):.1f}",
        "points that the rate costs the lowest rank": points_of_rate(RANKS[0]),
        "points that the rate costs the highest rank": points_of_rate(RANKS[-1]),
    }


@cache
def methods(study: str) -> dict[str, list[Record]]:
    """Return the finished records of a study in reports/lora_question/, by label and in the order of seeds."""
    grouped: dict[str, list[Record]] = {}
    folder, _, scenario = study.partition(":")
    for record in sorted(read(REPORTS / "lora_question" / folder), key=lambda r: r.trial.seed):
        if record.status == "done" and scenario in ("", record.trial.scenario):
            grouped.setdefault(record.label, []).append(record)
    return grouped


@cache
def setting(study: str) -> Setting:
    """Return a study as reports analyze it."""
    found, = group_by_setting([record for of_method in methods(study).values() for record in of_method])
    return found


@cache
def tests(study: str, reference: str | None) -> Family:
    """Return a report's tests of accuracy: of all pairs of methods, or of all methods against a reference."""
    tested = setting(study)
    return tested.tests(ACC, tested.compared(ACC, [reference] if reference else []), reference)


def records(method: Method) -> list[Record]:
    """Return the records of a method."""
    return methods(method[0])[method[1]]


def planned(task_ids: str, *rivals: str) -> str:
    """Return LoRA's planned comparisons with some rivals: differences in points and verdicts in words.

    Raises:
        KeyError: primary.md has no such comparison, or none with a verdict.
    """
    rows = [line.strip("|").split(" | ") for line in PLANNED.read_text(encoding="utf-8").splitlines()]
    by_rival = {row[0].strip(): row[2:] for row in rows if len(row) == 6 and row[1] == task_ids}
    parts = []
    for rival in rivals:
        difference, interval, p, protocol_verdict = by_rival[rival]
        direction = "better" if float(difference) > 0 else "worse"
        low, high = map(float, interval.split(" to "))
        if protocol_verdict.strip() == f"{direction} by more than the margin":
            words = f"{direction} by more than 2 points"
        else:
            words = VERDICTS[direction if float(p) <= ALPHA else "open"]
            if float(p) <= ALPHA and low < 0 < high:
                words += f", but the corrected interval, {low:+.1f} to {high:+.1f}, includes 0"
        parts.append(f"{RIVALS[rival]}: {float(difference):+.1f} ({words})")
    return "; ".join(parts)


def rank(method: Method) -> int:
    """Return the rank of a LoRA row."""
    return int(records(method)[0].trial.method.options["rank"])


def values(method: Method, measure: Measure = ACC) -> dict[int, float]:
    """Return the value of each seed.

    Raises:
        ValueError: a record has no value.
    """
    by_seed = {record.trial.seed: measure.value(record, None) for record in records(method)}
    if None in by_seed.values():
        raise ValueError(f"{method}: a record has no {measure.column.title}")
    return {seed: value for seed, value in by_seed.items() if value is not None}


def mean(method: Method, measure: Measure = ACC) -> float:
    """Return the mean over seeds."""
    return fmean(values(method, measure).values())


def verdict(first: Method, second: Method) -> str:
    """Return whether the first method's accuracy is significantly `better` or `worse` than the second's, or `open`.

    The test is one of all pairs of methods or, if one of the two is a reference, of all methods against it.

    Raises:
        ValueError: the two methods are not tested.
    """
    labels = {m.records[0].label: m.label for m in setting(first[0]).methods}
    reference = next((labels[label] for study, label in (first, second) if methods(study)[label][0].reference), None)
    pair, = (p for p in tests(first[0], reference).against(labels[second[1]]) if p.first == labels[first[1]])
    if pair.untested:
        raise ValueError(f"{first} and {second} are not tested: {pair.untested}")
    return "open" if not pair.significant else "better" if pair.better("up") == pair.first else "worse"


def compared(first: Method, second: Method, name: str) -> str:
    """Return the verdict in words, with the name of the first method if the difference is significant."""
    result = verdict(first, second)
    return VERDICTS[result] if result == "open" else f"{name} is {VERDICTS[result]}"


def best_rate(rank: int) -> Method:
    """Return the method of a rank with the better learning rate."""
    return max((("ranks", f"lora:rank={rank}{rate}") for rate in RATES), key=mean)


def points_of_rate(rank: int) -> str:
    """Return the difference in points between the accuracies of a rank at the two learning rates."""
    return f"{100 * abs(mean(('ranks', f'lora:rank={rank}')) - mean(('ranks', f'lora:rank={rank}{RATES[1]}'))):.0f}"


def ranks_compared() -> str:
    """Return a sentence on which ranks, each at its better learning rate, differ significantly."""
    pairs = [f"ranks {rank(a)} and {rank(b)}" for a, b in combinations(map(best_rate, RANKS), 2)
             if verdict(a, b) != "open"]
    return f"Only {join_names(pairs)} differ significantly." if pairs else "There is no significant difference."


def percent(method: Method, measure: Measure = ACC) -> str:
    """Return the mean of an accuracy in percent, and whether the method is underfit."""
    remark = "" if underfit_share(records(method)) is None else " (underfit)"
    return f"{100 * mean(method, measure):.1f}%{remark}"


def with_interval(method: Method, measure: Measure) -> str:
    """Return mean and half of the 95% confidence interval, in percent or points."""
    interval = mean_interval(list(values(method, measure).values()))
    return f"{100 * interval.mean:.1f} ± {100 * (interval.half_width or 0):.1f}"


def parameters(method: Method) -> str:
    """Return the trainable parameters of the last task."""
    count = mean(method, TRAINABLE)
    return f"{count:,.0f}" if count < 1e6 else f"{count / 1e6:.1f} M"


def added(method: Method) -> str:
    """Return the storage that each task adds to the backbone."""
    stored = records(method)[0].costs.bytes[-1]
    return number((sum(stored.values()) - stored["base"]) / len(records(method)[0].costs.bytes), "bytes")


def source(method: Method) -> str:
    """Return a method's number of seeds, with a link from docs/ to its report."""
    folder = method[0].partition(":")[0]
    return f"[{folder}, {len(records(method))} seeds](../reports/lora_question/{folder}/report.md)"


TABLES = {"README.md": comparison, "docs/should-i-use-lora.md": answers}

if __name__ == "__main__":
    main()
