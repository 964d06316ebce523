"""The candidates of a search: default space, labels, which options are refused, scores, choice, and a table of all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from math import inf, sqrt
from statistics import fmean, stdev
from typing import Any

from clbench.core import options as opt
from clbench.core.errors import SpecError
from clbench.core.objective import ACCURACY, find_metric, format_digits
from clbench.core.option_marks import OnlyWith, marks, search_values
from clbench.core.registry import Registry
from clbench.execution.samplers import Candidate, corners, describe
from clbench.experiment.overrides import names_of
from clbench.experiment.recipe import Recipe
from clbench.experiment.search import Choices, Outcome, Search, Space, Tried
from clbench.experiment.spec import MethodSpec, Spec, change_recipe
from clbench.experiment.trial import PlannedTrial, Trial
from clbench.report.formats.markdown import escape
from clbench.report.formatting import as_ranges, join_names, unit_of
from clbench.report.model import UNIT_SUFFIX

RATE = "lr"
RATE_FACTORS = (0.1, 0.3, 1.0, 3.0)  # of the recipe's learning rate
DIGITS = 3  # significant digits of the learning rates


def spaces_of(spec: Spec, methods: Sequence[MethodSpec], registry: Registry, planned: Sequence[PlannedTrial],
              only: Sequence[str] = ()) -> list[Space]:
    """Return the search space of each method.

    If the experiment has no [tune.METHOD] table, every method has its default space. Otherwise a method has the space
    of the table with its label, or else with its strategy's name. Without a table, a method that `only` names has its
    default space, and any other an empty one.

    Args:
        spec: the experiment.
        methods: its methods, with sweeps expanded.
        registry: the installed plugins.
        planned: its trials.
        only: names or labels of the methods to search; empty for all.
    """
    tables = [spec.tune.get(method.label or "") or spec.tune.get(method.name, {}) for method in methods]
    without_table = set(only).difference(*(names_of(m) for m, table in zip(methods, tables, strict=True) if table))
    return [table if trial is None or (spec.tune and not names_of(method) & without_table)
            else default_space(method, spec, registry, trial.method.options)
            for method, table, trial in zip(methods, tables, _first_trials(methods, planned), strict=True)]


def _first_trials(methods: Sequence[MethodSpec], planned: Sequence[PlannedTrial]) -> list[Trial | None]:
    """Return the first planned trial of each method, None if it runs in none of the experiment's scenarios.

    A plan lists the methods in the same order in each scenario.
    """
    seed = planned[0].trial.seed
    trials = [p.trial for p in planned if p.trial.seed == seed]
    first_trials: dict[int, Trial] = {}
    for scenario in dict.fromkeys(trial.scenario for trial in trials):
        rows = [row for row, method in enumerate(methods) if method.runs_in(scenario)]
        for row, trial in zip(rows, (t for t in trials if t.scenario == scenario), strict=True):
            first_trials.setdefault(row, trial)
    return [first_trials.get(row) for row in range(len(methods))]


def default_space(method: MethodSpec, spec: Spec, registry: Registry, options: Mapping[str, Any]) -> Space:
    """Return the values that a method's options declare (`SearchValues`), and learning rates around its own rate.

    Options that the experiment gives, or that have no effect, are not searched. A method with a closed-form solution
    has no learning rate.

    Args:
        method: the method, with sweeps expanded.
        spec: the experiment.
        registry: the installed plugins.
        options: the method's options as planned trials have them, with concrete values in place of `auto`.
    """
    info = registry.strategy(method.name)
    planned_options, needs = info.options.stored(options), marks(info.options, OnlyWith)
    space = {option: Choices(values=values) for option, values in search_values(info.options).items()
             if option not in method.options and not (option in needs and needs[option].missing(planned_options))}
    if not planned_options.trained_by_steps:
        return dict(space)
    rate = change_recipe(spec.recipe, method.own_recipe(info.recipe))[0].lr  # for the method's own batch size
    rates = tuple(float(f"{rate * factor:.{DIGITS}g}") for factor in RATE_FACTORS)
    return {**space, **{name: Choices(values=values) for name, values in opt.recipe_options({RATE: rates}).items()}}


RATES = ("recipe.lr", "recipe.head_lr")  # a tie is decided by the lowest of these, in this order
LEGEND = """\
A mean is that of {final} on the validation samples over the seeds. Its standard error is the sample
standard deviation over the seeds, divided by the square root of their number. A candidate ties with the best mean if
its paired difference from it is at most one standard error of this difference. Of these, the one with the lowest
learning rate is chosen, if one was searched. One seed has no standard error, and so no ties."""


def label_of(method: MethodSpec, space: Space, recipe: Recipe, registry: Registry) -> str:
    """Return a method's label without the searched options, after checking that the method has all of them."""
    for corner in corners(space):
        valid = _validate_candidate(method, corner, recipe, registry, all_have_effect=False)
    return method.label or opt.label(method.name, valid, never=space)


def _validate_candidate(method: MethodSpec, candidate: Candidate, recipe: Recipe, registry: Registry,
                        all_have_effect: bool = True) -> opt.Options:
    """Return the options of a method with a candidate's values, after checking them (`opt.validate`) and the recipe."""
    variant = method.with_options(candidate)
    info = registry.strategy(method.name)
    valid = opt.validate(info.options, variant.options, f"tune.{method.name}", "clbench methods", all_have_effect)
    change_recipe(recipe, variant.own_recipe(info.recipe))
    return valid


def find_refusal(method: MethodSpec, recipe: Recipe, registry: Registry, candidate: Candidate) -> str:
    """Return why a method does not accept the options of a candidate; empty if it does."""
    try:
        _validate_candidate(method, candidate, recipe, registry)
    except SpecError as error:
        return "; ".join(str(error).splitlines())
    return ""


def score(tried: Tried) -> float:
    """Return a number that is higher for better candidates: the mean over seeds, negated if lower values are better.

    If a seed has no result, it is the score of the worst possible value, which is 0 for accuracy.
    """
    metric = find_metric(tried.metric)
    worst = metric.low if metric.direction == "up" else metric.high
    if tried.acc:
        return -metric.rank(fmean(tried.acc))
    return -inf if worst is None else -metric.rank(worst)


def standard_error(values: Sequence[float]) -> float | None:
    """Return the standard error of the mean; None for fewer than two values."""
    return stdev(values) / sqrt(len(values)) if len(values) > 1 else None


def ranking(tried: Sequence[Tried]) -> list[Tried]:
    """Return each candidate with a result once, the best mean first; ties stay in the order of the search."""
    distinct_candidates: dict[str, Tried] = {}
    for candidate in tried:
        if candidate.acc:
            distinct_candidates.setdefault(describe(candidate.options), candidate)
    return sorted(distinct_candidates.values(), key=score, reverse=True)


def choose(tried: Sequence[Tried]) -> Tried:
    """Return the candidate with the lowest learning rate among those that tie with the best mean.

    Candidates tie if their paired difference from the best mean, over the same seeds, is at most one standard error of
    this difference. With one seed, or if no learning rate was searched, it is the candidate with the best mean.
    """
    ranked = ranking(tried)
    return min((t for t in ranked if t is ranked[0] or _ties(t, ranked[0])), key=_rates)  # the first of equal ones


def _rates(tried: Tried) -> tuple[Any, ...]:
    """Return the learning rates by which ties are decided.

    A head rate of `none` means that of the backbone. If the latter is not searched, `none` counts as the highest rate.
    """
    rate, head_rate = (tried.options.get(name) for name in RATES)
    return rate or 0, (rate or inf) if head_rate == "none" else head_rate or 0


def _ties(tried: Tried, best: Tried) -> bool:
    """Return whether two candidates with the same seeds differ by at most one standard error."""
    if len(tried.acc) != len(best.acc) or len(best.acc) < 2:
        return False
    difference, error = _difference(tried, best)
    return difference <= error


def _difference(tried: Tried, best: Tried) -> tuple[float, float]:
    """Return the mean of the paired differences over at least two seeds, and its standard error."""
    metric = find_metric(best.metric)
    differences = [round(metric.gain(a, b), 9) for a, b in zip(tried.acc, best.acc, strict=True)]
    return fmean(differences), standard_error(differences) or 0.0


def tie_note(tried: Sequence[Tried]) -> str:
    """Return why the chosen candidate is not the one with the best mean; empty if it is."""
    best, chosen = ranking(tried)[0], choose(tried)
    if chosen is best:
        return ""
    difference, error = _difference(chosen, best)
    return (f"{describe(chosen.options)} ({mean_text(chosen)}) was chosen: it is within one standard error of "
            f"{describe(best.options)} ({mean_text(best)}; the paired difference is {value_text(best, difference)} ± "
            f"{value_text(best, error)}) and has the lower rate")


def value_text(tried: Tried, value: float | None) -> str:
    """Return a value of a candidate's metric as text: a share in percent, others in their unit; empty for None."""
    if value is None:
        return ""
    return f"{100 * value:.2f}" if find_metric(tried.metric).is_share else format_digits(value)


def mean_value(tried: Tried) -> str:
    """Return the mean over seeds as text; empty without a result."""
    return value_text(tried, fmean(tried.acc) if tried.acc else None)


def mean_text(tried: Tried) -> str:
    """Return a mean and its standard error, such as `57.00 ± 0.80`; the mean alone for one seed."""
    error = standard_error(tried.acc)
    return mean_value(tried) + ("" if error is None else f" ± {value_text(tried, error)}")


def candidates_page(searches: Sequence[Search]) -> str:
    """Return a Markdown page with a table of all candidates for each method and scenario of the searches."""
    parts = chain.from_iterable(map(_parts, searches))
    metrics = dict.fromkeys(find_metric(tried.metric) for search in searches for tried in search.tried) or (ACCURACY,)
    final = join_names(["the average accuracy (ACC)" if metric == ACCURACY else f"the average {metric.label}"
                        for metric in metrics])
    return "\n\n".join(["# Candidates of the search", LEGEND.format(final=final), *parts]) + "\n"


def _parts(made: Search) -> Iterator[str]:
    """Yield the settings of a search and, for each of its rows, a heading, a table and remarks."""
    budget = ", ".join(f"{count} {name}" for name, count in made.budget.items()) or "that of the experiment"
    yield f"    {' '.join(made.command.split())}"
    yield "\n".join([
        f"- Seeds: {as_ranges(list(made.seeds))}",
        f"- Share of the training samples that is held out for validation: {made.validation:g}",
        f"- Budget: {budget}", f"- Sampler: {made.sampler}"])
    for method, scenario in dict.fromkeys((t.method, t.scenario) for t in made.tried):
        yield f"## {escape(method)}, scenario {scenario}"
        yield _table([t for t in made.tried if (t.method, t.scenario) == (method, scenario)])
        outcome = next((o for o in made.outcomes if (o.method, o.scenario) == (method, scenario)), None)
        if outcome:
            yield _notes(outcome)


def _table(tried: Sequence[Tried]) -> str:
    """Return the table of a row's candidates, in the order in which they were tried."""
    best, chosen = ranking(tried)[0], choose(tried)
    unit = UNIT_SUFFIX.get(unit_of(find_metric(best.metric)), "")
    lines = [f"| options | mean{unit} | standard error | seeds | remark |",
             "| :-- | --: | --: | --: | :-- |"]
    for candidate in tried:
        error = standard_error(candidate.acc)
        remark = "chosen" if candidate is chosen else "best mean" if candidate is best else candidate.failure
        cells = [describe(candidate.options), mean_value(candidate), value_text(candidate, error),
                 str(len(candidate.acc) or ""), remark]
        lines.append(f"| {' | '.join(map(escape, cells))} |")
    return "\n".join(lines)


def _notes(outcome: Outcome) -> str:
    return "\n".join(f"- {escape(note)}." for note in outcome.notes)
