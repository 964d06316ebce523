"""Old names: what has moved or been renamed still works under its name of clbench 0.1, with a DeprecationWarning.

`MODULES` says where the contents of a module are now, `NAMES` what has another name there. A module that is gone is
found by the last finder of `sys.meta_path`; where a package now has the module's name, it hands the old names on
(`clbench.core.lazy`). `Renamed` and `OldNames` do the same for members of classes that plugins call or override,
`old_keywords` for arguments of a constructor. All of it is to be removed in clbench 0.3.
"""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TypeVar

REMOVED_IN = "0.3"
MODULES: dict[str, list[str]] = {}  # old module -> the modules that have its contents now
NAMES: dict[str, str] = {}  # old "module.name" -> new "module.name", where the name itself has changed
# Frames that stand between the line that uses an old name and the warning about it.
BETWEEN = {__name__, "clbench.core.lazy", "importlib._bootstrap", "_frozen_importlib", "abc"}
Class = TypeVar("Class", bound=type)


def declare(package: str, modules: Mapping[str, str], names: Mapping[str, str]) -> None:
    """Declare what has moved within a package; modules and names are given without the package's own name.

    Args:
        package: such as `clbench`.
        modules: old module -> new module; several new ones with spaces between them.
        names: old `module.name` -> new `module.name`.
    """
    MODULES.update({f"{package}.{old}": [f"{package}.{new}" for new in homes.split()]
                    for old, homes in modules.items()})
    NAMES.update({f"{package}.{old}": f"{package}.{new}" for old, new in names.items()})


def find(module: str, name: str) -> Any:
    """Return what `module.name` stood for and warn the line that asked: the `__getattr__` of old modules (PEP 562).

    Raises:
        AttributeError: nothing of that name has moved from there.
    """
    renamed = NAMES.get(f"{module}.{name}")
    homes = [f"{home}.{name}" for home in MODULES.get(module, ()) if not name.startswith("__")]
    for new in [renamed] if renamed else homes:
        home, _, attribute = new.rpartition(".")
        value = getattr(importlib.import_module(home), attribute, warn)
        if value is not warn:
            warn(f"{module}.{name}", new)
            return value
    raise AttributeError(f"module {module!r} has no attribute {name!r}")


def warn(old: str, new: str) -> None:
    """Warn the code that uses an old name, by its own line and once for each such line."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__") in BETWEEN:
        frame = frame.f_back
    warnings.warn_explicit(f"{old} is {new} now; the old name is to be removed in clbench {REMOVED_IN}",
                           DeprecationWarning, frame.f_code.co_filename, frame.f_lineno,
                           frame.f_globals.get("__name__"), frame.f_globals.setdefault("__warningregistry__", {}))


class OldModules:
    """Finder and loader of modules that are gone; the modules it makes look their names up with `find`."""

    @staticmethod
    def find_spec(fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return how to load an old module, None for any other one."""
        return ModuleSpec(fullname, OldModules) if fullname in MODULES else None  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: ModuleSpec) -> None:
        """Leave it to Python to make the module."""

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """Let the module look its names up with `find`."""
        vars(module)["__getattr__"] = functools.partial(find, module.__name__)


sys.meta_path.append(OldModules)  # last, so that it is used only for modules that no other finder finds


class Renamed:
    """A class's member under its old name, as in `frozen = Renamed("frozen_modules")`."""

    def __init__(self, new: str) -> None:
        """Keep the new name."""
        self.new = new

    def __set_name__(self, owner: type, name: str) -> None:
        """Take the name that it is assigned to as the old one."""
        self.old = name

    def __get__(self, instance: object | None, owner: type) -> Any:
        """Return the member that has the new name.

        If a class overrides the old name, it gets here by `super()`; the search then starts after that class.
        """
        warn(f"{owner.__name__}.{self.old}", self.new)
        found: Any = owner if instance is None else instance
        overriding = [cls for cls in owner.__mro__ if vars(cls).get(self.old, self) is not self]
        return getattr(super(overriding[-1], found) if overriding else found, self.new)


def renamed(cls: type) -> dict[str, str]:
    """Return the new name of each member that has an old one."""
    return {old: member.new for base in cls.__mro__ for old, member in vars(base).items()
            if isinstance(member, Renamed)}


class OldNames:
    """Base of classes with `Renamed` members: a subclass that overrides one by its old name overrides the new one."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Copy what a class defines under an old name to the new name."""
        super().__init_subclass__(**kwargs)
        for old, new in renamed(cls).items():
            for members in map(vars, cls.__mro__):
                if new in members:
                    break
                if old in members and not isinstance(members[old], Renamed):
                    warn(f"{cls.__name__}.{old}", new)
                    setattr(cls, new, members[old])
                    break


def old_keywords(cls: Class) -> Class:
    """Let a class's constructor take its `Renamed` members by their old names."""
    construct, names = cls.__init__, renamed(cls)  # type: ignore[misc]

    @functools.wraps(construct)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        for old in names.keys() & kwargs.keys():
            warn(f"{cls.__name__}({old}=...)", names[old])
            kwargs[names[old]] = kwargs.pop(old)
        construct(self, *args, **kwargs)

    cls.__init__ = init  # type: ignore[misc]
    return cls


declare("clbench", {
    # core
    "artifacts": "core.artifacts", "compat": "core.compat", "device": "core.device", "errors": "core.errors",
    "hookspecs": "core.hookspecs core.scenario results.tracking", "options": "core.options", "seeds": "core.seeds",
    "plugins": "core.registry core.entry_points", "pluginfile": "core.registry", "digests": "core.files",
    "leftovers": "core.files", "locks": "core.files", "data.folder": "core.files",
    "builtin": "data.builtin models.builtin report.builtin",
    # experiment
    "spec": "experiment.spec core.scenario", "search": "experiment.search core.scenario",
    "plan": "experiment.plan experiment.trial", "sharding": "experiment.plan", "sweeps": "experiment.sweeps",
    "overrides": "experiment.overrides", "references": "experiment.references", "tuned": "experiment.toml_file",
    # models
    "models.basic": "models.mlp_cnn", "models.options": "models.builtin", "models.pretrained": "models.weights",
    # data
    "data.ahead": "data.prefetch", "data.augment": "data.augmentation", "data.build": "data.avalanche.build",
    "data.host": "data.samples", "data.live": "data.samples", "data.options": "data.builtin",
    "data.permuted": "data.samples", "data.quiet": "data.datasets data.avalanche.build",
    "data.streams": "data.avalanche.benchmarks", "data.tensors": "data.avalanche.tensors",
    "data.transforms": "data.avalanche.transforms", "data.validation": "data.raw", "data.whole": "data.avalanche.whole",
    # results
    "records": "results.records", "store": "results.store core.files", "metrics": "results.metrics",
    "stats": "results.stats", "changes": "results.diff", "merging": "results.merge",
    "verification": "results.verification", "tracking": "results.tracking",
    "provenance": "results.provenance training.trials.costs",
    # strategy
    "memory": "strategy.replay", "consolidation": "strategy.regularization", "distillation": "strategy.distillation",
    "pertask": "strategy.per_task", "pertask_options": "strategy.per_task_options", "fisher": "strategy.fisher",
    "samplewise": "strategy.per_sample_gradients", "layergrads": "strategy.per_sample_gradients",
    "classmeans": "strategy.class_means",
    # report
    "report.accuracy_figures": "report.figures.accuracy", "report.beside": "report.analysis.run_diff",
    "report.comparing": "report.analysis.paired_tests", "report.cost_figures": "report.figures.cost",
    "report.csv": "report.formats.csv", "report.drawing": "report.figures.style",
    "report.facts": "report.analysis.notes", "report.growth": "report.figures.draw",
    "report.html": "report.formats.html", "report.json": "report.formats.json",
    "report.labels": "report.figures.labels", "report.latex": "report.formats.latex",
    "report.markdown": "report.formats.markdown", "report.methods": "report.analysis.grouping",
    "report.page": "report.formats.page", "report.pairs": "report.analysis.paired_tests",
    "report.pictures": "report.figures.data", "report.ranking": "report.analysis.ranking",
    "report.ranks_figure": "report.figures.ranks", "report.scheme": "report.formats.palette",
    "report.series": "report.figures.data", "report.terminal": "report.formats.terminal",
    "report.tex": "report.formats.latex", "report.text": "report.formatting",
    "report.verified": "report.formats.verified",
    # training
    "inputs": "training.precompute", "ensemble": "training.stacking training.optimizers",
    "moments": "training.stacking", "rows": "training.lookup", "compiling": "training.numerics",
    "precision": "training.numerics", "evaluation": "training.evaluation", "trial": "training.trials.runner",
    "member": "training.trials.state", "checkpoint": "training.trials.checkpoint", "resuming": "training.trials.resume",
    "building": "training.trials.building", "params": "training.trials.counting", "footprint": "training.trials.costs",
    "pretraining": "training.trials.pretraining",
    # testing
    "tiny": "testing.tiny", "pytest_plugin": "testing.pytest_plugin",
    # execution
    "api": "execution.api experiment.overrides", "claims": "execution.claims", "progress": "execution.progress",
    "interrupts": "execution.interrupts", "tuning": "execution.tuning", "samplers": "execution.samplers",
    "execution.cluster": "execution.workers.ray_cluster", "execution.host": "execution.workers.ray_cluster",
    "execution.link": "execution.workers.handle", "execution.local": "execution.workers.local",
    "execution.pool": "execution.workers.pool", "execution.process": "execution.workers.process",
    "execution.protocol": "execution.workers.protocol", "execution.worker": "execution.workers.worker",
    # cli
    "scaffold": "cli.new_plugin",
}, {
    "memory.Stored": "strategy.replay.SampleMemory",
    "memory.Rehearsal": "strategy.replay.ReplayMemory",
    "memory.placed": "strategy.replay.write_slots",
    "consolidation.Consolidated": "strategy.regularization.QuadraticPenalty",
    "data.live.LiveSamples": "data.samples.StochasticSamples",
    "plan.Planned": "experiment.trial.PlannedTrial",
    "records.Facts": "results.records.RecordPart",
    "pluginfile.load": "core.registry.load_file", "spec.load": "experiment.spec.read_toml",
    "references.load": "experiment.references.read_reference", "tuned.write": "experiment.toml_file.write_tuned",
    "store.load": "results.store.read_record", "merging.read": "results.merge.merge_runs",
    "changes.facts": "results.diff.differences", "models.pretrained.read": "models.weights.read_weights",
    "scaffold.write": "cli.new_plugin.write_plugin",
    "digests.of_file": "core.files.hash_file", "digests.of_code": "core.identity.hash_of",
    # of modules whose names are packages now
    "strategy.pick": "data.samples.pick", "strategy.Scenario": "core.scenario.Scenario",
    "report.methods.Method": "report.analysis.grouping.MethodRecords",
    "report.text.runs": "report.formatting.by_task", "report.comparing.measures": "report.columns.find_tested",
    "report.pictures.pictures": "report.figures.data.section_figures",
    "report.pictures.point": "report.figures.data.figure_point",
    "report.pictures.file_names": "report.figures.data.slugs",
    "report.Picture": "report.model.FigureData", "report.Point": "report.model.FigurePoint",
    "report.model.Picture": "report.model.FigureData", "report.model.Point": "report.model.FigurePoint",
    "training.Trainer": "training.trainer.Trainer", "training.Order": "training.trainer.Order",
    "training.steps_of": "training.budget.steps_of", "training.make_schedule": "training.optimizers.make_schedule",
    "execution.Listener": "execution.workers.plan.Listener",
})
