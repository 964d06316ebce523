from dataclasses import replace

import pytest
from helpers.records import make_record

from clbench.core.errors import SpecError
from clbench.experiment.factors import Factor, Part
from clbench.report import explained
from clbench.report.columns import find_tested
from clbench.report.explained import Explanation, check_units, headline, remarks, table
from clbench.results.attribution import attribute

ACC, AIA, BWT, TIME = find_tested(["ACC", "AIA", "BWT", "training time"])
RATE = Factor((Part(("recipe", "lr"), "learning rate", "0.1", "0.01"),))
BOTH = Factor((Part(("recipe", "optimizer"), "optimizer", "sgd", "adam"),
               Part(("recipe", "momentum"), "momentum", "0.9", "0")), "momentum is an option of sgd")
IDLE = Factor((Part(("model", "depth"), "<depth>", "2", "3"),))


def told(seeds=3, **changes):
    """A difference of -6 points: the rate -5, optimizer -2, +1 that they do together, the depth nothing."""
    def outcome(chosen, seed):
        rate, optimizer = chosen & 1, chosen >> 1 & 1
        return 0.8 + 0.01 * seed - (0.05 + 0.001 * seed) * rate - 0.02 * optimizer + 0.01 * rate * optimizer

    found = attribute({c: [outcome(c, seed) for seed in range(seeds)] for c in range(8)}, 3)
    records = tuple(make_record(seed=seed) for seed in range(seeds))
    return Explanation(**{"names": ("a.toml", "b.toml"), "factors": (RATE, BOTH, IDLE), "measures": (ACC, ACC), "seeds":
                          tuple(range(seeds)), "attribution": found, "combinations": 8, "left_out": (),
                          "records": records, "ends": (records[0].trial, records[0].trial), **changes})


def test_the_result_is_one_line_the_largest_part_first():
    assert headline(told()) == ("ACC 81.00 -> 74.90 (-6.10 ± 0.25 points): learning rate -4.60 ± 0.25, "
                                "optimizer and momentum -1.50 ± 0.00, <depth> 0")
    assert headline(told(1)) == ("ACC 80.00 -> 74.00 (-6.00 points): learning rate -4.50, "
                                 "optimizer and momentum -1.50, <depth> 0")
    assert headline(told(measures=(ACC, AIA))).startswith("ACC 81.00 -> AIA 74.90 ")


def test_the_table_has_each_factor_alone_and_sums():
    rows = {row.label: [cell.text for cell in row.cells] for row in table(told()).rows}
    assert rows == {
        "learning rate": ["0.1 -> 0.01", "-5.10 ± 0.25", "-4.10 ± 0.25", "-4.60 ± 0.25"],
        "optimizer and momentum": ["sgd, 0.9 -> adam, 0", "-2.00 ± 0.00", "-1.00 ± 0.00", "-1.50 ± 0.00"],
        "<depth>": ["2 -> 3", "0", "0", "0"],
        "sum": ["", "-7.10 ± 0.25", "-5.10 ± 0.25", "-6.10 ± 0.25"]}


def test_remarks_say_what_was_merged_left_out_and_not_shown():
    lines = "\n".join(remarks(told(left_out=("seed 7 is left out: naive, A diverged",))))
    for part in ("all 8 combinations, 8 trained with each of 3 seeds", "momentum is an option of sgd",
                 "Changes nothing, in no seed: <depth>.", "seed 7 is left out", "-7.10 from A and -5.10 from B"):
        assert part in lines
    assert "gives no intervals" in "\n".join(remarks(told(1)))


def test_a_remark_says_if_the_orders_are_few():
    for orders, few in ((0, False), (4, True), (12, False)):
        found = told(attribution=replace(told().attribution, orders=orders))
        assert any("fewer than 12 orders" in line for line in remarks(found)) is few


def test_bars_of_the_waterfall_go_from_a_to_b():
    found = told()
    axes, = explained.draw(found).axes
    bars = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches]
    assert bars[0][0] == pytest.approx(found.attribution.a.mean)
    assert bars[-1][1] == pytest.approx(found.attribution.b.mean)
    assert [end for _, end in bars[:-1]] == pytest.approx([start for start, _ in bars[1:]])
    assert explained.draw_waterfall(found) == explained.draw_waterfall(found)


def test_the_axis_says_its_unit_and_whether_lower_is_better():
    forgetting, = find_tested(["forgetting"])
    axes, = explained.draw(told()).axes
    assert axes.get_xlabel() == "ACC (%)"
    colors = [bar.get_facecolor() for bar in axes.patches]
    axes, = explained.draw(told(measures=(forgetting, forgetting))).axes
    assert axes.get_xlabel() == "forgetting (points), lower is better"
    assert axes.patches[0].get_facecolor() != colors[0], "a decrease is better here"


def test_both_formats_escape_and_say_the_same():
    found = told()
    page, text = explained.page(found, b"<svg/>"), explained.markdown(found)
    assert "&lt;depth&gt;" in page and "<depth>" not in page and "&lt;depth&gt;" in text
    for part in ("-4.60 ± 0.25", "sgd, 0.9 -&gt; adam, 0"):
        assert part in page and part in text


def test_differences_of_unlike_measures_are_refused():
    check_units((ACC, BWT))
    with pytest.raises(SpecError, match="ACC is in percent and training time in seconds"):
        check_units((ACC, TIME))
