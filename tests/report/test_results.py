import csv
import io
import math
import sys
from html import escape
from statistics import fmean

import numpy as np
import pytest
from helpers.records import folder, make_matrix, make_number_record, make_record

import clbench
from clbench.core.errors import ClbenchError, SpecError, StoreError
from clbench.experiment.until import UntilDecided
from clbench.report import build
from clbench.report.analysis.grouping import group_by_setting
from clbench.report.figures.grid import grid
from clbench.report.formats.csv import HEADER, render
from clbench.report.formatting import column_names, to_plain
from clbench.report.frames import MEASURED
from clbench.report.results import Results
from clbench.results.items import ItemResults

R = [[0.1, 0.2], [0.9, 0.3], [0.7, 0.8]]
OTHER = [[0.1, 0.2], [0.8, 0.3], [0.5, 0.6]]


def study():
    """Two ranks of LoRA, EWC and naive on two seeds; EWC's second seed diverged."""
    rows = [("lora", {"rank": 1, "task": "first"}), ("lora", {"rank": 4, "task": "first"}), ("ewc", {"strength": 10.0}),
            ("naive", {})]
    return Results(
        make_record(name, seed, R if seed else OTHER, options=options, trainable=[7 + i, 5 + i],
                    label=f"{name}:rank={options['rank']}" if "rank" in options else name,
                    status="diverged" if name == "ewc" and seed else "done")
        for i, (name, options) in enumerate(rows) for seed in (0, 1))


def swept(values=((1, 4), (8.0, 16.0)), missing=(), seeds=(0, 1), **more):
    return [make_record("lora", seed, make_matrix(2, 0.01 * i - 0.02 * j + 0.01 * seed),
                        options={"rank": a, "alpha": b, **more}, label=f"lora:rank={a}:alpha={b:g}")
            for i, a in enumerate(values[0]) for j, b in enumerate(values[1]) for seed in seeds
            if (a, b) not in missing]


def test_results_are_a_list_of_records_as_before():
    results = study()
    first, *rest = results
    assert isinstance(results, list) and len(results) == 8 and first is results[0] and rest == results[1:]
    assert results == list(results) and list(results) == results and results != results[1:]
    assert [type(part) for part in (results[:2], results[::2], results + results[:1], results.copy())] == [Results] * 4
    assert results[:2] + results[2:] == results
    assert results + list(results) == [*results, *results]
    assert sorted(results, key=lambda r: r.key)[0] in results
    results.reverse()
    assert results[-1] is first


def test_results_and_records_have_a_short_repr():
    results = study()
    assert repr(results[0]) == str(results[0]) == "Record(lora:rank=1/0, split-mnist-5k, scenario task: ACC 55.0)"
    assert repr(results[5]) == "Record(ewc/1, split-mnist-5k, scenario task: diverged)"
    assert repr(results) == ("Results(8 records: lora:rank=1, lora:rank=4, ewc, naive; split-mnist-5k, scenario task, "
                             "2 seeds; 1 without a result)")
    assert repr(results[:1]) == "Results(1 record: lora:rank=1; split-mnist-5k, scenario task, 1 seed)"
    assert repr(Results()) == "Results(no records)" in Results()._repr_html_()


def test_run_folders_are_loaded_as_results(tmp_path):
    records = study()
    folder(tmp_path / "a", *records[:6])
    folder(tmp_path / "b", *records[4:])
    results = clbench.load(tmp_path / "a", str(tmp_path / "b"), tmp_path / "a")
    assert isinstance(results, Results)
    assert {r.key: r for r in results} == {r.key: r for r in records} and len(results) == len(records)
    assert [r.label for r in results] == [label for label in dict.fromkeys(r.label for r in results) for _ in "ab"]
    (tmp_path / "a" / "records" / "bad.json").write_text("{")
    with pytest.warns(UserWarning, match="bad.json is left alone"):
        assert clbench.load(tmp_path / "a") == [r for r in results if r in records[:6]]
    with pytest.raises(StoreError, match="no records in"):
        clbench.load(tmp_path / "c")
    with pytest.raises(StoreError, match="name a run folder"):
        clbench.load()


def test_a_notebook_gets_the_table_and_the_verdict_escaped():
    results = study()
    evil = make_record("er", 0, R, label="<script>alert(1)</script>")
    html = Results([*results, evil])._repr_html_()
    report = build([*results, evil])
    section, = report.sections
    assert "<script>" not in html and "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    for row in section.comparison.rows:
        for cell in row.cells:
            assert f">{cell.text}<" in html
    assert section.headline and all(escape(text) in html for _, text in section.headline)
    assert "no result: EWC, seed 1: diverged" in html


def test_without_pandas_one_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    for call in (study().frame, study().summary, study().compare):
        with pytest.raises(ClbenchError, match=r"^data frames need pandas, which is not installed: pip install "
                                               r"'clbench\[notebook\]'$"):
            call()


@pytest.mark.extra("notebook")
def test_a_frame_is_tidy_and_has_a_column_for_each_option():
    results = study()
    frame = results.frame()
    assert list(frame) == ["trial", "setting", "scenario", "method", "strategy", "reference", "status", "rank",
                           "option.task", "strength", "seed", "learned", "task", "accuracy"]
    found = {(t, learned, task): a for t, learned, task, a in
             frame[["trial", "learned", "task", "accuracy"]].itertuples(index=False)}
    assert found == {(r.key, i, j + 1): a for r in results for i, row in enumerate(r.R) for j, a in enumerate(row)}
    assert len(frame) == len(found)
    one = frame[frame.trial == results[2].key].iloc[0]
    assert (one["method"], one["rank"], one["option.task"], one["seed"]) == ("lora:rank=4", 4, "first", 0)
    assert frame["rank"].dtype == "Int64" and frame[frame.strategy == "ewc"]["rank"].isna().all()
    assert set(frame[frame.method == "ewc"].status) == {"done", "diverged"}
    acc = frame[(frame.learned == 2) & (frame.status == "done")].groupby(["method", "seed"]).accuracy.mean()
    assert acc["lora:rank=1"].tolist() == pytest.approx([0.55, 0.75])


@pytest.mark.extra("notebook")
def test_the_summary_is_the_comparison_table():
    results = study()
    summary = results.summary().set_index("method")
    section, = build(results, ids=True).sections
    assert list(summary.index) == [row.label for row in section.comparison.rows]
    for column in section.comparison.columns[1:]:
        for row, cell in zip(section.comparison.rows, section.comparison.cells(column.title), strict=True):
            assert summary.loc[row.label, column.title] == cell.mean
            assert (f"{column.title} low" in summary) == (column.unit in MEASURED)
            if cell.low is not None and column.unit in MEASURED:
                assert (summary.loc[row.label, f"{column.title} low"],
                        summary.loc[row.label, f"{column.title} high"]) == (cell.low, cell.high)
    assert summary.loc["lora:rank=1", "ACC"] == pytest.approx(0.65)
    assert summary["seeds"].to_dict() == {"lora:rank=1": 2, "lora:rank=4": 2, "ewc": 1, "naive": 2}
    assert summary["complete"].tolist() == [True, True, False, True]
    assert math.isnan(summary.loc["ewc", "ACC low"])


@pytest.mark.extra("notebook")
def test_a_comparison_is_that_of_the_command():
    results = Results(make_record(name, seed, make_matrix(2, shift * (seed + 1)), label=name)
                      for name, shift in (("lora", 0.01), ("ewc", -0.01), ("naive", 0.0)) for seed in range(8))
    found = results.compare(baseline="naive", metrics="ACC")
    assert found["method"].tolist() == ["lora", "ewc"] and set(found["baseline"]) == {"naive"}
    assert found["difference"].tolist() == pytest.approx([0.045, -0.045])
    assert found["p"].tolist() == pytest.approx([2 / 2 ** 8] * 2)
    assert found["seeds"].tolist() == [8, 8] and found["verdict"].tolist() == [
        "significantly better", "significantly worse"]
    pairs = results.compare()
    assert set(pairs["metric"]) == {"ACC", "forgetting"} and len(pairs) == 2
    assert pairs["pair"].tolist() == ["lora minus ewc"] * 2
    few = Results(r for r in results if r.trial.seed < 3).compare("naive", ["ACC"])
    assert few.attrs["verdicts"][0].startswith("Accuracy: Paired t-tests, Holm-corrected over 2 comparisons with naive")
    with pytest.raises(SpecError, match="no method 'navie'; did you mean 'naive'"):
        results.compare("navie")
    with pytest.raises(SpecError, match="no metric 'AC'"):
        results.compare(metrics=["AC"])


@pytest.mark.extra("notebook")
def test_a_metric_is_compared_in_the_settings_that_have_it():
    results = Results(make(name, seed, make_matrix(2, 0.01 * (seed + 1) * (name == "er")))
                      for make in (make_record, make_number_record) for name in ("er", "naive") for seed in range(3))
    assert set(results.compare(metrics="ACC")["metric"]) == {"ACC"}
    assert set(results.compare(metrics=["ACC", "RMSE"])["metric"]) == {"ACC", "RMSE"}
    with pytest.raises(SpecError, match="no metric 'NLL'"):
        results.compare(metrics="NLL")


@pytest.mark.extra("notebook")
def test_a_column_of_numbers_without_values_has_the_type_of_numbers():
    summary = Results([make_record("er", 0), make_record("naive", 0)]).summary()
    assert summary["ACC low"].dtype == summary["ACC"].dtype == "float64" and summary["ACC low"].isna().all()


@pytest.mark.extra("notebook")
def test_a_baseline_that_one_setting_lacks_is_used_where_it_is():
    made = {"task": ("lora", "ewc"), "class": ("er", "lora")}
    results = Results(make_record(name, seed, make_matrix(2, 0.01 * seed * (name == "er")), scenario=scenario)
                      for scenario, names in made.items() for name in names for seed in range(3))
    found = results.compare("er", "ACC")
    assert found["method"].tolist() == ["lora"] and set(found["setting"]) == {
        "split-mnist-5k, Class-IL, mlp"}
    assert ("split-mnist-5k, Task-IL, mlp: Accuracy: Nothing is compared here, because the baseline er was not run in "
            "this setting") in found.attrs["verdicts"]


def test_figures_are_those_of_the_report():
    results = study()
    curves = results.plot()
    axes, = curves.axes
    assert [t.get_text() for t in axes.texts] == ["LoRA r=1", "LoRA r=4", "EWC (1 seed)", "Fine-tuning"]
    line = next(line for line in axes.lines if len(line.get_xdata()) == 2)
    assert line.get_ydata() == pytest.approx([0.85, 0.65])
    assert results.plot("cost").axes[0].get_ylabel() == "accuracy (%)"
    assert len(results.plot("matrix").axes) == 4 + 1
    assert curves._repr_png_().startswith(b"\x89PNG")
    out = io.BytesIO()
    curves.savefig(out, format="pdf")
    assert out.getvalue().startswith(b"%PDF")


def test_what_cannot_be_drawn_is_said():
    results = study()
    with pytest.raises(SpecError, match="no plot 'curve'; did you mean 'curves'"):
        results.plot("curve")
    with pytest.raises(SpecError, match="nothing to draw for 'growth': no method grows"):
        results.plot("growth")
    for ignored in ({"x": "rank"}, {"y": "rank"}, {"metric": "forgetting"}):
        with pytest.raises(SpecError, match=r"plot\('cost'\) takes no x, y or metric, which belong to plot\('grid'\)"):
            results.plot("cost", **ignored)
    two = Results([*results, make_record("ewc", 0, R, scenario="class")])
    with pytest.raises(SpecError, match=r"several settings here, name one .*Task-IL, mlp; .*Class-IL, mlp"):
        two.plot()
    assert two.plot(setting="class").axes[0].get_title(loc="left") == "split-mnist-5k, Class-IL, mlp"
    assert two.plot(setting="split-mnist-5k, Task-IL, mlp").axes
    with pytest.raises(SpecError, match="no settings that fit 'tas'"):
        two.plot(setting="tas")
    with pytest.raises(StoreError, match="no records"):
        Results().plot()


def test_a_grid_has_a_cell_for_each_pair_of_values():
    records = [*swept(missing=[(4, 16.0)]), *(make_record("naive", seed, tasks=2) for seed in (0, 1))]
    setting, = group_by_setting(records)
    data = grid(setting, None, None, "acc")
    assert (data.x, data.xs, data.y, data.ys) == ("lora.rank", ("1", "4"), "lora.alpha", ("8", "16"))
    for (i, j), cell in data.cells.items():
        own = [r for r in records if r.trial.method.options == {"rank": (1, 4)[i], "alpha": (8.0, 16.0)[j]}]
        assert cell.mean == pytest.approx(fmean(fmean(r.R[-1]) for r in own))
    assert set(data.cells) == {(0, 0), (0, 1), (1, 0)}
    turned = grid(setting, "lora.alpha", "rank", "trainable params per task")
    assert (turned.x, turned.y) == ("lora.alpha", "lora.rank") and turned.cells[1, 0].mean == 1000
    assert grid(setting, "alpha", None, "ACC").y == "lora.rank"
    figure = Results(records).plot("grid")
    axes, bar = figure.axes
    assert axes.get_xlabel() == "lora.rank" and [t.get_text() for t in axes.get_yticklabels()] == ["8", "16"]
    texts = {t.get_position(): t.get_text() for t in axes.texts}
    assert texts[1, 1] == "\N{EN DASH}" and texts[0, 0].startswith(f"{100 * data.cells[0, 0].mean:.2f}\n± ")
    assert "Blues" in bar.collections[-1].get_cmap().name


@pytest.mark.parametrize(("records", "wanted", "words"), [
    (study(), {}, "two swept options of one method; swept here: lora.rank"),
    (swept(), {"x": "rnk"}, "no swept option 'rnk'"),
    (swept(), {"x": "rank", "y": "lora.rank"}, "x and y are both 'rank'"),
    (swept(), {"metric": "ACCC"}, "no metric 'ACCC'"),
    ([*swept(bias=False), *swept(bias=True)], {}, "of lora 3 options were swept, rank, alpha, bias: name the two"),
    ([*swept(bias=False), *swept(bias=True)], {"x": "rank", "y": "alpha"}, "share a cell, for bias differs as well"),
    ([*swept(), *(r.model_copy(update={"trial": (t := r.trial.model_copy(update={"method": r.trial.method.model_copy(
        update={"name": "o-lora"})})), "key": t.key, "label": f"o-{r.label}"}) for r in swept())], {},
     "several methods were swept, lora and o-lora: name the options with the method, as in x='lora.rank'"),
])
def test_what_is_no_grid_is_said(records, wanted, words):
    with pytest.raises(SpecError, match=words):
        Results(records).plot("grid", **wanted)


def test_values_of_a_grid_are_in_order():
    records = swept(values=((16, 2, 4), (1.0, 0.5)))
    setting, = group_by_setting(records)
    data = grid(setting, None, None, "ACC")
    assert (data.xs, data.ys) == (("2", "4", "16"), ("0.5", "1"))


@pytest.mark.parametrize("update", [
    {"until": UntilDecided(first=3, most=4)},
    {"items": ItemResults.of([np.arange(200)], np.arange(200) % 4 > 0, "images")}])  # intervals over seeds and samples
def test_a_grid_has_the_intervals_of_the_table(update):
    setting, = group_by_setting([r.model_copy(update=update) for r in swept(seeds=(0, 1, 2))])
    table = build(setting.records, ids=True).sections[0].comparison
    accuracies = dict(zip([row.label for row in table.rows], table.cells("ACC"), strict=True))
    for (i, j), cell in grid(setting, None, None, None).cells.items():
        assert cell.half_width == accuracies[f"lora:rank={(1, 4)[i]}:alpha={(8, 16)[j]}"].half_width is not None


def test_a_grid_has_the_shared_value_of_a_swept_hyperparameter():
    """The record of the shared learning rate has no value of its own for it."""
    records = [make_record("er", 0, label=f"er:capacity={size}{name}", options={"capacity": size}, own_recipe=own)
               for size in (100, 200) for name, own in (("", {}), (":recipe.lr=0.1", {"lr": 0.1}))]
    data = grid(group_by_setting(records)[0], None, None, None)
    assert (data.x, data.xs, data.y, data.ys) == ("er.capacity", ("100", "200"), "er.recipe.lr", ("1e-3", "0.1"))
    assert len(data.cells) == 4


def test_report_csv_has_a_column_for_each_option():
    results = study()
    found = list(csv.DictReader(io.StringIO(render(build(results, ids=True)))))
    assert tuple(found[0]) == (*HEADER, "rank", "option.task", "strength")
    for line in found:
        own = {"lora:rank=1": ("1", "first", ""), "lora:rank=4": ("4", "first", ""), "ewc": ("", "", "10.0"),
               "naive": ("", "", "")}[line["method"]]
        assert (line["rank"], line["option.task"], line["strength"]) == own
    assert {line["status"] for line in found if line["method"] == "ewc"} == {"done", "no result"}


def test_options_are_plain_values():
    assert [to_plain(v) for v in (None, True, 3, 0.5, "a", math.inf, ["q", "v"], {"a": 1})] == [
        None, True, 3, 0.5, "a", "inf", "q+v", '{"a" = 1}']
    assert column_names([{"b": 1, "seed": 2}, {"a": 1, "b": 3}], ["seed"]) == {
        "b": "b", "seed": "option.seed", "a": "a"}
