"""What a reader must know before relying on a section, and the one command to run next, if there is one."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from clbench.core.files import run_folder_name
from clbench.core.options import format_value, recipe_options
from clbench.core.registry import installed
from clbench.experiment.until import BEST, FIRST, MOST
from clbench.report.analysis.grouping import Setting
from clbench.report.analysis.learning import falling_loss, low_learning, steps_of_authors, trains_heads_slowly
from clbench.report.analysis.method_records import CHANCE, UNDERFIT, MethodRecords
from clbench.report.columns import training_cpu, training_time
from clbench.report.decided import Facts
from clbench.report.formatting import join_names, list_seeds
from clbench.results.records import Record

SEEDS = 5  # after one seed


def next_step(setting: Setting, facts: Facts) -> str:
    """Return the first step that applies, with its command, or nothing if none applies or the command is not known.

    The steps are: run the seeds that some methods lack; add the fine-tuning baseline; tune the untuned methods, if the
    experiment is a file; collect more evidence in a way that keeps the tests valid. If a rule added seeds, the first
    two are left out, because it excludes further trials.
    """
    command = _run_command(setting)
    if command is None:
        return ""
    if not setting.until and any(m.missing for m in setting.methods):
        seeds = setting.seeds
        listed = str(len(seeds)) if seeds == tuple(range(len(seeds))) else ",".join(map(str, seeds))
        return f"run the missing trials: {shlex.join(_with(_with_all_methods(command, setting), {'--seeds': listed}))}"
    naive = _fine_tuning()
    if setting.baseline is None and not setting.until and naive and naive not in {m.strategy for m in setting.methods}:
        return f"add the fine-tuning baseline: {shlex.join(_with(command, {'--methods': naive, '--set': None}))}"
    untuned = _untuned(setting)
    if untuned and (file := _file(command)):
        names = ",".join(dict.fromkeys(m.strategy for m in untuned))
        is_all_untuned = all(not m.searched for m in setting.methods)
        tune = ["clbench", "tune", file, *([] if is_all_untuned else ["--methods", names])]
        budget = {flag: value for flag in ("--epochs", "--iterations") if (value := _value(command, flag))}
        return f"tune {'the methods' if is_all_untuned else 'what is untuned'}: {shlex.join(_with(tune, budget))}"
    best = facts.best
    return more_evidence(setting, [best.needed]) if best and best.open and not best.limited else ""


def _fine_tuning() -> str | None:
    """Return the name of the installed method that is full fine-tuning, or None if there is none."""
    return next((name for name, info in installed().strategies.items() if info.baseline), None)


def more_evidence(setting: Setting, needed: Sequence[int | None]) -> str:
    """Return the command that runs more seeds: until decided, or new ones that are analyzed separately.

    A single seed was not tested, so others can join it. Return nothing if the command is not known, if a rule adds
    seeds, if the benchmark has no samples for other seeds, or if none of the differences needs so few seeds as such a
    rule allows.

    Args:
        setting: the setting.
        needed: about how many seeds would make each open difference significant (None: too many, or not known).
    """
    command = _run_command(setting)
    if setting.until or command is None:
        return ""
    command = _with_all_methods(command, setting)
    if len(setting.seeds) == 1:
        if not _has_samples(setting, range(SEEDS)):
            return ""
        return f"run more seeds: {shlex.join(_with(command, {'--seeds': str(SEEDS)}))}"
    if not any(count and count <= MOST for count in needed):
        return ""
    file, benchmark = _file(command), setting.records[0].trial.benchmark.name
    folder = _value(command, "--out") or f"runs/{run_folder_name(Path(file) if file else None, benchmark)}"
    from_zero = setting.seeds == tuple(range(len(setting.seeds)))
    if FIRST <= len(setting.seeds) < MOST and from_zero and _has_samples(setting, range(MOST)):
        settings: dict[str, str | None] = {"--until": "decided", "--baseline": BEST, "--out": f"{folder}-decided"}
        return f"collect seeds until the question is decided, in a new folder: {shlex.join(_with(command, settings))}"
    first_seed = max(setting.seeds) + 1
    fresh_seeds = range(first_seed, first_seed + min(len(setting.seeds), MOST))
    if not _has_samples(setting, fresh_seeds):
        return ""
    settings = {"--seeds": ",".join(map(str, fresh_seeds)), "--out": f"{folder}-confirmation"}
    return f"confirm with fresh seeds, analyzed alone: {shlex.join(_with(command, settings))}"


def _has_samples(setting: Setting, seeds: Sequence[int]) -> bool:
    """Return whether the benchmark has samples for these seeds; true if it is not installed or has other options."""
    trial = setting.records[0].trial
    info = installed().benchmarks.get(trial.benchmark.name)
    if info is None:
        return True
    try:
        options = info.options.stored(trial.benchmark.options)
    except ValidationError:
        return True
    return not options.seed_problem(seeds, trial.validation)


def _run_command(setting: Setting) -> list[str] | None:
    """Return the words of the latest `clbench run` command of the records, or None if it was another command.

    `--shard`, for a part of the trials, and `--rerun` are left out.
    """
    command = max(setting.records, key=lambda r: r.provenance.started).provenance.command
    try:
        words = shlex.split(command)
    except ValueError:
        return None
    if words[:2] != ["clbench", "run"]:
        return None
    return [word for word in _with(words, {"--shard": None}) if word != "--rerun"]


def _with_all_methods(command: Sequence[str], setting: Setting) -> list[str]:
    """Return a command that runs all methods of a setting, whose records may come from several commands.

    Methods of an experiment file are named by their ids, and those that `--methods` added with their own
    hyperparameters. With `--set`, ids are not those of the file, and the command runs all methods of the file. Without
    a file, the methods are named with their options, so the command has no `--set`.
    """
    if len({_methods(r.provenance.command) for r in setting.records}) == 1:
        return [*command]
    if _file(command):
        names = [m.id if any(_methods(r.provenance.command) is None for r in m.records) else _name_with_recipe(m)
                 for m in setting.methods]
        return _with(command, {"--methods": None if _value(command, "--set") else ",".join(names)})
    return _with(command, {"--methods": ",".join(map(_name_with_recipe, setting.methods)), "--set": None})


def _name_with_recipe(method: MethodRecords) -> str:
    """Return a method's name for `--methods` with its own hyperparameters, which its id may leave out."""
    own_recipe = {} if ":recipe" in method.id else recipe_options(method.records[0].trial.own_recipe)
    return ":".join([method.id, *(f"{name}={format_value(value)}" for name, value in own_recipe.items())])


def _methods(command: str) -> str | None:
    try:
        return _value(shlex.split(command), "--methods")
    except ValueError:  # the text is not a command of a shell
        return command


def _file(command: Sequence[str]) -> str | None:
    """Return the experiment file of a command. No option takes a file whose name ends with `.toml`."""
    return next((word for word in command[2:] if word.endswith(".toml") and not word.startswith("-")), None)


def _value(command: Sequence[str], flag: str) -> str | None:
    for word, following in zip(command, [*command[1:], ""], strict=True):
        if word == flag:
            return following
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None


def _with(command: Sequence[str], settings: Mapping[str, str | None]) -> list[str]:
    """Return a command with the values of some flags replaced or added. A flag whose value is None is left out."""
    words: list[str] = []
    skip = False
    for word in command:
        if skip:
            skip = False
        elif word in settings:
            skip = True
        elif word.partition("=")[0] not in settings:
            words.append(word)
    for flag, value in settings.items():
        words += [flag, value] if value is not None else []
    return words


SHOWN, NAMES = 5, 3  # the most sentences, and the most names in a sentence


def _untuned(setting: Setting) -> list[MethodRecords]:
    """Return the untuned methods with results, without references, variants of tuned methods and results of tuning."""
    if setting.records[0].trial.validation:
        return []
    methods = [m for m in setting.methods if m.done and not m.reference]
    tuned_strategies = {m.strategy for m in methods if m.searched}
    return [m for m in methods if not m.searched and m.strategy not in tuned_strategies]


def cautions(setting: Setting) -> tuple[list[str], list[str]]:
    """Return the cautions in the first lines of a section and those that its notes begin with.

    If there are more than five, the fifth line says how many the notes have.
    """
    all_cautions = list(_every(setting))
    if len(all_cautions) <= SHOWN:
        return all_cautions, []
    shown, others = all_cautions[:SHOWN - 1], all_cautions[SHOWN - 1:]
    return [*shown, f"The notes below the table have {len(others)} further cautions."], others


def _every(setting: Setting) -> Iterator[str]:
    """Yield all cautions, the most serious first."""
    methods = [m for m in setting.methods if m.done]
    candidates = [m for m in methods if not m.reference]
    if added_seeds := sorted({r.trial.seed for r in setting.records if r.seen}):
        assumption = ("tests assume a rule for adding seeds that was chosen before"
                      if any(r.until for r in setting.records) else "the tests do not account for that")
        yield (f"{list_seeds(added_seeds).capitalize()} {'was' if len(added_seeds) == 1 else 'were'} added after an "
               f"interim analysis; {assumption}.")
    if reused := sorted({r.trial.seed for m in methods for r in m.done
                         if r.searched and r.trial.seed in r.searched.seeds}):
        yield (f"{list_seeds(reused).capitalize()} also chose hyperparameters, so the results with "
               f"{'this seed' if len(reused) == 1 else 'these seeds'} may be too good.")
    if partial := [m.label for m in setting.methods if not m.complete]:
        yield f"Not every seed gave a result: {join_names(partial, NAMES)}."
    for mark, words in ((CHANCE, "Not better than chance"), (UNDERFIT, "Underfit (the training loss stayed high)")):
        if marked := [m.label for m in methods if mark in m.cautions]:
            yield f"{words}: {join_names(marked, NAMES)}."
    if behind := [m.label for m in methods
                  if low_learning(m, setting.joint) is not None and UNDERFIT not in m.cautions]:
        yield f"Underfit (20 or more points below joint training just after learning): {join_names(behind, NAMES)}."
    if slow := [m.label for m in methods if trains_heads_slowly(m)]:
        yield ("One learning rate for pretrained backbone and new heads, which is probably too low for the heads (tune "
               f"--head-lr, too): {join_names(slow, NAMES)}.")
    if untuned := [m.label for m in _untuned(setting)]:
        tuned = sum(bool(m.searched) for m in candidates)
        kind = "other" if tuned + len(untuned) == len(candidates) else "tuned"  # variants of tuned methods are neither
        other_methods = f"the {kind} method" if tuned == 1 else f"the {kind} {tuned} methods"
        yield f"Untuned, unlike {other_methods}: {join_names(untuned, NAMES)}." if tuned else "No method was tuned."
    if falling := [m.label for m in methods if falling_loss(m.done)]:
        yield f"Not converged when a task's steps ended: {_name_labels(falling, methods)}."
    if setting.baseline is None:
        was_run = any(m.strategy == _fine_tuning() for m in setting.methods)
        missing = "has no result" if was_run else "was not run"
        yield f"The fine-tuning baseline (naive) {missing}, so this report cannot say which methods reduce forgetting."
    if short := [m.label for m in methods if steps_of_authors(m)]:
        yield f"Trained with less than a quarter of its authors' optimizer steps per task: {join_names(short, NAMES)}."
    if storing := [m.label for m in candidates if stores_everything(m)]:
        yield (f"{join_names(storing, NAMES)} {'store' if len(storing) > 1 else 'stores'} all training samples, so "
               "training is close to joint training.")
    if waiting := [m.label for m in methods if any(map(waited_for_processor, m.done))]:
        yield (f"Training times include waiting for the processor; compare training CPU instead: "
               f"{join_names(waiting, NAMES)}.")
    yield from _mixtures(setting)


def waited_for_processor(record: Record) -> bool:
    """Return whether a trial on a CPU trained for over a minute, more than half of it without using the processor."""
    seconds, cpu = training_time(record), training_cpu(record)
    if record.provenance.device != "cpu" or seconds is None or cpu is None:
        return False
    return seconds > max(60.0, 2 * cpu)


def stores_everything(method: MethodRecords) -> bool:
    """Return whether a method's buffer has as many samples as the stream has training samples.

    A buffer with more samples has some of them several times, and may lack others (`der` offers samples again in every
    epoch).
    """
    return all(r.stream is not None and 0 < sum(r.stream.train_samples) == max(r.costs.replay_samples, default=0)
               for r in method.done)


def _mixtures(setting: Setting) -> Iterator[str]:
    """Yield a sentence if the records come from several machines or commits."""
    commits, machines = (len(set(values)) for values in (
        [r.provenance.git for r in setting.records if r.provenance.git],
        [(r.provenance.device, r.provenance.machine) for r in setting.records]))
    parts = [f"{count} {name}" for count, name in ((commits, "commits"), (machines, "machines")) if count > 1]
    if parts:
        yield f"The records come from {join_names(parts, 2)}."


def _name_labels(labels: Sequence[str], methods: Sequence[MethodRecords]) -> str:
    """Name some of the labels, or write `all except ...` if that is shorter."""
    other_labels = [m.label for m in methods if m.label not in labels]
    if len(labels) > NAMES and len(other_labels) < NAMES:
        return f"all except {join_names(other_labels, NAMES)}" if other_labels else "all methods"
    return join_names(labels, NAMES)
