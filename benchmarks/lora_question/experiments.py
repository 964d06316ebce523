"""Comparisons for claims that have a study or a script designed for them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from statistics import fmean, median
from typing import Any

from comparisons import Studies
from evidence import BENCHMARK_NAMES, LORA, MODEL_NAMES, ROOT, Row, Study, accuracy, best_row
from verdicts import (
    MARGIN,
    Comparison,
    Source,
    by_seed,
    describe_accuracy,
    difference,
    is_above,
    is_exactly,
    is_within,
    t_interval,
)

from clbench.report.formatting import number

CHECKS = ("others same without it", "others same with it again", "it is the same again")
MOST_GROWTH, MOST_RANKS, ENERGY = 2.0, 10.0, "0.9"


def in_folder(studies: Studies, name: str) -> Iterator[Study]:
    """Return the studies of one of the experiments in this folder."""
    return (study for study in studies if study.folder == f"lora_question/{name}")


def read_results(name: str) -> Any:
    """Return the committed results of a script in this folder."""
    return json.loads((ROOT / "reports" / "lora_question" / f"{name}.json").read_text(encoding="utf-8"))


def compare_alphas(studies: Studies) -> Iterator[Comparison]:
    """Compare the better of alpha = r and alpha = 2r with the best alpha, over all learning rates and for each one."""
    for study in in_folder(studies, "alpha"):
        rows = study.rows_of(LORA)
        best = best_row(rows)
        usual = [row for row in rows if row.option("alpha") in (row.option("rank"), 2 * row.option("rank"))]
        main = best_row(usual)
        yield difference(study, main, best, is_above(-MARGIN), main=True)
        for rate in sorted({row.learning_rate for row in usual} - {main.learning_rate}):
            yield difference(study, best_row(row for row in usual if row.learning_rate == rate), best,
                             is_above(-MARGIN))


def compare_layers(studies: Studies) -> Iterator[Comparison]:
    """Compare LoRA on some layers with LoRA on all layers, each with its best training configuration."""
    for study in in_folder(studies, "layers"):
        variants = study.variants(LORA)
        on_all = best_row(row for row in variants if row.option("layers") == "all" and not row.option("targets"))
        on_some = [row for row in variants if row is not on_all]
        main = best_row(row for row in on_some if row.option("rank") == on_all.option("rank"))
        for row in on_some:
            yield difference(study, row, on_all, is_above(-MARGIN), main=row is main)


def measure_growth(studies: Studies) -> Iterator[Comparison]:
    """Compare the parameters after the last of many tasks with those after the first."""
    for study in in_folder(studies, "many_tasks"):
        row = study.main_row(LORA)
        if row:
            growth = row.parameters[-1] / row.parameters[0]
            flops = row.first.costs.inference_flops
            details = (f"{len(row.parameters)} tasks: {row.parameters[-1]:,} parameters, "
                       f"{number(row.storage, 'bytes')}; prediction needs {flops[-1] / flops[0]:.2f} times the FLOPs; "
                       f"{describe_accuracy(row, row.trials)}")
            yield Comparison(Source.of(study), row.label, "itself, after the first task",
                             dict.fromkeys(row.trials, growth),
                             is_exactly("supported" if growth <= MOST_GROWTH else "contradicted"), details, "times",
                             main=True, exact=True)


def read_removals(studies: Studies) -> Iterator[Comparison]:
    """Read the results of `add_remove.py`, which removed each task's adapter and trained it again."""
    for result in read_results("add_remove"):
        benchmark, model, rows = result["benchmark"], result["model"], result["rows"]
        source = Source(f"add_remove ({benchmark})", f"{BENCHMARK_NAMES[benchmark]}, {MODEL_NAMES[model]}",
                        "reports/lora_question/add_remove.json", "task", result["pretrained"], (benchmark, model))
        same = [all(row[check] for check in CHECKS) for row in rows]
        shares = {int(trial.rpartition("/")[2]): 100 * fmean(
            good for good, row in zip(same, rows, strict=True) if row["trial"] == trial)
            for trial in dict.fromkeys(row["trial"] for row in rows)}
        yield Comparison(source, "LoRA r=4", "itself, before", shares,
                         is_exactly("supported" if all(same) else "contradicted"),
                         f"{sum(same)} of {len(same)} removals", "percent", main=True, exact=True)


def compare_with_no_pretraining(studies: Studies) -> Iterator[Comparison]:
    """Compare LoRA on a pretrained ViT with LoRA on an untrained ViT, and with LoRA on another pretrained backbone."""
    for study, pretrained in product(in_folder(studies, "base"), in_folder(studies, "vision_task")):
        good, main = pretrained.main_row(LORA), study.main_row(LORA)
        for row in study.variants(LORA) if good else ():
            yield compare_studies(study, pretrained.description, good, row, f"{row.label}, no published weights",
                                  main=row is main)
    for study, other in product(in_folder(studies, "efficientnet_class"), in_folder(studies, "vision_class")):
        first, second = other.main_row(LORA), study.main_row(LORA)
        if first and second:
            yield compare_studies(study, other.description, first, second, f"{second.label}, EfficientNet-Lite0")


def compare_studies(study: Study, where: str, row: Row, rival: Row, label: str, *, main: bool = False) -> Comparison:
    """Return the difference of two rows from different studies, with Welch's interval."""
    values, second = ({seed: accuracy(record) for seed, record in side.trials.items()} for side in (row, rival))
    details = f"{describe_accuracy(row, row.trials)}, {describe_accuracy(rival, rival.trials)}"
    return Comparison(Source.of(study), f"{row.label}, {where}", label, values, is_above(0), details, main=main,
                      second=second)


def compare_test_sets(studies: Studies) -> Iterator[Comparison]:
    """Compare LoRA's differences to other methods on all test images with those on a part of the images, by seed."""
    for part, whole in product(in_folder(studies, "vision_task"), in_folder(studies, "vision_task_full")):
        yield from compare_differences(part, whole)


def compare_differences(part: Study, whole: Study) -> Iterator[Comparison]:
    """Compare LoRA's difference to each other row in two studies with the same training, over their shared seeds."""
    on_part = {row.first.trial.method_config: row for row in part.rows}
    row = whole.main_row(LORA)
    first = on_part.get(row.first.trial.method_config) if row else None
    rivals = [rival for rival in whole.rows if rival is not row and rival.first.trial.method_config in on_part]
    for rival in rivals if row and first else ():
        all_images = by_seed(row, rival, lambda one, other: one - other, accuracy)
        some = by_seed(first, on_part[rival.first.trial.method_config], lambda one, other: one - other, accuracy)
        changes = {seed: round(all_images[seed] - some[seed], 10) for seed in all_images.keys() & some.keys()}
        means = [t_interval([side[seed] for seed in changes]).mean for side in (all_images, some)]
        yield Comparison(Source.of(whole), row.label, rival.label, changes, is_within(MARGIN),
                         "difference {:+.1f} on all images, {:+.1f} on a part".format(*means),
                         main=rival is best_row(rivals))


def read_spectra(studies: Studies) -> Iterator[Comparison]:
    """Read the results of `low_rank.py` on the change of weights by full fine-tuning."""
    results = read_results("low_rank")
    for study in studies:
        of_study = [(spectrum, row) for spectrum in results
                    for row in study.rows_of("independent") if is_of(spectrum, study, row)]
        main = max(of_study, key=lambda pair: pair[1].mean(), default=None)
        for pair in of_study:
            yield describe_spectrum(study, *pair, main=pair is main)


def is_of(spectrum: Any, study: Study, row: Row) -> bool:
    """Return whether a spectrum belongs to a row, by folder and learning rate."""
    _, _, rate = spectrum["method"].partition(":recipe.lr=")
    return study.folder == f"lora_question/{spectrum['folder']}" and (not rate or float(rate) == row.learning_rate)


def describe_spectrum(study: Study, spectrum: Any, row: Row, *, main: bool) -> Comparison:
    """Return the share of ranks that holds most of the change, with LoRA's accuracy at some ranks."""
    share = 100 * median(layer["rank for"][ENERGY] / layer["full rank"] for layer in spectrum["layers"])
    ranks = {rank: [lora for lora in study.rows_of(LORA) if lora.option("rank") == int(rank)]
             for rank in spectrum["energy"]}
    reached = [f"rank {rank} holds {spectrum['energy'][rank]:.0%}, LoRA reaches {best_row(rows).mean():.1f}%"
               for rank, rows in ranks.items() if rows]
    return Comparison(Source.of(study), row.label, "all possible ranks", dict.fromkeys(range(spectrum["seeds"]), share),
                      is_exactly("supported" if share <= MOST_RANKS else "contradicted"),
                      "; ".join([describe_accuracy(row, row.trials), *reached]), "percent", main=main, exact=True)
