"""Write docs/results/ from reports/ and benchmarks/: `make docs-pages`. A test checks that the pages are current."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

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
GENERATED = "<!-- Made by `make docs-pages` from reports/ and benchmarks/; what is written here is lost. -->"
AS_CODE = ("benchmark", "model", "command")  # facts whose values are shown as code
INDEX = """\
Find the answer, the report and the commands of every committed study. A script makes these pages from the records in
`reports/`."""
MORE = """\
More results: [published numbers](verify.md), [why two results differ](explain.md), [speed](speed.md)."""
REPEAT = """\
The commands need a checkout of clbench. `clbench diff` shows what differs from the committed records. On another
processor, or with another version of torch, the last digits may differ."""
VERIFY = """\
Find how our results compare with published numbers. Each number has a verdict and a tolerance that was fixed before
the first run; a report says if it was amended. [Reproduce published numbers](../verify.md) has the rule."""
EXPLAIN = """\
Find how much each difference between two experiments contributes to the difference of their results.
[Explain why two results differ](../explain.md) says how to do this."""
FAULTS = """\
Processes were killed at random while trials ran, and the results were compared with those of undisturbed runs. [Run and
resume long studies](../scaling.md) describes what clbench does after a fault."""
TOCTREE = "```{{toctree}}\n:hidden:\n\n{}\n```"


def main() -> None:
    """Write all pages, and remove those that are no longer made."""
    HERE.mkdir(exist_ok=True)
    written = pages()
    for path in HERE.glob("*.md"):
        if path.name not in written:
            path.unlink()
    for name, text in written.items():
        (HERE / name).write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """Return the text of every page by its file name."""
    return {"index.md": index(), "verify.md": verify(), "explain.md": explain(), "speed.md": results_speed.page(),
            **{f"{one.slug}.md": study_page(one) for one in studies()}}


def index() -> str:
    """Return index.md: a table of all studies."""
    every = studies()
    overview = [[f"[{escape(s.head.title)}]({s.slug}.md)",
                 "<br>".join(dict.fromkeys(f"{r.trial.benchmark.name}, {r.trial.model.name}" for r in s.records)),
                 ", ".join(dict.fromkeys(r.trial.scenario for r in s.records)), _methods(s), count(s.records),
                 str(len(s.records)), days(s.records)] for s in every]
    blocks = [GENERATED, "# Results", INDEX,
              table(["study", "benchmark, model", "scenarios", "methods", "seeds", "trials", "date"], overview), MORE,
              "## Faults", FAULTS, *faults(), TOCTREE.format("\n".join(one.slug for one in every))]
    return "\n\n".join(blocks) + "\n"


def study_page(one: Study) -> str:
    """Return the page of one study: the answer of its report, its setting, and the commands that repeat it."""
    attached = [path for path in sorted(one.folder.glob("*.md")) if path.name != "report.md"]
    links = [f"[**Report**]({_link(one.folder / 'report.md')})",
             *(f"[{heading(path)}]({_link(path)})" for path in attached)]
    facts = [[name, "<br>".join((code(value) if name in AS_CODE else escape(value)) + note for value, note in values)]
             for name, values in rows(one.records)]
    if one.file:
        facts.insert(0, ["study file", f"[{code(one.file.relative_to(ROOT).as_posix())}]({_link(one.file)})"])
    facts.append(["requirements", escape(one.head.needs.rstrip(".:")) or "not stated in the file"])
    blocks = [GENERATED, f"# {escape(one.head.title)}", *map(escape, one.head.text), "## Answer",
              "\n".join(map(_answer, one.report.sections)), " · ".join(links), "## Setting", table(["", ""], facts),
              "## Repeat the study", REPEAT, block([*repeat(one), f"clbench diff reports/{one.name} runs/{one.name}"]),
              *(shown(path, 1) for path in attached)]
    return "\n\n".join(blocks) + "\n"


def repeat(one: Study) -> list[str]:
    """Return the commands that repeat a study into runs/, from the head of its file, else from its records."""
    given = list(one.head.commands)
    if not any(command.startswith("clbench run ") for command in given):
        given.append(f"clbench run {one.file.relative_to(ROOT)}" if one.file
                     else Counter(r.provenance.command for r in one.records).most_common(1)[0][0])
    given = [re.sub(r"(?<= --out )reports/", "runs/", command) for command in given]
    return [f"{OUT.sub('', c)} --out runs/{one.name}" if c.startswith("clbench run ") else c for c in given]


def verify() -> str:
    """Return verify.md: every reference, with the number of cells with each verdict."""
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
                      f"[{escape(reference.paper)}]({reference.url})",
                      *(str(counts[verdict]) for verdict in get_args(verification.Verdict)),
                      *((count(records), days(records)) if records else ("", "no records are committed"))])
        commands.append(f"clbench verify {name}" + (" --weights vit_b16.safetensors" if reference.weights else "")
                        + (f" --seeds {len({r.trial.seed for r in records})}" if records else ""))
        if records:
            whole += [shown(folder / "verify.md")]
        assert path.stem == name
    return "\n\n".join([GENERATED, "# Published numbers", VERIFY,
                        table(["reference", "paper", *get_args(verification.Verdict), "seeds", "when"], lines),
                        "## Repeat the comparison",
                        block(commands), *whole]) + "\n"


def explain() -> str:
    """Return explain.md: every explained difference, with its result."""
    lines, commands, whole = [], [], []
    for path in sorted(REPORTS.glob("explain/*/explain.md")):
        text, records = path.read_text(encoding="utf-8"), read(path.parent)
        a, b = re.findall(r"benchmarks/\S+\.toml", text.replace("\\", ""))[:2]
        result, = re.findall(r"^\*\*(.*)\*\*$", text, re.MULTILINE)
        lines.append([f"[{Path(a).stem} to {Path(b).stem}]({_link(path)})", result, count(records), trials(records),
                      days(records), escape(versions(records).split(",")[0])])
        commands.append(f"clbench explain {a} {b} --seeds {len({r.trial.seed for r in records})}")
        whole.append(shown(path))
    return "\n\n".join([GENERATED, "# Why two results differ", EXPLAIN,
                        table(["from, to", "result", "seeds", "trials", "when", "with"], lines), "## Repeat the study",
                        block(commands), *whole]) + "\n"


def faults() -> Iterator[str]:
    """Yield a table for each test in which processes were killed."""
    for path in sorted(REPORTS.glob("faults/*.json")):
        measured = json.loads(path.read_text(encoding="utf-8"))
        facts = [["file", f"[{code(path.relative_to(ROOT).as_posix())}]({_link(path)})"]]
        facts += [[escape(name), results_speed.fact_cell(name, value)] for name, value in measured.items()]
        yield table(["", ""], facts)


def block(commands: list[str]) -> str:
    """Return commands as a block that the tests plan but do not run."""
    return "<!-- not run: hours; or data and weights -->\n```bash\n" + "\n".join(commands) + "\n```"


def heading(path: Path) -> str:
    """Return the first heading of a Markdown file."""
    return path.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# ")


def shown(path: Path, below: int = 1) -> str:
    """Return the mark that `results_site` replaces by the content of a file, with its headings below a level."""
    return results_speed.mark(path, heading(path), below)


def _link(path: Path) -> str:
    return f"../../{path.relative_to(ROOT).as_posix()}"


def _methods(one: Study) -> str:
    counts = sorted({len(s.comparison.rows) for s in one.report.sections})
    return " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))


def _answer(section: Section) -> str:
    """Return the answer of a section's report."""
    return f"- {escape(section.title)}: {escape(' '.join(text for about, text in section.headline if about == ANSWER))}"


if __name__ == "__main__":
    sys.exit(main())
