"""Whether a record still stands for its trial: the code and data it was made with beside those that are there now."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from clbench.core import identity
from clbench.core.errors import SpecError
from clbench.core.registry import Registry
from clbench.experiment.trial import Trial
from clbench.results.records import Code, Record

PARTS = ("method", "benchmark", "model")


def packages_of(trial: Trial, registry: Registry) -> dict[str, tuple[str, ...]]:
    """Return the packages (modules, files) whose code a trial's method, benchmark and model are, by part.

    A part's own packages are those of its code and of its options. What clbench itself brings has none, since clbench
    is told by its version and commit.

    Raises:
        SpecError: a name that is not installed.
    """
    method, benchmark = registry.strategy(trial.method.name), registry.benchmark(trial.benchmark.name)
    model = registry.model(trial.model.name)
    found = {"method": identity.names_of((method.strategy, method.options)),
             "benchmark": identity.names_of((benchmark.build, benchmark.options)),
             "model": identity.names_of((model.build, model.options))}
    for part, info in (("method", method), ("benchmark", benchmark)):
        if info.names_code:
            found[part] = (identity.package_of(info.name.rpartition(":")[0]),)
    return {part: names for part, names in found.items() if names}


def code_of(trial: Trial, registry: Registry, hashed: Callable[..., str] = identity.hash_of) -> dict[str, Code]:
    """Return the code of a trial's parts as a record keeps it.

    Args:
        trial: of names that are installed.
        registry: what is installed.
        hashed: `identity.hash_of` for the code on disk, `identity.running` for what this process has imported.
    """
    found: dict[str, Code] = {}
    for part, names in packages_of(trial, registry).items():
        named = (registry.strategy(trial.method.name).names_code if part == "method" else
                 part == "benchmark" and registry.benchmark(trial.benchmark.name).names_code)
        release = "" if named else str(registry.origin(part, getattr(trial, part).name))
        found[part] = Code(packages=list(names), hash=hashed(*names), release=release)
    return found


class CodeNow:
    """The code that is installed now, looked at once for all trials of the same names."""

    def __init__(self, registry: Registry) -> None:
        """Begin with none."""
        self.registry = registry
        self._known: dict[tuple[str, ...], dict[str, Code]] = {}

    def of(self, trial: Trial) -> dict[str, Code]:
        """Return the code of a trial's parts (`code_of`)."""
        names = tuple(getattr(trial, part).name for part in PARTS)
        if names not in self._known:
            self._known[names] = code_of(trial, self.registry)
        return self._known[names]


def changed_parts(record: Record, code: Mapping[str, Code]) -> list[str]:
    """Return the parts of a record whose code is another now; `code` is that of its trial's parts now."""
    return [part for part, old in record.provenance.code.items()
            if (new := code.get(part)) is not None and old.hash and new.hash and old.hash != new.hash]


def changed(record: Record, code: Mapping[str, Code], data: str = "") -> list[str]:
    """Return which of a record's code and data are others now, in words; nothing for what is not known of either.

    Args:
        record: with a result.
        code: of its trial's parts now.
        data: hash of its benchmark's data now; empty if not known.
    """
    found = []
    for part in changed_parts(record, code):
        old, new = record.provenance.code[part], code[part]
        versions = [v for state in (old, new) if (v := _version(state))]
        releases = f", {versions[0]} -> {versions[1]}" if len(set(versions)) == 2 else ""
        found.append(f"the {part}'s code ({', '.join(new.packages)}{releases})")
    if record.stream and record.stream.data and data and record.stream.data != data:
        found.append(f"the data of {record.trial.benchmark.name}")
    return found


def _version(code: Code) -> str:
    """Return the release of installed code; a file has none, since its hash changes with each comment."""
    return "" if "sha256:" in code.release else code.release


def by_reason(stale: Iterable[tuple[Record, list[str]]]) -> list[str]:
    """Return a line for each method and reason: `lora, seeds 0-2: the method's code (clbench_lora)`."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    for record, reasons in stale:
        scenario = record.trial.scenario
        groups.setdefault((record.label, scenario, " and ".join(reasons)), []).append(record.trial.seed)
    several = len({scenario for _, scenario, _ in groups}) > 1
    return [f"{label}{f' ({scenario})' if several else ''}, seed{'s' if len(seeds) > 1 else ''} "
            f"{', '.join(map(str, sorted(seeds)))}: {reasons}" for (label, scenario, reasons), seeds in groups.items()]


def stale_records(records: Iterable[Record], registry: Registry) -> list[tuple[Record, list[str]]]:
    """Return the records with a result that other code gave than is installed, each with what has changed.

    Records whose code is not known or not installed any more are none of them; data are not looked at.
    """
    now = CodeNow(registry)
    return [(r, reasons) for r in records
            if r.status != "failed" and r.provenance.code and installed(r.trial, registry)
            and (reasons := changed(r, now.of(r.trial)))]


def installed(trial: Trial, registry: Registry) -> bool:
    """Tell whether all of a trial's names are those of something that is installed."""
    try:
        packages_of(trial, registry)
    except SpecError:
        return False
    return True
