"""The tests behind the sentences that have an experiment of their own beside this file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import fmean, median
from typing import Any

from evidence import (
    MARGIN,
    NAMES,
    NOT_PRETRAINED,
    PRETRAINED,
    Finding,
    Row,
    Study,
    Verdict,
    above,
    gaps,
    paired,
    percent,
    points,
    traits,
    within,
)
from tested import Studies, acc, best, kept, usual

from clbench.report.formatting import number
from clbench.results.stats import mean_interval

FOUND = Path(__file__).resolve().parents[2] / "reports" / "lora_question"
REMOVED = {"others same without it": "without a task, the logits of the others are the same bit for bit",
           "others same with it again": "with it trained anew, they still are",
           "it is the same again": "the task trained anew gives the logits that it gave"}
TWICE = 2.0
TENTH, MOST = 0.1, "0.9"  # of a layer's ranks, of the energy of its change


def in_folder(studies: Studies, name: str) -> Iterator[Study]:
    """Return the studies of one of the experiments beside this file."""
    return (study for study in studies if study.folder == f"lora_question/{name}")


def usual_alpha(studies: Studies) -> Iterator[Finding]:
    """Compare, at each learning rate, the better of alpha = r and alpha = 2r with the best row of all."""
    for study in in_folder(studies, "alpha"):
        rows = study.named("lora")
        top = best(rows)
        for lr in sorted({row.lr for row in rows}):
            here = [row for row in rows if row.lr == lr]
            good = best([row for row in here if row.option("alpha") in (row.option("rank"), 2 * row.option("rank"))])
            if top and good and (over := paired(good, top)) is not None:
                first = best(here) or good
                yield Finding(study.where, f"learning rate {lr:g}: {good.label} {percent(good.mean(acc))}, best at "
                              f"this rate alpha {first.option('alpha'):g} with {percent(first.mean(acc))}, best "
                              f"of all ({top.label}) {percent(top.mean(acc))}: {points(over)}", above(over, -MARGIN),
                              traits(study))


def some_layers(studies: Studies) -> Iterator[Finding]:
    """Compare LoRA on some layers with LoRA on all of them, each at the better of its learning rates."""
    for study in in_folder(studies, "layers"):
        everywhere = best([row for row in study.named("lora", layers="all") if not row.option("targets")])
        where: dict[str, list[Row]] = {}
        for row in study.named("lora"):
            where.setdefault(str(row.first.trial.method), []).append(row)
        for rows in where.values() if everywhere else ():
            row = best(rows)
            if row and everywhere not in rows and (over := paired(row, everywhere)) is not None:
                yield Finding(study.where, f"{row.label} ({row.trainable:,} parameters) {percent(row.mean(acc))}, "
                              f"{everywhere.label} ({everywhere.trainable:,}) {percent(everywhere.mean(acc))}: "
                              f"{points(over)}", above(over, -MARGIN), traits(study))


def many_tasks(studies: Studies) -> Iterator[Finding]:
    """Compare what LoRA holds after the last of many tasks with what it held after the first, and its accuracy."""
    for study in in_folder(studies, "many_tasks"):
        for row in usual(study):
            costs = row.first.costs
            held = [sum(parameters.values()) for parameters in costs.parameters]
            growth, slower = held[-1] / held[0], costs.inference_flops[-1] / costs.inference_flops[0]
            rivals = "; ".join(f"{other.label} {percent(other.mean(acc))}" for other in study.rows if other is not row)
            text = (f"{len(held)} tasks: {held[-1]:,} parameters, {growth:.2f} times those after the first, "
                    f"{number(kept(row), 'bytes')}; predicting takes {slower:.2f} times the FLOPs; ACC "
                    f"{percent(row.mean(acc))} ({rivals})")
            yield Finding(study.where, text, "holds" if growth <= TWICE else "does not hold", traits(study))


def written(name: str) -> Any:
    """Return what a script beside this file has found."""
    return json.loads((FOUND / f"{name}.json").read_text(encoding="utf-8"))


def added_and_removed(studies: Studies) -> Iterator[Finding]:
    """Read what `add_remove.py` found: it removed each task's adapter from finished runs and trained it anew."""
    for found in written("add_remove"):
        setting = f"{found['benchmark']}, {NAMES.get(found['model'], found['model'])}, task"
        rows, base = found["rows"], {"base": PRETRAINED if found["pretrained"] else NOT_PRETRAINED}
        for what, text in REMOVED.items():
            good = sum(row[what] for row in rows)
            yield Finding(setting, f"{text}: {good} of {len(rows)} removals",
                          "holds" if good == len(rows) else "does not hold", base)


def base_decides(studies: Studies) -> Iterator[Finding]:
    """Compare LoRA on bases that no data, or the first task alone, trained with LoRA on the pretrained one."""
    good = next((row for study in in_folder(studies, "vision_task") for row in usual(study)), None)
    for study in in_folder(studies, "base"):
        for row in study.named("lora"):
            if good is not None and (over := paired(good, row)) is not None:
                text = f"pretrained {beside(row, good)}, {row.label} {percent(row.mean(acc))}: {points(over)}"
                yield Finding(study.where, text, above(over, 0.0), {"base": PRETRAINED})
    yield from bases_differ(studies, "vision_class", "efficientnet_class")


def bases_differ(studies: Studies, one: str, other: str) -> Iterator[Finding]:
    """Compare LoRA on two pretrained bases, the same stream for each seed, and say what heads alone have on each."""
    for first, second in product(in_folder(studies, one), in_folder(studies, other)):
        for row, there in product(usual(first), usual(second)):
            if (over := paired(row, there)) is not None:
                text = f"{with_heads(first, row, there)}, {with_heads(second, there, row)}: {points(over)}"
                verdict: Verdict = "not decided" if above(over, 0.0) == "not decided" else "holds"
                yield Finding(f"{first.where} and {second.where}", text, verdict, traits(second))


def more_test_images(studies: Studies) -> Iterator[Finding]:
    """Compare LoRA's leads on all test images with those on the part that a study was tested on."""
    for part, whole in product(in_folder(studies, "vision_task"), in_folder(studies, "vision_task_full")):
        yield from leads_differ(part, whole)


def leads_differ(part: Study, whole: Study) -> Iterator[Finding]:
    """Compare LoRA's lead over each other row in two studies that train the same, over the seeds of both."""
    before = {row.first.trial.row: row for row in part.rows}
    for row, other in product(usual(whole), whole.rows):
        first, second = (before.get(one.first.trial.row) for one in (row, other))
        if other is not row and first and second:
            now, then = gaps(row, other), gaps(first, second)
            seeds = sorted(now.keys() & then.keys())
            over = mean_interval([round(now[seed] - then[seed], 12) for seed in seeds])
            text = (f"{row.label} {beside(first, row)}, {other.label} {beside(second, other)}: a lead of "
                    f"{100 * fmean(now[s] for s in seeds):+.1f}, on a part of the images "
                    f"{100 * fmean(then[s] for s in seeds):+.1f}; it changes by {points(over)}")
            yield Finding(whole.where, text, within(over, MARGIN), traits(whole))


def with_heads(study: Study, row: Row, other: Row) -> str:
    """Return what a row and heads alone reach on a base, over the seeds that another row has too."""
    heads = "".join(f" (heads alone {beside(other, frozen)})" for frozen in study.named("frozen"))
    return f"{study.model} {beside(other, row)}{heads}"


def beside(other: Row, row: Row) -> str:
    """Return what a row reaches over the seeds that another has too."""
    return percent(fmean(value for seed, value in row.values(acc).items() if seed in other.trials))


def low_rank(studies: Studies) -> Iterator[Finding]:
    """Read what `low_rank.py` found of full fine-tuning's change, and set what LoRA reaches at low ranks beside it."""
    for found in written("low_rank"):
        share = median(layer["rank for"][MOST] / layer["full rank"] for layer in found["layers"])
        for study in in_folder(studies, found["folder"]):
            full = next((row for row in study.named("independent") if row.first.label == found["method"]), None)
            if full is not None:
                text = (f"{full.label}: {percent(share)} of the ranks hold 90 % of the change (median of "
                        f"{len(found['layers'])} layers); {percent(full.mean(acc))}. {at_low_rank(study, found)}")
                yield Finding(study.where, text, "holds" if share <= TENTH else "does not hold", traits(study))


def at_low_rank(study: Study, found: Any) -> str:
    """Say of each rank of LoRA what the best change of that rank holds, and what LoRA reaches with it."""
    said = []
    for rank, energy in found["energy"].items():
        row = best([row for row in study.named("lora") if row.option("rank") == int(rank)])
        if row is not None:
            said.append(f"rank {rank} holds {percent(energy)}, LoRA reaches {percent(row.mean(acc))}")
    return "; ".join(said)
