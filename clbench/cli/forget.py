"""`clbench forget`: what a fine-tuned language model forgot, compared with its base."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clbench.cli.common_options import FILE, PATH, device_option, require_only
from clbench.cli.help import Command
from clbench.data.own.instructions import find_file

if TYPE_CHECKING:
    from clbench.execution.audit import Auditor
    from clbench.results.audit import Audit, Role

LOST = "lost"
FOR_EXPORT = ("base", "models", "export_scale", "to")  # parameters that apply without files to score
EXAMPLES = (
    ("clbench forget BASE adapter --tasks acme.jsonl --general english", "checks what an adapter forgot"),
    ("clbench forget BASE checkpoints --tasks acme.jsonl --out audit --fail-on lost", "checks each checkpoint, for CI"),
    ("clbench forget BASE --tasks acme.jsonl --show", "shows which tokens are scored, and scores nothing"),
    ("clbench forget BASE adapter2 --compare-with adapter1 --tasks task1.jsonl",
     "checks what the training on task 2 lost of task 1"),
    ("clbench forget BASE adapter --new acme.jsonl --tasks beta.jsonl --scale 0,0.25,0.5,0.75,1",
     "compares weaker versions of an adapter"),
)


class FiniteRange(click.FloatRange):
    """A range of numbers, without NaN and infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a number of the range."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


def read_scales(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[float, ...]:
    """Read numbers with commas between them."""
    if value is None:
        return ()
    try:
        scales = tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"expected numbers such as 0,0.25,0.5,0.75,1, got {value!r}") from None
    if not all(math.isfinite(scale) and scale >= 0 for scale in scales):
        raise click.BadParameter(f"expected numbers that are not negative, got {value!r}")
    return scales


@click.command("forget", cls=Command, examples=EXAMPLES)
@click.argument("base", metavar="BASE")
@click.argument("models", nargs=-1, type=PATH, metavar="[ADAPTER_OR_MODEL...]")
@click.option("--tasks", multiple=True, type=FILE, metavar="FILE", help="File of prompts and responses of a task "
              "that the model should still know (.jsonl, .json or .txt); repeatable.")
@click.option("--general", "general_files", multiple=True, type=FILE, metavar="FILE", help="File of texts or prompts "
              "that test general ability, or `english` for texts that come with clbench; repeatable. In a .txt file, "
              "each paragraph is a text.")
@click.option("--new", multiple=True, type=FILE, metavar="FILE", help="File of prompts and responses of the task "
              "that the model was fine-tuned on; repeatable.")
@click.option("--compare-with", type=PATH, metavar="ADAPTER_OR_MODEL", help="Compare with this adapter or model "
              "instead of BASE, for example with the adapter before the last task.")
@click.option("--length", type=click.IntRange(min=2), metavar="N", help="Maximum number of tokens per item.  "
              "[default: the model's maximum, at most 1024]")
@click.option("--allow-cut-responses", is_flag=True, help="Cut responses that are too long, instead of stopping with "
              "an error.")
@click.option("--chat-template", type=FILE, metavar="FILE", help="File with a chat template (Jinja) for messages.  "
              "[default: the template of BASE]")
@click.option("--any-base", is_flag=True, help="Accept adapters that name another base model, if all weights fit.")
@click.option("--margin-nll", type=FiniteRange(min=0), default=0.05, show_default=True, metavar="NATS",
              help="Largest increase of nll, in nats per token, that does not count as lost.")
@click.option("--margin-exact", type=FiniteRange(min=0, max=100), default=1.0, show_default=True, metavar="POINTS",
              help="Largest decrease of exact matches, in percentage points, that does not count as lost.")
@click.option("--scale", "scales", callback=read_scales, metavar="LIST", help="Also score the LoRA adapter with its "
              "update multiplied by each number, as in 0,0.25,0.5,0.75,1. This needs --new, and --tasks or --general.")
@click.option("--export-scale", type=FiniteRange(min=0), metavar="S", help="Write the adapter with its update "
              "multiplied by S to the folder --to.")
@click.option("--to", type=PATH, metavar="DIR", help="New folder for the adapter that --export-scale writes.")
@click.option("--show", is_flag=True, help="Print the first item of each file with its scored tokens marked, without "
              "scoring anything.")
@click.option("--fail-on", type=click.Choice([LOST]), help="Exit with code 1 if any verdict is lost.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--out", type=PATH, metavar="DIR", help="Folder for audit.md, audit.html, audit.json and the scores of "
              "all items. clbench reuses the scores that are there.")
@click.option("--batch-size", "batch", type=click.IntRange(min=1), default=8, show_default=True, help="Number of "
              "items to score at once.")
@device_option("auto", default="auto")
@click.pass_context
def command(context: click.Context, /, base: str, models: tuple[Path, ...], tasks: tuple[Path, ...],
            general_files: tuple[Path, ...], new: tuple[Path, ...], compare_with: Path | None, length: int | None,
            allow_cut_responses: bool, chat_template: Path | None, any_base: bool, margin_nll: float,
            margin_exact: float, scales: tuple[float, ...], export_scale: float | None, to: Path | None, show: bool,
            fail_on: str | None, as_json: bool, out: Path | None, batch: int, device: str) -> int:
    """Check what fine-tuned language models forgot, compared with the model that they started from.

    BASE is the model before fine-tuning: a folder or a name on the Hugging Face Hub. ADAPTER_OR_MODEL is a PEFT
    adapter, a merged or fully fine-tuned model, or a folder with subfolders checkpoint-N, or taskN of a clbench run.
    Any trainer can have written them. For each file, clbench compares the loss on the responses (nll) and the number of
    exact matches with those of BASE, or of --compare-with. The verdict on each is kept, lost or inconclusive.

    A .jsonl file has {"prompt": ..., "response": ...} or {"messages": [...]} on each line.
    """
    if (export_scale is None) != (to is None):
        raise click.UsageError("--export-scale and --to go together")
    files: list[tuple[Role, Path]] = [*(("new", path) for path in new), *(("task", path) for path in tasks),
                                      *(("general", find_file(path)) for path in general_files)]
    if not files and export_scale is None:
        raise click.UsageError("name at least one file by --tasks, --general or --new")
    if not models and not show:
        raise click.UsageError("name at least one adapter or model after BASE")
    if not files:
        require_only(context, FOR_EXPORT, "files to score: name at least one by --tasks, --general or --new")
    if export_scale is not None and to is not None:
        export(base, models, export_scale, to)
        if not files:
            return 0
    from clbench.core.objective import EXACT, NLL
    from clbench.execution.audit import Auditor, AuditRequest

    request = AuditRequest(
        base, models, tuple(files), length=length, cut_responses=allow_cut_responses, template=chat_template,
        any_base=any_base, batch_size=batch, device=device, scales=scales, out=out, compare_with=compare_with,
        margins={NLL.name: margin_nll, EXACT.name: margin_exact / 100})
    auditor = Auditor(request, lambda line: click.echo(line, err=True))
    if show:
        show_items(auditor)
        return 0
    audit = auditor.run()
    report(audit, as_json, out)
    return int(fail_on == LOST and bool(audit.lost))


def export(base: str, models: tuple[Path, ...], scale: float, target: Path) -> None:
    """Write a scaled adapter of a base."""
    from clbench.models.hf_candidates import find_candidates
    from clbench.models.lora_scale import export_scaled

    candidates = find_candidates(models)
    if len(candidates) != 1:
        raise click.UsageError(f"--export-scale takes one adapter, found {len(candidates)} models")
    export_scaled(candidates[0], scale, target, base)
    click.echo(f"adapter: {target}", err=True)


def show_items(auditor: Auditor) -> None:
    """Print the first item of each file with its scored tokens marked."""
    from clbench.data.own.instruction_tokens import show_scored

    for file in auditor.files:
        item = file.tokens.items[0]
        click.echo(f"{file.name}: {len(file.tokens.items)} items; the first has {len(item.ids)} tokens, of which "
                   f"{len(item.scored)} are scored (\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}like this"
                   "\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK}):")
        click.echo(show_scored(item, auditor.tokenizer))
        for note in file.tokens.notes(auditor.length):
            click.echo(note)
        click.echo()


def report(audit: Audit, as_json: bool, out: Path | None) -> None:
    """Print the result, and write its files."""
    from clbench.report import audit as audited
    from clbench.report.formats.terminal import show_lines, show_table, standard_output
    from clbench.report.writing import write_audit

    paths = write_audit(audit, out) if out else []
    if as_json:
        click.echo(audited.as_json(audit), nl=False)
    else:
        console = standard_output()
        for table in audited.tables(audit):
            show_lines([table.title], console, "bold")
            show_table(table, console)
        show_lines(audited.headline(audit), console, "bold")
        show_lines(audited.remarks(audit), console, "dim")
    for path in paths:
        if path.suffix in (".md", ".html"):
            click.echo(f"report: {path}", err=True)
