import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from helpers import TESTS
from helpers.figures import NASTY, figure, study
from helpers.records import make_record
from matplotlib.textpath import TextPath

from clbench.core.errors import StoreError
from clbench.report import build, write_figures
from clbench.report.figures import draw, style
from clbench.report.figures.accuracy import wrapped_label
from clbench.report.model import FILE_FORMATS, FigureData, FigurePoint


def texts(svg):
    return re.findall(r"<!-- (.*?) -->", svg)


def markers(axes, look):
    """Return where the markers of one look stand, and how they are drawn."""
    return [(line.get_xdata()[0], line.get_ydata()[0], line.get_markerfacecolor(), line.get_markersize())
            for line in axes.lines if line.get_marker() == look.marker and len(line.get_xdata()) == 1]


def test_every_method_has_a_marker_in_its_strategys_color_and_a_label():
    drawn, looks = figure(study(), "pareto")
    axes, = drawn.axes
    assert axes.get_xscale() == "log"
    assert sorted(m[:3] for m in markers(axes, looks["lora"])) == [
        (pytest.approx(1000 * r), pytest.approx(0.61 + 0.02 * r), looks["lora"].color) for r in (1, 2, 4)]
    assert {m[2] for name in ("naive", "joint") for m in markers(axes, looks[name])} == {"white"}
    assert sorted(t.get_text() for t in axes.texts) == [
        "EWC", "Fine-tuning", "Joint training", "LoRA r=1", "LoRA r=2", "LoRA r=4", "er"]
    assert [t.get_text() for t in drawn.legends[0].texts] == ["Pareto front", "reference", "95% confidence interval"]


def test_the_front_has_heavy_markers_and_a_step_line_to_the_edge():
    drawn, looks = figure(study(ranks=(1, 4, 2)), "pareto")
    axes, = drawn.axes
    sizes = {name: {m[3] for m in markers(axes, looks[name])} for name in looks}
    assert sizes == {"lora": {8.5}, "ewc": {8.5}, "er": {8.5}, "naive": {6.5}, "joint": {6.5}}
    steps = axes.lines[0].get_xydata().tolist()
    assert steps[0] == pytest.approx([1000, 0.63]) and steps[1] == pytest.approx([2000, 0.63])
    assert steps[-1][0] == pytest.approx(axes.get_xlim()[1])
    swept = next(line.get_xdata() for line in axes.lines[1:] if len(line.get_xdata()) == 3)
    assert swept == pytest.approx([1000, 2000, 4000]), "a sweep is joined in the order of its parameters"


def test_sweeps_of_one_strategy_are_lines_of_their_own():
    records = [make_record("lora", s, label=f"lora:{rank}:{lr}", options={"rank": rank}, trainable=[1000 * rank] * 3,
                           own_recipe={"lr": lr}) for s in (0, 1) for rank in (1, 2, 4) for lr in (0.1, 0.2)]
    axes, = figure(build(records), "pareto")[0].axes
    assert sum(len(line.get_xdata()) == 3 for line in axes.lines[1:]) == 2


def test_markers_that_cover_each_other_stay_at_their_cost():
    records = [make_record(name, s, trainable=[trained] * 3)
               for s in (0, 1) for name, trained in (("lora", 1000), ("naive", 5000), ("ewc", 5000), ("er", 5000))]
    drawn, looks = figure(build(records), "pareto")
    assert {name: m[0] for name in looks for m in markers(drawn.axes[0], looks[name])} == {
        "lora": 1000, "naive": 5000, "ewc": 5000, "er": 5000}


def test_labels_cover_neither_one_another_nor_markers():
    drawn, _ = figure(study(ranks=(1, 2, 4, 8)), "pareto")
    axes, = drawn.axes
    boxes = [t.get_window_extent() for t in axes.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1:])
    at = axes.transData.transform([(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines
                                   if line.get_marker() not in ("None", "")])
    assert not any(box.contains(*point) for box in boxes for point in at)
    assert all(axes.get_window_extent().contains(box.x0, box.y0) for box in boxes)


@pytest.mark.parametrize("text", ["ranpac", "er:capacity=500:outputs=own", "pnn:infer=gaussian:start=base"])
def test_a_label_is_as_wide_as_its_outlines(text):
    outline = TextPath((0, 0), text, size=style.LABEL, prop="DejaVu Sans").get_extents()
    assert outline.width <= style.text_width(text, style.LABEL) < outline.width + 2


def test_what_all_methods_of_a_strategy_have_stands_in_one_label():
    names = {"lora:infer=gaussian:rank=1": 10.0, "lora:infer=gaussian": 20.0, "lora:infer=gaussian:rank=16": 30.0}
    points = [FigurePoint(name, "lora", False, True, 0.5, None, cost, ()) for name, cost in names.items()]
    with style.styled():
        axes, = draw.draw_pareto(FigureData("pareto", "x", "", "", "", "", tuple(points)),
                                 style.assign_styles([("lora", False)])).axes
    assert {t.get_text() for t in axes.texts} == {"lora:infer=gaussian:rank=1", "lora:infer=gaussian", "rank=16"}


def test_intervals_are_drawn_within_what_an_accuracy_can_be():
    wide = [FigurePoint(name, name, False, True, accuracy, None, cost, (), low=low, high=high)
            for name, accuracy, low, high, cost in (("lora", 0.95, 0.75, 1.15, 10.0), ("ewc", 0.1, -0.2, 0.4, 100.0),
                                                    ("er", 0.5, None, None, 100.0))]
    data = FigureData("pareto", "x", "", "", "", "", tuple(wide))
    with style.styled():
        axes, = draw.draw_pareto(data, style.assign_styles([(p.strategy, False) for p in wide])).axes
    spans = [line.get_ydata() for line in axes.lines if list(line.get_xdata()) == [line.get_xdata()[0]] * 2]
    assert [value for span in spans for value in span] == pytest.approx([0.75, 1.0, 0.0, 0.4, 0.5, 0.5])


def test_a_second_cost_has_axes_of_its_own_on_the_same_scale_of_accuracy():
    points = [FigurePoint(name, name, False, True, accuracy, None, cost, (), low=low, high=accuracy, compute=compute)
              for name, accuracy, low, cost, compute in (("lora", 0.9, 0.8, 10.0, 3e12), ("slda", 0.7, 0.3, 0.0, 1e12),
                                                         ("ewc", 0.6, 0.5, 100.0, 9e12))]
    looks = style.assign_styles([(p.strategy, False) for p in points])
    with style.styled():
        left, right = draw.draw_pareto(FigureData("pareto", "x", "", "", "", "", tuple(points)), looks).axes
    assert left.get_ylim() == right.get_ylim() and left.get_ylim()[0] < 0.3
    assert [m[:2] for m in markers(right, looks["slda"])] == [(pytest.approx(1e12), pytest.approx(0.7))]
    assert not markers(left, looks["slda"])
    assert right.get_xlabel() == "training compute (FLOPs)" and right.get_xscale() == "log"
    assert sorted(t.get_text() for t in left.texts) == ["ewc", "lora"]
    assert not any(t.get_visible() for t in right.get_yticklabels())


def test_methods_that_keep_the_same_share_a_line_and_a_label():
    drawn, looks = figure(study(), "growth")
    axes, = drawn.axes
    assert {t.get_text() for t in axes.texts} == {"LoRA r=1", "LoRA r=2", "LoRA r=4",
                                                  "EWC, er, Fine-tuning, Joint\ntraining"}
    flat = [line for line in axes.lines if len(line.get_xdata()) == 3 and set(line.get_ydata()) == {50_000}]
    assert [line.get_color() for line in flat] == [looks[n].color for n in ("ewc", "er", "naive", "joint")]
    assert axes.get_yscale() == "linear" and axes.get_ylim()[0] == 0


def test_growth_over_orders_of_magnitude_is_logarithmic():
    grown = FigureData("growth", "x", "", "", "", "", tuple(
        FigurePoint(name, name, False, True, 0.5, None, 1.0, kept) for name, kept in
        (("pnn", tuple(1e5 * 2 ** k for k in range(30))), ("ewc", (1e5,) * 30))))
    with style.styled():
        axes, = draw.draw_growth(grown, style.assign_styles([("pnn", False), ("ewc", False)])).axes
    assert axes.get_yscale() == "log"
    assert axes.get_xticks().tolist() == [5, 10, 15, 20, 25, 30]


def test_markers_of_many_tasks_stand_apart_and_those_of_methods_on_one_line_take_turns():
    kept = {"lora": tuple(1e5 + 1e3 * k for k in range(50)), "ewc": (1e5,) * 50, "er": (1e5,) * 50}
    looks = style.assign_styles([(name, False) for name in kept])
    points = tuple(FigurePoint(name, name, False, True, 0.5, None, 1.0, line) for name, line in kept.items())
    with style.styled():
        axes, = draw.draw_growth(FigureData("growth", "x", "", "", "", "", points), looks).axes
    found = {name: [x for line in axes.lines if line.get_marker() == look.marker for x in line.get_xdata()]
             for name, look in looks.items()}
    assert found == {"lora": list(range(1, 51, 3)), "ewc": list(range(1, 51, 6)), "er": list(range(4, 51, 6))}


def test_looks_are_distinct_and_references_gray():
    found = style.assign_styles([("naive", True), *((f"m{i}", False) for i in range(20)), ("joint", True),
                                 ("m1", False)])
    assert len({(look.color, look.marker) for look in found.values()}) == 22
    assert found["naive"].color == found["joint"].color == style.PALE
    assert found["m0"].color == "#0072B2"


@pytest.mark.slow
def test_the_same_records_give_the_same_file_in_any_process(tmp_path):
    code = ("import matplotlib; matplotlib.rcParams['font.size'] = 30; matplotlib.rcParams['svg.fonttype'] = 'none'\n"
            "import sys; sys.path.insert(0, sys.argv[1])\nfrom pathlib import Path\n"
            "from helpers.figures import study\nfrom clbench.report import write_figures\n"
            "write_figures(study((1, 2), ('ewc', 'naive')), Path(sys.argv[2]), ('svg', 'pdf', 'png'))\n"
            "assert 'matplotlib.pyplot' not in sys.modules\n"
            "assert 'torch' not in sys.modules")
    subprocess.run([sys.executable, "-c", code, TESTS, tmp_path], check=True)
    ours = draw.draw_report(study((1, 2), ("ewc", "naive")), FILE_FORMATS)
    assert {p.name: p.read_bytes() for p in (tmp_path / "figures").iterdir()} == ours
    assert {Path(name).suffix for name in ours} == {".svg", ".pdf", ".png"} and len(ours) == 3 * 5
    assert not any(re.search(rb"20\d\d-?\d\d-?\d\d|[Mm]atplotlib v", data) for data in ours.values())


def test_what_comes_from_a_record_is_text_only():
    for svg in map(bytes.decode, draw.draw_report(study(ranks=(1,), label=NASTY), ["svg"]).values()):
        root = ElementTree.fromstring(svg)
        assert root.tag.endswith("svg")
        assert not [e for e in root.iter() if e.tag.endswith(("}i", "}script"))]
        assert any("a$b_c$" in text for text in texts(svg))


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "figures").write_text("")
    with pytest.raises(StoreError, match=r"cannot write .*-pareto\.svg"):
        write_figures(study(), tmp_path)


def test_a_report_without_figures_makes_no_folder(tmp_path):
    assert write_figures(build([make_record("lora", tasks=1)]), tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_importing_the_module_does_not_import_matplotlib():
    code = ("import sys, clbench.report, clbench.report.figures.draw, clbench.cli.report\n"
            "print([m for m in ('matplotlib', 'torch') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("low", "high", "expected"), [
    (500, 3e6, ["1 k", "10 k", "100 k", "1 M"]), (700, 6000, ["1 k", "2 k", "5 k"]),
    (1.1e6, 2.2e6, ["1.5 M", "2 M"])])
def test_axes_have_round_ticks(low, high, expected):
    with style.styled():
        drawn, axes = style.canvas("")
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        style.log_counts(axes.xaxis, low, high)
        drawn.canvas.draw()
    assert [t.get_text() for t in axes.get_xticklabels()] == expected


def test_long_labels_are_shortened_in_the_middle():
    assert style.shorten("x" * 34) == "x" * 34
    assert style.shorten("lora:rank=4:" + "y" * 50 + ":bias=true", 20) == "lora:rank=…bias=true"


def test_a_figure_has_its_title_and_nothing_else_moves():
    report = study()
    drawn, _ = figure(report, "growth")
    before = [(axes.get_position().height * drawn.get_figheight(), axes.get_position().y0 * drawn.get_figheight())
              for axes in drawn.axes]
    height = drawn.get_figheight()
    style.add_title(drawn, "Total parameters after each task")
    after = [(axes.get_position().height * drawn.get_figheight(), axes.get_position().y0 * drawn.get_figheight())
             for axes in drawn.axes]
    assert after == [pytest.approx(pair) for pair in before] and drawn.get_figheight() > height
    assert all(data.title in texts(draw.draw_report(report)[f"{data.name}.svg"].decode())
               for data in report.every_figure if data.brief)


@pytest.mark.parametrize(("label", "expected"), [
    ("LoRA r=8", "LoRA r=8"), ("RanPAC (ridge=1e6, dim=10000)", "RanPAC (ridge=1e6,\ndim=10000)"),
    ("lora:infer=gaussian:rank=16:alpha=32", "lora:infer=gaussian\nrank=16:alpha=32"),
])
def test_long_names_are_wrapped_and_not_cut(label, expected):
    result, = build([make_record("x", 0, label=label)]).sections[0].results
    assert wrapped_label(result) == expected
