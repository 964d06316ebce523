"""The footnote of a comparison: which statistical test decides, its correction and what it assumes."""

from __future__ import annotations

from clbench.report.analysis.grouping import Setting
from clbench.report.analysis.levels import SHORT
from clbench.report.analysis.paired_tests import describe_interim_analyses
from clbench.report.decided import Facts
from clbench.report.formatting import in_words

READING = ("Values are means over seeds ± half of a 95% confidence interval. ↑ means that higher is better, ↓ that "
           "lower is better. Bold marks what is significantly best, or the smallest count; references excluded.")


def footnote(setting: Setting, facts: Facts) -> tuple[str, ...]:
    """Return the sentences under a comparison table: how to read it, which test it uses, and what the names mean."""
    return tuple(filter(None, [READING, marks(setting), test_sentence(facts), condition(setting), legend(setting)]))


def marks(setting: Setting) -> str:
    """Explain the marks of the rows in a few words. The notes say more."""
    used = "".join(m.marks for m in setting.methods)
    meanings = [f"{mark} {words}" for mark, words in SHORT.items() if mark in used]
    return f"Marks: {'; '.join(meanings)}." if meanings else ""


def test_sentence(facts: Facts) -> str:
    """Describe the statistical tests, the number of comparisons of their correction, and their assumptions."""
    families = [(c.tests, f"with {c.other}", c.test) for c in (facts.baseline, facts.joint) if c]
    if facts.best:
        families.append((facts.best.tests, "between pairs of methods", facts.best.test))
    if facts.until:
        return (f"Sequential t-tests over seeds, {describe_interim_analyses(facts.until)}; Holm-corrected over "
                f"{_counts([(tests, words) for tests, words, _ in families])}. They assume normally distributed "
                "differences.")
    sentences = []
    for test, name, assumption in (
            ("flips", "Exact sign-flip tests over seeds",
             "They assume that a difference is as likely as its opposite."),
            ("t", "Paired t-tests over seeds", "They assume normally distributed differences."),
            ("crossed", "T-tests over seeds and test samples", "They assume normally distributed effects.")):
        chosen = [(tests, words) for tests, words, by in families if by == test and tests]
        if chosen:
            sentences.append(f"{name}, Holm-corrected over {_counts(chosen)}. {assumption}")
    return " ".join(sentences)


def condition(setting: Setting) -> str:
    """Describe which samples all seeds share. Intervals and tests do not cover the choice of these samples."""
    if len(setting.seeds) < 2:
        return ""
    tests = not setting.own_tests and not setting.answers(setting.final)
    shared = in_words([*(["training"] if not setting.own_training else []), *(["test"] if tests else [])], 2)
    covered = (f"Intervals and tests of {setting.metric.label} also cover the choice of test samples. "
               if setting.answers(setting.final) else "")
    return covered + (f"All results are conditional on the {shared} samples, which all seeds share." if shared else "")


def _counts(families: list[tuple[int, str]]) -> str:
    return in_words([f"{tests} comparison{'s' * (tests != 1)} {words}" for tests, words in families], len(families))


def legend(setting: Setting) -> str:
    """Explain which id each display name stands for, unless they are the same."""
    names = [f"{m.label} = {m.id}" for m in setting.methods if m.label != m.id]
    return f"Names for --methods: {'; '.join(names)}." if names else ""
