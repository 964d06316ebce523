from __future__ import annotations

import ast
import importlib
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from helpers.records import make_record
from torch import nn

from clbench.results.store import Store

SPEED = ROOT / "benchmarks" / "speed"
NAMES = ("compare", "floor", "measure", "processes", "scaling", "start", "table", "work")
sys.path.insert(0, str(SPEED))  # as for a script that is started there
compare, floor, measure, processes, scaling, start, table, work = map(importlib.import_module, NAMES)
sys.path.remove(str(SPEED))
FLOOR, LOOP, STOCK = measure.FLOOR, measure.LOOP, measure.STOCK
Outcome, Row, Setting = measure.Outcome, measure.Row, measure.Setting

GROUP = ("mlp", "naive", 128)


def outcome(train=1.0, evaluate=0.5, whole=2.0, final=(0.2,), learned=(0.98,), **others):
    return Outcome(train=train, consolidate=0.0, evaluate=evaluate, whole=whole, ready_after=3.0, train_samples=1000,
                   processed=1000, test_samples=600, final=list(final), learned=list(learned), **others)


def row(name, *outcomes, error=""):
    return Row(name, outcomes or (outcome(),), error)


def mlp(width=16, inputs=12, classes=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, classes))


@pytest.mark.parametrize("batch", [1, 32])
def test_the_floor_of_an_mlp_is_six_flops_per_weight_and_sample(batch):
    model, y = mlp(), torch.zeros(batch, dtype=torch.int64)
    first, weights = 12 * 16, 12 * 16 + 16 * 4
    x = torch.rand(batch, 12)
    step = sum(p.flops for p in floor.products_of(model, x, y))
    assert step == 6 * weights * batch - 2 * first * batch  # nobody wants the gradient of the images
    assert sum(p.flops for p in floor.products_of(model, x.requires_grad_(), y)) == 6 * weights * batch


def test_a_convolution_counts_as_the_products_it_unfolds_to():
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 8, 3, padding=1), nn.Flatten(),
                          nn.Linear(8 * 36, 3))
    products = floor.products_of(model, torch.rand(5, 1, 6, 6), torch.zeros(5, dtype=torch.int64))
    positions = 5 * 36
    first, second, head = positions * 9 * 4, positions * 36 * 8, 5 * 8 * 36 * 3
    assert sum(p.flops for p in products) == 2 * (2 * first + 3 * second + 3 * head)
    assert (products[1].m, products[1].n, products[1].k) == (positions, 8, 36)


def test_products_are_timed_as_they_were_asked_for():
    products = floor.products_of(mlp(), torch.rand(8, 12), torch.zeros(8, dtype=torch.int64))
    for product in products:
        a, b = product.factors(torch.device("cpu"))
        assert (a @ b).shape == (product.m, product.n)
        assert (a.stride(), b.stride()) == product.strides
    assert any(p.strides[0][0] == 1 for p in products)  # a transposed factor of the backward pass


@pytest.mark.parametrize(("benchmark", "shape"), [("split-mnist", (1, 28, 28)), ("split-cifar100", (3, 32, 32))])
def test_all_contenders_see_the_same_inputs(benchmark, shape):
    images = work.Images(torch.randint(0, 256, (4, *shape), dtype=torch.uint8), torch.arange(4))
    one_by_one = work.Pictures(images, work.to_input(benchmark))
    together = work.as_input(images.x, benchmark)
    assert work.STREAMS[benchmark].shape == shape
    torch.testing.assert_close(torch.stack([one_by_one[i][0] for i in range(4)]), together, rtol=0, atol=1e-6)


def test_each_model_is_measured_on_images_of_its_kind(tmp_path):
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    found = compare.arguments(["--data", str(tmp_path), "--device", "cuda"])
    assert {m: compare.benchmark_of(m, found) for m in found.model} == {
        "mlp": "split-mnist", "mlp:width=256": "split-mnist", "cnn": "split-mnist", "resnet18": "split-cifar100"}
    assert "resnet18" not in compare.arguments([]).model


def test_rates_and_ratios():
    stock, ours = row(STOCK, outcome(whole=16.0)), row("clbench", *(outcome(whole=w) for w in (1.0, 2.0, 4.0)))
    assert ours.rates("train") == [1000.0] * 3
    assert ours.rates("evaluate") == [1200.0] * 3
    assert ours.rates("whole") == [1000.0, 500.0, 250.0]
    assert measure.median_ratio(ours.rates("whole"), stock.rates("whole")) == 8.0
    assert measure.median_ratio(ours.rates("whole"), []) is None


def test_the_share_of_the_floor_counts_what_was_processed():
    alone = row(FLOOR, outcome(flops=2e9, rate=1e12))  # 2 ms a step of 4 samples
    assert measure.floor_fraction(row("clbench", outcome(train=1.0)), alone, 4) == pytest.approx(0.5)
    replaying = row("clbench", replace(outcome(train=1.0), processed=2000))
    assert measure.floor_fraction(replaying, alone, 4) == pytest.approx(1.0)
    assert measure.floor_fraction(Row("clbench", ()), alone, 4) is None


def test_what_differs_beyond_noise_is_void():
    same = {"a": [0.90, 0.92], "b": [0.91], "c": [0.90, 0.93]}
    assert measure.void(same) == set()
    assert measure.void({**same, "d": [0.60, 0.62]}) == {"d"}
    assert measure.void({**same, "d": [float("nan"), 0.9]}) == {"d"}


def test_a_wide_spread_forgives_more_and_many_values_less():
    spread = {"a": [0.70, 0.90], "b": [0.72, 0.88], "c": [0.80]}
    assert measure.void({**spread, "d": [0.65, 0.67]}) == set()
    assert measure.void({**spread, "d": [0.65, 0.67] * 20}) == {"d"}


def test_a_small_difference_is_no_difference():
    assert measure.void({"a": [0.2, 0.2], "b": [0.2, 0.2], "c": [0.209, 0.209]}) == set()
    assert measure.void({"a": [0.2, 0.2], "b": [0.2, 0.2], "c": [0.211, 0.211]}) == {"c"}


def test_one_value_each_tells_nothing_of_noise():
    assert measure.void({"a": [0.2], "b": [0.9]}) is None
    assert measure.void_rows([row("a"), row("b")]) is None


def test_either_accuracy_makes_a_row_void():
    good = [row(name, outcome(), outcome()) for name in "abc"]
    bad = row("d", *[outcome(learned=[0.5])] * 2)
    assert measure.void_rows([*good, bad, row(FLOOR, outcome(final=[], learned=[]))]) == {"d"}


def test_exponents_are_those_of_power_laws():
    assert measure.exponent([1, 2, 4, 8], [3, 6, 12, 24]) == pytest.approx(1)
    assert measure.exponent([1, 10, 100], [5, 5, 5]) == pytest.approx(0)
    assert measure.exponent([1, 10, 100], [1, 100, 10000]) == pytest.approx(2)


def test_every_repeat_has_seeds_of_its_own():
    common = {"data_dir": "", "threads": 1}
    groups = [("mlp", "naive", 128, [("clbench", 1), ("clbench stacked", 5)])]
    rounds = [measure.settings_of(groups, common, {"mlp": "split-mnist-5k"}, repeat) for repeat in range(3)]
    assert [s.seeds for s in rounds[2]] == [(2,), (10, 11, 12, 13, 14)]
    stacked = [seed for one in rounds for seed in one[1].seeds]
    assert len(set(stacked)) == 15


def test_the_table_shows_ratios_void_rows_and_failures():
    slow, fast = outcome(train=8.0, whole=16.0), outcome(train=1.0, whole=2.0)
    rows = [row(STOCK, slow, slow), row(LOOP, fast, fast), row("clbench", fast, fast),
            row(FLOOR, outcome(flops=6.4e10, rate=1e12)), row("cheat", *[outcome(final=[0.9])] * 2),
            Row("broken", (), "exit code 1: no such thing")]
    text = table.render({GROUP: rows}, {"machine": "a machine"})
    cells = {line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]] for line in text.splitlines()
             if line.startswith("|")}
    assert cells["clbench"][table.HEAD.index("whole ÷ stock") - 1] == "8.00"
    assert cells["clbench"][table.HEAD.index("training ÷ loop") - 1] == "1.00"
    assert cells["clbench"][table.HEAD.index("of floor") - 1] == "50%"
    assert cells["clbench"][table.HEAD.index("final acc.") - 1] == "20.0"
    assert "cheat **void**" in cells and "clbench" in cells and FLOOR not in cells
    assert "broken: failed, exit code 1: no such thing" in text
    assert "64,000.0 MFLOP" in text and "1,000.0 GFLOP/s" in text


def test_one_repeat_is_no_median():
    once, twice = ([row("clbench", *[outcome()] * k)] for k in (1, 2))
    text = table.render({GROUP: once}, {})
    assert "Samples per second, one repeat: no spread known." in text and " 500 to 500 " not in text
    text = table.render({GROUP: twice}, {})
    assert "Samples per second, medians over repeats." in text and " 500 to 500 " in text


@pytest.mark.parametrize("path", sorted(compare.REPORTS.glob("*/compare.json")), ids=lambda p: p.parent.name)
def test_the_committed_tables_are_what_their_measurements_give(path):
    machine, measured = compare.load(path)
    assert table.render(compare.rows_of(measured), machine) == path.with_suffix(".md").read_text()


def test_a_failed_repeat_leaves_the_others():
    setting = Setting("clbench", "naive", "mlp", 128, (0,), "split-mnist-5k", "")
    rows = compare.rows_of([(setting, outcome()), (setting, "exit code 1"), (setting, outcome())])
    assert [(r.contender, len(r.outcomes), r.error) for r in rows[GROUP]] == [("clbench", 2, "exit code 1")]


def test_groups_are_cut_down_as_asked():
    groups = compare.groups_of(compare.arguments(["--model", "mlp", "--methods", "naive", "--only", "stacked,floor"]))
    assert groups == [
        ("mlp", "naive", 128, [(FLOOR, 1), ("clbench stacked", 5), ("clbench stacked", 10)]),
        ("mlp", "naive", 16, [(FLOOR, 1), ("clbench stacked", 5)])]
    ewc = compare.groups_of(compare.arguments(["--model", "cnn", "--methods", "ewc", "--seeds", "3"]))
    assert [name for name, _ in ewc[0][-1]] == [STOCK, "clbench", "clbench exact Fisher", "clbench stacked",
                                                "clbench workers"]
    assert len(ewc) == 1


def test_every_contender_has_its_module():
    names = {name for method in compare.METHODS for model in compare.MODELS
             for name, _ in measure.contenders(method, model, [5])} | {
                 name for name, _ in measure.small_batch_contenders(5)}
    assert {(SPEED / f"{compare.module_of(name)}.py").is_file() for name in names} == {True}


def test_quick_runs_leave_the_reports_alone():
    assert compare.arguments(["--quick"]).out is None
    assert compare.arguments([]).out == compare.REPORTS


def test_a_process_that_fails_is_an_error_with_its_last_words():
    with pytest.raises(processes.MeasurementError, match="no_such_module"):
        processes.ask("no_such_module", {}, 1)


def test_waits_are_medians_with_their_spread():
    text = start.render({"`clbench --help`": [0.3, 0.1, 0.25]}, {"machine": "a small one"})
    assert re.search(r"\| `clbench --help` \| +0\.25 \| +0\.10 to 0\.30 \|", text) and "a small one" in text


def test_many_records_are_trials_of_their_own(tmp_path):
    Store(tmp_path / "few").write(make_record(seed=7))
    start.many_records(tmp_path / "few", tmp_path / "many")
    records = Store(tmp_path / "many").read()[0]
    assert len({r.key for r in records}) == len({r.trial.seed for r in records}) == start.RECORDS


def cost(panel, series, size, learning, parameters=100):
    return scaling.Cost(panel, series, size, whole=9.0, train=list(learning), consolidate=[0.0] * len(learning),
                        evaluate=[0.1 * size] * (len(learning) + 1), parameters=parameters)


def test_curves_of_costs():
    costs = [cost("tasks", "naive", 4, [1.0] * 4), cost("tasks", "naive", 2, [1.0] * 2),
             cost("width", "naive", 100, [3.0], 1000), cost("width", "naive", 200, [6.0], 4000)]
    found = {line.panel: line for line in scaling.curves(costs)}
    assert (found["tasks"].sizes, found["tasks"].seconds) == ([2.0, 4.0], [2.0, 4.0])
    assert found["tasks"].exponent == pytest.approx(1)
    assert found["along"].seconds == [1.0] * 4 and found["along"].exponent == pytest.approx(0)
    assert found["rows"].exponent == pytest.approx(1)
    assert found["width"].sizes == [1000.0, 4000.0] and found["width"].exponent == pytest.approx(0.5)


def test_points_cover_what_is_promised():
    every = list(scaling.points(quick=False))
    sizes = {panel: {p.size for p in every if p.panel == panel} for panel in scaling.PANELS}
    assert {1, 32} <= sizes["seeds"] and {5, 50} <= sizes["tasks"]
    assert all(len(sizes[panel]) >= 4 for panel in scaling.PANELS)
    assert {p.how for p in every if p.panel == "seeds"} == {"sequential", "stacked", "workers"}
    assert len(list(scaling.points(quick=True))) < len(every) / 3


@pytest.mark.parametrize("module", [compare, measure, processes, scaling, table])
def test_what_leads_the_measurements_imports_nothing_heavy(module):
    found = [node for node in ast.parse(Path(module.__file__).read_text()).body
             if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in found for alias in node.names} | {
        node.module for node in found if isinstance(node, ast.ImportFrom)}
    assert not {name.split(".")[0] for name in names} & {"torch", "torchvision", "avalanche", "matplotlib"}


@pytest.mark.parametrize("script", sorted((ROOT / "benchmarks").rglob("*.py")), ids=lambda path: path.stem)
def test_what_a_script_imports_from_clbench_is_there(script):
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "clbench":
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
