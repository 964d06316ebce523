"""How to read the tables of a report: the footnote of a comparison, and what columns, intervals and tests mean."""

from __future__ import annotations

from collections.abc import Iterable

from clbench.core.objective import ACCURACY, REGRESSION, Metric, objective_of
from clbench.report.analysis.families import Family
from clbench.report.analysis.grouping import Setting
from clbench.report.analysis.method_records import SHORT
from clbench.report.analysis.paired_tests import describe_interim_analyses, flips_name
from clbench.report.decided import Facts
from clbench.report.formatting import join_names, plural
from clbench.results.records import Record, metrics_of
from clbench.results.stats import ALPHA, FEW

FOOTNOTE = ("Values are means over seeds ± half of a 95% confidence interval. ↑ means that higher is better, ↓ that "
           "lower is better. Bold marks a value that is significantly better than that of every other method, or the "
            "smallest count. References are left out of this comparison.")
TWO_SEEDS = "With two seeds, intervals over seeds are very wide, because two values say little about their spread."
ACCURACY_DEFINITION = (
    "Accuracy (ACC) is the mean accuracy over all tasks after the last one. Forgetting is the best accuracy on a task "
    "between its training and the last task, minus the final one, averaged over tasks (Chaudhry 2018). Backward "
    "transfer (BWT) is the final accuracy minus that just after training, averaged over tasks (Lopez-Paz & Ranzato "
    "2017). Points are percentage points. docs/metrics.md has the formulas.")
READING = (  # for tables of any metric; `definitions` replaces {values} and {Shares} by its names
    "± is half the width of a 95% confidence interval of the mean over seeds: Student's t with fewer than "
    f"{FEW} seeds, else the BCa bootstrap at a level that is expanded for few seeds (Hesterberg 2015). For values that "
    "are tested over seeds and samples, it is Student's t over both.",
    "Bold marks a method that is significantly better than every other method that has all seeds. References are "
    "left out of this comparison. Counts that are equal for every seed are compared without a test.",
    "Differences are paired by seed, because methods share batches and initial weights. The comparisons with the "
    "baseline, those with joint training, and all pairs of methods are families of tests. P-values are Holm-corrected "
    f"within their family, and a difference is significant if its corrected p-value is at most {ALPHA:g}. With fewer "
    f"than {FEW} seeds the test is the paired t-test, which assumes normally distributed differences. With more it is "
    "the sign-flip test, if it can reach this level. If all seeds share their test samples and records have the "
    "results of single samples, {values} are tested over seeds and samples. {Shares} within 3 standard deviations of "
    "100% are not tested. The effect size is Hedges' g. Intervals of differences are not corrected.",
    "Trainable parameters per task are those of the last task. Total parameters and storage count everything that a "
    "method holds after the last task, including replay buffers. Training time includes consolidation, but no "
    "evaluation.",
)
COMPUTE_DEFINITION = (
    "Training compute counts the FLOPs of matrix products, convolutions and attention over all tasks, including "
    "consolidation; a multiplication and its addition are two. Inference compute is the same for one test sample after "
    "the last task. Training CPU is processor time over all threads, where training time is wall-clock time.")
UNTIL_DEFINITION = (
    "If seeds were added until the question was decided, p-values are sequential: the paired t-test, or that over "
    "seeds and samples, after each number of seeds of the rule, with boundaries that equal methods cross at any of "
    "them with probability p (Jennison & Turnbull 1991; Liu & Anderson 2008), Holm-corrected at each interim analysis "
    "(Maurer & Bretz 2013). ± is half of a repeated confidence interval (Jennison & Turnbull 1989). Both assume "
    "normally distributed differences, and both hold whenever one stops; over seeds and samples approximately. "
    "Figures show the usual intervals of values before the last task and of single tasks, which do not hold here.")
ERRORS_DEFINITION = (
    "The error decomposition divides the points that are lost after the last task into parts that sum to them. "
    "Within-task error remains if the task is given. Task-recency bias is what the best constant for each task's "
    "outputs would correct; these constants are fitted to half of the test samples and evaluated on the others, so "
    "this part can be negative. Inter-task confusion is the rest. For methods that infer the task, the parts are wrong "
    "tasks and samples that are right only without the task ID. The probe is the accuracy of ridge regression on the "
    "final features with all training samples; it is neither a method nor a strict bound. Representation drift is the "
    "probe's accuracy just after a task was learned, minus the final one.")


def definitions(records: Iterable[Record]) -> tuple[str, ...]:
    """Return the definitions of the columns that the tables of some records show.

    Older records have no FLOPs and no error decomposition, so these definitions are optional.
    """
    records = list(records)
    metrics = metrics_of(records)
    values = join_names([metric.plural for metric in metrics])
    shares = join_names(list(dict.fromkeys(metric.shares for metric in metrics)))
    return (*map(_metric_definition, metrics),
            *(text.replace("{values}", values).replace("{Shares}", shares.capitalize()) for text in READING),
            *([COMPUTE_DEFINITION] if any(r.costs.train_flops for r in records) else []),
            *([UNTIL_DEFINITION] if any(r.until for r in records) else []),
            *([ERRORS_DEFINITION] if any(r.errors or r.probe for r in records) else []))


def _metric_definition(metric: Metric) -> str:
    """Return the definitions of a metric and of the columns that are computed from it."""
    if metric == ACCURACY:
        return ACCURACY_DEFINITION
    metrics = objective_of(metric).metrics
    meanings = [f"{m.heading} is {m.definition}." for m in metrics]
    means = "over tasks" if objective_of(metric) == REGRESSION else "over the items of a task, then over tasks"
    return " ".join([
        *meanings, f"Tables show means {means}. Final values are measured after the "
        "last task. Learned values are measured just after each task was trained, so that a method that learned little "
        "does not look like one that forgets little. Forgetting says how much worse the final value of a task is than "
        "its best one between its training and the last task; backward transfer (BWT) says how much better the final "
        "value is than the learned one. Both are averaged over all tasks but the last (Chaudhry 2018; Lopez-Paz & "
        "Ranzato 2017). Points are percentage points. docs/metrics.md has the formulas."])


def footnote(setting: Setting, facts: Facts, tests: Family) -> tuple[str, ...]:
    """Return the sentences under a comparison table: how to read it, which test it uses, and what the names mean.

    Args:
        setting: the setting of the table.
        facts: the verdicts on it.
        tests: the tests of the final means of all pairs of methods.
    """
    two_seeds = TWO_SEEDS if len(setting.seeds) == 2 else ""
    return tuple(filter(None, [FOOTNOTE, two_seeds, marks(setting), _describe_tests(setting, facts, tests),
                               condition(setting), legend(setting)]))


def marks(setting: Setting) -> str:
    """Explain the marks of the rows in a few words. The notes say more."""
    used_marks = "".join(m.marks for m in setting.methods)
    meanings = [f"{mark} {words}" for mark, words in SHORT.items() if mark in used_marks]
    return f"Marks: {'; '.join(meanings)}." if meanings else ""


def _describe_tests(setting: Setting, facts: Facts, tests: Family) -> str:
    """Describe the statistical tests, the number of comparisons of their correction, and their assumptions."""
    # the size of each family, its name, and the most seeds of a pair by test
    families = [(c.tests, f"with {c.other}", dict(sorted((str(p.test), p.seeds) for p in c.pairs)))
                for c in facts.compared]
    if facts.best:
        pairs = tests.against(facts.best.method)
        families.append((facts.best.tests, "between pairs of methods",
                         dict(sorted((str(p.test), len(p.differences)) for p in pairs))))
    if facts.until:
        tested = [(size, words) for size, words, _ in families if size]
        if not tested:
            return ""
        over, what = (("seeds and test samples", "effects") if setting.answers(setting.final) else
                      ("seeds", "differences"))
        return (f"Differences are tested by sequential t-tests over {over}, Holm-corrected over {_counts(tested)}, "
                f"with {describe_interim_analyses(facts.until)}. They assume normally distributed {what}.")
    most_flips = max((seeds["flips"] for _, _, seeds in families if "flips" in seeds), default=0)
    mixed = any({"flips", "t"} <= seeds.keys() for _, _, seeds in families)
    sentences = list[str]()
    for test, name, assumption in (
            ("flips", f"{flips_name(most_flips)} over seeds",
             "They assume that a difference is as likely as its opposite."),
            ("t", "paired t-tests over seeds", "They assume normally distributed differences."
             + " They are used for pairs with too few seeds for sign-flip tests." * mixed),
            ("crossed", "t-tests over seeds and test samples", "They assume normally distributed effects.")):
        if tested := [(size, words) for size, words, seeds in families if test in seeds]:
            subject = "Other differences" if sentences else "Differences"
            sentences.append(f"{subject} are tested by {name}, Holm-corrected over {_counts(tested)}. {assumption}")
    return " ".join(sentences)


def condition(setting: Setting) -> str:
    """Describe which samples all seeds share. Intervals and tests do not cover the choice of these samples."""
    if len(setting.seeds) < 2:
        return ""
    if setting.records[0].trial.validation:
        return "" if setting.own_training else (
            "All results are conditional on the samples that each seed divides into training and validation samples.")
    covered = [m.metric.label for m in setting.measures if m.metric and setting.answers(m)]
    texts = any(m.items and setting.answers(m) for m in setting.measures)
    training, tests = not setting.own_training, not setting.own_tests and not covered
    shared = join_names([*(["training"] if training else []), *(["test"] if tests else [])], 2)
    also = "also " if shared else ""
    return " ".join(filter(None, [
        f"Intervals and tests of {join_names(covered)} also cover the choice of test samples." if covered else "",
        "Intervals and tests of general texts also cover the choice of texts." if texts else "",
        f"All results are conditional on the {shared} samples, which all seeds share." if shared else "",
        f"Results of other metrics are {also}conditional on the test samples." if covered else ""]))


def _counts(families: list[tuple[int, str]]) -> str:
    return join_names([f"{plural(size, 'comparison')} {words}" for size, words in families], len(families))


def legend(setting: Setting) -> str:
    """Explain which id each display name stands for, and which method a name is that the study gives."""
    names = [f"{m.label} = {m.id}" for m in setting.methods if m.label != m.id]
    own_names = [f"{m.label} = {m.strategy}" for m in setting.methods
                 if m.label == m.id and m.id.partition(":")[0] != m.strategy]
    return " ".join(f"{words}: {'; '.join(pairs)}." for words, pairs in (
        ("Names for --methods", names), ("Names that the study gives", own_names)) if pairs)
