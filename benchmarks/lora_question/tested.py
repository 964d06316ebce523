"""The tests behind the sentences: each looks through the committed studies and says what it found, and a verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import fmean

from evidence import MARGIN, Finding, Row, Study, Verdict, above, paired, percent, points, times, traits

from clbench.report.formatting import number
from clbench.results import metrics
from clbench.results.records import Record

USUAL_RANK = 4
FEW_TIMES, ALMOST_ALL = 10, 0.98  # what rules ask for
Studies = Sequence[Study]


def acc(record: Record) -> float:
    """Return the final average accuracy."""
    return metrics.acc(record.R)


def usual(study: Study) -> list[Row]:
    """Return a study's rows of `lora`, each by its best recipe: those of rank 4 where ranks were compared, else all."""
    rows = by_best_recipe(study, "lora")
    return [row for row in rows if row.option("rank") == USUAL_RANK] or rows


def by_best_recipe(study: Study, *names: str) -> list[Row]:
    """Return a study's rows of each of some methods; of those that differ in the recipe alone, the best.

    With the task id, rows that differ only in how they would infer it are one, too.
    """
    alike: dict[tuple[str, str], list[Row]] = {}
    for row in (row for name in names for row in study.named(name)):
        options = row.but("infer") if study.scenario == "task" else row.but()
        alike.setdefault((row.name, str(options)), []).append(row)
    return [row for rows in alike.values() if (row := best(rows))]


def marked(row: Row, rows: Sequence[Row]) -> str:
    """Return the beginning of a finding that says which of several rows it is of."""
    return f"{row.label}: " if len(rows) > 1 else ""


def against(*rivals: str) -> Callable[[Studies], Iterator[Finding]]:
    """Return a test of whether `lora` is as good as a method, or as each of several.

    Where a method that was not searched ends below heads alone, its recipe ruins the base, and nothing follows.
    """
    def test(studies: Studies) -> Iterator[Finding]:
        for study in studies:
            rows = by_best_recipe(study, *rivals)
            for rival in rows:
                ruined = spoilt(study, rival)
                for row in usual(study):
                    if (over := paired(row, rival)) is not None:
                        name = f"{rival.label} " if len(rivals) > 1 or len(rows) > 1 else ""
                        text = (f"{marked(row, usual(study))}{percent(row.mean(acc))} against {name}"
                                f"{percent(rival.mean(acc))}: {points(over)}{ruined}")
                        verdict: Verdict = "not decided" if ruined else above(over, -MARGIN)
                        yield Finding(study.where, text, verdict, traits(study))
    return test


def spoilt(study: Study, rival: Row) -> str:
    """Return a remark on a method, not searched, that is shown to be worse than heads alone on a pretrained base."""
    heads = next(iter(study.named("frozen")), None) if study.pretrained and not rival.searched else None
    over = paired(rival, heads) if heads is not None else None
    if heads is None or over is None or over.high is None or over.high >= 0:
        return ""
    return f"; below heads on the frozen base ({percent(heads.mean(acc))}): its recipe ruins the base"


def fewer_parameters(studies: Studies) -> Iterator[Finding]:
    """Compare what the last task trains with what fine-tuning of all weights trains."""
    for study in studies:
        full = next(iter(study.named("naive") or study.named("ewc") or study.named("er")), None)
        if full is None:
            continue
        for row in study.named("lora"):
            ratio = full.trainable / row.trainable
            over = paired(row, full)
            loss = f"; ACC {points(over)} against {full.label}{spoilt(study, full)}" if over is not None else ""
            yield Finding(study.where, f"{row.label}: {row.trainable:,} for {full.trainable:,}, "
                          f"{times(ratio)} times fewer{loss}", "holds" if ratio >= FEW_TIMES else "does not hold",
                          traits(study))


def costs_less(what: str, of: Callable[[Record], float]) -> Callable[[Studies], Iterator[Finding]]:
    """Return a test of whether `lora` costs less than fine-tuning of all weights, or EWC where that is not there."""
    def test(studies: Studies) -> Iterator[Finding]:
        for study in studies:
            full = next(iter(study.named("naive") or study.named("ewc")), None)
            for row in usual(study) if full is not None else ():
                ratios = [of(row.trials[s]) / of(full.trials[s]) for s in sorted(set(row.trials) & set(full.trials))
                          if of(row.trials[s]) and of(full.trials[s])]
                if not ratios:
                    continue  # older records do not hold it
                verdict = "holds" if max(ratios) <= 1 else "does not hold" if min(ratios) > 1 else "not decided"
                spread = "" if max(ratios) - min(ratios) < 0.005 else f" ({min(ratios):.2f} to {max(ratios):.2f})"
                yield Finding(study.where, f"{marked(row, usual(study))}{fmean(ratios):.2f} of the {what} of "
                              f"{full.label}{spread}", verdict, traits(study))
    return test


def flops(record: Record) -> float:
    """Return the FLOPs of training and consolidation, 0 where they were not counted."""
    return float(sum(record.costs.train_flops or ()))


def seconds(record: Record) -> float:
    """Return the processor's time of training and consolidation, where it was noted, else the wall time."""
    times = record.timings
    return sum(times.train_cpu or times.train) + sum(times.consolidate_cpu or times.consolidate)


def no_interference(studies: Studies) -> Iterator[Finding]:
    """Look whether any accuracy of a learned task ever changed, in any row of `lora`."""
    for study in studies:
        rows = study.named("lora")
        tasks = len(rows[0].first.R[0])
        changed = [abs(r.R[i][j] - r.R[j + 1][j]) for row in rows for r in row.trials.values()
                   for j in range(tasks) for i in range(j + 2, tasks + 1)]
        forgotten = max(row.mean(lambda record: metrics.forgetting(record.R) or 0.0) for row in rows)
        text = (f"forgetting {100 * forgotten:.1f} points{f', the most of {len(rows)} rows' if len(rows) > 1 else ''}; "
                f"{sum(c > 0 for c in changed):,} of {len(changed):,} later accuracies differ from the first")
        yield Finding(study.where, text, "does not hold" if any(changed) else "holds", traits(study))


def without_id(studies: Studies) -> Iterator[Finding]:
    """Compare the same adapters in studies that differ in scenario alone; alpha may have been searched for each."""
    for given in (s for s in studies if s.scenario == "task"):
        for hidden in (s for s in studies if s.scenario == "class" and s.stream == given.stream):
            for row in usual(given):
                for other in usual(hidden):
                    same = other.but("infer", "alpha") == row.but("infer", "alpha")
                    if same and (over := paired(other, row)) is not None:
                        yield Finding(hidden.where,
                                      f"{other.label}: {percent(other.mean(acc))} without, {percent(row.mean(acc))} "
                                      f"with: {points(over)}", above(over, -MARGIN), {"base": traits(given)["base"]})


def rank_matters(low: range, high: range) -> Callable[[Studies], Iterator[Finding]]:
    """Return a test of whether the best of some higher ranks is better than the best of some lower ones.

    Among rows that differ in rank, alpha and learning rate alone; with the task id also in how they would infer it.
    """
    def test(studies: Studies) -> Iterator[Finding]:
        for study in studies:
            apart = ("rank", "alpha", *(["infer"] if study.scenario == "task" else []))
            alike: dict[str, list[Row]] = {}
            for row in study.named("lora"):
                alike.setdefault(str(row.but(*apart)), []).append(row)
            for rows in alike.values():
                first, second = (best([row for row in rows if row.option("rank") in ranks]) for ranks in (low, high))
                if first and second and (over := paired(second, first)) is not None:
                    yield Finding(study.where, f"{second.label} {percent(second.mean(acc))}, {first.label} "
                                  f"{percent(first.mean(acc))}: {points(over)}", above(over, 0.0), traits(study))
    return test


def all_weights(studies: Studies) -> Iterator[Finding]:
    """Compare what EWC trains with all that the network has."""
    for study in studies:
        for row in study.named("ewc"):
            total = sum(n for role, n in row.first.costs.parameters[0].items() if role in ("base", "heads", "model"))
            share = row.trainable / total if total else 1.0
            yield Finding(study.where, f"{row.trainable:,} of {total:,} parameters", "holds" if share >= ALMOST_ALL
                          else "does not hold", traits(study))


def expensive(studies: Studies) -> Iterator[Finding]:
    """Compare what PNN keeps in the end with what `lora` keeps, and how good it is."""
    for study in studies:
        for pnn in study.named("pnn"):
            for row in usual(study):
                ratio = sum(pnn.first.costs.parameters[-1].values()) / sum(row.first.costs.parameters[-1].values())
                trained = pnn.trainable / row.trainable
                text = (f"{pnn.label} holds {times(ratio)} times the parameters of {row.label} after the last task and "
                        f"trains {times(trained)} times as many in it")
                yield Finding(study.where, text, "holds" if ratio > 1 and trained > 1 else "does not hold",
                              traits(study))


def needs_more_than_low_rank(studies: Studies) -> Iterator[Finding]:
    """Compare `lora` with methods that train whole networks, where inputs are permuted."""
    for study in studies:
        if study.first.trial.benchmark.name != "permuted-mnist":  # whose pixels are
            continue
        for row in usual(study):
            for other in by_best_recipe(study, "independent", "joint", "pnn", "ewc"):
                if (over := paired(row, other)) is not None:
                    verdict = above(over, -MARGIN)
                    fails = {"holds": "does not hold", "does not hold": "holds"}.get(verdict, verdict)
                    yield Finding(study.where, f"{percent(row.mean(acc))} against {other.label} "
                                  f"{percent(other.mean(acc))}: {points(over)}", fails, traits(study))


def general_features(studies: Studies) -> Iterator[Finding]:
    """Look what adapting the layers below the heads adds to private heads on the same base."""
    for study in studies:
        for heads in by_best_recipe(study, "shared-private", "frozen"):
            for row in usual(study):
                if row.option("base") == heads.option("base") and (over := paired(row, heads)) is not None:
                    yield Finding(study.where, f"{heads.label} {percent(heads.mean(acc))}, {row.label} "
                                  f"{percent(row.mean(acc))}: {points(over)}", above(over, MARGIN), traits(study))


def best(rows: Sequence[Row]) -> Row | None:
    """Return the row with the highest mean ACC; None of none."""
    return max(rows, key=lambda row: row.mean(acc), default=None)


def needs_memory(studies: Studies) -> Iterator[Finding]:
    """Compare ER at the memory that keeps about as many bytes beside the network as LoRA's adapters with that LoRA."""
    for study in studies:
        naive = next(iter(study.named("naive")), None)
        if naive is None or study.scenario != "class":
            continue
        for row in study.named("lora"):
            beside = kept(row) - kept(naive)
            fits = best([er for er in study.named("er") if kept(er) - kept(naive) <= beside])
            if fits is not None and (over := paired(row, fits)) is not None:
                memory = number(kept(fits) - kept(naive), "bytes")
                text = (f"{row.label} keeps {number(beside, 'bytes')} beside the network: {percent(row.mean(acc))}; "
                        f"{fits.label} with {memory} {percent(fits.mean(acc))}: {points(over)}")
                yield Finding(study.where, text, above(over, 0.0), traits(study))


def kept(row: Row) -> int:
    """Return the bytes that a method keeps after the last task."""
    return sum(row.first.costs.bytes[-1].values())
