"""`clbench completion`: shell completion of commands, options, methods and their options, benchmarks and models."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class, get_completion_class

from clbench.cli.help import COMPLETING, Command
from clbench.core.errors import StoreError
from clbench.core.files import expand_home, make_folder

if TYPE_CHECKING:
    from clbench.core.options import OptionDoc

FILES = {"bash": "~/.local/share/bash-completion/completions/clbench", "zsh": "~/.zfunc/_clbench",
         "fish": "~/.config/fish/completions/clbench.fish"}  # files that each shell loads by itself
AFTERWARDS = {"bash": "open a new shell (with the package bash-completion; else source the file in ~/.bashrc)",
              "zsh": "put  fpath+=~/.zfunc; autoload -Uz compinit && compinit  into ~/.zshrc, and open a new shell",
              "fish": "open a new shell"}
EXAMPLES = (
    ("clbench completion bash --install", "enables completion in new shells; also for zsh and fish"),
    ('eval "$(clbench completion bash)"', "enables completion in this shell only"),
)
BREAKS = ":="  # bash ends a word at these signs, so it replaces only the text after the last of them

Complete = Callable[[click.Context, click.Parameter, str], "list[CompletionItem[str]]"]


@add_completion_class
class WholeLine(BashComplete):
    """Completion for bash that reads the whole line, because bash ends words at `:` and `=`, and clbench does not."""

    source_template = r"""
%(complete_func)s() {
    local IFS=$'\n' kind value
    COMPREPLY=()
    while IFS=',' read -r kind value; do
        case $kind in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain)
                COMPREPLY+=("$value")
                case $value in *[:=,]) compopt -o nospace ;; esac ;;
        esac
    done < <(env COMP_LINE="${COMP_LINE:0:COMP_POINT}" %(complete_var)s=bash_complete "$1")
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the complete words of the line, and the word that the user is typing."""
        line = os.environ["COMP_LINE"]
        words = click.shell_completion.split_arg_string(line)
        return (words[1:], "") if line[-1:].isspace() else (words[1:-1], words[-1])

    def format_completion(self, item: CompletionItem[Any]) -> str:
        """Return a completion without the part of the word that bash does not replace."""
        word = self.get_completion_args()[1]
        start = max(word.rfind(sign) for sign in BREAKS) + 1
        return f"{item.type},{item.value[start:]}"


@click.command("completion", cls=Command, examples=EXAMPLES)
@click.argument("shell", type=click.Choice(list(FILES)))
@click.option("--install", is_flag=True, help="Write the script to the folder from which the shell loads completions, "
              "instead of printing it.")
def command(shell: str, install: bool) -> None:
    """Print the script for shell completion of `clbench`.

    The shell then completes commands, options, and the names and options of methods, benchmarks and models.
    """
    completion_class = get_completion_class(shell)
    assert completion_class is not None
    script = completion_class(click.get_current_context().find_root().command, {}, "clbench", COMPLETING).source()
    if not install:
        click.echo(script)
        return
    path = expand_home(FILES[shell])
    advice = "leave --install out and redirect the script to a file that your shell loads"
    make_folder(path.parent, advice)
    try:
        path.write_text(script, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}; {advice}") from error
    click.echo(f"{path}\nnext: {AFTERWARDS[shell]}")


def complete_names(kind: str, attribute: str, several: bool = False) -> Complete:
    """Return a function that completes `name:option=value` with names of `Registry.<attribute>`, or a list of these."""
    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        from clbench.core.options import document
        from clbench.core.registry import discover

        registry = discover(files=[path for path in context.params.get("plugins") or () if Path(path).is_file()])
        declarations: Mapping[str, Any] = registry.list_declarations(kind, getattr(registry, attribute))
        before, comma, last = incomplete.rpartition(",") if several else ("", "", incomplete)
        name = max((n for n in declarations if last.startswith(f"{n}:")), key=len, default="")
        endings = (list_continuations(last, name, document(declarations[name].options)) if name else
                   names(declarations, last))
        return [CompletionItem(f"{before}{comma}{ending}") for ending in endings]

    return complete


def names(known: Iterable[str], start: str) -> list[str]:
    """Return the names with a prefix. A pattern such as `images:*` counts as the text before the star."""
    return [name for name in dict.fromkeys(n.partition("*")[0] for n in known) if name and name.startswith(start)]


def list_continuations(text: str, name: str, options: Iterable[OptionDoc]) -> list[str]:
    """Return the continuations of `name:option=value:...`: options that are not there yet, or values of the last one.

    >>> from clbench.core.options import OptionDoc
    >>> list_continuations("lora:r", "lora", [OptionDoc("rank", "int", 8, False, "")])
    ['lora:rank=']
    """
    head, _, last = text.rpartition(":")
    option, equals, value = last.partition("=")
    if not equals:
        used = {part.partition("=")[0] for part in head.removeprefix(name).split(":")}
        return [f"{head}:{o.name}=" for o in options if o.name.startswith(option) and o.name not in used]
    types = next((o.type.split(" | ") for o in options if o.name == option), [])
    values = ["true", "false"] if types == ["bool"] else types if len(types) > 1 else []
    return [f"{head}:{option}={v}" for v in values if v.startswith(value) and v not in TYPES]


TYPES = {"int", "float", "str", "bool", "none"}  # no values to offer; leaving an option out means `none`
