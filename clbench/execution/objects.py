"""Objects instead of names: how `clbench.run` handles functions, Avalanche benchmarks and strategy classes.

A function or class that every process can import is replaced by its name, so its key and the identity of its code are
the same as on the command line. A benchmark without such a name is identified by its content: it is built immediately,
and the hash of its samples is its name. It exists in this process only, so its trials run in this process
(`workers = 0`). A strategy class without a name is rejected, because nothing identifies its code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from clbench.core import seeds
from clbench.core.errors import ClbenchError, SpecError
from clbench.core.hookspecs import BenchmarkInfo
from clbench.core.registry import Origin, Registry
from clbench.core.user_code import format_error, name_of, target
from clbench.data.builtin import CustomOptions
from clbench.experiment.spec import Spec

OBJECT = "object:"  # what the names of benchmarks begin with that are identified by their content


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
        named["benchmark"] = _each(named["benchmark"], lambda thing: _benchmark(thing, registry))
    methods = named.get("methods")
    if isinstance(methods, list | tuple | type):
        each = [methods] if isinstance(methods, type) else methods
        named["methods"] = [_each(method, lambda thing: _method(thing, registry)) for method in each]
    return named


def run_here(spec: Spec) -> Spec:
    """Return the experiment, set to run in this process if its benchmark exists in no other process.

    Raises:
        SpecError: the experiment asks for other processes.
    """
    execution = spec.execution
    if not spec.benchmark.name.startswith(OBJECT):
        return spec
    if execution.workers or execution.executor != "local":
        raise SpecError(f"benchmark {spec.benchmark.name} is an object of this process, and workers are others: leave "
                        "workers out, or pass a function of a module or file that returns the benchmark")
    return spec.model_copy(update={"execution": execution.model_copy(update={"workers": 0})})


def _each(value: Any, name: Callable[[Any], Any]) -> Any:
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
            thing = _called(thing)
    return _by_content(thing, registry)


def _called(function: Callable[[], Any]) -> Any:
    """Call a function with the global generators seeded as for seed 0, and return its result."""
    from clbench.data.avalanche.build import import_avalanche

    import_avalanche()
    try:
        with seeds.scope(0, "stream"):
            return function()
    except ClbenchError:
        raise
    except Exception as error:  # any error of the function becomes one line
        raise SpecError(f"benchmark: the function failed: {format_error(error, function.__module__)}") from error


def _by_content(benchmark: Any, registry: Registry) -> str:
    """Add a benchmark to the registry under a name derived from its content, and return the name."""
    from clbench.data.avalanche.benchmarks import sized
    from clbench.data.avalanche.build import as_raw

    raw = as_raw(benchmark, "the benchmark")
    if raw.is_stochastic:
        raise SpecError("benchmark: its samples differ at each reading (random transforms), so their content does not "
                        "identify it: pass a function of a module or file that returns it")
    name = f"{OBJECT}{raw.digest[:16]}"

    def build(options: CustomOptions, data_dir: object, seed: int) -> Any:
        return sized(benchmark, options)

    registry.benchmarks[name] = BenchmarkInfo(name, build, "an object of this process", CustomOptions)
    registry.origins["benchmark", name] = Origin("(this session)", "(this session)", "")
    return name
