import json
import re
from statistics import fmean

import pytest

from clbench import cli
from clbench.core.registry import discover
from clbench.execution.explaining import design, prepare
from clbench.experiment.factors import compare
from clbench.experiment.spec import build
from clbench.report.columns import find_tested
from clbench.results import metrics
from clbench.results.store import Store

BASE = """
model = "mlp:width=8:depth=1"
methods = ["naive", "er"]
seeds = 2
device = "cpu"
[recipe]
optimizer = "sgd"
iterations = 4
"""


def call(capsys, *args):
    code = cli.call(["explain", *map(str, args)])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def files(tmp_path):
    a, b = tmp_path / "a.toml", tmp_path / "b.toml"
    a.write_text(BASE + 'lr = 0.1\noptimizer_state = "reset"\n')
    b.write_text(BASE + 'lr = 0.002\noptimizer_state = "keep"\n')  # of plain SGD, which has none
    return a, b


def test_a_wrong_option_of_the_benchmark_is_a_line(capsys, tmp_path, files):
    files[0].write_text('benchmark = "split-mnist-5k:taks=5"\n' + files[0].read_text())
    code, _, err = call(capsys, *files, "--method", "naive", "--out", tmp_path / "run")
    assert code == 2 and "split-mnist-5k: no option 'taks'; did you mean 'tasks'?" in err


def test_a_difference_is_divided_and_what_changes_nothing_has_exactly_nothing(capsys, tmp_path, files):
    out = tmp_path / "run"
    args = (*files, "--method", "naive", "--metric", "ACC,AIA", "--out", out, "--workers", 0)
    code, text, err = call(capsys, *args)
    assert code == 0, err
    assert "3 factors, all 8 combinations: 4 x 2 seeds = 8 trials" in err
    records = {(r.trial.recipe.lr, r.trial.recipe.optimizer_state, r.trial.seed): r for r in Store(out).read()[0]}
    assert len(records) == 8
    values = {(lr, metric): [100 * of(records[lr, "reset", seed].R) for seed in (0, 1)]
              for lr in (0.1, 0.002) for metric, of in (("ACC", metrics.acc), ("AIA", metrics.aia))}
    rows = {cells[0]: cells for line in text.splitlines() if len(cells := re.split(r"  +", line.strip())) == 5}
    assert rows["optimizer state"][1:] == ["reset -> keep", "0", "0", "0"]
    rate = [(b - a + d - c) / 2 for a, b, c, d in zip(values[0.1, "ACC"], values[0.002, "ACC"], values[0.1, "AIA"],
                                                      values[0.002, "AIA"], strict=True)]
    metric = [(b - a + d - c) / 2 for a, b, c, d in zip(values[0.1, "ACC"], values[0.1, "AIA"], values[0.002, "ACC"],
                                                        values[0.002, "AIA"], strict=True)]
    for name, parts in (("learning rate", rate), ("metric", metric)):
        assert float(rows[name][-1].split()[0]) == pytest.approx(fmean(parts), abs=0.006)
    report = (out / "explain.md").read_text()
    assert f"ACC {fmean(values[0.1, 'ACC']):.2f} -&gt; AIA {fmean(values[0.002, 'AIA']):.2f}" in report
    assert "Changes nothing, in no seed: optimizer state." in report
    page = (out / "explain.html").read_text()
    assert "<script" not in page and 'src="data:image/svg+xml;base64,' in page
    assert (out / "figures" / "waterfall.svg").read_bytes().startswith(b"<?xml")
    before = [p.read_bytes() for p in sorted((out / "records").iterdir())]
    code, again, err = call(capsys, *args)
    assert code == 0 and again == text and "8 trials, 8 already done" in err
    assert before == [p.read_bytes() for p in sorted((out / "records").iterdir())]
    assert (out / "explain.md").read_text() == report


def test_a_dry_run_counts_and_writes_nothing(capsys, tmp_path, files):
    out = tmp_path / "run"
    code, text, err = call(capsys, *files, "--method", "naive", "--out", out, "--dry-run", "--seeds", 3)
    assert code == 0 and not out.exists()
    lines = text.splitlines()
    assert lines[:3] == ["learning rate: 0.1 -> 2e-3", "optimizer state: reset -> keep",
                         "2 factors, all 4 combinations: 4 x 3 seeds = 12 trials"]
    assert [line.split("  ")[1].strip() for line in lines[6:10]] == [
        "naive, A", "naive, A + learning rate", "naive, A + optimizer state", "naive, B"]
    assert err.startswith("Note: 4 optimizer steps a task")


def test_a_seed_without_an_outcome_is_left_out(capsys, tmp_path, files):
    out = tmp_path / "run"
    args = (*files, "--method", "naive", "--out", out, "--workers", 0)
    assert call(capsys, *args)[0] == 0
    path = next(p for p in (out / "records").iterdir() if json.loads(p.read_text())["trial"]["seed"] == 1)
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "status": "diverged", "R": record["R"][:2], "failure": {
        "type": "DivergedError", "message": "NaN", "traceback": ""}}))
    code, text, _ = call(capsys, *args)
    assert code == 1 and "seed 1 is left out: naive, " in text and "diverged" in text
    assert "A single seed gives no intervals" in text


@pytest.mark.parametrize(("args", "line"), [
    ([], r"a.toml has 2 methods \(naive, er\); choose one by --method"),
    (["--method", "naive", "--metric", "ACCC"], "no metric 'ACCC'; did you mean 'ACC'"),
    (["--method", "naive", "--metric", "intransigence"], "intransigence compares a method with joint training"),
    (["--method", "naive", "--metric", "ACC,AIA,BWT"], "one metric, or A's and B's, got 3"),
    (["--method", "naive", "--metric", "ACC,training time"], "ACC is in percent and training time in seconds"),
    (["--method", "naive", "--max-trials", "4", "--seeds", "3"], "2 factors need at least 12 trials with 3 seeds, and "
     "--max-trials is 4: give --max-trials 12"),
])
def test_mistakes_are_one_line_with_the_way_out(capsys, tmp_path, files, args, line):
    code, out, err = call(capsys, *files, "--out", tmp_path / "run", *args)
    assert (code, out) == (2, "") and re.search(line, err) and len(err.splitlines()) == 1


def test_methods_of_a_plugin_in_a_file_are_the_rows_of_the_experiments(files, tmp_path):
    (tmp_path / "explained_plugin.py").write_text("""from clbench import Options, Strategy, StrategyInfo, hookimpl
class MineOptions(Options):
    strength: float = 1.0
@hookimpl
def clbench_strategies():
    return [StrategyInfo("mine", Strategy, "a method", MineOptions)]
""")
    for file in files:
        file.write_text(file.read_text().replace('["naive", "er"]',
                                                 '[{name="mine", options={strength=[1, 2]}, recipe={lr=0.5}}]'))
    registry = discover(files=(tmp_path / "explained_plugin.py",))
    study = prepare(*files, None, {"methods": "mine:strength=2"}, registry, 400)
    assert {item.trial.trained_by.lr for item in study.planned} == {0.5}


def test_a_model_that_cannot_take_the_other_benchmarks_inputs_goes_with_the_benchmark():
    registry, (acc,) = discover(), find_tested(["ACC"])
    a, b = (build({"methods": ["naive"], "seeds": 1, "recipe": {"lr": lr, "iterations": 2}, "benchmark": benchmark,
                   "model": model}) for lr, benchmark, model in (
        (0.1, "helpers.tiny_benchmarks:flat", "mlp"), (0.2, "helpers.tiny_benchmarks:shifting", "cnn:channels=4")))
    a, b = (spec.model_copy(update={"scenario": ("domain",)}) for spec in (a, b))
    study = design(compare(a, b, registry, ("a", "b"), ("ACC", "ACC")), (acc, acc), 100)
    names = {factor.name: factor.why for factor in study.factors}
    assert set(names) == {"benchmark and model", "learning rate"} and "cnn" in names["benchmark and model"]
    assert len(study.planned) == 4
