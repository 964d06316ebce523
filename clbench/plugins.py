"""Find, load and isolate plugins: a broken one is shown as broken and stops only a run that asked for it."""

from __future__ import annotations

import importlib
import os
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, TypeVar

import pluggy

from clbench import builtin, hookspecs, pluginfile
from clbench.errors import PluginError, SpecError, unknown
from clbench.hookspecs import BenchmarkInfo, ModelInfo, ReportFormat, StrategyInfo, TrackerInfo

GROUP = "clbench"
DISABLE = "CLBENCH_DISABLE_PLUGINS"  # entry points that are not loaded: names or patterns, with commas between them
Info = TypeVar("Info", StrategyInfo, BenchmarkInfo, ModelInfo, ReportFormat, TrackerInfo)


@dataclass(frozen=True)
class Origin:
    """Where a plugin came from: its entry point, distribution and version; of a file its name, path and hash."""

    plugin: str
    distribution: str
    version: str

    def __str__(self) -> str:
        """Return `distribution version`."""
        return f"{self.distribution} {self.version}".strip()


@dataclass
class Registry:
    """Everything that is installed, by name, with its origin; and what is broken, with its error."""

    strategies: dict[str, StrategyInfo] = field(default_factory=dict)
    benchmarks: dict[str, BenchmarkInfo] = field(default_factory=dict)
    models: dict[str, ModelInfo] = field(default_factory=dict)
    formats: dict[str, ReportFormat] = field(default_factory=dict)
    trackers: dict[str, TrackerInfo] = field(default_factory=dict)
    unusable: dict[str, str] = field(default_factory=dict)  # methods that cannot be run, with the reason
    origins: dict[tuple[str, str], Origin] = field(default_factory=dict)  # (kind, name) -> origin
    broken: dict[str, str] = field(default_factory=dict)  # entry point -> its error, a line
    disabled: list[str] = field(default_factory=list)  # entry points that CLBENCH_DISABLE_PLUGINS names
    files: list[Path] = field(default_factory=list)  # plugins that are files, absolute
    manager: pluggy.PluginManager = field(default_factory=lambda: pluggy.PluginManager("clbench"))

    def strategy(self, name: str) -> StrategyInfo:
        """Return the strategy of that name or raise a `SpecError` with near names."""
        return self._find("method", self.strategies, name)

    def model(self, name: str) -> ModelInfo:
        """Return the model of that name (`torchvision:NAME` and `timm:NAME` too) or raise a `SpecError`."""
        source = name.partition(":")[0]
        if ":" in name and name not in self.models and source in builtin.EXTERNAL_MODELS:
            return ModelInfo(name, builtin.EXTERNAL_MODELS[source], f"{source}'s model of that name")
        return self._find("model", self.models, name)

    def report_format(self, name: str) -> ReportFormat:
        """Return the report format of that name or raise a `SpecError` with near names."""
        return self._find("report format", self.formats, name)

    def tracker(self, name: str) -> TrackerInfo:
        """Return the tracker of that name or raise a `SpecError` with near names."""
        return self._find("tracker", self.trackers, name)

    def benchmark(self, name: str) -> BenchmarkInfo:
        """Return the benchmark of that name; `package.module:function` is taken as the function's own benchmark."""
        if ":" in name and name not in self.benchmarks:
            return BenchmarkInfo(name, builtin.CUSTOM_BENCHMARK, f"the Avalanche benchmark that {name} returns")
        return self._find("benchmark", self.benchmarks, name)

    def _find(self, kind: str, known: dict[str, Info], name: str) -> Info:
        if name in known:
            return known[name]
        if kind == "method" and name in self.unusable:
            raise SpecError(f"method {name!r} cannot be run: {self.unusable[name]}")
        states = {**dict.fromkeys(self.disabled, f"disabled by {DISABLE}"),
                  **{entry: f"broken: {error}" for entry, error in self.broken.items()}}
        for entry, state in states.items():
            if entry in (name, f"clbench_{name.partition(':')[0].replace('-', '_')}"):
                raise SpecError(f"{kind} {name!r}: its plugin {entry!r} is {state}")
        listing = {"report format": "clbench report --help"}.get(kind, f"clbench {kind}s")
        raise SpecError(unknown(kind, name, known, listing))


def discover(extra: Sequence[object] = (), files: Iterable[str | os.PathLike[str]] = ()) -> Registry:
    """Load every plugin of the entry-point group `clbench`, each in its own `try`, and collect what they bring.

    Args:
        extra: modules or objects with hook implementations to register as well (tests, notebooks).
        files: Python files with hook implementations; unlike an installed plugin, one that is broken is an error.

    Raises:
        PluginError: a file cannot be used.
    """
    registry = Registry()
    registry.manager.add_hookspecs(hookspecs)
    _register(registry, builtin, Origin("clbench", "clbench", builtin.version()))
    for entry in sorted(entry_points(group=GROUP), key=lambda e: e.name):
        if any(fnmatchcase(entry.name, pattern.strip()) for pattern in os.environ.get(DISABLE, "").split(",")):
            registry.disabled.append(entry.name)
            continue
        origin = _origin(entry)
        try:
            module = entry.load()
        except (Exception, SystemExit) as error:  # isolation: what a plugin raises must not stop the others
            registry.broken[entry.name] = _one_line(error)
            continue
        _register(registry, module, origin)
    for plugin in extra:
        _register(registry, plugin, Origin(getattr(plugin, "__name__", repr(plugin)), "(this session)", ""))
    for path in dict.fromkeys(Path(file).absolute() for file in files):
        if registry.manager.has_plugin(path.stem):
            raise PluginError(f"plugin {path}: {path.stem!r} is installed; name what it brings without --plugin, "
                              f"or leave it out with {DISABLE}={path.stem}")
        module, sha256 = pluginfile.load(path)
        _register(registry, module, Origin(module.__name__, str(path), f"sha256:{sha256}"))
        if module.__name__ in registry.broken:
            raise PluginError(f"plugin {path}: {registry.broken[module.__name__]}")
        if not registry.manager.get_hookcallers(module):
            raise PluginError(f"plugin {path} has no hook, such as clbench_strategies with @hookimpl "
                              "(docs/writing-a-strategy.md)")
        registry.files.append(path)
    return registry


def _register(registry: Registry, plugin: object, origin: Origin) -> None:
    """Register one plugin and take what its hooks return; any failure marks it as broken and takes nothing."""
    manager = registry.manager
    try:
        manager.register(plugin, origin.plugin)
        manager.check_pending()
        found: list[tuple[str, dict[str, Any], Any]] = []
        for hook, kind, known, type_ in (
            ("clbench_strategies", "method", registry.strategies, StrategyInfo),
            ("clbench_benchmarks", "benchmark", registry.benchmarks, BenchmarkInfo),
            ("clbench_models", "model", registry.models, ModelInfo),
            ("clbench_report_formats", "report format", registry.formats, ReportFormat),
            ("clbench_trackers", "tracker", registry.trackers, TrackerInfo),
        ):
            function = getattr(plugin, hook, None)
            for info in function() if function else ():
                if not isinstance(info, type_):
                    raise PluginError(f"{hook} returned {info!r}, expected {type_.__name__}")
                if info.name in known:
                    raise PluginError(f"{kind} {info.name!r} is already brought by "
                                      f"{registry.origins[kind, info.name].plugin}")
                found.append((kind, known, info))
    except Exception as error:  # isolation, as above
        if manager.is_registered(plugin):
            manager.unregister(plugin)
        registry.broken[origin.plugin] = _one_line(error)
        return
    for kind, known, info in found:
        if isinstance(info, StrategyInfo) and info.unusable:
            registry.unusable[info.name] = info.unusable
            continue
        known[info.name] = info
        registry.origins[kind, info.name] = origin


def _origin(entry: EntryPoint) -> Origin:
    dist = entry.dist
    return Origin(entry.name, dist.name if dist else entry.value, dist.version if dist else "")


def _one_line(error: BaseException) -> str:
    return " ".join(traceback.format_exception_only(type(error), error)[-1].split())


def resolve(target: str | type | Callable[..., Any], kind: str) -> Any:
    """Return what `module:attribute` names (or the thing itself when it is given instead of its name)."""
    if not isinstance(target, str):
        return target
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise PluginError(f"{kind}: cannot load {target}: {error}") from error
