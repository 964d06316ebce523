"""docs/lora-claims.md: headline findings, the summary of all claims, rules, limitations; and the list of studies."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from claim_pages import ClaimResult, format_effect, format_interval, format_verdict
from evidence import ROOT, Study
from verdicts import LEVEL

from clbench.report.formats.markdown import escape

INTRODUCTION = """\
# Claims about LoRA and what the studies show

LoRA freezes the network and trains two small matrices per task next to some of its weights. This page tests common
claims about it on the committed studies. Each claim has a page with its rule, its verdict in each study, and all
comparisons. [rows.csv](claims/rows.csv) has the data. For advice, read [Should I use LoRA?](should-i-use-lora.md).

`python benchmarks/lora_question/claims.py --write` writes these pages from the records.

## Five findings

Effects are differences in final average accuracy, in points. Positive means that LoRA is better. In the last two rows
LoRA is compared with itself: without task IDs minus with them, and with a pretrained backbone minus without one.
"Better" and "worse" mean that the 95% interval excludes 0. The verdict answers a stricter question, such as "less than
2 points worse", with a wider interval, so it can be inconclusive although the finding is clear. Reports correct their
tests for all pairs of methods, so they may call it not significant.
"""
PLANNED = """
**If results differ, trust the [planned comparisons](../reports/lora_question/answer/primary.md) of `answer` most.**
They were chosen before its first trial.
"""
SUMMARY = """
## All claims

Each cell counts studies by verdict: supported / contradicted / inconclusive. Columns separate pretrained from other
backbones, and studies with task IDs (Task-IL) from studies without them (Class-IL and Domain-IL).
"""
RULES = """
## Rules

- **Study:** one sequence of tasks, scenario and backbone of a committed report ([list](claims/studies.md)). It has one
  verdict per claim.
- **Main comparison:** the verdict compares LoRA's main row with the best rival's. A row is a method with its options in
  the report. The main row has the highest mean accuracy, and for LoRA rank 4 if there is such a row. Rows that the
  study names differently from their method, such as `lora-head-rate`, qualify only if there is no other. Other
  comparisons are sensitivity rows and do not count.
- **No setting counts twice:** of studies with the same sequence of tasks, scenario, backbone and number of steps, the
  first that was designed for the claim counts, otherwise that with most seeds.
- **Differences** are paired by seed. The claim about pretraining compares two studies by Welch's intervals.
- **Intervals** are Student's t intervals over seeds: 95% in sensitivity rows. In verdicts, all intervals of a claim
  hold together with 95% probability (Bonferroni over the counted studies). Exact counts have none.
- **Verdict:** a claim is *supported* if the whole interval satisfies it, *contradicted* if the whole interval violates
  it, and otherwise *inconclusive*. "Not much worse" means less than 2 points worse.
- **Inconclusive in any case:** comparisons in which one side is closer to 100% than three standard deviations over
  seeds, in which the less accurate side was underfit, or in which an untuned rival is significantly worse than a linear
  probe on the same pretrained backbone.

All rules were written after results were known, and the rule on underfit methods after all of them.

## Corrections

- **27 November 2026:** only untuned rivals below the linear probe are inconclusive. A linear probe is compared with
  adapters on the same backbone only. Ranks are compared by the best row of each group.
- **28 November 2026:** the summary counts studies; before, it counted rows, and one study up to 24 times. Both sides of
  a difference have the same seeds. Verdicts use simultaneous intervals. The loss without task IDs is measured within
  the same trials. PNN is represented by the row that starts from the backbone.
- **30 November 2026:** compute and time are compared with fine-tuning only. ER's buffer must have at least half of
  LoRA's additional bytes. Analytic classifiers are on the frozen backbone. Permuted pixels count only with task IDs.
- **1 December 2026:** studies that draw other images of the same data share a setting. A row that is named differently
  from its method no longer represents it.
- **2 December 2026:** `answer` is added. Before, with one learning rate for EWC's backbone and head, LoRA was better.
  A method that loses because it was underfit no longer decides a verdict.

## Limitations

- **Small images, one budget.** The ViT sees 56-pixel images that were enlarged from 32 x 32. A task has 500 images and
  64 steps. With [256 steps](../reports/lora_question/answer_budget/report.md), on three seeds, EWC's lead over LoRA
  shrinks to five points.
- **Backbones.** The ViT-S/14 was fine-tuned for saliency detection on unnamed images; it is not DINOv2. No study has
  the usual ViT-B/16.
- **Easy texts.** With task IDs, a linear probe on MiniLM is as good as joint training.
- **Little tuning, one learning rate, except in `answer`.** Tuned rows had two to eight candidates, on one seed, most at
  half the budget. EWC and PNN have more hyperparameters than LoRA, and one rate for backbone and head is low for the
  head ([protocol of `answer`](../benchmarks/lora_question/PROTOCOL.md)).
- **Best rows are chosen by test accuracy**, which favors both sides.
- **Shared images.** Except in `answer`, all seeds share their images. No interval covers the choice of pretrained
  weights.
- **Seeds added later.** `vision_task`, `vision_task_full`, `vision_class`, `efficientnet_class` and `text_class` got
  more seeds after first results had been seen, which the intervals do not account for.

## How to cite a claim

Cite clbench as `CITATION.cff` says, with version and date, because numbers can change. The file name and the anchor of
a claim's page never change. For example:

```text
the clbench authors. clbench, version {version}, {date}.
Claim "{sentence}", docs/claims/{slug}.md#claim-{slug}
```
"""
STUDIES = """\
# Studies on the pages of claims about LoRA

These are the sections of committed reports that have LoRA. [Claims about LoRA](../lora-claims.md) says how they count.
"""


class Headline(NamedTuple):
    """A finding for the top of the page, from the first of some studies that has records."""

    slug: str
    studies: tuple[str, ...]
    subject: str
    better: str
    unclear: str
    worse: str


def versus(slug: str, rival: str) -> Headline:
    """Return the headline about a rival in the main study with task IDs."""
    return Headline(slug, ("answer (Task-IL)", "vision_task (Task-IL)"), "With task IDs,",
                    f"LoRA is better than {rival}", f"LoRA and {rival} do not differ clearly",
                    f"LoRA is worse than {rival}")


HEADLINES = (
    versus("ewc", "EWC"), versus("er", "experience replay"),
    versus("analytic-classifiers", "the best analytic classifier"),
    Headline("task-ids", ("answer (Class-IL)", "vision_class (Class-IL)"), "If the task ID is inferred,",
             "LoRA gains accuracy", "LoRA loses no clear accuracy", "LoRA loses accuracy"),
    Headline("pretraining", ("base (Task-IL)",), "With task IDs,", "LoRA is much worse without pretraining",
             "pretraining makes no clear difference to LoRA", "LoRA is better without pretraining"))


def summary_page(claims: Sequence[ClaimResult]) -> str:
    """Return the page."""
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    fields = {name: re.search(rf"^{key}: (.+)$", citation, re.MULTILINE)[1]
              for name, key in (("version", "version"), ("date", "date-released"))}
    first = claims[0]
    return "\n".join([INTRODUCTION, *headline_table(claims), PLANNED, SUMMARY.lstrip("\n"),
                      *summary_table(claims), RULES.format(
                          sentence=first.claim.sentence, slug=first.slug, **fields), "```{toctree}", ":hidden:", "",
                      *(f"claims/{claim.slug}" for claim in claims), "claims/studies", "```"]) + "\n"


def studies_page(studies: Sequence[Study]) -> str:
    """Return the page with all studies."""
    return "\n".join([STUDIES, *study_table(studies)]) + "\n"


def headline_table(claims: Sequence[ClaimResult]) -> Iterable[str]:
    """Return the table of the headline findings."""
    yield "| finding | effect (points) | 95% interval | seeds | verdict on the claim | report |"
    yield "| :-- | --: | --: | --: | :-- | :-- |"
    by_slug = {claim.slug: claim for claim in claims}
    for headline in HEADLINES:
        claim = by_slug[headline.slug]
        rows = {row.source.name: row for row in claim.counted}
        row = next((rows[name] for name in headline.studies if name in rows), None)
        if row is None:
            continue
        interval = row.interval(LEVEL)
        low, high = interval.low or 0.0, interval.high or 0.0
        finding = headline.better if low > 0 else headline.worse if high < 0 else headline.unclear
        verdict = f"[{claim.claim.sentence}](claims/{claim.slug}.md): {format_verdict(row, claim.level)}"
        report = f"[{escape(row.source.name)}](../{row.source.report})"
        yield (f"| {headline.subject} {finding} | {format_effect(interval.mean, row.unit)} | "
               f"{format_interval(row, LEVEL)} | {row.seeds} | {verdict} | {report} |")


def summary_table(claims: Sequence[ClaimResult]) -> Iterable[str]:
    """Return the table of all claims, with the number of studies for each verdict."""
    yield ("| claim | pretrained backbone, with task IDs | pretrained backbone, without task IDs | other backbone, "
           "with task IDs | other backbone, without task IDs |")
    yield "| :-- | :-: | :-: | :-: | :-: |"
    for claim in claims:
        kinds = [claim.counts(pretrained=pretrained, with_ids=with_ids)
                 for pretrained in (True, False) for with_ids in (True, False)]
        cells = " | ".join(" / ".join(map(str, counts)) if any(counts) else "" for counts in kinds)
        yield f"| [{claim.claim.sentence}](claims/{claim.slug}.md) | {cells} |"


def study_table(studies: Sequence[Study]) -> Iterable[str]:
    """Return the table of all studies with LoRA."""
    yield "| study | scenario | stream and backbone | tasks | seeds | steps in task 1 | tuned rows |"
    yield "| :-- | :-- | :-- | --: | --: | --: | :-- |"
    for study in studies:
        seeds = sorted({len(row.trials) for row in study.rows})
        steps = sorted({row.first.costs.steps[0] for row in study.rows_of("naive", "lora")})
        tuned = sum(row.tuned for row in study.rows)
        seed_range = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        yield (f"| [{escape(study.name.partition(' (')[0])}](../../{study.report}) | {study.scenario_title} | "
               f"{study.description} | {len(study.rows[0].first.R[0])} | {seed_range} | "
               f"{' or '.join(f'{count:,}' for count in steps)} | {tuned} of {len(study.rows)} |")
