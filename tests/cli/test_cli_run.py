import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.hostile import install_hostile
from helpers.records import make_record

from clbench import cli
from clbench.cli import forecasts
from clbench.cli.common_options import typed_command
from clbench.cli.run import command as run_command
from clbench.core.registry import discover
from clbench.experiment.plan import plan
from clbench.experiment.spec import TABLES, Spec, build
from clbench.report.formatting import NONE
from clbench.results.store import Store


def call(capsys, *args):
    code = cli.call(["run", *map(str, args)])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_stored_command_escapes_what_is_not_utf_8(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["clbench", "run", b"th\xe8se.toml".decode("utf-8", "surrogateescape"), "a b"])
    assert typed_command() == r"clbench run 'th\xe8se.toml' 'a b'"


def test_every_key_of_a_spec_has_a_flag():
    flags = {parameter.name for parameter in run_command.params}
    keys = {*Spec.model_fields, *(name for table in TABLES.values() for name in table.model_fields)}
    assert keys - {"tune", "tuning", *TABLES} <= flags


def test_a_dry_run_lists_the_trials_and_writes_nothing(capsys, tmp_path):
    out = tmp_path / "run"
    spec = build({"methods": ["lora:rank=2", "naive"], "seeds": [0, 4], "recipe": {"epochs": 1}})
    planned = plan(spec, discover())
    args = ("--methods", "lora:rank=2,naive", "--seeds", "0,4", "--epochs", "1", "--out", out, "--dry-run")
    code, text, err = call(capsys, *args)
    assert (code, err) == (0, "Note: 7 optimizer steps a task (800 samples, batch 128, 1 epoch): few; --epochs N or "
                              "--iterations N gives more\n"
                              "Note: lora:rank=2: trains 475,202 in task 1, 4,770 in tasks 2-5\n")
    trainable = {"lora:rank=2": 2 * (784 + 400 + 400 + 400) + 401 * 2, "naive": 785 * 400 + 401 * 400 + 401 * 10}
    assert [line.split()[:6] for line in text.splitlines()[2:-2]] == [
        [p.trial.key, p.label, "task", str(p.trial.seed), "missing", f"{trainable[p.label]:,}"] for p in planned]
    assert re.fullmatch(r"roughly \d+:\d\d for 4 trials with \d+ workers?, from FLOPs and a few steps of the model, "
                        "timed now; it may well be half or twice that", text.splitlines()[-1])
    naive = re.split("  +", text.splitlines()[3])
    forward, first = 2 * (784 * 400 + 400 * 400 + 400 * 10), 2 * 784 * 400
    assert naive[-2:] == [f"{4000 * (3 * forward - first) / 1e9:.3g} G", f"{forward / 1e3:.0f} K"]
    assert not out.exists()
    done = make_record(tasks=5).model_copy(update={"trial": planned[0].trial, "key": planned[0].trial.key})
    done = done.model_copy(update={"costs": done.costs.model_copy(update={"train_flops": [1_500_000] * 2})})
    Store(out).write(done)
    line = re.split("  +", call(capsys, *args)[1].splitlines()[2])
    assert (line[4], line[6:]) == ("done", ["3 M", NONE])


MISTAKEN = """
from clbench import Strategy, StrategyInfo, hookimpl

class Short(Strategy):
    def __init__(self, model, options):
        super().__init__(model, None, options)

class Misspelled(Strategy):
    def __init__(self, model, stream_info, options):
        super().__init__(model, stream_info, options)
        self.rate = options.rat

class Stops(Strategy):
    def __init__(self, model, stream_info, options):
        raise RuntimeError("stops on purpose")

class Measures(Strategy):  # needs values, which a dry run does not have
    def __init__(self, model, stream_info, options):
        super().__init__(model, stream_info, options)
        self.first, self.all = float(next(model.parameters()).sum()), next(model.parameters()).detach().numpy()

class Late(Strategy):
    def loss(self, batch):
        return self.missing

@hookimpl
def clbench_strategies():
    return [StrategyInfo(cls.__name__.lower(), cls, "a test") for cls in (Short, Misspelled, Stops, Measures, Late)]
"""


def test_a_dry_run_fails_after_its_table_if_a_method_cannot_be_built(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mistaken.py").write_text(MISTAKEN)
    args = ("--plugin", "mistaken.py", "--seeds", 1, "--out", tmp_path / "run", "--dry-run", "--methods")
    code, text, err = call(capsys, *args, "short,misspelled,stops,measures,late,naive")
    assert code == 1 and sum(line.split()[4:5] == ["missing"] for line in text.splitlines()) == 6
    lines = err.splitlines()
    assert [line for line in lines if line.startswith("Error")] == lines[-3:] == [
        "Error: short: TypeError: Short.__init__() takes 3 positional arguments but 4 were given; clbench passes "
        "model, stream_info and options (mistaken.py:5)",
        "Error: misspelled: AttributeError: 'NoOptions' object has no attribute 'rat' (mistaken.py:11 in __init__)",
        "Error: stops: RuntimeError: stops on purpose (mistaken.py:15 in __init__)"]
    late = "AttributeError: 'Late' object has no attribute 'missing' (mistaken.py:24 in loss)"
    assert f"Note: late: cannot be counted, {late}" in lines
    code, _, err = call(capsys, *args, "measures")
    assert code == 0 and "Note: measures: cannot be counted without data after 0 of 5 tasks" in err


def test_a_dry_run_names_methods_whose_new_heads_would_learn_slowly(capsys, tmp_path):
    weights = tmp_path / "base.safetensors"
    assert cli.call(["pretrain", "split-mnist-5k", "--iterations", "1", "--out", str(weights)]) == 0
    _, _, err = call(capsys, "--methods", "naive,naive:recipe.head_lr=0.01,lora", "--seeds", 1, "--iterations", 10,
                     "--lr", "1e-4", "--weights", weights, "--out", tmp_path / "run", "--dry-run")
    assert err.count("--head-lr") == 1
    assert "Note: naive trains a pretrained backbone and its heads with one low learning rate; new heads need" in err


def test_a_dry_run_of_what_is_done_needs_no_torch(tmp_path):
    planned = plan(build({"methods": ["naive"], "seeds": 1}), discover())[0]
    Store(tmp_path / "run").write(make_record(tasks=5).model_copy(
        update={"trial": planned.trial, "key": planned.trial.key}))
    code = ("import sys\nfrom clbench import cli\nassert cli.call(['run', '--methods', 'naive', '--seeds', '1', "
            f"'--out', {str(tmp_path / 'run')!r}, '--dry-run']) == 0\nassert 'torch' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_dry_run_without_the_data_lists_the_trials_and_says_so(capsys, tmp_path):
    code, text, err = call(capsys, "--methods", "naive", "--benchmark", "split-cifar10", "--model", "cnn", "--seeds", 1,
                           "--data", tmp_path, "--dry-run")
    assert code == 0
    assert err == (f"Note: CIFAR10 is not in {tmp_path}/cifar10.safetensors yet; a run downloads it; FLOPs are "
                   "counted once the data are there\n")
    assert text.splitlines()[2].split()[-4:] == ["missing", NONE, NONE, NONE]


PICTURES, FLAT = "helpers.tiny_benchmarks:pictures", "helpers.tiny_benchmarks:flat"


@pytest.mark.parametrize(("benchmark", "model", "methods", "line"), [
    ("split-mnist-5k", "vit-tiny:size=30", "naive", "takes square images whose side is a multiple of it, not 30 x 30; "
     "choose another size (size=32), patch or model"),
    ("split-mnist-5k", "cnn:depth=4:size=8", "naive", "choose another size (cnn:depth=4:size=PX) or another model"),
    (FLAT, "cnn", "naive", "model 'cnn' takes images, this benchmark has inputs [12]; choose another model"),
    (FLAT, "cnn:size=8", "naive", "so the model's size and preprocessing do not apply; choose another model"),
    ("split-mnist-5k", "mlp", "l2p", "with --model choose vit-tiny, vit-b16 or a plain vision transformer"),
    ("split-mnist-5k", "mlp", "naive,lora:rank=500", "choose rank <= 400"),
    ("split-mnist-5k", "torchvision:vit_b_16", "naive", "choose a multiple of 16, such as "
     "torchvision:vit_b_16:size=32"),
    ("split-mnist-5k", "torchvision:alexnet", "naive", "choose another size (torchvision:alexnet:size=PX)"),
    pytest.param(PICTURES, "timm:vit_small_patch14_dinov2:size=50", "naive", "choose a multiple of 14, such as "
                 "timm:vit_small_patch14_dinov2:size=56", marks=pytest.mark.extra("timm")),
    pytest.param(FLAT, "timm:test_vit", "naive", "takes images, this benchmark has inputs [12]; choose another model",
                 marks=pytest.mark.extra("timm")),
])
def test_what_does_not_fit_is_one_line_that_says_what_mends_it(benchmark, model, methods, line, capsys, tmp_path):
    for more in (["--dry-run"], ["--workers", 0, "--device", "cpu"]):
        code, out, err = call(capsys, "--benchmark", benchmark, "--model", model, "--methods", methods, "--seeds", 1,
                              "--epochs", 1, "--out", tmp_path / "run", *more)
        assert (code, out) == (2, "")
        wrong = [text for text in err.splitlines() if text.startswith("Error")]
        assert len(wrong) == 1 and line in wrong[0]
        assert not (tmp_path / "run").exists()


def test_flags_override_the_file(capsys, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('methods = ["lora", { name = "ewc", label = "mild", options = { strength = 10.0 } }]\n'
                    'seeds = 5\nscenario = "class"\n[recipe]\niterations = 7\n')
    code, text, _ = call(capsys, file, "--methods", "mild", "--seeds", 2, "--set", "ewc.strength=20", "--dry-run")
    assert code == 0
    spec = build({"methods": [{"name": "ewc", "options": {"strength": 20.0}, "label": "mild"}], "seeds": 2,
                  "scenario": "class", "recipe": {"iterations": 7}})
    assert [line.split()[:2] for line in text.splitlines()[2:-2]] == [
        [p.trial.key, "mild"] for p in plan(spec, discover())]


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks").glob("*.toml")),
                         ids=lambda p: p.name)
def test_the_experiments_of_the_repository_are_valid(file, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(forecasts, "forecasts", lambda _: ({}, []))  # which would take minutes
    code, text, err = call(capsys, file, "--dry-run", "--weights", "none")  # they are fetched, and not committed
    if "base = pretrained needs" in err:
        weights = tmp_path / "weights.safetensors"
        weights.write_bytes(b"a stand-in")
        code, text, err = call(capsys, file, "--dry-run", "--weights", weights)
    assert (code, err) == (0, "")
    seeds = {line.split()[-5] for line in text.splitlines()[2:]}
    others = {"auto_mpg": (10,), "pretrained_vit_112": (1,), "stability_gap": (10,), "van_de_ven_2022": (20,)}
    assert seeds in [set(map(str, range(count))) for count in others.get(file.stem, (3, 6))]


@pytest.mark.parametrize(("args", "lines"), [
    (["--methods", "loraa,ewcc"], ["no method 'loraa'; did you mean 'lora'?", "no method 'ewcc'; did you mean 'ewc'?"]),
    (["--methods", "lora:rnk=4"], ["lora: no option 'rnk'; did you mean 'rank'?"]),
    (["--methods", "lora", "--set", "lora.rank=0"], ["lora.rank: should be greater than or equal to 1, got 0"]),
    (["--methods", "lora", "--set", "lora.rank=big"], ["lora.rank: should be a valid integer"]),
    (["--methods", "lora", "--set", "ewc.strength=1"], ["--set ewc.strength=1: the experiment has no method 'ewc'; "
                                                        "its methods are"]),
    (["--methods", "lora", "--benchmark", "split-mnst"], ["no benchmark 'split-mnst'; did you mean 'split-mnist'"]),
    (["--methods", "lora", "--model", "mpl"], ["no model 'mpl'; did you mean 'mlp'?"]),
    (["--methods", "lora", "--scenario", "tsk"], ["scenario.0: should be 'task', 'class' or 'domain'"]),
    (["--methods", "lora", "--device", "gpu"], ["device: "]),
    (["--methods", "lora", "--epochs", "1", "--iterations", "1"], ["recipe: epochs and iterations both set the "
                                                                   "budget: give only one of them"]),
    (["--methods", "lora", "--lr", "fast"], ["Invalid value for '--lr'"]),
    (["absent.toml"], ["there is no experiment file absent.toml: check the path"]),
    ([], ["which methods? Pass them, as in clbench run --methods lora,ewc, or name an experiment file"]),
    (["--methods", ","], ["methods: expected at least one value"]),
    (["lora:rank=4,ewc"], ["there is no experiment file lora:rank=4,ewc. If you mean methods, give them as one list: "
                           "--methods lora:rank=4,ewc"]),
    (["--methods", "er,", "ewc"], ["--methods er, ewc: a space after the comma? write --methods er,ewc"]),
    (["--methods", "er", ",ewc"], ["--methods er ,ewc: a space after the comma? write --methods er,ewc"]),
    (["--methods", "er", "ewc"], ["there is no experiment file ewc. If you mean methods, give them as one list: "
                                  "--methods er,ewc"]),
    (["--methods", "ema-er"], ["no method 'ema-er'; did you mean 'ease' or 'aper'? (clbench methods lists all). If it "
                               "is in a file, add --plugin FILE"]),
])
def test_bad_input_is_a_line_per_mistake_and_nothing_is_written(args, lines, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *args)
    assert (code, out) == (2, "")
    found = err.splitlines()
    assert len(found) == len(lines)
    for got, wanted in zip(found, lines, strict=True):
        assert got.startswith(f"Error: {wanted}")
    assert list(tmp_path.iterdir()) == []


def test_a_file_may_follow_a_list_that_ends_in_a_comma(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text('methods = ["naive"]\n')
    assert call(capsys, "--dry-run", "--methods", "naive,", "mine.toml")[0] == 0


def test_several_mistakes_in_a_file_are_all_named_with_their_place(capsys, tmp_path):
    file = tmp_path / "bad.toml"
    file.write_text('methods = ["lora"]\nseeds = 0\nscenari = "task"\n[recipe]\nlr = -1.0\nbatch_size = "many"\n')
    code, _, err = call(capsys, file)
    assert code == 2
    lines = err.splitlines()
    assert all(line.startswith(f"Error: {file}: ") for line in lines)
    assert sorted(line.split(": ")[2] for line in lines) == ["recipe.batch_size", "recipe.lr", "scenari", "seeds"]


def test_a_folder_below_a_file_is_one_line(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code, out, err = call(capsys, "--methods", "naive", "--out", tmp_path / "file" / "run")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("Error: cannot read")
    assert "choose another folder" in err


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder in which even root cannot write")
def test_a_folder_that_can_only_be_read_is_one_line(capsys):
    code, out, err = call(capsys, "--methods", "naive", "--out", "/proc/clbench")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("Error: cannot write to /proc/clbench/records: ")


class Shell:
    """Runs the command as a user would, in a folder of its own with the misbehaving plugin installed."""

    def __init__(self, folder):
        install_hostile(folder / "site")
        self.site, self.out = folder / "site", folder / "run"
        self.environment = {**os.environ, "PYTHONPATH": str(self.site), "OMP_NUM_THREADS": "1"}

    def arguments(self, *args):
        return ["--device", "cpu", "--seeds", "1", "--iterations", "2", "--workers", "1", "--out", str(self.out), *args]

    def start(self, *args):
        return subprocess.Popen([sys.executable, "-m", "clbench", "run", *self.arguments(*args)], text=True,
                                env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def hanging(self, count):
        """Wait until that many processes have come to a hanging trial; return the last one's id."""
        file = self.site / "hanging"
        end = time.monotonic() + 60
        while time.monotonic() < end:
            pids = file.read_text().split() if file.exists() else []
            if len(pids) == count:
                return int(pids[-1])
            time.sleep(0.05)
        raise AssertionError("no trial came to hang")


def ends(pid, seconds=10):
    """Tell whether a process ends in time; one that waits to be buried has."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        status = Path(f"/proc/{pid}/stat")
        try:
            if status.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_killed_and_interrupted_runs_are_taken_up_again(tmp_path, monkeypatch, capsys):
    shell = Shell(tmp_path)
    killed = shell.start("--methods", "naive,hang")
    worker = shell.hanging(1)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert ends(worker)
    records, problems = Store(shell.out).read()
    assert ([r.label for r in records], problems) == (["naive"], [])

    interrupted = shell.start("--methods", "naive,hang")
    worker = shell.hanging(2)
    interrupted.send_signal(signal.SIGINT)
    out, err = interrupted.communicate(timeout=20)
    assert (interrupted.returncode, out) == (130, "")
    assert "2 trials, 1 already done" in err
    assert "interrupted: 1 of 2 trials are done, and" in err
    assert "Traceback" not in err
    assert ends(worker)

    monkeypatch.syspath_prepend(shell.site)
    monkeypatch.setenv("PYTHONPATH", str(shell.site))
    code, out, err = call(capsys, *shell.arguments("--methods", "naive,hang"))
    assert code == 0
    assert "[1/1] hang seed 0: ACC" in err
    assert f"records: {shell.out / 'records'}" in out
    again, problems = Store(shell.out).read()
    assert ([r.label for r in again], problems) == (["naive", "hang"], [])
    assert again[0] == records[0]
    assert "hang" in (shell.out / "report.md").read_text()


def test_a_failed_trial_gives_exit_code_1_and_stands_in_the_report(tmp_path, monkeypatch, capsys):
    install_hostile(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    args = ("--methods", "boom,naive", "--seeds", 1, "--iterations", 2, "--workers", 0, "--device", "cpu",
            "--out", tmp_path / "run")
    code, out, err = call(capsys, *args)
    assert code == 1
    assert "boom seed 0 failed: ValueError: boom on purpose" in err
    assert err.splitlines()[-1] == "1 trial failed"
    assert "boom on purpose" in out
    assert "naive" in (tmp_path / "run" / "report.md").read_text()
    code, _, err = call(capsys, *args)
    assert code == 1
    assert "2 trials, 1 already done" in err


def test_bad_input_that_shows_late_leaves_no_folder(capsys, tmp_path):
    code, _, err = call(capsys, "--methods", "lora:rank=999", "--seeds", "1", "--workers", "0", "--out",
                        tmp_path / "deep" / "run")
    assert code == 2
    assert "lora: rank = 999 exceeds the width" in err
    assert not (tmp_path / "deep").exists()


TINY = ("--methods", "naive", "--seeds", "1", "--iterations", "1", "--workers", "0", "--device", "cpu")


def test_json_is_all_that_is_on_standard_output_and_quiet_shows_no_progress(capsys, tmp_path):
    out = tmp_path / "run"
    code, said, err = call(capsys, *TINY, "--out", out, "--json")
    assert code == 0 and "naive seed 0: ACC" in err
    summary = json.loads(said)
    assert call(capsys, *TINY, "--out", out, "--json", "--quiet") == (0, said, "")
    assert cli.call(["report", str(out), "--format", "json"]) == 0
    capsys.readouterr()
    assert summary == json.loads((out / "report.json").read_text())
    assert call(capsys, *TINY, "--out", out, "--quiet") == (0, f"{out}\n", "")
    assert call(capsys, *TINY, "--out", tmp_path / "other", "--quiet") == (0, f"{tmp_path / 'other'}\n", "")
    assert (tmp_path / "other" / "report.html").is_file()


def test_quiet_shows_errors(capsys, tmp_path):
    code, said, err = call(capsys, *TINY, "--lr", "1e30", "--iterations", "5", "--out", tmp_path, "--quiet")
    assert (code, said, err) == (1, f"{tmp_path}\n", "1 trial diverged\n")


def test_open_shows_the_page_in_a_browser_or_says_where_it_is(capsys, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda url: not opened.append(url))
    assert call(capsys, *TINY, "--out", tmp_path, "--open", "--quiet") == (0, f"{tmp_path}\n", "")
    assert opened == [(tmp_path / "report.html").as_uri()]
    monkeypatch.setattr("webbrowser.open", lambda url: False)
    assert call(capsys, *TINY, "--out", tmp_path, "--open", "--quiet")[2] == (
        f"no browser was found; the report is {tmp_path / 'report.html'}\n")
    monkeypatch.setattr("clbench.execution.run.FORMATS", ("md",))
    (tmp_path / "report.html").unlink()
    assert call(capsys, *TINY, "--out", tmp_path, "--open", "--quiet")[2] == (
        f"there is no {tmp_path / 'report.html'} to open\n")
    assert "leave --open, --quiet and --json out" in call(capsys, *TINY, "--dry-run", "--open")[2]
