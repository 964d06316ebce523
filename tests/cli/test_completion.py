"""Tab completion: what a shell offers for the beginning of a command line."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from clbench.cli import call
from clbench.cli.completion import list_continuations, names
from clbench.core.options import OptionDoc

OPTIONS = [OptionDoc("rank", "int >= 1", 8, False, ""), OptionDoc("init", "kaiming | zeros", "kaiming", False, ""),
           OptionDoc("dora", "bool", False, False, "")]


@pytest.mark.parametrize(("text", "expected"), [
    ("lora:", ["lora:rank=", "lora:init=", "lora:dora="]),
    ("lora:rank=4:", ["lora:rank=4:init=", "lora:rank=4:dora="]),
    ("lora:init=k", ["lora:init=kaiming"]),
    ("lora:dora=", ["lora:dora=true", "lora:dora=false"]),
    ("lora:rank=", []),
])
def test_options_and_their_values(text: str, expected: list[str]) -> None:
    """Options that are not there yet are offered, then the values that a choice has."""
    assert list_continuations(text, "lora", OPTIONS) == expected


def test_a_pattern_is_offered_up_to_its_star() -> None:
    """What stands behind the star is the user's."""
    assert names(["images:*", "split-mnist", "*"], "") == ["images:", "split-mnist"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_commands_lists_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    """In bash itself, whose words end at `:` and `=`: what it puts behind the last of them is offered."""
    assert call(["completion", "bash"]) == 0
    script = capsys.readouterr().out

    def offered(line: str) -> list[str]:
        asked = f'{script}\nCOMP_LINE="{line}"; COMP_POINT=${{#COMP_LINE}}; _clbench_completion clbench; ' \
                'printf "%s\\n" "${COMPREPLY[@]}"'
        run = subprocess.run(["bash", "--norc", "-c", f"compopt() {{ :; }}\n{asked}"], capture_output=True, text=True,
                             check=True)
        return run.stdout.split()

    assert "report" in offered("clbench rep")
    assert "--methods" in offered("clbench run --me")
    assert offered("clbench run --methods naive,sha") == ["naive,shared-private"]
    # Bash's word begins behind the colon.
    assert offered("clbench run --methods naive --methods lora:ran") == ["rank=", "rank_pattern="]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    """The home folder may be read-only, as in a container."""
    (tmp_path / ".zfunc").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert call(["completion", "zsh", "--install"]) == 2
    assert f"Error: cannot write to the folder {tmp_path / '.zfunc'}: File exists" in capsys.readouterr().err
    (tmp_path / ".config" / "fish" / "completions" / "clbench.fish").mkdir(parents=True)
    assert call(["completion", "fish", "--install"]) == 2
    assert "clbench.fish: Is a directory; leave --install out" in capsys.readouterr().err


@pytest.mark.parametrize(("shell", "word"), [("bash", "COMP_LINE"), ("zsh", "#compdef clbench"), ("fish", "complete")])
def test_the_script_is_installed_where_the_shell_looks(shell: str, word: str, tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    """It is written below the home folder, and the next step is told."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert call(["completion", shell, "--install"]) == 0
    path, told = capsys.readouterr().out.splitlines()
    assert path.startswith(str(tmp_path)) and "new shell" in told
    assert word in Path(path).read_text(encoding="utf-8")


def test_a_list_that_is_given_twice_adds_up(capsys: pytest.CaptureFixture[str]) -> None:
    """As in pytest and git, a repeated option does not replace the first."""
    assert call(["params", "--model", "mlp", "--methods", "naive", "--methods", "ewc", "--format", "json"]) == 0
    out = capsys.readouterr().out
    assert '"naive"' in out and '"ewc"' in out
