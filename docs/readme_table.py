"""Write the tables of README.md and should-i-use-lora.md from committed records: `python docs/readme_table.py`.

`facts` returns the numbers that the prose of the two pages may use. A test compares tables and numbers with the pages.
"""

from __future__ import annotations

from functools import cache
from itertools import chain, combinations
from statistics import fmean

from pages import table
from results_facts import REPORTS, ROOT, read

from clbench.core.registry import discover
from clbench.report.analysis.families import family
from clbench.report.analysis.method_records import underfit_share
from clbench.report.columns import ACC, BYTES, COMPUTE, FORGETTING, TRAINABLE, Measure
from clbench.report.formatting import number
from clbench.results.records import Record
from clbench.results.stats import mean_interval

Method = tuple[str, str]  # a study in reports/lora_question/, and the label of a method in its records

BEGIN = "<!-- table: written by `python docs/readme_table.py` from the records in reports/ -->"
END = "<!-- end of table -->"
HEADER = ["method", "accuracy (%)", "forgetting (points)", "trainable parameters per task", "storage",
          "training compute"]
NAMES = {  # display names of the rows of README's table, by label
    "ranpac:ridge=1e6": "RanPAC (tuned ridge penalty)",
    "er:capacity=500:recipe.lr=3e-5": "ER (replays 500 stored images)",
    "lora:recipe.lr=3e-3": "LoRA r=4",
    "pnn:start=base:recipe.lr=3e-5": "PNN (a copy of the backbone per task)",
    "shared-private:private_width=128:recipe.lr=3e-3": "Shared-private (a small network per task)",
    "ewc:strength=1e3:fisher=sampled:fisher_samples=100:recipe.lr=3e-5": "EWC (penalty on weights)",
}
VERDICTS = {"better": "significantly better", "worse": "significantly worse", "open": "no significant difference"}
RANKS = (1, 2, 4, 8, 16, 32, 64)

# The methods that the pages compare.
RANPAC, ER, LORA, PNN, SHARED, EWC = (("vision_task", label) for label in NAMES)
NAIVE, JOINT = ("vision_task", "naive:recipe.lr=1e-5"), ("vision_task", "joint:recipe.lr=1e-5")
FULL_RANPAC, FULL_LORA = ("vision_task_full", RANPAC[1]), ("vision_task_full", LORA[1])
FULL_PROBE = ("vision_task_full", "frozen:recipe.lr=0.01")
CLASS_LORA, CLASS_RANPAC = ("vision_class", "lora:infer=gaussian:recipe.lr=3e-3"), ("vision_class", "ranpac")
CLASS_TUNED_RANPAC, CLASS_JOINT = ("vision_class", "ranpac:ridge=1e6"), ("vision_class", "joint:recipe.lr=1e-5")
TEXT_LORA, TEXT_PROBE = ("text_task", "lora:rank=1:recipe.lr=3e-3"), ("text_task", "frozen:recipe.lr=0.03")
TEXT_CLASS_LORA = ("text_class", "lora:infer=gaussian:rank=1:recipe.lr=3e-3")
TEXT_CLASS_RANPAC = ("text_class", "ranpac:ridge=1e3")
RATES = ("", ":recipe.lr=3e-3")  # learning rates in the labels of the study of ranks: 1e-3 (the default) and 3e-3
RANK_4 = ("ranks", "lora:rank=4:recipe.lr=3e-3")
COPY, WORSE_COPY = ("ranks", "independent:recipe.lr=1e-5"), ("ranks", "independent:recipe.lr=3e-5")
FAMILY_LORA, SD_LORA = (("vision_family_task", label) for label in (
    "lora:rank=10:recipe.lr=3e-3", "sd-lora:recipe.optimizer=sgd:recipe.lr=8e-3:recipe.momentum=0.9"))
SGD_LORA, SGD_SD_LORA = ("sgd", "lora:rank=10"), ("sgd", "sd-lora")
FAMILY_CLASS_LORA, CLASS_EWC_LORA, CLASS_SD_LORA = (("vision_family_class", label) for label in (
    "lora:infer=gaussian:rank=10:recipe.lr=3e-3", "ewc-lora:align=true:fisher_samples=100",
    "sd-lora:recipe.optimizer=sgd:recipe.lr=8e-3:recipe.momentum=0.9"))
UNTRAINED = ("base", "lora:base=task1")  # only the first task has trained the backbone
PRETRAINED = ("layers", "lora:layers=all:recipe.lr=1e-3")  # with the same rank, layers and learning rate
PIXELS_LORA, PIXELS_HIGH = ("permuted_ranks", "lora:rank=4"), ("permuted_ranks", "lora:rank=256")
PIXELS_COPY = ("permuted_ranks", "independent")

TUNING = ROOT / "benchmarks/lora_question/answer_tuning"  # its records are of held-out training images
TUNING_NAMES = {"ewc": "EWC", "naive": "sequential fine-tuning", "er": "ER", "pnn": "PNN", "lora": "LoRA r=4",
                "lora-head-rate": "LoRA r=4 with a separate head rate", "shared-private": "shared-private",
                "seq-lora": "one LoRA r=4 that all tasks share"}


def main() -> None:
    """Write the tables into both pages."""
    for page, text in TABLES.items():
        path = ROOT / page
        before, after = path.read_text(encoding="utf-8").split(BEGIN)[0], path.read_text(encoding="utf-8").split(END)[1]
        path.write_text(f"{before}{BEGIN}\n{text()}\n{END}{after}", encoding="utf-8")


def comparison() -> str:
    """Return README's table: the methods of `NAMES` on Split-CIFAR-100 with task IDs."""
    rows = sorted((("vision_task", label) for label in NAMES), key=lambda method: -mean(method))
    return table(HEADER, [[NAMES[row[1]], with_interval(row, ACC), with_interval(row, FORGETTING),
                           parameters(row), number(mean(row, BYTES), "bytes"), number(mean(row, COMPUTE), "flops")]
                          for row in rows]).replace("| --- |" + " --- |" * 5, "| :-- |" + " --: |" * 5)


def answers() -> str:
    """Return the table of should-i-use-lora.md: questions, their answers, and the evidence from records."""
    known = facts()
    rivals = (("EWC", EWC), ("shared-private", SHARED), ("ER", ER), ("PNN", PNN))
    rows = [
        ("What should I try first?", "RanPAC, or on text a linear probe on the frozen backbone. Both need less "
         "compute.",
         f"RanPAC {percent(FULL_RANPAC)}, LoRA r=4 {percent(FULL_LORA)}: {compared(FULL_RANPAC, FULL_LORA, 'RanPAC')}, "
         f"at {known['compute of RanPAC relative to LoRA']}% of LoRA's compute. Linear probe {percent(FULL_PROBE)}: "
         f"{compared(FULL_LORA, FULL_PROBE, 'LoRA')} ({source(FULL_LORA)})."),
        ("With task IDs and a pretrained backbone?", "LoRA forgets nothing and trains few parameters.",
         f"LoRA r=4 {percent(RANK_4)}, one full model per task {percent(COPY)}, both at the better of two learning "
         f"rates: {compared(RANK_4, COPY, 'LoRA')}, with {known['parameters of a copy relative to LoRA']} times fewer "
         f"trained parameters ({source(RANK_4)})."),
        ("Is it more accurate than its rivals?", "Probably not, if all are tuned equally well. A study that tests this "
         "is under way.",
         f"Best tuning results. Methods that train the backbone, and the shared LoRA, used a separate learning rate "
         f"for the head: "
         f"{best_candidates()} (each the best of several candidates, on two development seeds, not tested, "
         f"[protocol](../benchmarks/lora_question/PROTOCOL.md)). The shared LoRA has the same rank as LoRA r=4, so "
         f"the rank alone does not explain the distance. Tested earlier, with one learning rate and less tuning: LoRA "
         f"r=4 {percent(LORA)}. " + "; ".join(
             f"{name} {percent(rival)}: {compared(LORA, rival, 'LoRA')}" for name, rival in rivals)
         + f" ({source(LORA)})."),
        ("With task IDs, on text?", "A linear probe is enough here.",
         f"Linear probe {percent(TEXT_PROBE)}, LoRA r=1 {percent(TEXT_LORA)}: "
         f"{compared(TEXT_LORA, TEXT_PROBE, 'LoRA')} ({source(TEXT_LORA)})."),
        ("Without task IDs?", "LoRA alone is not enough. Try RanPAC.",
         f"LoRA r=4 {percent(CLASS_LORA)}, RanPAC {percent(CLASS_RANPAC)}: "
         f"{compared(CLASS_LORA, CLASS_RANPAC, 'LoRA')}; RanPAC with a tuned ridge penalty "
         f"{percent(CLASS_TUNED_RANPAC)}: {compared(CLASS_LORA, CLASS_TUNED_RANPAC, 'LoRA')}. Joint training "
         f"{percent(CLASS_JOINT)}: "
         f"{compared(CLASS_LORA, CLASS_JOINT, 'LoRA')} ({source(CLASS_LORA)}). On text: LoRA r=1 "
         f"{percent(TEXT_CLASS_LORA)}, RanPAC {percent(TEXT_CLASS_RANPAC)}: "
         f"{compared(TEXT_CLASS_LORA, TEXT_CLASS_RANPAC, 'LoRA')} ({source(TEXT_CLASS_LORA)})."),
        ("Which rank?", "Start with 4 and tune the learning rate, which matters more.",
         f"Ranks {RANKS[0]} to {RANKS[-1]}, each at the better of two learning rates: "
         f"{known['lowest accuracy of a rank']}% to {known['highest accuracy of a rank']}%, {ranks_compared()}. With "
         f"the worse of the two rates, rank {RANKS[0]} loses "
         f"{known['points that the rate costs the lowest rank']} points and rank {RANKS[-1]} loses "
         f"{known['points that the rate costs the highest rank']} ({source(RANK_4)}). Without "
         f"pretraining, rank 256 {percent(PIXELS_HIGH)}, rank 4 {percent(PIXELS_LORA)}: "
         f"{compared(PIXELS_HIGH, PIXELS_LORA, 'rank 256')} ({source(PIXELS_LORA)})."),
        ("Which variant of LoRA?", "On images with task IDs, SD-LoRA, whose tasks share adapters. Without task IDs, no "
         "variant is clearly better. [Other studies](claims/shared-adapters.md) have other results.",
         f"With task IDs: SD-LoRA r=10 {percent(SD_LORA)}, LoRA r=10 {percent(FAMILY_LORA)}: "
         f"{compared(SD_LORA, FAMILY_LORA, 'SD-LoRA')} ({source(SD_LORA)}). SD-LoRA was trained with SGD. If LoRA is, "
         f"too, it reaches {percent(SGD_LORA)}: {compared(SGD_SD_LORA, SGD_LORA, 'SD-LoRA')} ({source(SGD_LORA)}). "
         f"Without task IDs: EWC-LoRA r=10 {percent(CLASS_EWC_LORA)}, LoRA r=10 {percent(FAMILY_CLASS_LORA)}, SD-LoRA "
         f"r=10 {percent(CLASS_SD_LORA)}. EWC-LoRA and LoRA: "
         f"{compared(CLASS_EWC_LORA, FAMILY_CLASS_LORA, 'EWC-LoRA')}. SD-LoRA and LoRA: "
         f"{compared(CLASS_SD_LORA, FAMILY_CLASS_LORA, 'SD-LoRA')} ({source(CLASS_EWC_LORA)})."),
        ("What does it cost?", "Little storage and few parameters, but more compute than frozen features.",
         f"LoRA r=4 trains {parameters(LORA)} parameters per task and stores {added(LORA)} for each. It needs "
         f"{known['compute of LoRA relative to fine-tuning']}% of the training compute of sequential fine-tuning "
         f"({source(LORA)})."),
        ("When should I not use it?", "If the backbone does not fit the tasks.",
         f"Permuted pixels without pretraining: LoRA r=4 {percent(PIXELS_LORA)}, one full model per task "
         f"{percent(PIXELS_COPY)}: {compared(PIXELS_LORA, PIXELS_COPY, 'LoRA')}; LoRA r=256 {percent(PIXELS_HIGH)}: "
         f"{compared(PIXELS_HIGH, PIXELS_COPY, 'LoRA')} ({source(PIXELS_LORA)}). A ViT without pretrained weights: "
         f"LoRA r={rank(UNTRAINED)} on all layers {percent(UNTRAINED)} ({source(UNTRAINED)}); with them "
         f"{percent(PRETRAINED)} ({source(PRETRAINED)})."),
    ]
    return table(["question", "answer", "evidence"], rows)


def facts() -> dict[str, str]:
    """Return the numbers that prose may use, by a description of each number."""
    record, trial = records(LORA)[0], records(LORA)[0].trial
    benchmark, model = dict(trial.benchmark.options), dict(trial.model.options)
    best = [mean(best_rate(rank)) for rank in RANKS]
    steps = sum(records(JOINT)[0].costs.steps) / sum(record.costs.steps)
    return {
        "methods": str(len(discover().strategies)),
        "training images per class": str(benchmark["train_per_class"]),
        "pixels": str(model["size"]),
        "steps per task": str(record.costs.steps[0]),
        "accuracy of fine-tuning": f"{100 * mean(NAIVE):.1f}",
        "accuracy of joint training": f"{100 * mean(JOINT):.1f}",
        "steps of joint training relative to LoRA": f"{steps:.1f}",
        "parameters of fine-tuning relative to LoRA": f"{mean(NAIVE, TRAINABLE) / mean(LORA, TRAINABLE):.0f}",
        "parameters of a copy relative to LoRA": f"{mean(COPY, TRAINABLE) / mean(RANK_4, TRAINABLE):.0f}",
        "compute of LoRA relative to fine-tuning": f"{100 * mean(LORA, COMPUTE) / mean(NAIVE, COMPUTE):.0f}",
        "compute of RanPAC relative to LoRA": f"{100 * mean(FULL_RANPAC, COMPUTE) / mean(FULL_LORA, COMPUTE):.0f}",
        "lowest accuracy of a rank": f"{100 * min(best):.1f}",
        "highest accuracy of a rank": f"{100 * max(best):.1f}",
        "points that the rate costs the lowest rank": points_of_rate(RANKS[0]),
        "points that the rate costs the highest rank": points_of_rate(RANKS[-1]),
    }


@cache
def methods(study: str) -> dict[str, list[Record]]:
    """Return the finished records of a study in reports/lora_question/, by label and in the order of seeds."""
    grouped: dict[str, list[Record]] = {}
    for record in sorted(read(REPORTS / "lora_question" / study), key=lambda r: r.trial.seed):
        if record.status == "done":
            grouped.setdefault(record.label, []).append(record)
    return grouped


def records(method: Method) -> list[Record]:
    """Return the records of a method."""
    return methods(method[0])[method[1]]


def best_candidates() -> str:
    """Return the accuracies with task IDs of the best candidates in the tuning of the study `answer`, best first.

    A candidate counts if it has results of both development seeds.
    """
    by_candidate: dict[str, list[float]] = {}
    for record in chain.from_iterable(read(TUNING / part) for part in ("", "strength", "head_rate", "shared_adapter")):
        if record.trial.scenario == "task" and record.status == "done":
            by_candidate.setdefault(record.label, []).append(fmean(record.R[-1]))
    best = {name: max(fmean(scores) for label, scores in by_candidate.items()
                      if label.partition(":")[0] == row and len(scores) == 2) for row, name in TUNING_NAMES.items()}
    return ", ".join(f"{name} {100 * best[name]:.1f}%" for name in sorted(best, key=lambda name: -best[name]))


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

    The family of tests is the same as in a report: all pairs of methods. If one of the two methods is a reference, the
    family is all methods against it.
    """
    study = first[0]
    reference = next((label for _, label in (first, second) if methods(study)[label][0].reference), None)
    by_method = {label: values((study, label)) for label, found in methods(study).items()
                 if label == reference or not found[0].reference}
    pair, = (p for p in family(ACC.column, by_method, reference).against(second[1]) if p.first == first[1])
    return "open" if not pair.significant else "better" if pair.better("up") == first[1] else "worse"


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
    """Return in words whether two ranks, each at its better learning rate, differ significantly."""
    pairs = combinations(map(best_rate, RANKS), 2)
    return "no significant difference" if all(verdict(a, b) == "open" for a, b in pairs) else "significantly different"


def percent(method: Method) -> str:
    """Return the mean accuracy in percent, and whether the method is underfit."""
    return f"{100 * mean(method):.1f}%" + (" (underfit)" if underfit_share(records(method)) is not None else "")


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
    return f"[{method[0]}, {len(records(method))} seeds](../reports/lora_question/{method[0]}/report.md)"


TABLES = {"README.md": comparison, "docs/should-i-use-lora.md": answers}

if __name__ == "__main__":
    main()
