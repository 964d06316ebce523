"""Write docs/results/ from what is committed in reports/ and benchmarks/: `make docs-pages`. A test compares them."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import results_speed
from pages import code, table
from results_facts import OUT, REPORTS, ROOT, Study, count, days, read, rows, studies, trials, versions

from clbench.core.registry import discover
from clbench.experiment import references
from clbench.report.analysis.headline import ANSWER
from clbench.report.formats.markdown import escape
from clbench.report.model import Section
from clbench.results import verification

HERE = Path(__file__).parent / "results"
MADE = "<!-- Made by `make docs-pages` from reports/ and benchmarks/; what is written here is lost. -->"
AS_CODE = ("benchmark", "model", "made by")  # values that are code
INDEX = """\
What was run, when, where, by which command, and how to repeat it. Every figure here comes from the records in
`reports/`, by a script. *The report* of a study is `report.md` on GitHub; in the documentation that
`make docs` builds, it is a page with tables to sort and figures to point at."""
REPEAT = """\
Each study below has the commands that repeat it; they need a checkout. `clbench diff` then says what differs from the
committed records. On another processor, or with another version of torch, the last digits may differ."""
VERIFY = """\
Published tables, repeated: for each of their numbers ours, the tolerance that was fixed before the first run, and a
verdict. [How that is decided](../verify.md)."""
EXPLAIN = "Two experiments whose numbers differ, and what each of their differences contributes. [How](../explain.md)."
WORDS = ("reproduced", "missed", "cannot tell", "not run")


def main() -> None:
    """Write all pages, and remove those that are no longer made."""
    HERE.mkdir(exist_ok=True)
    for path in HERE.glob("*.md"):
        if path.name not in PAGES:
            path.unlink()
    for name, make in PAGES.items():
        (HERE / name).write_text(make(), encoding="utf-8")


def index() -> str:
    """Return index.md: every study, what it was run with, and how to repeat it."""
    every = studies()
    overview = [[f"[{escape(s.head.title)}](#{anchor(s.head.title)})",
                 "<br>".join(dict.fromkeys(f"{r.trial.benchmark.name}, {r.trial.model.name}" for r in s.records)),
                 ", ".join(dict.fromkeys(r.trial.scenario for r in s.records)), _methods(s), count(s.records),
                 str(len(s.records)), days(s.records)] for s in every]
    blocks = [MADE, "# Results", INDEX,
              table(["study", "benchmark, model", "scenarios", "methods", "seeds", "trials", "when"], overview),
              "Beside them: [published numbers, repeated](verify.md), [why two numbers differ](explain.md), "
              "[speed](speed.md).", REPEAT]
    for one in every:
        blocks += section(one)
    blocks += others()
    return "\n\n".join(blocks) + "\n"


def section(one: Study) -> Iterator[str]:
    """Yield the blocks of one study."""
    yield f"## {escape(one.head.title)}"
    yield from map(escape, one.head.text)
    beside = [path for path in sorted(one.folder.glob("*.md")) if path.name != "report.md"]
    more = "".join(f"; see also [{heading(path)}]({_link(path)})" for path in beside)
    yield f"[**The report**]({_link(one.folder / 'report.md')}) begins{f' ({more[2:]})' if more else ''}:"
    yield "\n".join(_found(s) for s in one.report.sections)
    facts = [[name, "<br>".join((code(value) if name in AS_CODE else escape(value)) + note for value, note in values)]
             for name, values in rows(one.records)]
    if one.file:
        facts.insert(0, ["file", f"[{code(one.file.relative_to(ROOT).as_posix())}]({_link(one.file)})"])
    facts.append(["needs", escape(one.head.needs.rstrip(".:")) or "its file does not say"])
    yield table(["", ""], facts)
    yield "To repeat it:"
    yield block([*repeat(one), f"clbench diff reports/{one.name} runs/{one.name}"])
    yield from (shown(path, 2) for path in beside)


def repeat(one: Study) -> list[str]:
    """Return the commands that repeat a study, into runs/; those of its file's head, else of its records."""
    given = list(one.head.commands)
    if not any(command.startswith("clbench run ") for command in given):
        given.append(f"clbench run {one.file.relative_to(ROOT)}" if one.file
                     else Counter(r.provenance.command for r in one.records).most_common(1)[0][0])
    given = [re.sub(r"(?<= --out )reports/", "runs/", command) for command in given]
    return [f"{OUT.sub('', c)} --out runs/{one.name}" if c.startswith("clbench run ") else c for c in given]


def verify() -> str:
    """Return verify.md: every reference, with the number of its verdicts."""
    lines, commands, whole = [], [], []
    for name, path in references.shipped().items():
        _, reference = references.find(name)
        folder = REPORTS / "verify" / name
        records = read(folder) if folder.exists() else []
        checked = verification.check(reference, [[one.trial for one in cell] for cell in reference.plan(
            reference.cells, discover())], records) if records else []
        counts = Counter([one.verdict for one in checked] or ["not run"] * len(reference.cells))
        title = escape(reference.title)
        lines.append([f"[{title}]({_link(folder / 'verify.md')})" if records else title,
                      f"[{escape(reference.paper)}]({reference.url})", *(str(counts[word]) for word in WORDS),
                      *((count(records), days(records)) if records else ("", "no records are committed"))])
        commands.append(f"clbench verify {name}" + (" --weights vit_b16.safetensors" if reference.weights else "")
                        + (f" --seeds {len({r.trial.seed for r in records})}" if records else ""))
        if records:
            whole += [shown(folder / "verify.md")]
        assert path.stem == name
    return "\n\n".join([MADE, "# Published numbers, with verdicts", VERIFY,
                        table(["reference", "paper", *WORDS, "seeds", "when"], lines), "To repeat them:",
                        block(commands), *whole]) + "\n"


def explain() -> str:
    """Return explain.md: every difference that was divided, with its first line."""
    lines, commands, whole = [], [], []
    for path in sorted(REPORTS.glob("explain/*/explain.md")):
        text, records = path.read_text(encoding="utf-8"), read(path.parent)
        a, b = re.findall(r"benchmarks/\S+\.toml", text.replace("\\", ""))[:2]
        result, = re.findall(r"^\*\*(.*)\*\*$", text, re.MULTILINE)
        lines.append([f"[{Path(a).stem} to {Path(b).stem}]({_link(path)})", result, count(records), trials(records),
                      days(records), escape(versions(records).split(",")[0])])
        commands.append(f"clbench explain {a} {b} --seeds {len({r.trial.seed for r in records})}")
        whole.append(shown(path))
    return "\n\n".join([MADE, "# Two numbers, explained", EXPLAIN,
                        table(["from, to", "result", "seeds", "trials", "when", "with"], lines), "To repeat it:",
                        block(commands), *whole]) + "\n"


def others() -> Iterator[str]:
    """Yield the blocks of what is measured by a script and is no study."""
    yield "## Faults"
    yield ("Processes killed at random while trials run, and the results compared with those of undisturbed runs "
           "([how](../scaling.md)).")
    for path in sorted(REPORTS.glob("faults/*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        facts = [["file", f"[{code(path.relative_to(ROOT).as_posix())}]({_link(path)})"]]
        facts += [[escape(name), results_speed.told(name, value)] for name, value in found.items()]
        yield table(["", ""], facts)


def block(commands: list[str]) -> str:
    """Return commands as a block that the tests plan and do not run."""
    return "<!-- not run: hours; or data and weights -->\n```bash\n" + "\n".join(commands) + "\n```"


def heading(path: Path) -> str:
    """Return the first heading of a markdown file."""
    return path.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# ")


def shown(path: Path, below: int = 1) -> str:
    """Return the mark in whose place the documentation shows a file, its headings below a level: `results_site`."""
    return results_speed.mark(path, heading(path), below)


def anchor(title: str) -> str:
    """Return how a link names a heading, on GitHub and in the documentation."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _link(path: Path) -> str:
    return f"../../{path.relative_to(ROOT).as_posix()}"


def _methods(one: Study) -> str:
    counts = sorted({len(s.comparison.rows) for s in one.report.sections})
    return " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))


def _found(of: Section) -> str:
    """Return the answer of a section's report and the accuracies of its references."""
    return f"- {escape(of.title)}: {escape(' '.join(text for about, text in of.headline if about == ANSWER))}"


PAGES: dict[str, Callable[[], str]] = {
    "index.md": index, "verify.md": verify, "explain.md": explain, "speed.md": results_speed.page}

if __name__ == "__main__":
    sys.exit(main())
