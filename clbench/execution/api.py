"""`clbench.run` does the same as the command `clbench run`, and `clbench.load` returns the results of earlier runs.

`clbench.run` also takes functions, Avalanche benchmarks and strategy classes. An object that every process can import
is replaced by its name, so its key and the hash of its code are the same as on the command line. A benchmark without
such a name is identified by the hash of its samples. It exists in this process only, so its trials run here
(`workers = 0`). A strategy class without a name is rejected, because nothing identifies its code.
"""

from __future__ import annotations

import inspect
import os
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from inspect import Parameter
from itertools import chain
from typing import Any, TypeVar, get_args

from clbench.core import seeds
from clbench.core.errors import ClbenchError, SpecError, StoreError, unknown
from clbench.core.files import Files, as_list, expand_home
from clbench.core.hookspecs import BenchmarkInfo
from clbench.core.registry import Origin, Registry, discover
from clbench.core.user_code import format_error, name_of, target
from clbench.data.builtin import CustomOptions
from clbench.execution import interrupts
from clbench.execution import run as experiment
from clbench.execution.reuse import OnStale, ignore_message
from clbench.execution.until import carry_out
from clbench.execution.workers.plan import Listener
from clbench.experiment.execution_settings import ExecutionSettings, meaning
from clbench.experiment.overrides import read_spec
from clbench.experiment.spec import TABLES, Spec
from clbench.report.analysis.readable import as_ids
from clbench.report.results import Results
from clbench.results.diff import group_by_method, merge_runs

OBJECT = "object:"  # prefix of the names of benchmarks that are identified by their content


def name_objects(values: Mapping[str, Any], registry: Registry) -> dict[str, Any]:
    """Return the values of an experiment with names instead of objects.

    Args:
        values: `benchmark`, `methods` and other values, as text, as tables, or as objects. The `name` of a table may
            be an object too.
        registry: the installed plugins; benchmarks without a name are added to it.

    Raises:
        SpecError: nothing identifies an object.
    """
    named = dict(values)
    if "benchmark" in named:
        named["benchmark"] = _name_objects(named["benchmark"], lambda thing: _benchmark(thing, registry))
    methods = named.get("methods")
    if isinstance(methods, list | tuple | type):
        method_list = [methods] if isinstance(methods, type) else methods
        named["methods"] = [_name_objects(method, lambda thing: _method(thing, registry)) for method in method_list]
    return named


def run_here(spec: Spec) -> Spec:
    """Return the experiment, set to run in this process if its benchmark exists in this process only.

    Raises:
        SpecError: the experiment asks for workers or a cluster, although its benchmark exists in this process only.
    """
    execution = spec.execution
    if not spec.benchmark.name.startswith(OBJECT):
        return spec
    if execution.workers or execution.executor != "local":
        raise SpecError(f"benchmark {spec.benchmark.name} is an object of this process, and workers are others: leave "
                        "workers out, or pass a function of a module or file that returns the benchmark")
    return spec.model_copy(update={"execution": execution.model_copy(update={"workers": 0})})


def _name_objects(value: Any, name: Callable[[Any], Any]) -> Any:
    """Return a value with a name instead of an object, which may be the `name` of a table."""
    if isinstance(value, Mapping):
        return {**value, "name": name(value["name"])} if "name" in value else value
    return name(value)


def _method(thing: Any, registry: Registry) -> Any:
    """Return the name of a strategy class; return other values unchanged."""
    if not isinstance(thing, type):
        return thing
    installed = [info.name for info in registry.strategies.values() if target(info.strategy) == target(thing)]
    try:
        return installed[0] if len(installed) == 1 else name_of(thing)
    except SpecError as error:
        raise SpecError(f"method {thing.__name__} has no code that a key could name: {error}") from None


def _benchmark(thing: Any, registry: Registry) -> Any:
    """Return the name of a benchmark, or of a function that returns one; return text unchanged."""
    if isinstance(thing, str) or thing is None:
        return thing
    is_benchmark = hasattr(thing, "train_stream")
    if not is_benchmark and not callable(thing):
        raise SpecError(f"benchmark: expected a name, a function or an Avalanche benchmark, got {type(thing).__name__}")
    if not is_benchmark:
        try:
            return name_of(thing)
        except SpecError:
            thing = _call_seeded(thing)
    return _register_by_content(thing, registry)


def _call_seeded(function: Callable[[], Any]) -> Any:
    """Call a function with the global random generators seeded as for seed 0, and return its result."""
    from clbench.data.avalanche.build import import_avalanche

    import_avalanche()
    try:
        with seeds.scope(0, "stream"):
            return function()
    except ClbenchError:
        raise
    except Exception as error:  # the function may raise any error
        raise SpecError(f"benchmark: the function failed: {format_error(error, function.__module__)}") from error


def _register_by_content(benchmark: Any, registry: Registry) -> str:
    """Add a benchmark to the registry under a name derived from its content, and return the name."""
    from clbench.data.avalanche.build import as_raw
    from clbench.data.avalanche.tensors import SeveralShapes

    try:
        raw = as_raw(benchmark, "the benchmark")
    except SeveralShapes as error:
        raise SpecError("benchmark: its samples have several types or shapes, so they need a size, which their content "
                        "does not have: pass a function of a module or file that returns it, whose photos clbench "
                        "resizes") from error
    if raw.is_stochastic:
        raise SpecError("benchmark: its samples differ at each reading (random transforms), so their content does not "
                        "identify it: pass a function of a module or file that returns it")
    name = f"{OBJECT}{raw.digest[:16]}"

    def build(options: CustomOptions, data_dir: object, seed: int) -> Any:
        return benchmark

    registry.benchmarks[name] = BenchmarkInfo(name, build, "an object of this process", CustomOptions)
    registry.origins["benchmark", name] = Origin("(this session)", "(this session)", "")
    return name


KEYS = [*(k for k in Spec.model_fields if k not in ("tune", "tuning", *TABLES)),
        *chain.from_iterable(table.model_fields for table in TABLES.values())]
F = TypeVar("F", bound=Callable[..., Any])


def _with_execution_settings(function: F) -> F:
    """Show the fields of `ExecutionSettings`, which `**settings` takes, in a function's signature and docstring."""
    signature = inspect.signature(function)
    *parameters, settings = signature.parameters.values()
    fields = [Parameter(name, Parameter.KEYWORD_ONLY, default=field.default, annotation=field.annotation)
              for name, field in ExecutionSettings.model_fields.items()]
    vars(function)["__signature__"] = signature.replace(parameters=[*parameters, *fields, settings])
    lines = [textwrap.fill(f"{name}: {' '.join(meaning(name).split())}", 120, initial_indent=" " * 8,
                           subsequent_indent=" " * 12) for name in ExecutionSettings.model_fields]
    if function.__doc__:
        function.__doc__ = function.__doc__.replace("        {execution}", "\n".join(lines))
    return function


@_with_execution_settings
def run(spec: str | os.PathLike[str] | Mapping[str, Any] | None = None, *, out: str | os.PathLike[str] | None = None,
        shard: str | None = None, set: Mapping[str, Any] | Iterable[str] = (), log: str | Iterable[str] = (),
        plugins: Files = (), stale: OnStale = "refuse",
        progress: bool | None = None, **settings: Any) -> Results:
    """Run an experiment, store its records and report in a folder, and return the records.

    >>> results = clbench.run(methods="lora,ewc", seeds=3, epochs=2)  # doctest: +SKIP
    >>> results = clbench.run("benchmarks/split_mnist.toml", workers=0)  # doctest: +SKIP
    >>> results.compare(baseline="ewc")  # doctest: +SKIP
    >>> results = clbench.run(benchmark=make_stream, methods=["er", MyStrategy])  # doctest: +SKIP

    Args:
        spec: a TOML file, or a mapping with the content of a TOML file; None starts from the defaults.
        out: the run folder; None for `runs/<name of the file or the benchmark>`.
        shard: `2/8` runs the second of eight parts of the experiment; None runs all of it.
        set: options of methods, `{"lora.rank": 4}` or `["lora.rank=4"]`; several values (`{"lora.rank": [1, 2]}`,
            `["lora.rank=1,2"]`) give one row per value.
        log: experiment loggers that get the records, as in "tensorboard,mlflow" or ["wandb:project=mine", "mlflow"].
        plugins: Python files with hook implementations, used without being installed.
        stale: what to do with results in the folder that were made with other code or data than the present ones:
            "refuse" raises a `StaleError` that lists them, "rerun" trains them again, and "keep" keeps them and marks
            them in the tables.
        progress: whether to show progress as the command does: on standard error, or below the cell in a notebook.
            None shows it in a notebook or an interactive session only.
        {execution}
        settings: settings that override those of the file: methods, benchmark, scenario, model, weights, seeds, until
            ("decided" adds seeds while a comparison is inconclusive), max_seeds, baseline, device, validation, epochs,
            iterations, batch_size, optimizer, lr, lr_per, head_lr, momentum, weight_decay, head_decay, schedule,
            schedule_by, milestones, decay, repeats, accumulate, group_by_length, warmup_ratio, max_grad_norm,
            optimizer_state, precision, blur, repeat, imbalance, boundaries, online. None keeps the value of the file,
            or else the default, also for the settings above. `benchmark` may also be a function that returns an
            Avalanche benchmark, or such a benchmark itself, and `methods` may contain strategy classes (docs/api.md
            says how they are identified).

    Returns:
        The record of each trial, by method, then scenario and seed, as a list that also gives its tables and figures.
        `record.status` says whether a trial failed or diverged.

    Raises:
        StaleError: see `stale`; nothing has been run or written then.
        ClbenchError: the experiment cannot run as written; nothing has been run or written then.
    """
    source = expand_home(spec) if isinstance(spec, str | os.PathLike) else None
    problems = [unknown("setting", name, KEYS, "help(clbench.run)") for name in settings if name not in KEYS]
    if problems:
        raise SpecError("\n".join(problems))
    options = dict(set) if isinstance(set, Mapping) else [set] if isinstance(set, str) else list(set)
    log = log.split(",") if isinstance(log, str) else log if isinstance(log, tuple) else list(log)
    files = as_list(plugins)
    registry = discover(files=files)
    methods = settings.get("methods")
    if isinstance(methods, str):
        settings["methods"] = as_ids(methods, registry)
    elif isinstance(methods, list | tuple):
        settings["methods"] = [as_ids(method, registry) if isinstance(method, str) else method for method in methods]
    content = name_objects(spec, registry) if isinstance(spec, Mapping) else {}
    settings = name_objects(settings, registry)
    show = is_interactive() if progress is None else progress
    note = (lambda text: print(text, file=sys.stderr)) if show else ignore_message
    experiment_spec = run_here(read_spec(source, content, settings, options, registry, note))
    folder = expand_home(out) if out is not None else experiment.default_out(experiment_spec, source)
    if stale not in get_args(OnStale):
        raise SpecError(f"stale = {stale!r}: write {' or '.join(map(repr, get_args(OnStale)))}")
    prepared = experiment.prepare(experiment_spec, registry, folder, log, shard, stale, note)
    command = format_call(content or spec, {"out": out, "shard": shard, "set": options or None, "log": log or None,
                                 "plugins": [os.fspath(file) for file in files] or None,
                                 "stale": stale if stale != "refuse" else None, **settings})
    for problem in prepared.problems:
        warnings.warn(str(problem), stacklevel=2)
    with interrupts.handle_signals():
        records = carry_out(prepared, _display if show else lambda _: nullcontext(Listener()), command)
    experiment.write_report(prepared)
    return Results(records)


def load(*runs: str | os.PathLike[str]) -> Results:
    """Return the results of one or more run folders, from their records only; torch is not needed.

    >>> results = clbench.load("runs/split-mnist-5k")  # doctest: +SKIP

    Args:
        runs: the folders. A trial in several folders counts once; a successful record of it replaces a failed one.

    Returns:
        All records, grouped by method. A file that is not a record is left out, and a warning names it.

    Raises:
        StoreError: there are no records, or folders have different results of a trial.
    """
    if not runs:
        raise StoreError("name a run folder, as in clbench.load('runs/split-mnist-5k')")
    folders = list({folder.resolve(): folder for folder in map(expand_home, runs)}.values())
    merged = merge_runs(folders)
    for problem in (*merged.problems, *merged.notes):
        warnings.warn(str(problem), stacklevel=2)
    return Results(group_by_method(merged.records))


def notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


def is_interactive() -> bool:
    """Return whether this is an interactive session or a notebook."""
    return notebook() or hasattr(sys, "ps1")


def _display(ready: experiment.Experiment) -> AbstractContextManager[Listener]:
    from rich.console import Console

    from clbench.execution.progress import display

    below = notebook()  # notebooks show standard error in red, and each line of rich as separate HTML
    return display(Console(stderr=not below, highlight=False, force_jupyter=False,
                           force_terminal=False if below else None), ready.missing)


def format_call(spec: Any, arguments: Mapping[str, Any]) -> str:
    """Reconstruct the call of `run` as source code, for the records."""
    positional = [] if spec is None else [repr(os.fspath(spec) if isinstance(spec, os.PathLike) else spec)]
    keywords = [f"{k}={v!r}" for k, v in arguments.items() if v is not None]
    return f"clbench.run({', '.join([*positional, *keywords])})"
