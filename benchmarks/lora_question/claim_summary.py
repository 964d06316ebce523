"""docs/lora-claims.md: headline findings, the summary of all claims, rules, limitations, and how to cite a claim."""

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

LoRA trains two small matrices per task next to each frozen weight. This page tests common claims about it in
continual learning on the committed studies of clbench. Each claim has a page with its rule, its verdict in each study,
and all comparisons. [rows.csv](claims/rows.csv) has the same rows as data. For advice, read
[Should I use LoRA?](should-i-use-lora.md).

`python benchmarks/lora_question/claims.py --write` computes all numbers on these pages from the records in `reports/`.

## Five findings

Effects are differences in final average accuracy, in points. Positive means that LoRA is better. The last two effects
compare LoRA with itself: without task IDs and with them, and with a pretrained backbone and without. A finding says
"better" or "worse" only if its 95% interval excludes 0. The verdict answers a stricter question, such as "at most 2
points worse", with the wider interval of the claim's page. It can therefore be inconclusive although the finding is
clear. Reports correct for all pairs of methods, so they can call the same difference not significant.
"""
SUMMARY = """
**The first finding will probably not hold.** EWC had one learning rate for backbone and head, as ER and PNN had. In
the tuning runs of the study `answer` (task IDs, development seeds), methods with a separate head rate
[scored higher than LoRA](should-i-use-lora.md).

## All claims

Each cell counts studies by verdict: supported / contradicted / inconclusive. Columns separate pretrained from other
backbones, and studies with task IDs (Task-IL) from studies without them (Class-IL and Domain-IL).
"""
RULES = """
## Rules

- **Study:** one section of a committed report, with one stream, scenario and backbone. It has one verdict per claim.
- **Main comparison:** the verdict comes from LoRA's main row against the rival's main row. A main row is the row with
  the highest mean accuracy. For LoRA, only rows of rank 4 qualify if the study has any. If a claim names several
  rivals, the best of them is the rival. In Class-IL, LoRA's rows also differ in how they infer the task ID; `infer` in
  [the options of LoRA](methods.md) explains this.
- **Sensitivity:** other ranks, variants and rivals are shown on the claim's page and do not count.
- **No setting counts twice:** studies with the same stream, scenario, backbone and number of steps share a setting. Of
  these, the first study that was designed for the claim counts, otherwise the one with most seeds, or the first of
  them by name. `designed` in `benchmarks/lora_question/claim_list.py` lists the studies that were designed for a claim.
- **Differences** are paired by seed, over the seeds that both rows have in the same study. Two claims compare
  two studies: the claim about pretraining uses Welch's intervals, and the claim about test images pairs by seed.
- **Intervals** are Student's t intervals over seeds. Sensitivity rows have individual 95% intervals. A verdict uses
  simultaneous intervals: by Bonferroni over the counted studies, all intervals of a claim hold together with 95%
  probability.
- **Not much worse** means less than 2 points worse. A claim is *supported* if the whole interval satisfies it,
  *contradicted* if the whole interval violates it, and *inconclusive* otherwise.
- **Exact quantities**, such as numbers of parameters, have no interval.
- **Inconclusive in any case:** comparisons in which the mean accuracy of one side is within three of its standard
  deviations over seeds of 100%. The same holds for an untuned rival that is significantly worse than a linear probe on
  the same pretrained backbone.

The verdict rules were written on 26 November 2026, after the first runs. The counting rules were written on 28
November, when the results of all studies on this page were known.

## Corrections

- **27 November 2026:** four rules were narrowed after the runs that they concern. A comparison with a rival that is
  worse than the linear probe is inconclusive only if the rival is untuned. A linear probe is compared only with
  adapters on the same backbone. Ranks are compared best with best. Rows that differ only in the training configuration
  are represented by the best one.
- **28 November 2026:**
  - The summary counts studies. Before, it counted rows, and one study with three seeds counted up to 24 times.
  - Each difference and the two accuracies next to it use the same seeds. Before, some accuracies were means over five
    seeds next to means over three.
  - Verdicts use simultaneous t intervals. Before, they used individual intervals of 95%, so fewer studies now decide.
  - The study on all test images repeats another study and no longer counts as a second one.
  - The loss without task IDs is measured within the same trials, and no longer between two studies.
  - The main rival is now the best row of the method. PNN is therefore represented by the row that starts from the
    backbone, and RanPAC by its better ridge.
- **30 November 2026:** a review found rules that favored LoRA or a claim.
  - Compute and time are compared with fine-tuning (`naive` or `independent`) only. EWC and ER, which cost more, stood
    in for it in some studies. Wall times no longer count as processor times.
  - LoRA's lead over ER supports the claim about buffers only if ER's buffer has at least half of LoRA's additional
    bytes. Much smaller ones had counted.
  - Analytic classifiers are on the frozen backbone. One had trained adapters in the first task.
  - Permuted pixels count only with task IDs, because without them most of the loss comes from inferring the task.

## Limitations

- **Small images and budgets.** The ViT sees 56-pixel images that were enlarged from 32 x 32. A task has 500 images and
  64 steps. Some methods had not converged, as their reports say.
- **Backbones.** The ViT-S/14 was fine-tuned for saliency detection on images that its authors do not name; it is not
  DINOv2. No study has a ViT-B/16, the backbone of most published tables.
- **Easy texts.** With task IDs, a linear probe on MiniLM is as good as joint training, so adapters have nothing to
  gain.
- **Little tuning.** Tuned rows had two to eight candidates, on one seed, and most at half the budget. Half the budget
  favors higher learning rates, and some chosen values are at the edge of their range. EWC and PNN have more
  hyperparameters than LoRA, so little tuning is harder on them. The study `answer` gives all methods the same effort.
  Its [protocol](../benchmarks/lora_question/PROTOCOL.md) fixes its primary comparisons. These pages include it as
  soon as it has records.
- **One learning rate.** Except in `answer`, methods that train the backbone have one rate for backbone and head. It is
  low for the head, which puts them at a disadvantage to LoRA.
- **Best rows are chosen by test accuracy**, which favors both sides of a comparison.
- **Few seeds.** Simultaneous intervals over three seeds are wide, so *inconclusive* often means too few seeds.
- **Shared images.** Except in `answer`, all seeds share their training and test images and one set of pretrained
  weights. Intervals do not cover the choice of images or of weights.
- **Interim analysis.** Five studies got more seeds after an interim analysis, which the intervals do not account for:
  `vision_task`, `vision_task_full`, `vision_class`, `efficientnet_class` and `text_class`.

## How to cite a claim

Cite clbench as `CITATION.cff` says, with the version, and name the claim's page. The page's file name and its anchor
never change, even if the claim is worded differently. Give the date, because new studies can change the numbers. For
example:

```text
the clbench authors. clbench, version {version}, {date}.
Claim "{sentence}", docs/claims/{slug}.md#claim-{slug}
```
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
    Headline("pretraining", ("base (Task-IL)",), "With task IDs,", "LoRA needs the pretrained backbone",
             "pretraining makes no clear difference to LoRA", "LoRA is better without pretraining"))


def summary_page(claims: Sequence[ClaimResult], studies: Sequence[Study]) -> str:
    """Return the page."""
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    fields = {name: re.search(rf"^{key}: (.+)$", citation, re.MULTILINE)[1]
              for name, key in (("version", "version"), ("date", "date-released"))}
    first = claims[0]
    return "\n".join([INTRODUCTION, *headline_table(claims), SUMMARY, *summary_table(claims),
                      RULES.format(sentence=first.claim.sentence, slug=first.slug, **fields), "## Studies", "",
                      *study_table(studies), "", "```{toctree}", ":hidden:", "",
                      *(f"claims/{claim.slug}" for claim in claims), "```"]) + "\n"


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
        yield (f"| [{escape(study.name.partition(' (')[0])}](../{study.report}) | {study.scenario_title} | "
               f"{study.description} | {len(study.rows[0].first.R[0])} | {seed_range} | "
               f"{' or '.join(f'{count:,}' for count in steps)} | {tuned} of {len(study.rows)} |")
