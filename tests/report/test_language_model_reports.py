"""Reports of language models: the lowest nll is the best, next to it is exact match, and no text is about accuracy."""

import csv
import io
import json
import re
from pathlib import Path

import pytest
from helpers.figures import figure
from helpers.records import folder, make_lm_record, make_nll_matrix, make_record

from clbench import cli
from clbench.core.errors import SpecError
from clbench.core.objective import EXACT, NLL
from clbench.execution import deciding
from clbench.experiment.until import UntilDecided
from clbench.report import build
from clbench.report.analysis.advice import cautions
from clbench.report.analysis.choosing import choose, limit
from clbench.report.analysis.method_records import is_at_chance, underfit_share
from clbench.report.analysis.readable import name_settings
from clbench.report.analysis.run_diff import pairs, tables
from clbench.report.figures.data import panels
from clbench.report.formats import html, latex, markdown
from clbench.report.formats.csv import render as as_csv
from clbench.report.formats.json import render as as_json
from clbench.report.results import Results

SEEDS = range(5)
# nll just after learning and at the end, parameters trained, bytes stored
METHODS = {"lora": (0.4, 0.5, 10, 9000), "er": (0.3, 1.0, 1000, 8000), "ewc": (0.5, 2.5, 1000, 7000),
           "naive": (0.2, 3.5, 1000, 5000)}


def study(methods=METHODS, seeds=SEEDS, **made):
    """Return records whose means over the five seeds are those of METHODS; seeds differ by -0.02 to 0.02."""
    return [make_lm_record(name, seed, make_nll_matrix(*(value + 0.01 * (seed * (i + 1) * k % 5 - 2) for k, value in
                                                         ((1, learned), (2, end)))),
                           trainable=[trainable] * 3, kept_bytes={"base": kept}, train_flops=[kept] * 3, **made)
            for i, (name, (learned, end, trainable, kept)) in enumerate(methods.items()) for seed in seeds]


@pytest.fixture(scope="module")
def section():
    return build(study(), ids=True).sections[0]


def column(section, title):
    return {row.label: cell for row, cell in zip(section.comparison.rows, section.comparison.cells(title), strict=True)}


def test_the_lowest_nll_is_the_best_and_a_planted_difference_is_significant(section):
    assert list(section.facts.accuracy) == ["lora", "er", "ewc", "naive"]
    assert section.facts.best.method == "lora" and set(section.facts.best.beaten) == {"er", "ewc"}
    assert [row.label for row in section.comparison.rows] == ["lora", "er", "ewc", "naive"]
    assert {label for label, cell in column(section, "NLL").items() if cell.bold} == {"lora"}
    assert {pair.method: pair.verdict for pair in section.facts.baseline.pairs} == {
        "lora": "better", "er": "better", "ewc": "better"}
    assert section.headline[0][1] == "lora (NLL 0.467) is significantly better than both other methods."
    assert section.verdicts[0].endswith("lora is significantly better than every other method")


def test_a_higher_nll_than_the_baseline_is_worse():
    methods = {"lora": METHODS["naive"], "naive": METHODS["er"]}
    found = build(study(methods), ids=True).sections[0]
    assert [(pair.method, pair.verdict) for pair in found.facts.baseline.pairs] == [("lora", "worse")]
    assert column(found, "difference to naive")["lora"].text == "+1.63 (worse)"
    verdicts = [row.cells[-1].text for table in found.comparisons for row in table.rows if row.label == "lora"]
    assert verdicts == ["significantly worse"] * 3  # NLL, forgetting, exact match


def test_the_table_shows_what_was_learned_next_to_what_is_left(section):
    assert [c.header for c in section.comparison.columns] == [
        "seeds", "final NLL (nats) ↓", "difference to naive (nats)", "learned NLL (nats) ↓", "forgetting (nats) ↓",
        "final exact match (%) ↑", "learned exact match (%) ↑", "trainable parameters per task ↓", "storage ↓",
        "training compute ↓", "training time (s) ↓"]
    assert column(section, "learned NLL")["lora"].mean == pytest.approx(0.4)
    assert column(section, "NLL")["lora"].mean == pytest.approx((2 * 0.5 + 0.4) / 3)
    assert column(section, "forgetting")["lora"].mean == pytest.approx(0.1)
    assert column(section, "learned exact")["lora"].mean == pytest.approx(1 - 0.4 / 5)
    assert column(section, "exact")["lora"].mean == pytest.approx(1 - (2 * 0.5 + 0.4) / 15)
    details = [c.header for c in section.details[0].columns]
    assert details == ["seeds", "backward transfer (nats) ↑", "average incremental NLL (nats) ↓",
                       "forward transfer (nats) ↑", "forgetting of exact match (points) ↓"]


def test_nats_have_three_digits_and_exact_match_is_a_percentage(section):
    assert re.fullmatch(r"0\.467 ± 0\.\d{3}", column(section, "NLL")["lora"].text)
    assert re.fullmatch(r"2\.40 ± 0\.\d\d", column(section, "NLL")["naive"].text)
    assert re.fullmatch(r"90\.67 ± \d\.\d\d", column(section, "exact")["lora"].text)


@pytest.mark.parametrize("metric", [None, "exact"])
def test_no_text_speaks_of_accuracy_or_classes(metric):
    report = build([*study(), *study({"joint": (0.1, 0.1, 1000, 9000)})], metric=metric)
    page = re.sub(r"<script.*?</script>|<style.*?</style>", "", html.render(report), flags=re.DOTALL)
    page = re.sub(r'(id|data-tables|href)="[^"]*"', "", page)
    for text in (markdown.render(report), latex.render(report), page, as_csv(report)):
        assert not re.search(r"accura|\bACC\b|chance|classes", text, re.IGNORECASE)
        assert "dates" in text or text.startswith("setting")


def test_the_unit_is_defined_where_a_reader_looks_for_it(section):
    assert dict(section.setting)["metrics"] == (
        "NLL is the negative log-likelihood of a response, mean over its tokens, in nats per token (lower is better); "
        "exact match is the share of test items for which greedy decoding would generate the whole response (higher "
        "is better)")
    assert dict(section.setting)["tasks"].startswith("3 tasks (dates, codes, sums), 800 training")
    assert dict(section.settings)["tasks"] == "3: dates, codes, sums"
    notes = build(study()).notes
    assert notes[0].startswith("NLL is") and "Learned values are measured just after each task" in notes[0]
    assert notes[1:] == (*build([make_record(train_flops=[1] * 3)]).notes[1:3], *(
        note.replace("accuracies are", "NLLs are").replace("Accuracies within", "Percentages within")
        for note in build([make_record(train_flops=[1] * 3)]).notes[3:]))


def test_another_metric_changes_the_ranks_the_tests_and_the_matrices():
    # By exact match ewc is the best and lora the worst, against their nll.
    exact = {"lora": 0.2, "er": 0.5, "ewc": 0.8, "naive": 0.1}
    records = []
    for record in study():
        noise = record.trial.seed * (1 + list(exact).index(record.label)) % 5
        share = round(exact[record.label] + 0.01 * noise, 4)
        records.append(record.model_copy(update={"scores": {"exact": [[share] * 3] * 4}}))
    by_nll, by_exact = (build(records, ids=True, metric=name).sections[0] for name in ("nll", "exact"))
    assert (by_nll.metric, by_exact.metric) == (NLL, EXACT)
    assert by_nll.facts.best.method == "lora" and by_exact.facts.best.method == "ewc"
    assert by_exact.facts.best.beaten and not by_exact.facts.best.open
    assert [c.title for c in by_exact.comparison.columns][1:7] == [
        "exact", "difference to naive", "learned exact", "forgetting", "NLL", "learned NLL"]
    assert column(by_exact, "difference to naive")["ewc"].text == "+70.0 (better)"
    assert by_exact.matrices[0].rows[-1].cells[0].text == "82.00"
    assert by_exact.matrix_title == "Exact match on every task after each task (exact match matrix R)"
    same = {c.title for c in by_nll.comparison.columns} & {c.title for c in by_exact.comparison.columns}
    for title in same - {"difference to naive", "forgetting", "seeds"}:
        assert {k: c.mean for k, c in column(by_nll, title).items()} == {
            k: c.mean for k, c in column(by_exact, title).items()}


def test_rules_for_accuracies_do_not_hold_for_nll():
    records = study({"lora": (4.9, 4.9, 10, 10), "joint": (0.1, 0.1, 10, 10)})
    setting = name_settings(records, ids=True)[0]
    lora = [r for r in records if r.label == "lora"]
    assert not is_at_chance(lora) and underfit_share(lora) is None
    assert not [line for line in cautions(setting)[0] if "Underfit" in line or "chance" in line]
    exactly = name_settings(records, ids=True, metric="exact")[0]
    assert [line for line in cautions(exactly)[0] if line.startswith("Underfit (20 or more points below joint")]


def test_the_same_nll_on_every_seed_is_no_evidence_and_has_no_interval_of_proportions():
    records = [make_lm_record(name, seed, make_nll_matrix(0.5, end)) for name, end in (("lora", 1.0), ("ewc", 2.0))
               for seed in range(3)]
    section = build(records, ids=True).sections[0]
    note, = (note for note in section.notes if note.startswith("Every seed gave the same result"))
    assert "lora 0.833 and ewc 1.50" in note and "Wilson" not in note
    assert section.facts.best.untested == {"ewc": "every seed gave the same result"}


def test_numbers_for_programs_name_the_metric():
    report = build(study(seeds=[0]), ids=True)
    data = json.loads(as_json(report))["sections"][0]
    assert data["metric"] == "nll" and data["results"][0]["task_names"] == ["dates", "codes", "sums"]
    assert data["results"][0]["scores"]["exact"][0][3][2] == pytest.approx(0.924)
    rows = list(csv.DictReader(io.StringIO(as_csv(report))))
    cells = {(r["metric"], r["unit"]) for r in rows if r["after_task"] == "3" and r["task"] == "1"}
    assert cells == {("nll", "nats"), ("exact", "fraction")}
    assert [r["value"] for r in rows if (r["metric"], r["method"]) == ("NLL", "lora")] == [repr((2 * 0.48 + 0.38) / 3)]
    final_exact, = (float(r["value"]) for r in rows if (r["metric"], r["method"]) == ("final exact", "lora"))
    assert final_exact == pytest.approx(1 - (2 * 0.48 + 0.38) / 15)
    assert all(r["after_task"] for r in rows if r["metric"] == "exact")
    classified = json.loads(as_json(build([make_record()])))["sections"][0]
    assert "metric" not in classified and not {"task_names", "scores"} & set(classified["results"][0])


def test_the_page_names_tasks_and_explains_its_shades():
    page = html.render(build(study()))
    assert 'data-title="task 2: codes"' in page and "data-better=\"down\"" in page
    assert "Darker is better (lower)." in page and 'data-axis="NLL (nats), lower is better"' in page
    assert "<summary>NLL on every task after each task (NLL matrix R)</summary>" in page


def test_figures_have_the_scale_and_the_words_of_the_metric():
    report = build(study())
    curves, _ = figure(report, "curves")
    assert curves.axes[0].get_ylabel() == "mean NLL over tasks seen (nats), lower is better"
    assert curves.axes[0].get_ylim()[1] > 2, "values above 1 are shown"
    pareto, _ = figure(report, "pareto")
    assert pareto.axes[0].get_ylabel() == "NLL (nats), lower is better"
    forgetting, _ = figure(report, "forgetting")
    assert [tick.get_text() for tick in forgetting.axes[0].get_xticklabels()] == ["dates", "codes"]
    assert forgetting.axes[0].get_ylabel() == "forgetting (nats)"
    heat, _ = figure(report, "heatmaps")
    assert heat.axes[0].images[0].cmap.name == "Blues_r"
    assert heat.axes[-1].get_title(loc="left").startswith("NLL (nats), lower is better")
    exact, _ = figure(build(study(), metric="exact"), "curves")
    assert exact.axes[0].get_ylabel() == "mean exact match over tasks seen (%)"


def test_the_pareto_front_has_the_lowest_nll_at_each_cost(section):
    methods = {"lora": (1.0, 2.0, 10, 10), "er": (1.0, 1.5, 90, 90), "ewc": (1.0, 1.8, 99, 99),
               "si": (0.2, 0.2, 99, 99)}
    data, = (f for f in build(study(methods), ids=True).sections[0].figures if f.kind == "pareto")
    trained = panels(data.points, data.metric)[0]
    assert [trained.points[i].label for i in trained.best] == ["lora", "er", "si"]
    assert section.facts.fronts["bytes kept"] == ("ewc", "er", "lora")
    assert section.facts.fronts["trainable params per task"] == ("lora",)


def test_a_choice_is_by_the_lowest_nll_and_a_price_is_what_it_adds():
    setting = name_settings(study(), ids=True)[0]
    choice = choose(setting, [limit(setting, "kept", "8000")])
    assert choice.best == "er" and choice.refused == {"lora": "stores 9.00 kB"}
    rival, = choice.rivals
    assert (rival.method, rival.shown) == ("ewc", True)
    assert rival.difference == pytest.approx((2 * 2.5 + 0.5) / 3 - (2 * 1.0 + 0.3) / 3)
    price, = choice.prices
    assert price.method == "lora" and price.difference == pytest.approx((2 * 0.5 - 0.1) / 3)
    unlimited = choose(setting, [])
    assert unlimited.best == "lora" and [r.method for r in unlimited.rivals] == ["er", "ewc"]
    assert all(r.shown and r.difference > 0 for r in unlimited.rivals)


@pytest.mark.parametrize(("baseline", "decided"), [
    (None, {"lora": "the best", "er": "worse than another", "ewc": "worse than another"}),
    ("naive", {"lora": "better", "er": "better", "ewc": "better"})])
def test_seeds_are_added_until_the_lowest_nll_is_known(baseline, decided):
    records = [r.model_copy(update={"trial": r.trial.model_copy(update={"benchmark": r.trial.benchmark.model_copy(
        update={"options": {"test_draw": "seed"}})})}) for r in study()]
    rule = UntilDecided(baseline=baseline or "best", first=3, most=5)
    state, = deciding.states(records, rule)
    labels = {r.trial.method_config: r.label for r in records}
    assert {labels[method]: verdict for method, verdict in state.decided.items()} == decided and not state.open


def test_a_comparison_of_two_runs_is_by_nll():
    better = study({"lora": (0.4, 0.4, 10, 9000)})
    table, = tables(pairs(study({"lora": METHODS["lora"]}), better))
    texts = {c.title: cell.text for c, cell in zip(table.columns, table.rows[0].cells, strict=True)}
    assert texts["NLL in A"].startswith("0.467 ±") and texts["change of NLL"] == "-0.0667 ± 0.0000"
    assert {"change of forgetting", "change of exact"} <= set(texts)


def test_frames_have_a_column_for_each_metric():
    pytest.importorskip("pandas")
    results = Results(study())
    frame = results.frame()
    last = frame[(frame.method == "lora") & (frame.learned == 3) & (frame.task == 3) & (frame.seed == 0)]
    assert last.nll.tolist() == [0.38] and last.exact.tolist() == [0.924] and "accuracy" not in frame
    assert set(results.compare("naive").metric) == {"NLL", "forgetting", "exact"}
    assert results.summary().NLL.tolist() == pytest.approx([1.4 / 3, 2.3 / 3, 5.5 / 3, 7.2 / 3])
    assert results.by_metric("exact").summary().columns[2] == "exact"
    mixed = Results([*study(), make_record()]).frame()
    assert mixed[mixed.strategy == "lora"].accuracy.notna().sum() == 12


def test_a_setting_of_classifiers_keeps_its_words_next_to_one_of_language_models():
    report = build([*study(), *(make_record(m, s) for m in ("lora", "naive") for s in range(3))], ids=True)
    assert [s.metric.name for s in report.sections] == ["nll", "accuracy"]
    alone = build([make_record(m, s) for m in ("lora", "naive") for s in range(3)], ids=True).sections[0]
    assert report.sections[1].comparison == alone.comparison and report.sections[1].headline == alone.headline
    assert report.notes[0].startswith("NLL is") and report.notes[1].startswith("Accuracy (ACC) is")


@pytest.fixture
def run(tmp_path):
    return str(folder(tmp_path / "run", *study()))


def test_report_ranks_by_the_metric_that_is_asked_for(run, capsys):
    assert cli.call(["report", run, "--metric", "exact", "--format", "md,json"]) == 0
    assert "90.67 ±" in capsys.readouterr().out
    assert json.loads((Path(run) / "report.json").read_text())["sections"][0]["metric"] == "exact"
    assert cli.call(["report", run, "--metric", "exakt"]) == 2
    assert "no metric 'exakt'; did you mean 'exact'? (results of instructions:acme have nll and exact)" in (
        capsys.readouterr().err)


def test_choose_and_compare_speak_of_the_metric(run, capsys):
    assert cli.call(["choose", run, "--max-kept", "8000"]) == 0
    out = capsys.readouterr().out
    assert ": NLL 0.767 ±" in out
    assert "--max-kept 8000 costs 0.300 ± " in out and " nats: without it, the best method is lora" in out
    assert cli.call(["choose", run, "--metric", "exact", "--format", "json"]) == 0
    choice, = json.loads(capsys.readouterr().out)
    assert choice["metric"] == "exact" and choice["accuracy"] == pytest.approx(1 - 1.4 / 15)
    assert cli.call(["compare", run, "--baseline", "naive"]) == 0
    out = capsys.readouterr().out
    assert [title for title in ("Final NLL: each", "Forgetting: each", "Final exact match: each") if title in out] == [
        "Final NLL: each", "Forgetting: each", "Final exact match: each"]
    assert cli.call(["compare", run, "--metric", "learned nll"]) == 0
    assert "Learned NLL: all pairs" in capsys.readouterr().out
    assert cli.call(["compare", run, "--metric", "ACC"]) == 2
    assert "no metric 'ACC' (those that can be compared here: NLL, learned NLL, " in capsys.readouterr().err


def test_choose_of_classifiers_has_the_keys_of_before(tmp_path, capsys):
    classified = folder(tmp_path, *(make_record(m, s) for m in ("lora", "ewc") for s in range(2)))
    assert cli.call(["choose", str(classified), "--format", "json"]) == 0
    assert "metric" not in json.loads(capsys.readouterr().out)[0]
    with pytest.raises(SpecError, match="have accuracy"):
        build([make_record()], metric="exact")
