"""The footnote of a comparison: which statistical test decides, its correction and what it assumes."""

from __future__ import annotations

from clbench.report.analysis.grouping import Setting
from clbench.report.analysis.marks import SHORT
from clbench.report.analysis.paired_tests import looks
from clbench.report.decided import Facts
from clbench.report.formatting import in_words

READING = ("Values are means over seeds ± half of a 95% confidence interval. ↑ means that higher is better, ↓ that "
           "lower is better. Bold marks what is significantly best, references excluded.")


def footnote(setting: Setting, facts: Facts) -> tuple[str, ...]:
    """Return the sentences under a comparison table: how to read it, the test, and what the names stand for."""
    return tuple(filter(None, [READING, marks(setting), test_sentence(facts), legend(setting)]))


def marks(setting: Setting) -> str:
    """Return what the marks of the rows mean, in a few words; notes say more."""
    used = "".join(m.marks for m in setting.methods)
    meanings = [f"{mark} {words}" for mark, words in SHORT.items() if mark in used]
    return f"Marks: {'; '.join(meanings)}." if meanings else ""


def test_sentence(facts: Facts) -> str:
    """Return which tests decide, over how many comparisons they are corrected, and what they assume."""
    families = [(c.tests, f"with {c.other}", "t" if c.by_t else "flips" if any(p.test for p in c.pairs) else None)
                for c in (facts.baseline, facts.joint) if c]
    if facts.best:
        families.append((facts.best.tests, "between pairs of methods", facts.best.test))
    rate = facts.false_claims
    near = (f" If a method is close to 100%, up to {100 * rate:.0f}% of such sets of comparisons contain a false claim."
            if rate else "")
    if facts.until:
        return (f"Sequential t-tests over seeds, {looks(facts.until)}; Holm-corrected over "
                f"{_counts([(tests, words) for tests, words, _ in families])}. They assume normally distributed "
                f"differences.{near}")
    sentences = []
    for test, name, assumption in (
            ("flips", "Exact sign-flip tests", "They assume that a difference is as likely as its opposite."),
            ("t", "Paired t-tests", "They assume normally distributed differences." + near)):
        chosen = [(tests, words) for tests, words, by in families if by == test and tests]
        if chosen:
            sentences.append(f"{name} over seeds, Holm-corrected over {_counts(chosen)}. {assumption}")
    return " ".join(sentences)


def _counts(families: list[tuple[int, str]]) -> str:
    return in_words([f"{tests} comparison{'s' * (tests != 1)} {words}" for tests, words in families], len(families))


def legend(setting: Setting) -> str:
    """Return which id each display name stands for; nothing where they are the same."""
    names = [f"{m.label} = {m.id}" for m in setting.methods if m.label != m.id]
    return f"Names for --methods: {'; '.join(names)}." if names else ""
