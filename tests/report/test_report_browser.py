"""The HTML report in a real browser, headless; all tests share one."""

import math
import re
import time
from statistics import fmean
from xml.etree import ElementTree

import pytest
from helpers.browser import find, no_browser, until
from helpers.curves import make_curve, with_curve
from helpers.records import make_matrix, make_number_record, make_record, with_errors, with_names

from clbench.report.formatting import number
from clbench.results import metrics
from clbench.results.stats import rank_methods

pytestmark = pytest.mark.skipif(no_browser()[0], reason=no_browser()[1])
HOSTILE = "</script><img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
METHODS = {"er": (5, 9000), "lora": (9, 300), "ewc": (7, 9000), "naive": (2, 9000)}  # hundredths on top, trainable
BYTES = {"er": 8000, "lora": 4000, "ewc": 20_000, "naive": 4000}


def study(label=None):
    return [make_record(m, s, make_matrix(shift=0.01 * gain + 0.001 * s), trainable=[cost] * 3, label=label,
                        kept_bytes={"base": BYTES[m]}, options={"x": m}) for m, (gain, cost) in METHODS.items()
            for s in (0, 1)]


def order(browser):
    return [row.text for row in find(browser, "#s1-comparison tr[data-row] th")]


def tip(browser):
    # In one go: between finding an element and reading it the page may draw it anew.
    return browser.execute_script("return [...document.querySelectorAll('#tip.shown > *')].map(e => e.innerText)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 768, 1400])
def test_it_opens_without_a_word_and_fits_the_screen(show, width, scheme):
    long = [make_record("ewc", s, label="ewc:fisher=empirical:fisher_samples=500:mode=separate" * 2, tasks=12,
                        notes=["x" * 300], command="y" * 500, benchmark="z" * 200) for s in (0, 1)]
    for records in (study(), long):
        browser = show(records, width, scheme)
        browser.execute_script("document.querySelectorAll('details').forEach(e => { e.open = true; })")
        shown, room = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert shown <= room == width
        wide = browser.execute_script("return [...document.querySelectorAll('svg')].filter(e => "
                                      "e.getBoundingClientRect().right > innerWidth).length")
        assert wide == 0
    light = browser.execute_script("return getComputedStyle(document.documentElement).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", light))) > 200) == (scheme == "light")


def test_figures_show_negative_values_of_a_metric_without_a_lower_bound(show):
    browser = show([make_number_record(m, s, [[-1.0 - i + 0.1 * s] * 2] * 3, "r2")
                    for i, m in enumerate(METHODS) for s in (0, 1)])
    for kind, count in (("lines", 8), ("pareto", 4), ("seeds", 8)):
        svg = find(browser, f".plot[data-kind={kind}] .stage svg")[0]
        bottom = svg.rect["y"] + svg.rect["height"] - 30  # above the titles of the axes
        places = [e.rect["y"] for e in svg.find_elements("css selector", ".marker")]
        assert len(places) == count and all(svg.rect["y"] < y < bottom for y in places)
        assert "-4" in [text.text for text in svg.find_elements("css selector", ".frame text")]


@pytest.mark.parametrize("scale", [1e-4, 2e4])
def test_figures_of_numbers_fit_at_each_scale(show, scale):
    browser = show([make_number_record(m, s, [[scale * (3 + i + 0.1 * s + j + k / 5) for j in range(3)]
                                              for k in range(4)])
                    for i, m in enumerate(METHODS) for s in (0, 1)])
    for kind in ("lines", "pareto", "bars"):
        svg = find(browser, f".plot[data-kind={kind}] .stage svg")[0]
        assert all(text.rect["x"] >= svg.rect["x"] for text in svg.find_elements("css selector", "text"))
        heights = [e.rect["y"] for e in svg.find_elements("css selector", ".marker, .bar")]
        assert kind == "bars" or max(heights) - min(heights) > 90, "the values fill the plot"
    texts = [e.text for e in find(browser, ".plot[data-kind=heat] g[data-row='0'] text.small")]
    assert {1e-4: "3.05e-04", 2e4: "61,000"}[scale] in texts
    cells = [[e.text for e in row.find_elements("css selector", "td")] for row in find(browser, "#choose tbody tr")]
    assert cells[1][1].startswith({1e-4: "1.00e-04 ±", 2e4: "20,000 ±"}[scale])


def test_sorting_sorts_by_the_mean_and_keeps_references_apart(show):
    browser = show(study())
    given = ["lora", "EWC", "er", "Fine-tuning"]
    assert order(browser) == given
    accuracy = next(e for e in find(browser, "#s1-comparison thead button") if e.text.startswith("accuracy"))
    head = accuracy.find_element("xpath", "..")
    seen = []
    for _ in range(3):
        accuracy.click()
        seen.append((head.get_attribute("aria-sort"), order(browser)))
    assert seen == [("descending", given), ("ascending", ["er", "EWC", "lora", "Fine-tuning"]),
                    (None, given)]


def test_sorting_by_keyboard_and_by_cost(show):
    from selenium.webdriver.common.keys import Keys

    browser = show(study())
    kept = next(e for e in find(browser, "#s1-comparison thead button") if e.text.startswith("storage"))
    kept.send_keys(Keys.ENTER)
    assert order(browser) == ["lora", "er", "EWC", "Fine-tuning"], "the lowest first, and 20.0 kB behind 8.00 kB"
    kept.send_keys(Keys.SPACE)
    assert order(browser) == ["EWC", "er", "lora", "Fine-tuning"]
    assert len(find(browser, "#s1-comparison [aria-sort]")) == 1


def test_differences_to_the_baseline_are_sorted_better_first(show):
    up = [make_record(m, s, [[0.5] * 2, [0.9, 0.5], [0.8 - 0.1 * i + 0.01 * s, 0.9]])
          for i, m in enumerate(METHODS) for s in (0, 1)]
    down = [make_number_record(m, s, [[1.0 + i + 0.1 * s] * 2] * 3) for i, m in enumerate(METHODS) for s in (0, 1)]
    for records in (up, down):
        browser = show(records)
        given = order(browser)
        difference = next(e for e in find(browser, "#s1-comparison thead button") if e.text.startswith("difference"))
        difference.click()
        assert order(browser) == given, "the table lists better methods first"
        difference.click()
        assert order(browser)[:3] == given[2::-1]


def test_pointer_and_keyboard_show_the_records_values(show):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    records = study()
    browser = show(records)
    curves, heat = find(browser, "[data-kind=lines] svg")[0], find(browser, "[data-kind=heat] svg")[0]
    er = [r.R for r in records if r.trial.method.name == "er"]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", curves)
    marker = curves.find_element("css selector", "g[data-row='2'] .marker:last-of-type")
    time.sleep(0.1)  # the page has scrolled, which takes away what was named
    ActionChains(browser).move_to_element(marker).perform()
    name, line = until(lambda: tip(browser))
    assert name == "er" and line.startswith(f"after task 3: {number(fmean(map(metrics.acc, er)), 'percent')} ± ")
    ActionChains(browser).move_to_element_with_offset(curves, 0, -165).perform()
    heat.send_keys(*[Keys.ARROW_RIGHT] * 5, Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    name, line, seeds = until(lambda: tip(browser) if len(tip(browser)) == 3 else None)
    assert (name, line) == ("er", f"task 3, after task 1: {number(fmean(R[1][2] for R in er), 'percent')} %")
    assert seeds == ", ".join(f"seed {s}: {number(R[1][2], 'percent')}" for s, R in enumerate(er))
    heat.send_keys(Keys.ARROW_UP)
    assert tip(browser)[:2] == ["EWC", line]
    heat.send_keys(Keys.ESCAPE)
    assert tip(browser) == []


def test_names_of_classes_are_shown_of_the_task_that_is_pointed_at(show):
    from selenium.webdriver.common.keys import Keys

    browser = show([with_names(seed=s) for s in range(2)])
    find(browser, "[data-kind=heat] svg")[0].send_keys(*[Keys.ARROW_RIGHT] * 5)
    assert until(lambda: tip(browser))[3:] == ["classes: <b>ox</b>, pig"]
    for kind in ("lines", "bars"):
        find(browser, f"[data-kind={kind}] svg")[0].send_keys(Keys.ARROW_RIGHT)
        assert until(lambda: tip(browser) if len(tip(browser)) == 3 else None)[2] == "classes: hen, cow"


def test_a_value_reached_by_keyboard_stays_when_the_page_scrolls_and_moves_with_it(show):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    browser = show(study())
    heat = find(browser, "[data-kind=heat] svg")[0]
    heat.send_keys(Keys.ARROW_RIGHT)
    named = until(lambda: tip(browser))
    where = "return document.getElementById('tip').getBoundingClientRect().top"
    settle = "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done()))"
    browser.execute_async_script(settle)
    before = browser.execute_script(where)
    browser.execute_script("scrollBy(0, -30)")
    browser.execute_async_script(settle)
    assert tip(browser) == named and browser.execute_script(where) == before + 30
    ActionChains(browser).move_by_offset(5, 5).perform()
    assert tip(browser) == named


def test_the_pareto_figure_switches_its_cost(show):
    from selenium.webdriver.common.keys import Keys

    browser = show(study())
    figure, = find(browser, "[data-kind=pareto]")

    def shown():
        return (figure.find_element("css selector", ".frame .title:last-of-type").text,
                figure.find_element("css selector", ".front").get_attribute("d"))

    first = shown()
    assert first[0] == "trainable parameters per task, log"
    figure.find_elements("css selector", "label")[1].click()
    second = shown()
    assert second[0] == "storage, log" and second[1] != first[1]
    figure.find_elements("css selector", "input")[1].send_keys(Keys.ARROW_RIGHT)
    assert shown()[0] == "training time (s), log"


def test_the_pareto_figure_says_which_methods_are_not_on_its_axis(show):
    records = [make_record(m, s, make_matrix(), trainable=[cost] * 3)
               for m, cost in (("er", 9000), ("ewc", 900), ("ncm", 0), ("naive", 9000)) for s in (0, 1)]
    browser = show(records)
    figure, = find(browser, "[data-kind=pareto]")
    sentence = figure.find_element("css selector", ".missing")
    assert sentence.text == "Not on the axis of trainable parameters per task, because they have none: NCM."
    figure.find_elements("css selector", "label")[1].click()
    assert not sentence.is_displayed()
    figure.find_elements("css selector", "label")[0].click()
    for button in find(browser, ".legend button"):
        if button.text != "NCM":
            button.click()
    assert sentence.is_displayed() and not figure.find_elements("css selector", ".marker")


def test_the_legend_takes_a_method_out_of_every_figure(show):
    browser = show(study())
    button = next(e for e in find(browser, ".legend button") if e.text == "EWC")
    row = button.get_attribute("data-row")
    assert len(find(browser, f".stage g[data-row='{row}']")) >= 6
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert find(browser, f".stage g[data-row='{row}']") == []
    for other in find(browser, ".legend button[aria-pressed=true]"):
        other.click()
    assert find(browser, ".stage g.of") == []
    button.click()
    assert find(browser, f".stage g[data-row='{row}']")


def test_average_ranks_stand_beside_the_critical_difference(show):
    from selenium.webdriver.common.keys import Keys

    records = [make_record(m, s, make_matrix(shift=0.01 * gain + 0.001 * s), benchmark=f"b{b}")
               for b in range(6) for m, (gain, _) in METHODS.items() for s in (0, 1)]
    browser = show(records, 700)
    figure = find(browser, "#ranks figure")[0]
    average = [e.text for e in find(browser, "#ranks-1 tr:last-child td")]
    labels = [e.text for e in find(browser, "#ranks-1 thead th")][1:]
    best_first = sorted(labels, key=lambda label: float(average[labels.index(label)]))
    assert [e.text for e in figure.find_elements("css selector", "text.label")] == best_first
    dots = [e.rect["x"] for e in figure.find_elements("css selector", ".marker")]
    assert dots == sorted(dots)
    bars = figure.find_elements("css selector", ".interval")
    one_rank = (dots[1] - dots[0]) / (float(average[labels.index(best_first[1])]) - 1)
    critical = rank_methods([[0.9, 0.8, 0.7]] * 6).critical
    assert bars[0].rect["width"] == pytest.approx(critical * one_rank, rel=0.02)
    browser.execute_script("arguments[0].focus()", figure.find_element("css selector", "svg"))
    figure.find_element("css selector", "svg").send_keys(Keys.ARROW_RIGHT)
    assert tip(browser) == [best_first[1], f"average rank: {average[labels.index(best_first[1])]}"]
    assert len(find(browser, "#ranks .legend button")) == 3, "references are not ranked"


def test_every_figure_is_saved_as_an_svg_that_stands_alone(show):
    browser = show(study(), 320, "dark")
    for button in find(browser, ".download"):
        browser.execute_script("arguments[0].click()", button)
        until(lambda: not list(browser.saved.glob("*.crdownload")) and list(browser.saved.glob("*.svg")))
    names = {"accuracy", "pareto", "seeds", "growth", "forgetting", "R"}
    saved = until(lambda: found if len(found := sorted(browser.saved.glob("*.svg"))) == len(names) else None)
    assert {path.stem.rpartition("-")[2] for path in saved} == names
    for path in saved:
        text = path.read_text(encoding="utf-8")
        root = ElementTree.fromstring(text)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(" not in text and "url(" not in text
        texts = {e.text for e in root.iter("{http://www.w3.org/2000/svg}text")}
        assert {"er", "lora", "EWC", "Fine-tuning"} <= texts, path
        drawn = [e for e in root.iter() if e.tag.endswith(("path", "rect", "line"))]
        assert len(drawn) > 8 and all(e.get("fill") or e.get("stroke") for e in drawn)
        paper = next(e for e in drawn if e.tag.endswith("rect"))
        assert paper.get("fill") == "rgb(253, 253, 251)", "light, whatever the page is"
    accuracy = next(p for p in saved if p.stem.endswith("accuracy")).read_text()
    assert "rgb(0, 114, 178)" in accuracy, "the first method's color, as in the written report"


def test_hostile_labels_are_text_and_nothing_else(show):
    browser = show(study(label=HOSTILE)[:2])
    assert browser.title.startswith("Continual-learning comparison")
    assert find(browser, "img") == [] and len(find(browser, "script")) == 1
    assert order(browser) == [HOSTILE]
    svg = find(browser, ".stage svg")[0]
    svg.send_keys("\ue014")
    assert until(lambda: tip(browser))[0] == HOSTILE
    assert find(browser, "img") == [] and browser.title.startswith("Continual-learning comparison")


def test_without_javascript_the_numbers_are_there(show):
    browser = show(study())
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(browser.page.as_uri())
        assert find(browser, ".figures")[0].is_displayed() is False
        assert "The figures need JavaScript" in find(browser, "main")[0].text
        assert "accuracy (%)" in find(browser, "#s1-comparison")[0].text
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


@pytest.mark.parametrize("width", [500, 1400])
def test_the_legend_of_accuracy_over_steps_has_all_tasks(show, width):
    tasks = 12
    svg = find(show([with_curve("er", 0, make_curve(tasks=tasks), tasks=tasks)], width),
               ".plot[data-kind=steps] .stage svg")[0]
    keys = [text for text in svg.find_elements("css selector", "text.small") if text.text.startswith("task ")]
    assert [key.text for key in keys] == [f"task {i}" for i in range(1, tasks + 1)]
    box = svg.rect
    assert all(key.rect["x"] + key.rect["width"] <= box["x"] + box["width"]
               and key.rect["y"] + key.rect["height"] <= box["y"] + box["height"] for key in keys)


def test_accuracy_over_steps_is_zoomed_on_a_boundary(show):
    browser = show([with_curve(m, s, make_curve(dip=30)) for m in ("er", "naive") for s in (0, 1)])
    plot = ".plot[data-kind=steps]"

    def ticks():
        return [int(e.text) for e in find(browser, f"{plot} .frame text[text-anchor=middle]") if e.text.isdigit()]

    assert 60 in ticks() and len(find(browser, f"{plot} svg path.line.thin")) == 6
    find(browser, f"{plot} input")[1].find_element("xpath", "..").click()
    assert 60 not in ticks() and 20 in ticks(), "from before the first boundary to the end of the second task"
    assert len(find(browser, f"{plot} svg path.line.thin")) == 4


def test_axes_of_accuracy_have_no_ticks_above_100_percent(show):
    browser = show([with_curve(m, s, make_curve(dip=0), R=[[0.5] * 3, *[[1.0] * 3] * 3], trainable=[cost] * 3)
                    for m, cost in (("er", 10), ("naive", 20)) for s in (0, 1)])
    for kind in ("lines", "pareto", "steps"):
        plot = find(browser, f".plot[data-kind={kind}]")[0]
        ticks = [float(e.text) for e in plot.find_elements("css selector", ".frame text[text-anchor=end]")]
        assert ticks and max(ticks) <= 100, kind


def test_the_zoom_on_a_boundary_has_a_width_if_the_next_task_has_no_steps(show):
    curve = make_curve(tasks=2)
    curve = curve.model_copy(update={"steps": [curve.steps[0], [0]], "right": [curve.right[0], [[90], [40]]]})
    browser = show([with_curve("ranpac", s, curve, tasks=2) for s in (0, 1)])
    plot = ".plot[data-kind=steps]"
    find(browser, f"{plot} input")[1].find_element("xpath", "..").click()
    marks = [float(line.get_attribute("x1")) for line in find(browser, f"{plot} svg line.front")]
    assert marks and all(map(math.isfinite, marks))


def test_the_parts_of_errors_stand_beside_each_other_and_tell_their_numbers(show):
    records = [with_errors(make_record(m, s, scenario="class"), probe={"learned": [190] * 3, "end": [190] * 3,
                                                                       "together": [180] * 3})
               for m in ("ewc", "si") for s in (0, 1)]
    browser = show(records)
    boxes = browser.execute_script(
        "return [...document.querySelectorAll('figure[data-kind=parts] .of[data-row=\"0\"] rect')].map(e => "
        "[e.x.baseVal.value, e.width.baseVal.value])")
    widths = [w for _, w in boxes]
    assert [w / sum(widths) for w in widths] == pytest.approx([32 / 350, 120 / 350, 198 / 350], abs=0.01)
    assert [a + w for a, w in boxes[:-1]] == pytest.approx([a for a, _ in boxes[1:]], abs=0.1)
    numbers, right, keys = browser.execute_script(
        "const svg = document.querySelector('figure[data-kind=parts] svg'); return ["
        "[...svg.querySelectorAll('.frame text:not(.title)')].map(e => [Number(e.textContent), e.x.baseVal[0].value]), "
        "svg.width.baseVal.value, [...svg.querySelectorAll(':scope > g > text')].map(e => e.textContent)]")
    values = [value for value, _ in numbers]
    assert len(values) > 3 and values[0] == 0 and values[-1] >= 50 and values == sorted(values)
    assert all(0 < x < right for _, x in numbers) and numbers == sorted(numbers, key=lambda n: n[1])
    assert keys == ["within-task error", "task-recency bias", "inter-task confusion", "linear probe"]
    svg, = find(browser, "figure[data-kind=parts] svg")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'}); arguments[0].focus()", svg)
    svg.send_keys("\ue014")  # the right arrow
    until(lambda: any("task-recency bias: 20.00" in line for line in tip(browser)))
