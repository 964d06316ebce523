"""Find and load plugins in isolation: a broken plugin is listed as broken and stops only a run that uses it."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

import pluggy

from clbench.core import hookspecs
from clbench.core.entry_points import DISABLE, disabled, package_of
from clbench.core.errors import ClbenchError, PluginError, SpecError, unknown
from clbench.core.files import Files, as_list
from clbench.core.hookspecs import BenchmarkInfo, ModelInfo, ReportFormat, StrategyInfo, TrackerInfo
from clbench.core.user_code import extend_import_path, format_error, run_as_module, strategy_info

GROUP = "clbench"
ANY_CODE = "*:*"  # the pattern of benchmarks that functions return
Info = TypeVar("Info", StrategyInfo, BenchmarkInfo, ModelInfo, ReportFormat, TrackerInfo)


@dataclass(frozen=True)
class Origin:
    """Where a plugin comes from: its entry point, distribution and version; for a file its name, path and hash."""

    plugin: str
    distribution: str
    version: str

    def __str__(self) -> str:
        """Return `distribution version`."""
        return f"{self.distribution} {self.version}".strip()


@dataclass
class Registry:
    """All declarations of plugins by name, with their origins, and the broken plugins with their errors."""

    strategies: dict[str, StrategyInfo] = field(default_factory=dict)
    benchmarks: dict[str, BenchmarkInfo] = field(default_factory=dict)
    models: dict[str, ModelInfo] = field(default_factory=dict)
    formats: dict[str, ReportFormat] = field(default_factory=dict)
    trackers: dict[str, TrackerInfo] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)  # methods that cannot be run, with the reason
    patterns: dict[str, dict[str, Any]] = field(default_factory=dict)  # kind -> declarations for many names, by pattern
    origins: dict[tuple[str, str], Origin] = field(default_factory=dict)  # (kind, name) -> origin
    broken: dict[str, str] = field(default_factory=dict)  # entry point -> its error as one line
    disabled: list[str] = field(default_factory=list)  # entry points that CLBENCH_DISABLE_PLUGINS names
    files: list[Path] = field(default_factory=list)  # absolute paths of the plugins that are files
    manager: pluggy.PluginManager = field(default_factory=lambda: pluggy.PluginManager("clbench"))

    def strategy(self, name: str) -> StrategyInfo:
        """Return the strategy of that name or raise a `SpecError` with near names.

        `package.module:Class` and `path/to/file.py:Class` name a strategy class.
        """
        source, _, attribute = name.rpartition(":")
        if source and attribute.isidentifier() and name not in {*self.strategies, *self.unavailable} and not any(
                strategy_name.startswith(f"{source}:") for strategy_name in self.strategies):
            try:
                self.strategies[name] = strategy_info(name)
            except ClbenchError as error:
                if source in self.strategies:
                    raise SpecError(f"method {source!r}: option {attribute!r} has no value; write "
                                    f"{source}:{attribute}=VALUE") from error
                raise SpecError(str(error)) from error
            except (Exception, SystemExit) as error:  # any error of the file becomes one line
                raise SpecError(f"method {name!r}: {format_error(error, package_of(source))}") from error
            self.origins["method", name] = Origin(name, source, "")
        return self._find("method", self.strategies, name)

    @property
    def baseline(self) -> StrategyInfo:
        """Return the first strategy that is declared as full fine-tuning or raise a `SpecError`."""
        for info in self.strategies.values():
            if info.baseline:
                return info
        raise SpecError("no method that is installed is full fine-tuning (StrategyInfo.baseline); clbench methods "
                        "shows which plugins are disabled or broken")

    def model(self, name: str) -> ModelInfo:
        """Return the model of that name (`torchvision:NAME` and `timm:NAME` too) or raise a `SpecError`."""
        return self._find("model", self.models, name)

    def report_format(self, name: str) -> ReportFormat:
        """Return the report format of that name or raise a `SpecError` with near names."""
        return self._find("report format", self.formats, name)

    def tracker(self, name: str) -> TrackerInfo:
        """Return the tracker of that name or raise a `SpecError` with near names."""
        return self._find("tracker", self.trackers, name)

    def benchmark(self, name: str) -> BenchmarkInfo:
        """Return the benchmark of that name or raise a `SpecError` with near names.

        `package.module:function` and `path/to/file.py:function` name the benchmark that a function returns.
        """
        if name.endswith(".py"):
            raise SpecError(f"benchmark {name!r}: name the function too that returns it, as in {name}:FUNCTION")
        if name not in self.benchmarks and (meant := self._suggest_path(name)):
            raise SpecError(f"no benchmark {name!r}; did you mean {meant}? (clbench benchmarks lists all)")
        return self._find("benchmark", self.benchmarks, name)

    def _suggest_path(self, name: str) -> str:
        """Return a benchmark `kind:PATH` that the user may have meant by a wrong kind or by a path alone."""
        kind, colon, path = name.partition(":")
        patterns = self.patterns.get("benchmark", {})
        if colon:
            if not kind.isidentifier() or self.pattern("benchmark", name) not in ("", ANY_CODE):
                return ""
            with extend_import_path(name):
                if path.isidentifier() and _home(kind) is not None:
                    return ""
            if near := get_close_matches(kind, [p.removesuffix(":*") for p in patterns if p != ANY_CODE], n=1):
                return f"{near[0]}:{path}"
        place = Path(path or kind)
        suffix = "/" if place.is_dir() else place.suffix.lower() * place.is_file()
        return next((p.replace("*", path or kind) for p, info in patterns.items() if suffix in info.suffixes), "")

    def list_declarations(self, kind: str, known: Mapping[str, Info]) -> dict[str, Info]:
        """Return all declarations of a kind in the order of lists: `known` sorted by name, then the patterns."""
        patterns = self.patterns.get(kind, {})
        return {**dict(sorted(known.items())),
                **{name: patterns[name] for name in sorted(patterns, key=lambda n: (n.startswith("*"), n))}}

    def origin(self, kind: str, name: str) -> Origin:
        """Return the origin of a method, benchmark or model, also if its name only fits a pattern."""
        return self.origins.get((kind, name)) or self.origins[kind, self.pattern(kind, name)]

    def pattern(self, kind: str, name: str) -> str:
        """Return the longest pattern that fits a name; empty if none does."""
        return max((p for p in self.patterns.get(kind, {}) if fnmatchcase(name, p)), key=len, default="")

    def _find(self, kind: str, known: dict[str, Info], name: str) -> Info:
        if name in known:
            return known[name]
        if pattern := self.pattern(kind, name):
            return replace(cast(Info, self.patterns[kind][pattern]), name=name)
        if kind == "method" and name in self.unavailable:
            raise SpecError(f"method {name!r} cannot be run: {self.unavailable[name]}")
        states = {**dict.fromkeys(self.disabled, f"disabled by {DISABLE}"),
                  **{entry: f"broken: {error}" for entry, error in self.broken.items()}}
        for entry, state in states.items():
            if entry in (name, f"clbench_{name.partition(':')[0].replace('-', '_')}"):
                raise SpecError(f"{kind} {name!r}: its plugin {entry!r} is {state}")
        listing = {"report format": "clbench report --help"}.get(kind, f"clbench {kind}s")
        hint = ". If it is in a file, add --plugin FILE" if kind == "method" else ""
        if kind == "benchmark" and f"{name}:*" in self.patterns.get(kind, {}):  # also if `=` made an option of the path
            hint = (f". Write {name}:PATH; a path with = can only be written in a TOML file, as in benchmark = "
                    f'{{name = "{name}:PATH"}}')
        raise SpecError(unknown(kind, name, known, listing) + hint)


@cache
def installed() -> Registry:
    """Return the installed plugins, which are loaded once in a process."""
    return discover()


def discover(extra: Sequence[object] = (), files: Files = ()) -> Registry:
    """Load every plugin of the entry-point group `clbench`, each in its own `try`, and collect its declarations.

    Args:
        extra: modules or objects with hook implementations to register as well (tests, notebooks).
        files: a Python file with hook implementations, or several. A broken file is an error, unlike a broken installed
            plugin.

    Raises:
        PluginError: a file cannot be used.
    """
    paths = [Path(file) for file in as_list(files)]
    for path in paths:  # checked first, because loading the installed plugins takes time
        if not path.exists():
            raise PluginError(f"cannot read the plugin {path.absolute()}: {os.strerror(errno.ENOENT)}")
    registry = Registry()
    registry.manager.add_hookspecs(hookspecs)
    distributions: dict[Distribution, tuple[str, str]] = {}
    entries = [(_origin(entry, distributions), entry) for entry in entry_points(group=GROUP)]
    for origin, entry in sorted(entries, key=lambda f: (f[0].distribution != "clbench", f[0].plugin)):  # ours first
        if disabled(entry.name, entry.value):
            registry.disabled.append(entry.name)
            continue
        try:
            module = entry.load()
        except (Exception, SystemExit) as error:  # an error of one plugin must not stop the others
            registry.broken[entry.name] = format_error(error, package_of(entry.value))
            continue
        _register(registry, module, origin)
    for plugin in extra:
        _register(registry, plugin, Origin(getattr(plugin, "__name__", repr(plugin)), "(this session)", ""))
    for path in dict.fromkeys(path.absolute() for path in paths):
        if registry.manager.has_plugin(path.stem):
            raise PluginError(f"plugin {path}: {path.stem!r} is installed; name what it brings without --plugin, "
                              f"or leave it out with {DISABLE}={path.stem}")
        module, sha256 = load_file(path)
        _register(registry, module, Origin(module.__name__, str(path), f"sha256:{sha256}"))
        if module.__name__ in registry.broken:
            raise PluginError(f"plugin {path}: {registry.broken[module.__name__]}")
        registry.files.append(path)
    return registry


def _register(registry: Registry, plugin: object, origin: Origin) -> None:
    """Register a plugin and its declarations; if anything fails, mark it as broken and add none of them."""
    manager = registry.manager
    try:
        manager.register(plugin, origin.plugin)
        manager.check_pending()
        hooks: dict[str, Callable[..., Any]] = {
            caller.name: implementation.function for caller in manager.get_hookcallers(plugin) or ()
            for implementation in caller.get_hookimpls() if implementation.plugin is plugin}
        if not hooks:
            raise PluginError("it has no hook, such as clbench_strategies with @hookimpl (docs/writing-a-strategy.md)")
        declarations: dict[tuple[str, str], tuple[dict[str, Any], Any]] = {}
        for hook, kind, infos, type_ in (
            ("clbench_strategies", "method", registry.strategies, StrategyInfo),
            ("clbench_benchmarks", "benchmark", registry.benchmarks, BenchmarkInfo),
            ("clbench_models", "model", registry.models, ModelInfo),
            ("clbench_report_formats", "report format", registry.formats, ReportFormat),
            ("clbench_trackers", "tracker", registry.trackers, TrackerInfo),
        ):
            for info in hooks[hook]() if hook in hooks else ():
                if not isinstance(info, type_):
                    raise PluginError(f"{hook} returned {info!r}, expected {type_.__name__}")
                if (kind, info.name) in registry.origins or (kind, info.name) in declarations:
                    owner = registry.origins.get((kind, info.name), origin).plugin
                    raise PluginError(f"the plugin {owner} already has a {kind} {info.name!r}; choose another name")
                declarations[kind, info.name] = infos, info
    except Exception as error:  # as in `discover`
        if manager.is_registered(plugin):
            manager.unregister(plugin)
        registry.broken[origin.plugin] = format_error(error, package_of(getattr(plugin, "__name__", "")))
        return
    for (kind, name), (infos, info) in declarations.items():
        if isinstance(info, StrategyInfo) and info.unavailable:
            registry.unavailable[name] = info.unavailable
            continue
        target = registry.patterns.setdefault(kind, {}) if getattr(info, "any_name", False) else infos
        target[name] = info
        registry.origins[kind, name] = origin


def _origin(entry: EntryPoint, distributions: dict[Distribution, tuple[str, str]]) -> Origin:
    """Return where an entry point comes from; `distributions` holds the names and versions that were read before.

    A distribution parses all its metadata, the README included, each time its name or version is read.
    """
    if entry.dist is None:
        return Origin(entry.name, entry.value, "")
    if entry.dist not in distributions:
        metadata = entry.dist.metadata
        distributions[entry.dist] = metadata["Name"], metadata["Version"]
    return Origin(entry.name, *distributions[entry.dist])


def load_file(path: Path) -> tuple[ModuleType, str]:
    """Run a plugin's file as a module named after it; return the module and the SHA-256 of the file.

    A file that was loaded before runs again, because it may have changed. Its folder is not on the import path, so the
    hash covers the whole plugin.

    Raises:
        PluginError: the file cannot be read or raises, or its name is not valid for a module or is already in use.
    """
    name, file = path.stem, path.absolute()
    try:
        code = file.read_bytes()
    except OSError as error:
        raise PluginError(f"cannot read the plugin {path}: {error.strerror or error}") from None
    if not name.isidentifier():
        raise PluginError(f"plugin {path}: {name!r} is not a valid name of a module: use letters, digits and "
                          "underscores")
    existing = _home(name)
    if existing and not (Path(existing).exists() and file.samefile(existing)):
        raise PluginError(f"plugin {path}: {name!r} is the name of another module ({existing}); rename the file")
    try:
        module = run_as_module(name, file, code)
    except (Exception, SystemExit) as error:  # any error of the file becomes one line
        raise PluginError(f"plugin {path}: {format_error(error, name)}") from error
    return module, hashlib.sha256(code).hexdigest()


def _home(name: str) -> str | None:
    """Return the file or package that the module of that name comes from; None if there is no such module."""
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # a module without a spec, such as __main__
        return name
    return (spec.origin or name) if spec else None
