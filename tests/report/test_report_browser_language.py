"""The page of language models in a real browser: figures in nats, names of tasks, choices by nll."""

import pytest
from helpers.browser import find, no_browser
from helpers.records import make_lm_record, make_nll_matrix

from clbench.report.formats.markdown import MANY

pytestmark = pytest.mark.skipif(no_browser()[0], reason=no_browser()[1])
METHODS = {"lora": (0.4, 0.5, 10), "er": (0.3, 1.0, 900), "ewc": (0.5, 2.5, 1000), "naive": (0.2, 3.5, 1000)}


def study():
    return [make_lm_record(name, seed, make_nll_matrix(learned, end + 0.01 * (seed * (i + 1) % 5)),
                           trainable=[trainable] * 3)
            for i, (name, (learned, end, trainable)) in enumerate(METHODS.items()) for seed in range(5)]


def texts(browser, selector):
    return [element.text for element in find(browser, selector)]


@pytest.mark.slow
def test_figures_are_in_nats_with_names_of_tasks(show):
    browser = show(study())
    titles = texts(browser, ".stage text.title")
    assert titles.count("NLL (nats), lower is better") == 3  # over tasks, against cost, of each seed
    heat = ".plot[data-kind=heat] .stage"
    assert texts(browser, f"{heat} > svg > g:first-of-type text") == ["5 nats", "0 nats"], "from the worst to the best"
    assert texts(browser, f"{heat} text.small")[:5] == ["0", "5.00", "5.00", "5.00", "1"]
    assert {"dates", "codes", "sums"} <= set(texts(browser, f"{heat} text.small"))
    assert {"dates", "codes"} <= set(texts(browser, ".plot[data-kind=bars] .frame text"))


def test_the_lowest_nll_is_the_darkest_and_lowest_point_of_the_front(show):
    browser = show(study())
    cells = find(browser, ".plot[data-kind=heat] g[data-row='0'] rect.hot")
    opacity = [float(cell.get_attribute("fill-opacity")) for cell in cells]
    assert opacity[:3] == [0, 0, 0] and opacity[3] == pytest.approx(1 - 0.4 / 5, abs=0.01)
    pareto = ".plot[data-kind=pareto] .stage"
    heights = [find(browser, f"{pareto} g[data-row='{row}'] .marker")[0].rect["y"] for row in range(4)]
    assert heights == sorted(heights, reverse=True), "rows begin with the lowest nll, which is at the bottom"
    path = find(browser, f"{pareto} .front")[0].get_attribute("d")
    assert path.count("V") == 0, "lora has the lowest nll and the fewest parameters"


def test_a_choice_on_the_page_is_by_nll(show):
    browser = show(study())
    chosen, = texts(browser, "#choose .chosen")
    assert chosen.startswith("Choose lora: NLL 0.48") and chosen.endswith("over 5 seeds.")
    assert texts(browser, "#choose thead th")[:3] == ["method", "NLL (nats)", "lead of the choice (nats)"]
    rows = [[cell.text for cell in row.find_elements("css selector", "th, td")] for row in
            find(browser, "#choose tbody tr")]
    assert [row[0] for row in rows] == ["lora", "er", "EWC"]
    assert rows[1][2].startswith("0.30") and rows[1][3] == "significantly worse"
    assert texts(browser, "#choose pre code") == ["clbench choose RUN"]


def test_tables_of_many_methods_are_unpacked_in_nats(show):
    records = [make_lm_record("lora", seed, make_nll_matrix(0.4, 1.0 + 0.01 * i), options={"rank": i}, label=f"l{i}")
               for i in range(MANY + 1) for seed in (0, 1)]
    browser = show(records)
    browser.execute_script("document.querySelectorAll('details').forEach(e => { e.open = true; })")
    assert texts(browser, "#s1-R-0 thead th") == ["row", "task 1: dates (nats)", "task 2: codes (nats)",
                                                  "task 3: sums (nats)"]
    assert texts(browser, "#s1-R-0 tr[data-row='3'] td") == ["1.00", "1.00", "0.400"]
