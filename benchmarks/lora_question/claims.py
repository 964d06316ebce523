"""Hold what is said of LoRA for continual learning against the committed records: writes docs/lora-claims.md.

`python benchmarks/lora_question/claims.py` prints the page, `--write` keeps it. Every figure on it is computed from the
records under reports/, by the rule that stands beside the claim; a test says whether the committed page is current.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from evidence import MARGIN, NOT_PRETRAINED, PRETRAINED, Claim, Finding, Study, studies, told
from sentences import CLAIMS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "lora-claims.md"
INTRODUCTION = """\
# What is said of LoRA, and what the runs say

Per task LoRA trains two small matrices beside each frozen weight W: h = Wx + (alpha/r) B(Ax). Each sentence below is
one that people say about it in continual learning. Below it stand a rule and what the committed records give by that
rule, in every committed study that has LoRA in it. The page is made by
`python benchmarks/lora_question/claims.py --write`; no figure on it is typed by hand. The rules were written on 26
November 2026, when the runs on MNIST, on texts, and the first ones on Split-CIFAR-100 were known. Four were narrowed
on the 27th, when runs that they touch were known: that a method ends below heads alone is put down to its recipe only
where no better recipe was searched for; heads are held against adapters on the same base alone; low and high ranks
are compared best with best, among rows that infer the task alike, no longer each with each; and of rows of a method
that differ in their recipe alone the best by the accuracies shown stands for all, LoRA's and its rivals' alike. One
comparison was added when its runs were known: of LoRA on two pretrained bases. The study on all test images was first
to be left out of the other tables, as a repetition of one; it was put in when it was known.

- **Differences** are in points of final average accuracy ([ACC](metrics.md)), paired by seed, with a 95 % interval,
  as in the reports. Each interval is one of many on this page: of twenty that are right, about one misses by chance.
- **"As good as"** means less than {margin:.0f} points worse. It holds if the whole interval is above -{margin:.0f},
  does not hold if the whole interval is below, and is not decided otherwise.
- **A verdict is about the [settings](#settings) in its table**, no others. They are small: what two cores can train.
- **Bases** stand apart: networks that came with weights, and networks that the first task trains, or nothing.
  In brackets: how many comparisons say yes, how many no, and how many are not decided. Several may be of one study.
"""
OBJECTIONS = """
## What these runs do not answer

Objections of a careful reviewer that more seeds would not meet:

- **Small images, small budgets.** The pretrained ViT sees images of 56 pixels made of 32 x 32, and is made for 518,
  EfficientNet-Lite0 for 224; a task has 500 images and 64 steps. Reports say which methods were still learning. What
  full fine-tuning gains from more steps, and LoRA from features that fit better, is not in these tables.
- **Easy texts.** A task of the study on texts is to tell two groups apart, and heads alone on the frozen encoder are as
  good at it as training on all tasks at once: there was nothing to gain for an adapter. Without the task id heads alone
  keep up with training on all tasks too; what is lost there is lost in telling the tasks apart, and one regression for
  all classes on the same features (`ranpac`, its ridge searched) loses less.
- **Small bases.** A ViT-S/14 and MiniLM have 22 million parameters, EfficientNet-Lite0 has 3.4 million. Published
  tables have a ViT-B/16; for that one there are [settings to run](verify.md) and no runs.
- **A short search.** Four candidates (six on texts without the task id), one seed, half the budget. EWC and PNN have
  more that could be searched than LoRA, so a small search is harder on them. On the ViT with the task id EWC's
  strength was searched a second time, on both sides of the choice, and stayed; in the other studies it has two or
  three values. On EfficientNet-Lite0 EWC ends below naive fine-tuning: it was given naive's rate, and at half the
  budget a higher one was better. LoRA's alpha was not searched with them. Half the budget asks for higher learning
  rates than the whole: on the ViT LoRA of rank 16, and whole copies of the network, are better at a third of the rate
  that was chosen for them ([ranks](../reports/lora_question/ranks/report.md)). Other rows may be, too. In the family
  some rows chose an end of what they were given, after what lies beyond had been added once: without the task id
  inflora and slca the lowest rate, with it slca the highest, and the lowest part of it for the layers below the head.
- **One set of weights for each base.** Seeds change the order of classes, of samples, and the new weights; none
  changes what the base learned, or on which images. Whether those had some like CIFAR-100's is not known.
- **Rules after the first runs**, and many comparisons on one page (see above).
"""
SETTINGS = """\
## Settings

`task`: the test gives the task id; `class`: it does not; `domain`: all tasks share their classes. Steps are those of
the first task. Where options were searched, it was on held-out training samples; where only some rows were, part of a
difference is the search. Older records do not say that they were searched.

| setting | tasks | base of LoRA | seeds | recipe | steps | search on record |
| :-- | --: | :-- | --: | :-- | --: | :-- |"""


@dataclass(frozen=True)
class Tested:
    """A claim with what was found."""

    claim: Claim
    findings: tuple[Finding, ...]

    @property
    def by_base(self) -> dict[str, list[Finding]]:
        """Return the findings by the bases that they are of."""
        return {base: [f for f in self.findings if f.traits["base"] == base] for base in (PRETRAINED, NOT_PRETRAINED)}

    @property
    def anchor(self) -> str:
        """Return what a link to its section needs, as GitHub and MyST make it of the heading."""
        kept = "".join(c for c in self.claim.sentence.lower() if c.isalnum() or c in " -_")
        return kept.replace(" ", "-")


def page(found: Sequence[Study]) -> str:
    """Return the page."""
    tested = [Tested(claim, tuple(claim.test(found))) for claim in CLAIMS]
    return "\n".join([INTRODUCTION.format(margin=100 * MARGIN), *_overview(tested), *map(_section, tested),
                      SETTINGS, *("| " + " | ".join(study.facts) + " |" for study in found), OBJECTIONS])


def _overview(tested: Sequence[Tested]) -> Iterator[str]:
    yield f"| claim | {PRETRAINED} | {NOT_PRETRAINED} |\n| :-- | :-- | :-- |"
    for one in tested:
        cells = [told(found) if found else "" for found in one.by_base.values()]
        verdicts = " | ".join(cells if any(cells) else ["not tested yet", ""])
        yield f"| [{one.claim.sentence}](#{one.anchor}) | {verdicts} |"
    yield ""


def _section(tested: Tested) -> str:
    claim = tested.claim
    there = {base: findings for base, findings in tested.by_base.items() if findings}
    verdicts = " ".join(f"{base.capitalize()}: {told(findings)}." for base, findings in there.items())
    lines = [f"## {claim.sentence}\n", f"**{verdicts or 'Not tested yet.'}** {claim.rule}\n"]
    for base, findings in there.items():
        folded = base != PRETRAINED and len(there) > 1
        if folded:
            lines.append(f"<details><summary>{len(findings)} {base}</summary>\n")
        lines += ["| setting | found | verdict |", "| :-- | :-- | :-- |"]
        lines += [f"| {f.setting} | {f.text} | {f.verdict} |" for f in findings]
        lines.append("\n</details>\n" if folded else "")
    if claim.remark:
        lines.append(claim.remark + "\n")
    if waiting := [name for name in claim.planned if not (ROOT / "reports" / "lora_question" / name).exists()]:
        files = ", ".join(f"[{name}](../benchmarks/lora_question/{name}.toml)" for name in waiting)
        lines.append(f"Not run yet: {files}.\n")
    return "\n".join(lines)


def main() -> None:
    """Print the page or keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep it as docs/lora-claims.md")
    text = page(studies(ROOT / "reports"))
    if parser.parse_args().write:
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
