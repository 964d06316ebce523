import sys
from dataclasses import replace

import pytest
from helpers.curves import with_curve
from helpers.records import make_matrix, make_record

from clbench.core.errors import SpecError
from clbench.core.objective import R2
from clbench.report import build
from clbench.report.columns import (
    ACC,
    COMPARISON,
    MEASURES,
    MORE_COSTS,
    MORE_METRICS,
    WHILE_LEARNED,
    Measure,
    find_tested,
)
from clbench.report.figures.style import assign_styles
from clbench.report.formats.page import section_view
from clbench.report.metric_columns import measures_of
from clbench.report.model import Column
from clbench.results.records import ErrorCounts

TABLES = (COMPARISON, MORE_METRICS, WHILE_LEARNED, MORE_COSTS)


def patch(monkeypatch, measures):
    for name, module in list(sys.modules.items()):
        if name.startswith("clbench.report") and hasattr(module, "MEASURES"):
            monkeypatch.setattr(module, "MEASURES", measures)


def studied():
    """Return a section in which every column has a value, six seeds so that tests can decide."""
    methods = (("lora", 0.0, 10), ("ewc", -0.05, 90), ("joint", 0.02, 90))
    records = [with_curve(m, s, None, R=make_matrix(3, shift + 0.001 * s), scenario="class", peak_device_bytes=7,
                           task_inference=make_matrix(3), trainable=[cost] * 3, train_flops=[cost * 10**9] * 3)
               for m, shift, cost in methods for s in range(6)]
    counts = ErrorCounts(learned=3, samples=[200] * 3, right=[100] * 3, given=[150] * 3, corrected=[120] * 3,
                         tasks=[[200, 0, 0], [0, 200, 0], [0, 0, 200]])
    section, = build([with_sizes(r.model_copy(update={"errors": [counts]}), [100, 200, 300]) for r in records]).sections
    return section


def with_sizes(record, test_samples):
    """Return a record whose tasks have these numbers of test samples."""
    return record.model_copy(update={"stream": record.stream.model_copy(update={"test_samples": test_samples})})


def pareto_costs(section):
    """Return the costs that the page's Pareto figure offers, and the methods on the front of each."""
    view = section_view("s1", "x", section, assign_styles([(r.strategy, r.reference) for r in section.results]))
    figure, = (figure for figure in view.figures if figure.kind == "pareto")
    assert [section.comparison.columns[cost.column].name for cost in figure.costs] == [c.title for c in figure.costs]
    return [(cost.title, cost.front) for cost in figure.costs]


def by_title(section):
    return {column.title: table.cells(column.title)
            for table in (section.comparison, *section.details) for column in table.columns}


def test_every_measure_has_a_title_of_its_own_and_one_of_the_tables():
    assert len({m.column.title for m in MEASURES}) == len(MEASURES)
    assert {m.table for m in MEASURES} == set(TABLES)
    assert all(m.tested for m in MEASURES if m.in_report)
    assert all(m.column.direction for m in MEASURES if m.tested or m.cost)
    assert set(by_title(studied())) > {m.column.title for m in MEASURES} - {"AIA-pooled-all"}  # of scenario domain


@pytest.mark.parametrize(("scenario", "sizes", "titles"), [
    ("class", [200, 200, 200], []), ("domain", [200, 200, 200], []), ("class", [10, 20, 100], ["ACC", "AIA"]),
    ("domain", [10, 20, 100], ["ACC", "AIA", "AIA-all"])])
def test_pooled_accuracies_are_shown_if_tasks_have_different_numbers_of_test_samples(scenario, sizes, titles):
    R = [[0.1, 0.2, 0.3], [0.8, 0.25, 0.3], [0.9, 0.7, 0.4], [0.6, 0.5, 0.95]]
    section, = build([with_sizes(make_record("lora", R=R, scenario=scenario), sizes)]).sections
    cells = {title: cell.mean for title, (cell, *_) in by_title(section).items() if "pooled" in title}
    values = {"ACC": 111 / 130, "AIA": (8 / 10 + 23 / 30 + 111 / 130) / 3, "AIA-all": (43 + 63 + 111) / 130 / 3}
    assert cells == pytest.approx({f"{title[:3]}-pooled{title[3:]}": values[title] for title in titles})


@pytest.mark.parametrize("place", range(0, len(MEASURES) + 1, 10))
@pytest.mark.parametrize("direction", ["up", None])
def test_a_new_column_anywhere_changes_nothing_else(place, direction, monkeypatch):
    before = studied()
    tested = {m.column.title for m in MEASURES if m.tested}
    for table in TABLES:
        new = Measure(Column("new", "percent", direction), lambda r, _: 1 - r.R[-1][0] + 0.1 * r.trial.seed, table)
        patch(monkeypatch, (*MEASURES[:place], new, *MEASURES[place:]))
        after = studied()
        assert len(after.comparison.columns) == len(before.comparison.columns) + (table == COMPARISON)
        assert {title: cells for title, cells in by_title(after).items() if title != "new"} == by_title(before)
        assert (after.verdicts, after.comparisons) == (before.verdicts, before.comparisons)
        assert [t.title.partition(":")[0] for t in after.comparisons] == ["Accuracy", "Forgetting"]
        assert after.figures == before.figures
        assert pareto_costs(after) == pareto_costs(before)
        assert {m.column.title for m in find_tested(sorted(tested))} == tested
        with pytest.raises(SpecError, match="no metric 'new'"):
            find_tested(["new"])


def test_what_is_tested_is_what_its_measure_says(monkeypatch):
    new = Measure(Column("new", "percent", "up"), lambda r, _: r.R[-1][0], MORE_COSTS, tested=True, in_report=True)
    patch(monkeypatch, (new, *(replace(m, in_report=False) for m in MEASURES)))
    assert [t.title.partition(":")[0] for t in studied().comparisons] == ["New"]
    assert find_tested(["NEW", "acc"])[0] is new
    assert find_tested(["acc"])[0].column == ACC.column


def test_a_final_mean_is_found_by_the_name_of_its_metric_too():
    assert find_tested(["accuracy"]) == [ACC]
    measures = measures_of(R2)
    assert find_tested(["r2"], measures)[0] is measures[0] and find_tested(["R2"], measures)[0] is measures[0]
    with pytest.raises(SpecError, match=r"no metric 'r3'.* \(those that can be compared here: R²"):
        find_tested(["r3"], measures)


def test_a_table_knows_its_columns_by_title():
    table = studied().comparison
    assert [c.title for c in table.columns][table.index("bytes kept")] == "bytes kept"
    assert [cell.mean for cell in table.cells("trainable params per task")] == [10, 90, 90]
    with pytest.raises(ValueError, match="is not in list"):
        table.index("nothing")


def test_joint_training_is_known_by_what_it_kept_not_by_its_name():
    def section(name, reference=True, kept=(800, 1600, 2400)):
        bound = make_record(name, reference=reference)
        costs = bound.costs.model_copy(update={"replay_samples": list(kept)})
        found, = build([make_record("ewc"), bound.model_copy(update={"costs": costs})]).sections
        return [column.title for column in found.details[0].columns]

    assert "intransigence" in section("theirs")
    assert "intransigence" not in section("theirs", reference=False)
    assert "intransigence" not in section("joint", kept=(800, 800, 800))


def test_figures_have_their_old_name_too():
    report = build([make_record("lora"), make_record("ewc")])
    for part, name in ((report, "Report"), (report.sections[0], "Section")):
        with pytest.warns(DeprecationWarning, match=rf"{name}\.pictures is figures now") as caught:
            assert part.pictures is part.figures
        assert caught[0].filename == __file__


def test_training_compute_is_shown_where_records_have_it():
    old, new = make_record("lora"), make_record("ewc", train_flops=[10**9, 2 * 10**9, 10**12])
    section, = build([old]).sections
    assert "training compute" not in [c.title for c in section.comparison.columns]
    assert "training compute" not in [title for title, _ in pareto_costs(section)]
    assert not any("compute" in note for note in build([old]).notes)
    section, = build([old, new]).sections
    assert [cell.text for cell in section.comparison.cells("training compute")] == ["\N{EN DASH}", "1.00 TFLOP"]
    assert section.comparison.cells("training compute")[1].mean == 1.003e12
    assert ("training compute", [1]) in pareto_costs(section)
    more, = (table for table in section.details if table.title == MORE_COSTS)
    assert [cell.text for cell in more.cells("inference compute")] == ["\N{EN DASH}", "500 FLOP"]
    assert [cell.text for cell in more.cells("training CPU")] == ["\N{EN DASH}", "3.00 ± n/a"]
    assert any("compute" in note for note in build([old, new]).notes)


def test_more_costs_by_hand():
    made = make_record("lora", train_seconds=2.0, train_flops=[1, 2, 3])
    made = made.model_copy(update={"costs": made.costs.model_copy(update={"inference_flops": [7, 8, 9]})})
    section, = build([made]).sections
    found = by_title(section)
    wanted = {"training": 6.0, "consolidation": 0.75, "evaluation": 0.4, "training CPU": 3.0, "evaluation CPU": 2.0,
              "optimizer steps": 210, "peak memory": 300_000_000, "inference compute": 9}
    assert {name: found[name][0].mean for name in wanted} == pytest.approx(wanted)
