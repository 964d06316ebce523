"""Comparisons for claims that any study with the right methods can test."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from evidence import LORA, Measure, Row, Study, accuracy, accuracy_with_ids, best_row
from verdicts import (
    Comparison,
    Rule,
    Source,
    Verdict,
    by_seed,
    describe_accuracy,
    difference,
    is_above,
    is_below,
    is_exactly,
    shared_seeds,
)

from clbench.report.analysis.method_records import underfit_share
from clbench.report.formatting import number
from clbench.results.records import Record

Studies = Sequence[Study]
Test = Callable[[Studies], Iterator[Comparison]]
FEW_TIMES, ALMOST_ALL = 10, 98.0
UNDERFIT = "the less accurate side was underfit"
UNSUITABLE = "the rival is untuned and worse than the linear probe"
SMALL_BUFFER = "no ER buffer of at least half of what LoRA adds was run"


def pairs(study: Study, rivals: Sequence[str], *, same_backbone: bool = False,
          frozen: bool = False) -> Iterator[tuple[Row, Row, bool]]:
    """Yield the main pair of LoRA and a rival in a study, then pairs in which one side is another variant.

    Args:
        study: the study, which may have rows of LoRA and of rivals.
        rivals: names of methods; the best row of all of them is the main rival.
        same_backbone: whether the rival's option `base` must be that of LoRA.
        frozen: whether to leave out rivals that train adapters in the first task (`adapt`).
    """
    row = study.main_row(LORA)

    def comparable(one: Row, other: Row) -> bool:
        return bool(shared_seeds(one, other)) and (not same_backbone or one.option("base") == other.option("base"))

    candidates = [rival for rival in study.variants(*rivals) if row and comparable(row, rival)
                  and not (frozen and rival.option("adapt") not in (None, "none"))]
    if row is None or not candidates:
        return
    main = best_row(candidates)
    yield row, main, True
    yield from ((row, rival, False) for rival in candidates if rival is not main)
    yield from ((variant, main, False) for variant in study.variants(LORA)
                if variant is not row and comparable(variant, main))


def compare_accuracy(rule: Rule, *rivals: str, benchmark: str = "", scenario: str = "", same_backbone: bool = False,
                     frozen: bool = False) -> Test:
    """Return a test of LoRA's accuracy against that of rivals, in all studies or those of one benchmark or scenario."""
    def test(studies: Studies) -> Iterator[Comparison]:
        for study in studies:
            if benchmark in ("", study.trial.benchmark.name) and scenario in ("", study.scenario):
                for row, rival, main in pairs(study, rivals, same_backbone=same_backbone, frozen=frozen):
                    compared = difference(study, row, rival, rule, main=main)
                    less_accurate = row if compared.interval().mean < 0 else rival
                    reason = unsuitable(study, rival, [less_accurate.trials[seed] for seed in compared.values])
                    yield replace(compared, reason=reason or compared.reason)
    return test


def unsuitable(study: Study, rival: Row, less_accurate: Sequence[Record]) -> str:
    """Return why a comparison with a rival is inconclusive, or an empty string if there is no reason.

    The records of the less accurate side are underfit, or the rival is untuned and significantly worse than a linear
    probe.
    """
    if underfit_share(less_accurate) is not None:
        return UNDERFIT
    probe = study.main_row("frozen") if study.pretrained and not rival.tuned else None
    if probe is None or probe is rival or len(shared_seeds(rival, probe)) < 2:
        return ""
    high = difference(study, rival, probe, is_above(0)).interval().high
    return UNSUITABLE if high is not None and high < 0 else ""


def full_fine_tuning(study: Study, *substitutes: str) -> Row | None:
    """Return the row of sequential fine-tuning, or of the first substitute that the study has."""
    return next((row for name in ("naive", *substitutes) if (row := study.main_row(name))), None)


def compare_parameters(studies: Studies) -> Iterator[Comparison]:
    """Compare the parameters that the last task trains with those of full fine-tuning, or EWC or ER as substitutes."""
    for study in studies:
        main, full = study.main_row(LORA), full_fine_tuning(study, "ewc", "er")
        for row in study.variants(LORA) if full else ():
            ratio = full.trainable / row.trainable
            yield Comparison(Source.of(study), row.label, full.label, dict.fromkeys(row.trials, ratio),
                             is_exactly("supported" if ratio >= FEW_TIMES else "contradicted"),
                             f"{row.trainable:,}, {full.trainable:,}", "times", main=row is main, exact=True)


def compare_cost(measure: Measure, *, counted: bool) -> Test:
    """Return a test of LoRA's cost as a share of that of full fine-tuning, of one network or of one for each task.

    Args:
        measure: returns the cost of a trial, or 0 if the record does not have it.
        counted: whether the cost is counted instead of measured, and therefore has no sampling error.
    """
    def test(studies: Studies) -> Iterator[Comparison]:
        for study in studies:
            full = full_fine_tuning(study, "independent")
            main = study.main_row(LORA)
            for row in study.variants(LORA) if full else ():
                if all(map(measure, [*row.trials.values(), *full.trials.values()])):
                    ratios = by_seed(row, full, lambda one, other: one / other, measure)
                    yield Comparison(Source.of(study), row.label, full.label, ratios,
                                     is_exactly(verdict_of_all(ratios.values())) if counted else is_below(1),
                                     unit="ratio", main=row is main, exact=counted)
    return test


def verdict_of_all(ratios: Iterable[float]) -> Verdict:
    """Return the verdict on counted costs: supported if no seed costs more, contradicted if every seed does."""
    cheaper = [ratio <= 1 for ratio in ratios]
    return "supported" if all(cheaper) else "inconclusive" if any(cheaper) else "contradicted"


def training_flops(record: Record) -> float:
    """Return the FLOPs of training, 0 if they were not counted."""
    return float(sum(record.costs.train_flops or ()))


def training_seconds(record: Record) -> float:
    """Return the processor seconds of training and consolidation, 0 if the record lacks them."""
    times = record.timings
    return sum(times.train_cpu) + sum(times.consolidate_cpu) if times.train_cpu else 0.0


def compare_with_just_learned(studies: Studies) -> Iterator[Comparison]:
    """Count the later accuracies of a task that differ from its accuracy just after it was learned."""
    for study in studies:
        main = study.main_row(LORA)
        for row in study.variants(LORA):
            changes = {seed: float(count_changes(record)) for seed, record in row.trials.items()}
            tasks = len(row.first.R[0])
            yield Comparison(Source.of(study), row.label, "itself, just after each task", changes,
                             is_exactly("contradicted" if any(changes.values()) else "supported"),
                             f"of {tasks * (tasks - 1) // 2} accuracies of earlier tasks per seed", "changes",
                             main=row is main, exact=True)


def count_changes(record: Record) -> int:
    """Return how many later accuracies of a task differ from its accuracy just after it was learned."""
    tasks = len(record.R[0])
    return sum(record.R[i][j] != record.R[j + 1][j] for j in range(tasks) for i in range(j + 2, tasks + 1))


def compare_with_given_ids(studies: Studies) -> Iterator[Comparison]:
    """Compare LoRA's accuracy in Class-IL with the accuracy of the same trials with task IDs."""
    for study in studies:
        main = study.main_row(LORA) if study.scenario == "class" else None
        for row in study.variants(LORA) if main else ():
            losses = {seed: round(accuracy(record) - with_ids, 10) for seed, record in row.trials.items()
                      if (with_ids := accuracy_with_ids(record)) is not None}
            if losses:
                yield Comparison(Source.of(study), row.label, "the same trials with task IDs", losses, is_above(-2.0),
                                 describe_accuracy(row, losses), main=row is main)


def compare_ranks(low: range, high: range) -> Test:
    """Return a test of the best of some higher ranks against the best of some lower ranks.

    The compared rows differ only in rank, alpha and training configuration, and in Task-IL also in `infer`.
    """
    def test(studies: Studies) -> Iterator[Comparison]:
        for study in studies:
            ignored = ("rank", "alpha", *(["infer"] if study.scenario == "task" else []))
            groups: dict[str, list[Row]] = {}
            for row in study.rows_of(LORA):
                groups.setdefault(str(row.options_except(*ignored)), []).append(row)
            tested = []
            for rows in groups.values():
                lower, higher = ([row for row in rows if row.option("rank") in ranks] for ranks in (low, high))
                if lower and higher:
                    tested.append((best_row(higher), best_row(lower)))
            main = max(tested, key=lambda pair: max(row.mean() for row in pair), default=None)
            for pair in tested:
                yield difference(study, *pair, is_above(0), main=pair is main)
    return test


def compare_trained_share(studies: Studies) -> Iterator[Comparison]:
    """Compare the number of parameters that EWC trains with all parameters of the network."""
    for study in studies:
        row = study.main_row("ewc")
        if row:
            total = sum(count for role, count in row.first.costs.parameters[0].items()
                        if role in ("base", "heads", "model"))
            share = 100 * row.trainable / total
            yield Comparison(Source.of(study), row.label, "the network", dict.fromkeys(row.trials, share),
                             is_exactly("supported" if share >= ALMOST_ALL else "contradicted"),
                             f"{row.trainable:,}, {total:,}", "percent", main=True, exact=True)


def compare_pnn_cost(studies: Studies) -> Iterator[Comparison]:
    """Compare the stored and the trained parameters of PNN with those of LoRA."""
    for study in studies:
        row, main = study.main_row(LORA), study.main_row("pnn")
        for pnn in study.variants("pnn") if row else ():
            ratio, trained = pnn.parameters[-1] / row.parameters[-1], pnn.trainable / row.trainable
            yield Comparison(Source.of(study), row.label, pnn.label, dict.fromkeys(row.trials, ratio),
                             is_exactly("supported" if min(ratio, trained) > 1 else "contradicted"),
                             f"PNN trains {number_of_times(trained)} as many parameters in the last task", "times",
                             main=pnn is main, exact=True)


def number_of_times(ratio: float) -> str:
    """Write a ratio."""
    return f"{ratio:,.0f} times" if ratio >= 9.95 else f"{ratio:.1f} times"


def compare_at_equal_storage(studies: Studies) -> Iterator[Comparison]:
    """Compare LoRA in Class-IL with the best ER whose buffer is no larger than LoRA's additional storage.

    If the largest of these buffers is less than half of this storage, a better LoRA is inconclusive.
    """
    for study in studies:
        naive, main = study.main_row("naive"), study.main_row(LORA)
        for row in study.variants(LORA) if naive and study.scenario == "class" else ():
            adapters = row.storage - naive.storage
            fitting = [er for er in study.rows_of("er") if er.storage - naive.storage <= adapters]
            if fitting:
                rival = best_row(fitting)
                largest = max(er.storage for er in fitting) - naive.storage
                is_open = 2 * largest < adapters and row.mean() > rival.mean()
                compared = difference(study, row, rival, is_above(0), main=row is main,
                                      reason=SMALL_BUFFER if is_open else "")
                buffer = number(rival.storage - naive.storage, "bytes")
                sizes = f"{number(adapters, 'bytes')} for LoRA, {buffer} for the buffer"
                yield replace(compared, details=f"{compared.details}; {sizes}")
