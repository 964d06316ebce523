"""The scripts in examples/language-models, run on a random tiny Llama (extra `lm`)."""

import json
import runpy

import pytest
import torch
from helpers import ROOT
from helpers.language_models import codes, load, make_model, make_tokenizer, quiet, save, write_lines

from clbench import cli

# transformers and PEFT call what is deprecated in each other, and `Trainer` pins memory without an accelerator, too.
pytestmark = [pytest.mark.extra("lm"), *map(pytest.mark.filterwarnings, (
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore:'pin_memory' argument is set:UserWarning"))]
FOLDER = ROOT / "examples" / "language-models"


@pytest.fixture
def folder(tmp_path):
    """A folder with a base and three tasks."""
    quiet()
    save(tmp_path / "base", make_model(length=1024), make_tokenizer())
    for seed, name in enumerate(("first", "second", "third"), start=1):
        write_lines(tmp_path / f"{name}.jsonl", [{**row, "prompt": f"{seed} {row['prompt']}"} for row in codes(seed)])
    return tmp_path


def run_example(monkeypatch, name, *args):
    """Run a script as a command would, and return its variables."""
    script = FOLDER / name
    monkeypatch.setattr("sys.argv", [str(script), *map(str, args)])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return runpy.run_path(str(script), run_name="__main__")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda p: p.name)
def test_an_example_has_at_most_thirty_lines(path):
    assert len(path.read_text().splitlines()) <= 30


def test_the_scores_of_watch_forgetting_are_those_of_the_audit(folder, monkeypatch, capsys):
    old = folder / "first.jsonl"
    variables = run_example(monkeypatch, "watch_forgetting.py", folder / "base", folder / "out",
                            write_lines(folder / "new.jsonl", codes(2) * 3), old, "english")
    log = [entry for entry in variables["trainer"].state.log_history if "forget/english/nll" in entry]
    assert [entry["step"] for entry in log] == [0, 10, 15]
    capsys.readouterr()
    assert cli.call(["forget", str(folder / "base"), str(folder / "out"), "--tasks", str(old), "--general", "english",
                     "--json"]) == 0
    audited = {(cell["file"], cell["metric"]): cell for cell in json.loads(capsys.readouterr().out)["cells"]}
    assert len(audited) == 3
    for (file, metric), cell in audited.items():
        key = f"forget/{file.partition('.')[0]}/{metric}"
        assert log[0][key] == pytest.approx(cell["base"], abs=1e-5)
        assert log[-1][key] == pytest.approx(cell["value"], abs=1e-5)
    assert log[-1]["forget/first/nll_difference"] < -0.01  # random weights learn that responses have few letters


def test_replay_old_tasks_adds_samples_of_all_earlier_tasks(folder, monkeypatch):
    files = [folder / f"{name}.jsonl" for name in ("first", "second", "third")]
    variables = run_example(monkeypatch, "replay_old_tasks.py", folder / "base", folder / "out", *files)
    trained, tasks = variables["trainer"].train_dataset, variables["old_tasks"]
    assert [len(task) for task in tasks] == [12, 12, 12]
    counts = [sum(sample in task for sample in trained) for task in tasks]
    assert (sorted(counts[:2]), counts[2], len(trained)) == ([1, 2], 12, 15)
    before, after = load(folder / "base").state_dict(), load(folder / "out").state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
