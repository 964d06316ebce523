"""Facts about the committed studies, from their records and from the first comment of their file in benchmarks/."""

from __future__ import annotations

import datetime
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from clbench import report
from clbench.experiment.trial import Weights
from clbench.report.analysis import notes
from clbench.report.formatting import as_ranges, clean, plural
from clbench.report.model import Report
from clbench.results.diff import group_by_method
from clbench.results.records import Record
from clbench.results.store import Store

ROOT = Path(__file__).resolve().parents[1]
REPORTS = ROOT / "reports"
FIRST = "lora_question"  # folder of the studies on clbench's main question
NOT_STUDIES = ("verify", "explain")  # folders of reports/ with records that have a separate page
Value = tuple[str, str]  # a fact, and the number of trials for which it is true
OUT = re.compile(r" --out \S+")
LATER: tuple[tuple[str, Callable[[Record], bool]], ...] = (  # facts that older records lack, and a check for it
    ("commit of clbench", lambda r: r.provenance.git is None),
    ("hash of the method's code", lambda r: not r.provenance.code),
    ("hash of the published weights", lambda r: bool(r.trial.weights and r.trial.weights.named
                                                     and not r.provenance.weights)),
    ("processor time", lambda r: r.status == "done" and not r.timings.train_cpu),
    ("training compute", lambda r: r.status == "done" and not r.costs.train_flops),
)


@dataclass(frozen=True)
class Head:
    """The comment with which a file in benchmarks/ begins: `# Title: text`, `# Needs ...`, and indented commands."""

    title: str  # the first sentence up to a colon; the whole sentence if it is a question
    text: tuple[str, ...]  # paragraphs; the first without the title
    needs: str
    commands: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """A folder of reports/ with records."""

    folder: Path
    head: Head
    file: Path | None  # in benchmarks/

    @property
    def name(self) -> str:
        """Return the folder's name within reports/."""
        return self.folder.relative_to(REPORTS).as_posix()

    @property
    def first(self) -> bool:
        """Return whether the study is about clbench's main question."""
        return FIRST in self.folder.parts

    @property
    def slug(self) -> str:
        """Return the name of the study's page in docs/results, without its ending."""
        return self.name.replace("/", "-").replace("_", "-")

    @property
    def page(self) -> str:
        """Return the file name of the study's interactive page."""
        return f"{self.slug}-report.html"

    @cached_property
    def records(self) -> list[Record]:
        """Return the records of the study.

        Raises:
            ValueError: a file is not a valid record.
        """
        return read(self.folder)

    @cached_property
    def report(self) -> Report:
        """Return the report on the records."""
        return report.build(group_by_method(self.records))


@cache
def studies() -> tuple[Study, ...]:
    """Return the committed studies: those on the main question (pretrained backbones first), then all others, by name.

    The result is cached, so that each study reads its records and builds its report only once.
    """
    folders = (path.parent for path in REPORTS.rglob("records"))
    found = [study(folder) for folder in folders if folder.relative_to(REPORTS).parts[0] not in NOT_STUDIES]
    return tuple(sorted(found, key=lambda s: (not s.first, s.first and s.records[0].trial.weights is None, s.name)))


def study(folder: Path) -> Study:
    """Return the study of a folder; its file in benchmarks/ has the same name."""
    name = folder.relative_to(REPORTS).as_posix()
    file = ROOT / "benchmarks" / f"{name}.toml"
    if file.exists():
        return Study(folder, head(file.read_text(encoding="utf-8")), file)
    return Study(folder, Head(name, (), "", ()), None)


def read(folder: Path) -> list[Record]:
    """Return the records of a folder in the order of their start.

    Raises:
        ValueError: a file is not a valid record.
    """
    records, problems = Store(folder).read()
    if problems:
        raise ValueError("\n".join(map(str, problems)))
    return records


def head(text: str) -> Head:
    """Parse the comment at the beginning of a file."""
    comment = re.match(r"(?:#.*\n)*", text)
    lines = [line.removeprefix("#").removeprefix(" ") for line in comment[0].splitlines()] if comment else []
    prose, commands = [], []
    for block in re.split(r"\n\s*\n", "\n".join(lines)):
        if re.match(r" {2,}\S", block):
            commands += re.sub(r"\\\n\s*", "", block).splitlines()
        elif block.strip():
            prose.append(" ".join(block.split()))
    needs = next((p for p in prose if p.startswith("Needs ")), "")
    about, *more = [p for p in prose if p is not needs] or [""]
    sentence = re.split(r"(?<=[.?!]) ", about)[0]
    title = sentence if sentence.endswith("?") else sentence.rstrip(".").split(": ")[0]
    first = about[len(title):].lstrip(":. ")
    return Head(title, tuple(filter(None, [first[:1].upper() + first[1:], *more])), needs.removeprefix("Needs "),
                tuple(re.sub(r"\s+", " ", c.strip()) for c in commands))


def rows(found: Sequence[Record]) -> list[tuple[str, list[Value]]]:
    """Return the facts about a study, from its records: name and values of each. Commands are without `--out`."""
    by_scenario: dict[str, set[str]] = {}
    for r in found:
        by_scenario.setdefault(r.trial.scenario, set()).add(r.label)
    pairs = [
        ("benchmark", _distinct(clean(r.trial.benchmark) for r in found)),
        ("model", _distinct(clean(r.trial.model) for r in found)),
        ("weights", _distinct(clean(weights(r.trial.weights)) for r in found)),
        ("training configuration", _distinct(notes.recipe(r.trial.recipe, r.trial.arrival) for r in found)),
        ("methods", _plain(f"{len(labels)} in scenario {scenario}" for scenario, labels in by_scenario.items())),
        ("seeds", _plain([seeds(found)])),
        ("trials", _plain([trials(found)])),
        ("date", _plain([when(found)])),
        ("machine", _counted(f"{r.provenance.machine}; {r.provenance.device}, {plural(r.provenance.threads, 'thread')}"
                           for r in found)),
        ("time", _plain([took(found)])),
        ("versions", _plain([versions(found)])),
        ("commit", _counted(commit(r.provenance.git) for r in found)),
        ("command", _counted(OUT.sub("", r.provenance.command) for r in found)),
    ]
    if lacking := [_lacking(name, sum(map(lacks, found)), len(found)) for name, lacks in LATER
                   if any(map(lacks, found))]:
        pairs.append(("not recorded", _plain(lacking)))
    return pairs


def count(found: Iterable[Record]) -> str:
    """Return the number of seeds."""
    return str(len({r.trial.seed for r in found}))


def seeds(found: Iterable[Record]) -> str:
    """Return the seeds, as in `0-4`."""
    return as_ranges(sorted({r.trial.seed for r in found}))


def trials(found: Sequence[Record]) -> str:
    """Return the number of trials by status."""
    counts = Counter(r.status for r in found)
    rest = [f"{n} {status}" for status, n in counts.items() if status != "done"]
    return f"{len(found)}, " + (f"{counts['done']} done, {', '.join(rest)}" if rest else "all done")


def days(found: Iterable[Record]) -> str:
    """Return the days on which trials started."""
    dates = sorted({r.provenance.started.date().isoformat() for r in found})
    return dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"


def when(found: Iterable[Record]) -> str:
    """Return when the first and the last trial started."""
    times = sorted(r.provenance.started.astimezone(datetime.timezone.utc) for r in found)
    first, last = f"{times[0]:%Y-%m-%d %H:%M}", f"{times[-1]:%Y-%m-%d %H:%M}"
    return f"{first} to {last[11:] if first[:10] == last[:10] else last} UTC"


def took(found: Iterable[Record]) -> str:
    """Return the time that training, consolidation and evaluation took in all trials together."""
    seconds = sum(sum((*r.timings.train, *r.timings.consolidate, *r.timings.evaluate, *r.timings.curve)) for r in found)
    told = f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.0f} minutes"
    return f"{told}, summed over trials"


def versions(found: Sequence[Record]) -> str:
    """Return the versions of the packages that the results depend on."""
    names = dict.fromkeys(name for r in found for name in r.provenance.versions)
    return ", ".join(f"{name} {' / '.join(dict.fromkeys(r.provenance.versions.get(name, 'unknown') for r in found))}"
                     for name in sorted(names, key=lambda name: name != "clbench"))


def weights(found: Weights | None) -> str:
    """Return a report's description of pretrained weights, with the name of a file instead of its path."""
    return notes.weights(found).replace(found.path, Path(found.path).name) if found and not found.named else (
        notes.weights(found))


def commit(git: str | None) -> str:
    """Return a commit with its hash shortened to ten digits; a suffix stays."""
    return "not recorded" if git is None else re.sub(r"^([0-9a-f]{10})[0-9a-f]*", r"\1", git)


def _lacking(name: str, lacking: int, of: int) -> str:
    return name if lacking == of else f"{name} (in {lacking} of {of} records)"


def _plain(values: Iterable[str]) -> list[Value]:
    return [(value, "") for value in values]


def _distinct(values: Iterable[str]) -> list[Value]:
    return _plain(dict.fromkeys(values))


def _counted(values: Iterable[str]) -> list[Value]:
    """Return each value once, most frequent first, with the number of its trials if there are several values."""
    counts = Counter(values)
    return [(value, f" ({plural(n, 'trial')})" if len(counts) > 1 else "") for value, n in counts.most_common()]
