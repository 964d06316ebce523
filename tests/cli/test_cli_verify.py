import re
import subprocess
import sys

import pytest
from helpers.records import make_record
from helpers.references import CELLS, HEAD, write

from clbench import cli
from clbench.core.registry import discover
from clbench.experiment import references
from clbench.report.formats import verified
from clbench.report.formatting import NONE
from clbench.results.provenance import code_of
from clbench.results.store import Store


def call(capsys, *args):
    code = cli.call(["verify", *map(str, args)])
    out, err = capsys.readouterr()
    return code, out, err


def test_without_a_name_the_references_are_listed(capsys, tmp_path):
    code, out, err = call(capsys, "--data", tmp_path)
    assert (code, err) == (0, "")
    rows = dict(line.split(None, 1) for line in out.partition("\n\n")[0].splitlines()[2:])
    assert list(rows) == list(references.shipped())
    assert re.match(rf"8 +0 +{NONE} +weights, data, GPU +[\d,]+ +[\d.]+$", rows["ranpac-split-cifar100"])
    assert re.match(r"30 +30 +29 +data +[\d.]+ +(under )?[\d.]+$", rows["hsu-split-mnist"])
    assert re.match(r"8 +6 +3 +data, GPU +", rows["avalanche-baselines"])  # Avalanche's SI needs one
    (tmp_path / "cifar100.safetensors").touch()
    rows = dict(line.split(None, 1) for line in call(capsys, "--data", tmp_path)[1].splitlines() if line)
    assert rows["ranpac-split-cifar100"].split()[3:5] == ["weights,", "GPU"]


@pytest.mark.parametrize("option", [["--methods", "ewc"], ["--scenario", "task"], ["--seeds", "5"], ["--dry-run"],
                                    ["--weights", "w.pt"], ["--device", "cpu"], ["--out", "here"]])
def test_options_of_a_table_need_its_name(capsys, option):
    code, out, err = call(capsys, *option)
    assert code == 2 and not out
    assert f"{option[0]} needs the name of a table: clbench verify NAME" in " ".join(err.split())


def test_hours_are_those_of_all_seeds_at_the_stated_speeds():
    reference, = (references.find(name)[1] for name in ["van-de-ven-split-mnist"])
    seeds, cells = len(reference.spec(reference.cells[0]).seeds), str(len(reference.cells))
    status = references.Status(flops=50e9 * 3600 * 1.234, verdicts={"not run": 7, "reproduced": 9})
    text = verified.listing({"one": reference}, {"one": status}, []).splitlines()[2]
    assert text.split() == ["one", cells, "9", "9", NONE, f"{float(f'{1.234 * seeds:.2g}'):g}", "under", "0.01"]
    assert verified.listing({"one": reference}, {}, []).splitlines()[2].split() == ["one", cells, "0", *[NONE] * 4]


def test_cells_that_need_a_gpu_are_not_planned_on_a_cpu(capsys, tmp_path):
    file, out = write(tmp_path, cells=[CELLS[0], CELLS[1] + "\ngpu = true"]), tmp_path / "run"
    gpu_label = references.read_reference(file).cells[1].label
    args = (file, "--out", out, "--dry-run", "--seeds", "2")
    code, text, err = call(capsys, *args, "--device", "cpu")
    assert code == 0
    assert f"methods that do not work on a CPU are not run: {gpu_label}. Use a GPU (--device cuda)" in err
    assert text.count("missing") == 2
    code, text, err = call(capsys, *args, "--device", "cuda")
    assert (code, text.count("missing")) == (0, 4) and "not work on" not in err
    file = write(tmp_path, cells=[CELLS[0] + "\ngpu = true"])
    code, text, err = call(capsys, file, "--out", out, "--device", "cpu")
    assert code == 2 and not text and "do not work on a CPU are not run" in err


@pytest.mark.slow
def test_cells_are_run_one_after_the_other_and_a_full_folder_is_judged_without_torch(capsys, tmp_path):
    file, out = write(tmp_path), tmp_path / "run"
    args = (file, "--out", out, "--workers", 0, "--device", "cpu")
    code, text, err = call(capsys, *args, "--scenario", "class", "--methods", "naive")
    assert code in (0, 1)
    assert "2 trials" in err
    assert [line.split()[-1] for line in text.splitlines() if line.startswith(("task", "class"))].count("run") == 2
    code, _, err = call(capsys, *args)
    assert "6 trials, 2 already done" in err
    records, _ = Store(out).read()
    assert len(records) == 6
    report = (out / "verify.md").read_text()
    assert "not run" not in report
    (out / "verify.md").unlink()
    again = subprocess.run([sys.executable, "-c", (
        "import sys; from clbench.cli import call\n"
        f"code = call(['verify', {str(file)!r}, '--out', {str(out)!r}])\n"
        "print([m for m in ('torch', 'avalanche') if m in sys.modules]); sys.exit(code)")],
        capture_output=True, text=True)
    assert again.returncode == code
    assert again.stdout.splitlines()[-1] == "[]"
    assert (out / "verify.md").read_text() == report
    assert [r.provenance.started for r in Store(out).read()[0]] == [r.provenance.started for r in records]


def test_verdicts_from_stale_results_say_so_also_for_cells_that_were_not_chosen(capsys, tmp_path):
    file, store, registry = write(tmp_path), Store(tmp_path / "run"), discover()
    _, reference = references.find(str(file))
    for planned in reference.plan(reference.cells, registry)[0] + reference.plan(reference.cells, registry)[2]:
        code = code_of(planned.trial, registry)
        if planned.trial.method.name == "er" and planned.trial.seed == 1:
            code = {part: state.model_copy(update={"hash": "0" * 16}) for part, state in code.items()}
        store.write(make_record(tasks=5, code=code).model_copy(update={
            "trial": planned.trial, "key": planned.trial.key, "label": planned.label}))
    stale = "er-20, Class-IL: seed 1 is stale, because the method's code (clbench_er) changed since"
    for cell in (["--scenario", "task"], ["--scenario", "class", "--methods", "er-20", "--keep-stale"]):
        _, text, _ = call(capsys, file, "--out", store.directory, *cell)
        assert stale in text and text.count("is stale") == 1
        assert (store.directory / "verify.md").read_text().count("seed 1 is stale") == 1
    (store.directory / "verify.md").unlink()
    (store.directory / "verify.md").mkdir()  # as any other reason why it cannot be written
    code, _, err = call(capsys, file, "--out", store.directory, *cell)
    assert code == 2 and f"Error: cannot write {store.directory / 'verify.md'}: " in err


def test_a_cell_that_cannot_be_planned_is_found_before_any_training(capsys, tmp_path):
    missing = 'scenario = "task"\nmethod = { name = "my-naive" }\npublished = 90.0\nsem = 0.5'
    file, out = write(tmp_path, cells=(CELLS[0], missing)), tmp_path / "run"
    code, _, err = call(capsys, file, "--out", out, "--methods", "naive", "--workers", 0)
    assert code == 2 and "no method 'my-naive'" in err and not out.exists()
    plugin = tmp_path / "mine.py"
    plugin.write_text("import clbench\n\n\n@clbench.hookimpl\ndef clbench_strategies():\n"
                      "    return [clbench.StrategyInfo('my-naive', clbench.Strategy, 'trains on each task')]\n")
    code, text, _ = call(capsys, file, "--out", out, "--dry-run", "--plugin", plugin)
    assert code == 0 and [line.split()[1] for line in text.splitlines()[2:6]] == ["naive"] * 2 + ["my-naive"] * 2


def test_a_dry_run_lists_the_trials_of_the_chosen_cells_and_writes_nothing(capsys, tmp_path):
    out = tmp_path / "run"
    code, text, err = call(capsys, write(tmp_path), "--out", out, "--methods", "er-20", "--seeds", "0,7", "--dry-run")
    assert code == 0 and err.startswith("Note: 15 optimizer steps a task")
    assert [line.split()[1:6] for line in text.splitlines()[2:4]] == [
        ["er-20", "class", "0", "missing", "12,730"], ["er-20", "class", "7", "missing", "12,730"]]
    assert not out.exists()


def test_a_dry_run_needs_no_weights_and_counts_what_a_run_with_them_trains(capsys, tmp_path):
    head = HEAD.replace('"mlp:width=16:depth=1"', '"vit-tiny:width=8:depth=1:heads=2:patch=7:size=28"').replace(
        "seeds = 16", 'seeds = 16\nweights = "of nothing"')
    cells = ('scenario = "class"\nmethod = { name = "seq-lora", options = { rank = 2 } }\npublished = 60.0\n'
             'sem = 0.5',)
    file = write(tmp_path, head=head, cells=cells)
    code, text, _ = call(capsys, file, "--out", tmp_path / "run", "--seeds", "1", "--dry-run")
    row, = (line.split() for line in text.splitlines()[2:3])
    assert code == 0 and row[1:5] == ["seq-lora", "class", "0", "missing"]
    # Adapters of q and v alone, which a network without pretrained weights would have on all layers; and the head.
    assert row[5] == str(2 * (2 * 8 + 8 * 2) + 8 * 10 + 10)
    code, _, err = call(capsys, file, "--out", tmp_path / "run", "--seeds", "1")
    assert code == 2 and "name their file (--weights FILE)" in err


@pytest.mark.parametrize(("args", "line"), [
    (["nothing-such"], "no reference 'nothing-such' (clbench verify lists all)"),
    (["van-de-ven-split-mnist", "--methods", "sgd"], "the table has no method 'sgd' (it has naive, ewc,"),
    (["ranpac-split-cifar100"], "RanPAC and its parts on Split-CIFAR-100 starts from weights of a ViT-B/16 trained on "
     "ImageNet-21k, as timm's vit_base_patch16_224.augreg_in21k: name their file (--weights FILE)"),
    (["van-de-ven-split-mnist", "--seeds", "none"], "Split-MNIST in three scenarios: seeds: expected a number of"),
])
def test_bad_input_is_one_line_and_nothing_is_written(args, line, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *args)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"Error: {line}")
    assert list(tmp_path.iterdir()) == []
