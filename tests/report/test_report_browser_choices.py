"""What a reader chooses on the page, in a real browser: the methods that are shown, and a method under constraints."""

import itertools
import re

import pytest
from helpers.browser import find, no_browser, until
from helpers.records import make_matrix, make_record

from clbench.report.analysis.choosing import choose, limit
from clbench.report.analysis.grouping import group_by_setting
from clbench.report.formats.choosable import format_amount
from clbench.report.formatting import interval

pytestmark = pytest.mark.skipif(no_browser()[0], reason=no_browser()[1])
# hundredths of accuracy on top, bytes kept, parameters trained, samples kept, FLOPs of training
METHODS = {"er": (9, 9000, 1000, 200, 50), "ewc": (6, 3000, 1000, 0, 40), "lora": (8, 2000, 10, 0, 30),
           "lwf": (7.95, 1000, 1000, 0, 60), "si": (5, 3000, 900, 0, None), "ncm": (8, 2500, 0, 0, 5),
           "naive": (1, 500, 1000, 0, 20)}
NAMES = {"er": "er", "ewc": "EWC", "lora": "lora", "lwf": "LwF", "si": "SI", "ncm": "NCM", "naive": "Fine-tuning"}


def study():
    found = []
    for scenario, (method, (gain, kept, trainable, samples, flops)), seed in itertools.product(
            ("task", "class"), METHODS.items(), range(6)):
        shift = 0.01 * gain + 0.004 * ((seed * 7 + len(method) + int(10 * gain)) % 3) + 0.001 * (scenario == "class")
        made = make_record(method, seed, make_matrix(shift=shift), scenario=scenario, kept_bytes={"base": kept},
                           trainable=[trainable] * 3, train_flops=[flops] * 3 if flops else ())
        costs = made.costs.model_copy(update={"replay_samples": [samples] * 3})
        found.append(made.model_copy(update={"costs": costs}))
    return found


def set_to(browser, sliders, samples, unknown):
    """Move the sliders (by the start of their label: a position, or None for the end) and tick the boxes."""
    browser.execute_script("""
        for (const label of document.querySelectorAll("#choose label")) {
          const input = label.querySelector("input");
          const name = label.firstChild.textContent.split(",")[0].toLowerCase();
          if (input.type === "range") input.value = arguments[0][name] ?? input.max;
          else input.checked = label.textContent.startsWith("No") ? arguments[1] : arguments[2];
        }
        document.querySelector("#choose fieldset").dispatchEvent(new Event("input"));""", sliders, samples, unknown)


def said(article):
    """Return what the page says of a setting: the choice, its table, and the list below it."""
    chosen, = (e.text for e in article.find_elements("css selector", ".chosen"))
    rows = [[cell.text for cell in row.find_elements("css selector", "th, td")][:4]
            for row in article.find_elements("css selector", "tbody tr")]
    return chosen, rows, [e.text for e in article.find_elements("css selector", "li")]


@pytest.mark.parametrize(("sliders", "samples", "unknown"), [
    ({}, False, False), ({}, True, False), ({"storage": 1}, False, False), ({"storage": 0}, False, True),
    ({"storage": 2, "trainable parameters per task": 1}, False, False), ({"training compute": 1}, True, True),
    ({"storage": 1, "training compute": 2}, False, False), ({"storage": 0, "training compute": 0}, True, False),
])
@pytest.mark.slow
def test_the_page_chooses_as_the_command_does(show, sliders, samples, unknown):
    settings = {s.title: s for s in group_by_setting(study())}
    browser = show(study())
    set_to(browser, sliders, samples, unknown)
    command = find(browser, "#choose pre")[0].text
    articles = find(browser, "#choose article")
    assert [a.find_element("css selector", "h3").text for a in articles] == [
        title for title in settings if not unknown or "Class-IL" in title]
    for article in articles:
        setting = settings[article.find_element("css selector", "h3").text]
        given = dict(re.findall(r"--max-(\w+) (\S+)", command))
        assert len(given) == len(sliders) and ("--no-samples-kept" in command) == samples
        expected = choose(setting, [limit(setting, *one) for one in (*given.items(), *[("samples", "0")] * samples)])
        chosen, rows, below = said(article)
        if expected.best is None:
            assert chosen == "No method meets all constraints." and rows == []
        else:
            assert chosen == (f"Choose {NAMES[expected.best]}: accuracy "
                              f"{interval(expected.accuracy, expected.half_width, 'percent')} over 6 seeds.")
            assert [row[0] for row in rows] == [
                NAMES[label] for label in (expected.best, *(r.method for r in expected.rivals))]
            for row, rival in zip(rows[1:], expected.rivals, strict=True):
                assert row[2] == interval(rival.difference, rival.half_width, "points")
                assert row[3] == ("significantly worse" if rival.shown else "no significant difference" + (
                    f"; about {rival.needed:,} seeds would be needed" if rival.needed else ""))
        for line, price in zip(below, expected.prices, strict=False):
            assert f"accuracy {interval(price.accuracy, None, 'percent').partition(' ')[0]}" in line or (
                price.difference == 0 and f"costs nothing: {NAMES[price.method]} is" in line)
            if price.difference:
                assert f"costs {interval(price.difference, price.half_width, 'points')} points of accuracy" in line
                assert f"without it, the best method is {NAMES[price.method]}," in line
        left_out = next((line.removeprefix("left out: ") for line in below if line.startswith("left out")), "")
        assert {part.partition(" (")[0] for part in re.split(r"(?<=\)), ", left_out) if part} == {
            NAMES[label] for label in expected.refused}
    assert find(browser, "#choose [role=status]")[0].get_attribute("textContent").count(": ") == len(articles)


def test_the_choice_is_made_by_keyboard_and_fits_a_small_screen(show):
    from selenium.webdriver.common.keys import Keys

    browser = show(study(), 390, "dark")
    slider = find(browser, "#choose input[type=range]")[0]
    slider.send_keys(Keys.HOME)
    assert slider.get_attribute("aria-valuetext") == "1.00 kB"
    assert find(browser, "#choose pre")[0].text == f"clbench choose RUN --max-kept {format_amount(1000.0)}"
    assert [e.text for e in find(browser, "#choose .chosen strong")] == ["LwF", "LwF"]
    shown, room = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert shown <= room == 390


def test_the_filter_takes_methods_out_of_tables_and_figures(show):
    from selenium.webdriver.support.select import Select

    browser = show(study())
    bar = find(browser, ".filter")[0]

    def shown():
        rows = find(browser, "#s1-comparison tr[data-row] th")
        return [row.text for row in rows if row.is_displayed()]

    def pressed():
        return [e.text for e in find(browser, "#s1 .legend button[aria-pressed=true]")]

    everything = shown()
    assert set(everything) == set(NAMES.values())
    Select(bar.find_element("css selector", "select")).select_by_visible_text("storing samples")
    until(lambda: shown() == ["er"])
    assert pressed() == ["er"] and bar.find_element("css selector", "output").text == "1 of 7"
    Select(bar.find_element("css selector", "select")).select_by_index(0)
    bar.find_element("css selector", "input").send_keys("l")
    until(lambda: set(shown()) == {"lora", "LwF"})
    rows = {e.get_attribute("data-row") for e in find(browser, "#s1 [data-kind=lines] svg g.of")}
    assert len(rows) == 2 and set(pressed()) == {"lora", "LwF"}
    other = [row for row in find(browser, "#s2-comparison tr[data-row]") if row.is_displayed()]
    assert len(other) == len(METHODS), "a section's filter is its own"
    bar.find_element("css selector", "input").clear()
    browser.execute_script("arguments[0].dispatchEvent(new Event('input'))", bar.find_element("css selector", "input"))
    assert shown() == everything


def test_the_filter_hides_no_method_whose_name_begins_like_a_hidden_one(show):
    names = ("ours", "ours 2", "ours b", "EWC", "ER", "SI", "MAS", "LwF")
    browser = show([make_record(f"m{i}", 0, label=name, scenario="class", R=[[0.5] * 2, [0.9, 0.5], [0.1 * i, 0.9]])
                    for i, name in enumerate(names)])
    find(browser, ".filter input")[0].send_keys("s 2")
    until(lambda: [row.get_attribute("data-label") for row in find(browser, "#s1-comparison tr[data-row]")
                   if row.is_displayed()] == ["ours 2"])


def test_a_command_is_copied_or_else_selected(show):
    browser = show(study())
    button = find(browser, "#choose .copy")[0]
    for write, shown in (("() => Promise.reject()", "Copy"), ("async (text) => { copied = text; }", "Copied")):
        browser.execute_script(f"navigator.clipboard.writeText = {write}")
        button.click()
        until(lambda shown=shown: button.text == shown and (
            shown == "Copied" or browser.execute_script("return String(getSelection())").startswith("clbench choose")))
    assert browser.execute_script("return copied") == "clbench choose RUN"


def test_figures_of_many_methods_say_which_ones_they_show(show):
    from selenium.webdriver.support.select import Select

    browser = show([make_record(f"m{i}", 0, scenario="class", R=[[0.5] * 2, [0.9, 0.5], [0.01 * i, 0.9]])
                    for i in range(20)])
    said, name = find(browser, "#s1 .selection")[0], find(browser, "#s1 .filter input")[0]
    select = Select(find(browser, "#s1 .filter select")[0])

    def filter_by(part):
        browser.execute_script("arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))",
                               name, part)

    at_first = said.text
    shown = len(find(browser, "#s1 .legend button[aria-pressed=true]"))
    assert at_first == (f"These figures show {shown} of 20 methods: the 6 best, those on the Pareto fronts, the "
                        "baseline and joint training. Use the buttons to add others.")
    assert select.first_selected_option.text == "all methods in tables, the leading ones in figures"
    filter_by("m1")
    assert said.text == "These figures show 11 of 20 methods. Use the buttons to add others."
    filter_by("nothing")
    assert find(browser, ".filter output")[0].text == "No method matches." and said.text.startswith("No method")
    assert not any(figure.is_displayed() for figure in find(browser, "#s1 figure"))
    filter_by("")
    assert said.text == at_first and find(browser, "#s1 figure")[0].is_displayed()
    select.select_by_visible_text("all methods")
    until(lambda: said.text == "These figures show all 20 methods.")
    legend = find(browser, "#s1 .legend")[0]
    assert legend.value_of_css_property("position") == "static", "a legend of many methods does not cover figures"


def test_a_printed_page_has_whole_tables_and_figures_and_no_controls(show):
    browser = show(study(), 960)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        wide = browser.execute_script("return [...document.querySelectorAll('table, svg')].filter(e => "
                                      "e.getBoundingClientRect().right > innerWidth).length")
        assert wide == 0 and find(browser, "#s1-comparison")[0].is_displayed()
        assert not any(e.is_displayed() for e in find(browser, ".filter, .limits, .legend, .switch, .download"))
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
