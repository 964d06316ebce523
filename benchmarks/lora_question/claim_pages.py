"""The page of one claim, and the CSV file with the rows of all claims."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from claim_list import Claim
from evidence import Study
from verdicts import LEVEL, Comparison, count_verdicts, mark_counted, simultaneous_level

from clbench.core.scenario import scenario_rules
from clbench.report.formats.markdown import escape

CSV_COLUMNS = ("claim", "study", "setting", "scenario", "method", "rival", "effect", "low", "high", "unit", "level",
               "seeds", "counted", "verdict")
BACKBONES = {True: "pretrained backbones", False: "other backbones"}


@dataclass(frozen=True)
class ClaimResult:
    """A claim with all its comparisons."""

    claim: Claim
    rows: tuple[Comparison, ...]

    @classmethod
    def of(cls, claim: Claim, studies: Sequence[Study]) -> ClaimResult:
        """Test a claim in all studies."""
        return cls(claim, tuple(mark_counted(claim.test(studies), claim.designed)))

    @property
    def slug(self) -> str:
        """Return the permanent name of the claim."""
        return self.claim.slug

    @property
    def level(self) -> float:
        """Return the level of the simultaneous intervals, which decide the verdicts of studies."""
        return simultaneous_level(self.rows)

    @property
    def counted(self) -> list[Comparison]:
        """Return the rows that count, one for each study."""
        return [row for row in self.rows if row.counted]

    def level_of(self, row: Comparison) -> float:
        """Return the level of the interval that decides a row's verdict."""
        return self.level if row.counted else LEVEL

    def counts(self, *, pretrained: bool, with_ids: bool) -> tuple[int, int, int]:
        """Return how many studies of one kind support the claim, contradict it, and do not decide it."""
        return count_verdicts((row for row in self.rows if row.source.pretrained == pretrained
                               and (row.source.scenario == "task") == with_ids), self.level)


def counts_in_words(claim: ClaimResult) -> Iterable[str]:
    """Return a sentence for each kind of studies."""
    for pretrained, backbone in BACKBONES.items():
        for with_ids, words in ((True, "with task IDs"), (False, "without task IDs")):
            counts = claim.counts(pretrained=pretrained, with_ids=with_ids)
            if any(counts):
                supported, contradicted, inconclusive = counts
                yield (f"- **{backbone.capitalize()}, {words}:** {supported} supported, {contradicted} contradicted, "
                       f"{inconclusive} inconclusive.")


def claim_page(claim: ClaimResult) -> str:
    """Return the page of a claim."""
    lines = [f"# {claim.claim.sentence}", "", f'<a id="claim-{claim.slug}"></a>', "",
             f"**Rule:** {claim.claim.rule}", ""]
    lines += [*counts_in_words(claim)] if claim.counted else ["No committed study tests this claim yet."]
    lines += ["", "The [overview](../lora-claims.md) explains rules and limitations, and how to cite this claim."]
    lines += ["", claim.claim.remark] if claim.claim.remark else []
    if claim.counted:
        lines += ["", "## Verdict of each study", "", *counted_table(claim)]
    others = [row for row in claim.rows if not row.counted]
    if others:
        lines += ["", "## Sensitivity", "", "These rows do not count: they have another rank or variant, or another "
                  "study of the same setting counts. Their intervals are individual 95% intervals.", "",
                  *sensitivity_table(others)]
    return "\n".join(lines) + "\n"


def counted_table(claim: ClaimResult) -> Iterable[str]:
    """Return the table with the verdict of each study."""
    with_intervals = any(not row.exact for row in claim.rows)
    simultaneous = f" 95% interval | simultaneous interval ({100 * claim.level:.2f}% each) |" if with_intervals else ""
    yield f"| study | LoRA's row | compared with | values | effect |{simultaneous} seeds | verdict |"
    yield f"| :-- | :-- | :-- | :-- | --: |{' --: | --: |' if with_intervals else ''} --: | :-- |"
    for row in claim.counted:
        intervals = f" {format_interval(row, LEVEL)} | {format_interval(row, claim.level)} |" if with_intervals else ""
        yield f"{start_of(row)}{intervals} {row.seeds} | {format_verdict(row, claim.level)} |"


def sensitivity_table(rows: Iterable[Comparison]) -> Iterable[str]:
    """Return the table of rows that do not count."""
    yield "| study | row | compared with | values | effect | individual 95% interval | seeds | verdict |"
    yield "| :-- | :-- | :-- | :-- | --: | --: | --: | :-- |"
    for row in rows:
        yield f"{start_of(row)} {format_interval(row, LEVEL)} | {row.seeds} | {format_verdict(row, LEVEL)} |"


def start_of(row: Comparison) -> str:
    """Return the first columns of a table's row."""
    link = f"[{escape(row.source.name)}](../../{row.source.report})"
    return (f"| {link}: {row.source.description} | {row.method} | {row.rival} | {row.details} | "
            f"{format_effect(row.interval().mean, row.unit)} |")


def format_effect(value: float, unit: str) -> str:
    """Write an effect."""
    if unit == "points":
        return f"{value:+.1f}"
    if unit == "percent":
        return f"{value:.1f}%"
    if unit == "changes":
        return f"{value:,.1f} changes" if value else "0 changes"
    if unit == "times":
        return f"{value:,.0f} times" if value >= 9.95 else f"{value:.2f} times"
    return f"{value:.2f}"


def format_interval(row: Comparison, level: float) -> str:
    """Write the interval of an effect."""
    interval = row.interval(level)
    if interval.low is None or interval.high is None:
        return "exact" if row.exact else "none"
    return f"{format_effect(interval.low, row.unit)} to {format_effect(interval.high, row.unit)}"


def format_verdict(row: Comparison, level: float) -> str:
    """Write a verdict with the reason for an inconclusive one."""
    return row.verdict(level) + (f" ({row.reason})" if row.reason else "")


def rows_csv(claims: Iterable[ClaimResult]) -> str:
    """Return all rows of all claims as CSV; counted rows have the simultaneous interval that decides."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for claim in claims:
        for row in claim.rows:
            level = claim.level_of(row)
            interval = row.interval(level)
            low, high = ("" if end is None else f"{end:.4f}" for end in (interval.low, interval.high))
            scenario = scenario_rules(row.source.scenario).title
            writer.writerow([claim.slug, row.source.name, row.source.description, scenario, row.method, row.rival,
                             f"{interval.mean:.4f}", low, high, row.unit, "" if row.exact else f"{level:.5f}",
                             row.seeds, str(row.counted).lower(), row.verdict(level)])
    return file.getvalue()
