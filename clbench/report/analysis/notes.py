"""The texts of a section: its setting, seeds and provenance, and what limits the comparison of its records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain

from clbench.core.errors import list_names
from clbench.core.objective import Metric, objective_of
from clbench.core.options import format_value
from clbench.core.scenario import scenario_rules
from clbench.experiment.arrival import Arrival
from clbench.experiment.recipe import BUDGET, DECAY, OPTIMIZER_TITLES, Recipe
from clbench.experiment.trial import PlannedTrial, Trial, Weights
from clbench.experiment.until import question
from clbench.report.analysis.families import mixes_data
from clbench.report.analysis.method_records import RECIPE, same_on_every_seed, test_samples, test_set_interval
from clbench.report.formatting import MANY, NONE, as_ranges, clean, join_names, list_seeds, number, unit_of, with_ends
from clbench.results.metrics import acc
from clbench.results.provenance import commit_of, results_by_commit
from clbench.results.records import Record, StreamFacts, metrics_of


def describe_added_seeds(records: Sequence[Record], left_out: int) -> Iterator[str]:
    """Yield sentences if a rule added seeds, and one if seeds were added after a report had been read.

    `left_out` is the number of records beyond the most seeds of the rule.
    """
    until = next((r.until for r in records if r.until), None)
    added_records = [r for r in records if r.seen]
    if until is not None:
        validity = "" if added_records else " and hold whenever one stops"
        yield (f"Seeds were added until this was decided: {question(until)}. Each method has {until.first} to at most "
               f"{until.most} seeds (--until decided). Differences are taken over the seeds that both methods have. "
               f"Verdicts, p-values and ± are sequential{validity}; the intervals in figures are not")
        if left_out:
            yield (f"{left_out} record{'s are' if left_out > 1 else ' is'} left out, because the rule allows at most "
                   f"{until.most} seeds of a method. Run other seeds in a folder of their own")
    if added_records:
        seeds = {r.trial.seed for r in added_records}
        shown_seeds = set(chain.from_iterable(r.seen for r in added_records))
        yield (f"{list_seeds(seeds).capitalize()} {'was' if len(seeds) == 1 else 'were'} added after a report "
               f"had shown {list_seeds(shown_seeds)}. Intervals and tests assume "
               f"{'a rule for adding seeds' if until else 'a number of seeds'} that was fixed in advance; they err "
               "more often if interim results decide whether to continue"
               + ("" if until else ". With --until decided, interim analyses are allowed"))


def describe_common_test(records: Sequence[Record]) -> Iterator[str]:
    """Yield a sentence on metrics without a value if all tasks share one test set."""
    if any(record.common_test for record in records):
        yield ("All tasks share one test set. Forgetting, BWT, FWT, learning accuracy and intransigence need one for "
               f"each task, so they have no value ({NONE})")


Pairs = tuple[tuple[str, str], ...]


def recipe(chosen: Recipe, arrival: Arrival) -> str:
    """Describe a training configuration in words. The text depends on how samples arrive."""
    heads = f", lr of heads {format_value(chosen.head_lr)}" if chosen.head_lr else ""
    momentum = f", momentum {format_value(chosen.momentum)}" if chosen.optimizer == "sgd" else ""
    decay = f", weight decay {format_value(chosen.weight_decay)}" if chosen.weight_decay else ""
    decay += " of learning rows of the heads only" if decay and chosen.head_decay == "learning" else ""
    schedule = chosen.schedule + (" by epochs" if chosen.schedule_by == "epoch" else "")
    if chosen.milestones:
        shares = " and ".join(map(format_value, chosen.milestones))
        schedule += f" at {shares} of them, times {format_value(chosen.decay or DECAY)}"
    warmup = f", warm-up {format_value(chosen.warmup_ratio)} of the steps" if chosen.warmup_ratio else ""
    clipped = f", gradients clipped to {format_value(chosen.max_grad_norm)}" if chosen.max_grad_norm else ""
    epochs = f"{chosen.epochs} epoch{'s' * (chosen.epochs != 1)}"
    budget = f"{chosen.iterations:,} iterations" if chosen.iterations else epochs
    budget += f" of {chosen.repeats} steps on each batch" if chosen.repeats else ""
    similarity = " of similar lengths" if chosen.group_by_length else ""
    training = (f"{budget} per task, batch {chosen.batch_size}{similarity}, "
                f"optimizer state {chosen.optimizer_state} between tasks"
                if not arrival.hidden else f"one pass over the stream, batch {chosen.batch_size}")
    return (f"{chosen.optimizer}, lr {format_value(chosen.lr)} ({schedule}){heads}{momentum}{decay}{warmup}{clipped}, "
            + training
            + (f", {chosen.precision}" if chosen.precision != "fp32" else ""))


def own_recipe(trial: Trial) -> str:
    """Describe the hyperparameters in which a method differs from the experiment's training configuration, if any."""
    if not trial.own_recipe:
        return ""
    used, default = trial.trained_by, trial.recipe
    parts = [f"{name} {format_value(getattr(used, name))}"
             + (f" instead of {format_value(usual)}" if (usual := getattr(default, name)) is not None else "")
             for name in trial.own_recipe]
    budget = ", so it had another budget" if set(trial.own_recipe) & set(BUDGET) else ""
    return f"trained with {', '.join(parts)}{budget}"


def title(record: Record | PlannedTrial) -> str:
    """Return the title of a record's section."""
    trial, previous = record.trial, record.trial.continues
    suffix = (f" after {' and '.join(b.name for b in previous.benchmarks)}" + " (same classes)" * previous.same_classes
              if previous else "")
    return clean(f"{trial.benchmark.name}{suffix}, {scenario_rules(trial.scenario).title}, {trial.model.name}"
                 + (f", {trial.arrival}" if str(trial.arrival) else "") + (", validation" if trial.validation else ""))


def describe_validation(trial: Trial) -> str:
    """Describe on which samples a trial with a validation split measures accuracies."""
    return f"{100 * trial.validation:g}% of the training samples, held out (validation; not the test set)"


def weights(pretrained: Weights | None) -> str:
    """Describe pretrained weights in words."""
    if pretrained is None:
        return "none (from scratch)"
    known_facts = [f"sha256 {pretrained.sha256[:16]}" if not pretrained.named else "",
                   f"license {pretrained.licence}" if pretrained.licence else "",
                   f"training data: {pretrained.training_data}" if pretrained.training_data else ""]
    details = "; ".join(filter(None, known_facts))
    return f"{pretrained.short_path} ({details})" if details else pretrained.short_path


def summary(records: Sequence[Record], seeds: Sequence[int]) -> Pairs:
    """Return the setting of a section as a few pairs for the small table under its comparison."""
    trial = records[0].trial
    chosen = trial.recipe
    has_other_rates = any("lr" in r.trial.own_recipe for r in records)
    pairs = [("benchmark", f"{trial.benchmark.name}, {scenario_rules(trial.scenario).title}"),
             ("model", trial.model.name + _size(trial)),
             ("weights", f"{trial.weights.short_path} ({trial.weights.training_data or 'training data not known'})"
              if trial.weights else "none; training starts from scratch"),
             ("optimizer", f"{OPTIMIZER_TITLES[chosen.optimizer]}, learning rate {format_value(chosen.lr)}"
              + (f" ({format_value(chosen.head_lr)} for heads)" if chosen.head_lr else "")
              + (f" (other rates in rows with {RECIPE})" if has_other_rates else "")
              + (f", {chosen.schedule} schedule" if chosen.schedule != "constant" else "")
              + (f", {chosen.precision}" if chosen.precision != "fp32" else "")),
             ("budget", _budget(chosen, trial.arrival)),
             ("seeds", as_ranges(list(seeds)))]
    stream = next((r.stream for r in records if r.stream), None)
    metric = metrics_of(records)[0]
    if stream:
        tests = f"{_spread(stream.test_samples)} {'validation' if trial.validation else 'test'} samples"
        samples = f"{_spread(stream.train_samples)} training" + (
            f" samples each, and {tests} for all" if stream.common_test else f" and {tests} each")
        pairs.insert(1, ("tasks", f"{len(stream.classes)} tasks {_kinds(stream)}, {samples}"))
    if str(trial.arrival):
        pairs.append(("arrival of samples", str(trial.arrival)))
    if trial.validation:
        pairs.append((f"{metric.label} on", describe_validation(trial)))
    if stream and not any(stream.classes):
        pairs.append(("metrics", "; ".join(describe_metric(m) for m in objective_of(metric).metrics)))
    return tuple((name, clean(value)) for name, value in pairs)


def describe_metric(metric: Metric) -> str:
    """Define a metric in a few words, with its unit and which direction is better."""
    better = "higher" if metric.direction == "up" else "lower"
    return f"{metric.label} is {metric.definition} ({better} is better)"


def _kinds(stream: StreamFacts) -> str:
    """Return the number of classes of each task, or the names of tasks without classes."""
    if any(stream.classes):
        return f"with {_spread(map(len, stream.classes))} classes"
    return f"({list_names(stream.task_names, MANY)})" if stream.task_names else "without classes"


def _size(trial: Trial) -> str:
    size = trial.model.options.get("size")
    return f" at {size} pixels" if size else ""


def _budget(chosen: Recipe, arrival: Arrival) -> str:
    if arrival.hidden:
        return f"one pass over the stream, batch size {chosen.batch_size}"
    steps = (f"{chosen.iterations:,} step{'s' * (chosen.iterations != 1)}" if chosen.iterations
             else f"{chosen.epochs} epoch{'s' * (chosen.epochs != 1)}")
    return f"{steps} per task, batch size {chosen.batch_size}"


def settings(records: Sequence[Record], seeds: Sequence[int]) -> Pairs:
    """Return the setting that all records of a section share."""
    trial = records[0].trial
    pairs = [("benchmark", clean(trial.benchmark)), ("scenario", trial.scenario), ("model", clean(trial.model)),
             ("pretrained weights", weights(trial.weights)), ("recipe", recipe(trial.recipe, trial.arrival)),
             ("seeds", as_ranges(list(seeds)))]
    if trial.preprocessing:
        pairs.insert(4, ("trained with inputs", str(trial.preprocessing)))
    if str(trial.arrival):
        pairs.append(("arrival of training samples", f"{trial.arrival} (docs/task-free-streams.md)"))
    if trial.validation:
        pairs.append((f"{metrics_of(records)[0].plural} on", describe_validation(trial)))
    stream = next((r.stream for r in records if r.stream), None)
    if stream:
        kinds = f", {_kinds(stream)} each" if any(stream.classes) else f": {', '.join(stream.task_names)}"
        pairs += [("tasks", f"{len(stream.classes)}{kinds}".removesuffix(": ")),
                  ("training samples per task", _spread(stream.train_samples)),
                  (f"{'validation' if trial.validation else 'test'} samples "
                   f"{'for all tasks' if stream.common_test else 'per task'}", _spread(stream.test_samples)),
                  ("input shape", " x ".join(map(str, stream.input_shape)))]
    methods = dict.fromkeys((clean(r.label), clean(r.trial.method)) for r in records)
    pairs += [(f"method {label}", full_name) for label, full_name in methods if label != full_name]
    return tuple((name, clean(value)) for name, value in pairs)


def _spread(numbers: Iterable[int]) -> str:
    values = list(numbers)
    low, high = min(values, default=0), max(values, default=0)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def provenance(records: Sequence[Record]) -> Pairs:
    """Return the provenance of the records of a section. If records differ, every value is listed."""
    start_times = sorted(r.provenance.started for r in records)
    span = dict.fromkeys(f"{t:%Y-%m-%d %H:%M:%S %Z}".strip() for t in (start_times[0], start_times[-1]))
    pairs = [("versions", ", ".join(f"{p} {' / '.join(v)}" for p, v in package_versions(records).items())),
             ("plugins", " / ".join(_values(records, lambda r: r.provenance.plugin))),
             ("git", " / ".join(_values(records, commit_of))),
             ("device", " / ".join(_values(records, lambda r: r.provenance.device))),
             ("machine", " / ".join(_values(records, lambda r: r.provenance.machine))),
             ("threads", " / ".join(_values(records, lambda r: str(r.provenance.threads)))),
             ("started", " to ".join(span))]
    return tuple((clean(name), clean(value)) for name, value in pairs)


def _values(records: Sequence[Record], value: Callable[[Record], str]) -> list[str]:
    return list(dict.fromkeys(map(value, records)))


def package_versions(records: Sequence[Record]) -> dict[str, list[str]]:
    """Return the versions of each package that the records were made with."""
    names = chain.from_iterable(r.provenance.versions for r in records)
    by_package: dict[str, list[str]] = {name: [] for name in names}
    for name, versions in by_package.items():
        versions += dict.fromkeys(r.provenance.versions.get(name, "absent") for r in records)
    return by_package


def differences(records: Sequence[Record]) -> list[str]:
    """Return a line for each property in which the records of a section differ, apart from method and seed."""
    notes = []
    for seed in sorted({r.trial.seed for r in records}):
        prints = {r.stream.fingerprint for r in records if r.stream and r.trial.seed == seed}
        if len(prints) > 1:
            notes.append(f"The methods did not see the same data with seed {seed} (the fingerprints of their streams "
                         "differ), so their results cannot be compared")
    if mixes_data(records):
        notes.append("The benchmark's data changed between seeds (`stream.data` of the records), so means over these "
                     "seeds are not of one benchmark")
    times = "times cannot be compared"
    kinds = [("devices", _values(records, lambda r: r.provenance.device),
              f"{times}, and {metrics_of(records)[0].plural} may differ slightly"),
             ("machines", _values(records, lambda r: r.provenance.machine), times),
             ("numbers of threads", _values(records, lambda r: str(r.provenance.threads)), times),
             ("commits of clbench", results_by_commit(records), "the code may differ")]
    kinds += [(f"versions of {package}", values, "results may differ for this reason alone")
              for package, values in package_versions(records).items()]
    notes += [f"The records come from different {kind}, so {consequence}: {', '.join(values)}"
              for kind, values, consequence in kinds if len(values) > 1]
    methods: dict[str, set[str]] = {}
    for r in records:
        if "method" not in r.provenance.code:  # for newer records, tables.py compares hashes of the code
            methods.setdefault(str(r.trial.method), set()).add(r.provenance.plugin)
    notes += [f"The seeds of {method} come from different versions of its plugin: {', '.join(sorted(plugins))}"
              for method, plugins in methods.items() if len(plugins) > 1]
    return [clean(n) for n in notes]


def same_results(records: Mapping[str, Sequence[Record]]) -> list[str]:
    """Return lines on the methods with the same result on every seed, with the interval from their test samples.

    Args:
        records: the records with a result, by method.
    """
    by_sample_count: dict[int, list[str]] = {}
    for label, method_records in records.items():
        if same_on_every_seed(method_records) and (samples := test_samples(method_records)):
            unit, interval = unit_of(metrics_of(method_records)[0]), test_set_interval(method_records)
            value = acc(method_records[0].R)
            by_sample_count.setdefault(samples if interval else 0, []).append(
                f"{label} {with_ends(value, interval, unit) if interval else number(value, unit)}")
    return [f"Every seed gave the same result: {join_names(rows)}. Such seeds are no evidence, ± 0.00 does not mean "
            "precision, and these methods are not tested against each other"
            + (f". In parentheses is the 95% interval (Wilson) that {samples:,} test samples allow" if samples else "")
            for samples, rows in by_sample_count.items()]


def remarks(records: Sequence[Record]) -> list[str]:
    """Return the notes of streams and of records, each once.

    A note of records begins with the labels of their methods, unless all methods have it and there are several.
    """
    labels = dict.fromkeys(r.label for r in records)
    labels_of: dict[str, dict[str, None]] = {}
    for record in records:
        for note in record.notes:
            labels_of.setdefault(note, {})[record.label] = None
    record_notes = [note if len(noted_labels) == len(labels) > 1 else f"{', '.join(noted_labels)}: {note}"
                    for note, noted_labels in labels_of.items()]
    stream_notes = chain.from_iterable(r.stream.notes for r in records if r.stream)
    return [clean(n) for n in dict.fromkeys([*stream_notes, *record_notes])]
