import itertools
import sys

import pytest
from helpers import ROOT
from helpers.hostile import write_distribution
from helpers.records import make_record

from clbench import cli
from clbench.cli.tune import table
from clbench.core import options as opt
from clbench.core.compat import tomllib
from clbench.core.errors import ClbenchError, SpecError
from clbench.core.registry import discover
from clbench.execution.candidates import choose, score
from clbench.execution.samplers import STARTUP, TPE, Grid, corners, is_at_end, sampler_for
from clbench.execution.tuning import account, choose_methods, rows_of
from clbench.experiment.overrides import write_tuned
from clbench.experiment.plan import find_candidates, plan
from clbench.experiment.search import Choices, Outcome, Range, Search, Searched, Tried
from clbench.experiment.spec import MethodSpec, build
from clbench.results.store import Store

pytestmark = pytest.mark.extra("tune")
PLUGIN = """
    import math
    from clbench import Options, Strategy, StrategyInfo, hookimpl

    class PlantedOptions(Options):
        knob: float = 1.0
        size: int = 1

    class Planted(Strategy):
        def __init__(self, model, stream_info, options):
            super().__init__(model, stream_info, options)
            self.wrong = min(abs(math.log10(options.knob) - 3) / 4, 1.0)

        def loss(self, batch):
            return super().loss(batch) * (float("nan") if self.options.knob > 1e6 else 1.0)

        def forward(self, x, task=None):
            logits = super().forward(x, task).clone()
            if not self.training:
                logits[:round(self.wrong * len(x))] *= -1
            return logits

    @hookimpl
    def clbench_strategies():
        return [StrategyInfo("planted", Planted, "best at knob = 1000", PlantedOptions)]
"""
UNTUNED = "Not tuned, with the settings of {} in tuned.toml: naive\n"
FILE = """# Why this is compared.
benchmark = "split-mnist-5k"
model = "mlp:width=16"  # small
seeds = 1
methods = [{name = "planted", options = {size = 2}}, "naive"]

[recipe]
iterations = 10

[execution]
threads = 1

[tune.planted]
knob = {low = 1.0, high = 1e8, log = true}
"""


@pytest.fixture
def tune(tmp_path, monkeypatch, capsys):
    write_distribution(tmp_path / "site", "planted", ["clbench_planted"], clbench_planted=PLUGIN)
    monkeypatch.syspath_prepend(tmp_path / "site")
    (tmp_path / "mine.toml").write_text(FILE)

    def call(*args, file=tmp_path / "mine.toml"):
        code = cli.call(["tune", str(file), "--out", str(tmp_path / "search"), "--seeds", "1", "--workers", "0",
                         "--device", "cpu", *args])
        return code, *capsys.readouterr()

    yield call
    sys.modules.pop("clbench_planted", None)


@pytest.mark.slow
def test_a_planted_optimum_is_found_resumed_and_run(tune, tmp_path, capsys):
    (tmp_path / "mine.toml").write_text(FILE, encoding="utf-8-sig")  # as some editors on Windows write it
    code, out, err = tune("--trials", "9")
    assert code == 0, err
    result = tmp_path / "search" / "tuned.toml"
    values = tomllib.loads(result.read_text())
    made = build(values).tuning[0]
    knob = values["methods"][0]["options"]["knob"]
    assert 10 ** 2.3 < knob < 10 ** 3.7 and f"{knob:.3g}" == f"{float(f'{knob:.3g}'):.3g}"
    assert values["methods"] == [{"name": "planted", "options": {"size": 2, "knob": knob}}, "naive"]
    assert result.read_text().startswith("# Why this is compared.\n") and "# small" in result.read_text()
    assert (made.seeds, made.trials, made.validation, len(made.tried)) == ((1000,), 9, 0.1, 9)
    assert all(t.failure == "seed 1000 diverged" for t in made.tried if t.options["knob"] > 1e6)
    best = max(made.tried, key=lambda t: sum(t.acc))
    assert best.options == {"knob": knob} and f"{100 * best.acc[0]:.2f}" in out
    assert {"optuna", "torch", "clbench"} <= set(made.versions)
    assert made.space == {"planted:size=2": {"knob": Range(low=1.0, high=1e8, log=True)}}

    assert values["execution"] == {"threads": 1}
    records, _ = Store(tmp_path / "search").read()
    assert {r.provenance.threads for r in records} == {1}
    assert {r.trial.validation for r in records} == {0.1} and {r.trial.method.name for r in records} == {"planted"}
    before = {r.key: r for r in records}
    for record in records[STARTUP - 2:]:  # as if it had been interrupted in the first round
        Store(tmp_path / "search").path(record.key).unlink()
    result.unlink()
    assert tune("--trials", "9")[0] == 0
    again = build(tomllib.loads(result.read_text())).tuning[0]
    assert (again.tried, again.space) == (made.tried, made.space)
    records, _ = Store(tmp_path / "search").read()
    assert {r.key for r in records} == set(before)
    assert sum(before[r.key] == r for r in records) == STARTUP - 2
    assert tune("--trials", "9")[2] == UNTUNED.format(tmp_path / "mine.toml")  # nothing is left to run

    assert cli.call(["run", str(result), "--out", str(tmp_path / "run"), "--workers", "0", "--device", "cpu"]) == 0
    labels = {(r.label, r.trial.validation, r.trial.seed) for r in Store(tmp_path / "run").read()[0]}
    assert labels == {(f"planted:knob={knob:g}:size=2", 0.0, 0), ("naive", 0.0, 0)}
    capsys.readouterr()

    code, _, err = tune("--trials", "9", file=result)  # a tuned file can be tuned again, with nothing to do
    assert (code, err) == (0, UNTUNED.format(result))
    assert len(build(tomllib.loads(result.read_text())).tuning) == 1


@pytest.mark.slow
def test_parts_of_the_recipe_are_searched_and_the_report_says_who_was(tune, tmp_path, capsys):
    (tmp_path / "mine.toml").write_text(FILE.replace("knob = {low = 1.0, high = 1e8, log = true}",
                                                     "recipe.lr = [1e-4, 1e-2]").replace('"naive"]', '"naive", "er"]'))
    code, _, err = tune("--trials", "9", "--widen", "0")
    assert code == 0, err
    result = tmp_path / "search" / "tuned.toml"
    spec = build(tomllib.loads(result.read_text()))
    assert spec.methods[0].recipe in ({"lr": 1e-4}, {"lr": 1e-2}) and len(spec.tuning[0].tried) == 2
    assert cli.call(["run", str(result), "--out", str(tmp_path / "run"), "--workers", "0", "--device", "cpu",
                     "--seeds", "3"]) == 0
    found = {r.trial.method.name: r.searched for r in Store(tmp_path / "run").read()[0]}
    assert found == {"planted": Searched(candidates=2, validation=0.1, seeds=(1000,)), "naive": None, "er": None}
    out = " ".join(capsys.readouterr().out.split())
    assert "Caution: Untuned, unlike the other method: ER (200)." in out


@pytest.mark.parametrize(("options", "share"), [((), 0.25), (("--validation", "0.2"), 0.2)])
def test_the_share_of_the_file_is_held_out_unless_another_is_given(tune, tmp_path, options, share):
    file = tmp_path / "with_share.toml"
    file.write_text("validation = 0.25\n" + FILE)
    assert tune("--trials", "1", *options, file=file)[0] == 0
    assert {r.trial.validation for r in Store(tmp_path / "search").read()[0]} == {share}


def test_candidates_may_have_another_budget_than_the_result(tune, tmp_path, capsys):
    (tmp_path / "mine.toml").write_text(FILE.replace("low = 1.0, high = 1e8, log = true", "values = [1e2, 1e3]"))
    assert tune("--iterations", "5")[0] == 0
    spec = build(tomllib.loads((tmp_path / "search" / "tuned.toml").read_text()))
    assert (spec.tuning[0].budget, spec.recipe.iterations) == ({"iterations": 5}, 10)
    assert {r.trial.recipe.iterations for r in Store(tmp_path / "search").read()[0]} == {5}


@pytest.mark.slow
def test_a_grid_is_widened_resumed_and_told_of(tune, tmp_path, capsys):
    (tmp_path / "mine.toml").write_text(FILE.replace("low = 1.0, high = 1e8, log = true", "values = [1e-2, 1e-1, 1.0]"))
    # The optimum is at 1000: two steps reach 10 and 100, where the cap is. Both --trials and the seeds stay as given.
    code, out, err = tune("--trials", "3", "--seeds", "2")
    assert code == 0, err
    result, page = tmp_path / "search" / "tuned.toml", tmp_path / "search" / "candidates.md"
    made = build(tomllib.loads(result.read_text())).tuning[0]
    assert [t.options["knob"] for t in made.tried] == [1e-2, 1e-1, 1.0, 10.0, 100.0]
    assert (made.trials, made.widen, made.seeds, made.budget) == (3, 2, (1000, 1001), {})
    outcome, = made.outcomes
    assert outcome == Outcome(method="planted:size=2", scenario="task", widened={"knob": 2}, notes=(
        "knob was widened to 10 and 100, because the best mean was at an edge of the values",
        "the best knob is at an end of what was searched; a better one may lie beyond"))
    assert all(f"planted:size=2, scenario task: {note}\n" in err for note in outcome.notes)
    assert build(tomllib.loads(result.read_text())).methods[0].options == {"size": 2, "knob": 100.0}
    best = made.tried[-1]
    assert f"| knob=100 | {100 * score(best):.2f} | {100 * abs(best.acc[0] - best.acc[1]) / 2:.2f} | 2 | chosen |" in (
        page.read_text())  # of two values, half their distance is the standard error
    assert f"{100 * abs(best.acc[0] - best.acc[1]) / 2:.2f}" in out
    records, _ = Store(tmp_path / "search").read()
    assert {r.trial.recipe.iterations for r in records} == {10} and len(records) == 10  # the experiment's own budget

    texts = (result.read_text(), page.read_text())
    assert tune("--trials", "3", "--seeds", "2")[2] == "".join(
        [*(f"planted:size=2, scenario task: {note}\n" for note in outcome.notes),
         UNTUNED.format(tmp_path / "mine.toml")])  # no trial is run, so none is shown
    assert (result.read_text(), page.read_text()) == texts
    assert sorted(r.model_dump_json() for r in Store(tmp_path / "search").read()[0]) == sorted(
        r.model_dump_json() for r in records)
    for record in records[::2]:  # as if it had been interrupted
        Store(tmp_path / "search").path(record.key).unlink()
    assert tune("--trials", "3", "--seeds", "2")[0] == 0
    assert (result.read_text(), page.read_text()) == texts


def test_without_any_result_nothing_is_written(tune, tmp_path):
    (tmp_path / "mine.toml").write_text(FILE.replace("low = 1.0, high = 1e8, log = true", "low = 1e7, high = 1e8"))
    code, _, err = tune("--trials", "2")
    assert code == 2
    assert "planted:size=2, scenario task: no candidate has a result for every seed" in err.splitlines()[-1]
    assert not (tmp_path / "search" / "tuned.toml").exists() and (tmp_path / "search" / "report.md").exists()


@pytest.mark.parametrize(("old", "new", "args", "line"), [
    ("[tune.planted]", "[tune.plantd]", (), "tune.plantd: the experiment has no method 'plantd'; its methods are "
                                            "planted, naive"),
    ("knob = {", "nob = {", (), "tune.planted: no option 'nob'; did you mean 'knob'?"),
    ("low = 1.0", "low = 1e9", (), "tune.planted.knob.range: low should be below high, got 1e+09 and 1e+08"),
    ("low = 1.0", "low = 0", (), "tune.planted.knob.range: log = true needs low above 0"),
    ("log = true", "logs = true", (), "tune.planted.knob.range.logs: no key 'logs'; did you mean 'log'"),
    ("{low = 1.0, high = 1e8, log = true}", "[]", (), "tune.planted.knob"),
    ("{low = 1.0, high = 1e8, log = true}", '["a", 1.0]', (), "tune.planted.knob: should be a valid number"),
    ("", "", ("--seeds", "0,1000"), "--seeds: 0 is among the experiment's own seeds; tune with others"),
    ("", "", ("--seeds", "0"), "expected a number of seeds or a list such as 1000,1001, got '0'"),
    ("", "", ("--seeds", "1000000000"), "expected at most 1000 seeds, got 1000000000"),
    ("seeds = 1\n", "seeds = [7, 1001]\n", ("--seeds", "2"), "--seeds: 1001 is among the experiment's own seeds"),
    ("seeds = 1\n", 'seeds = 3\nuntil = "decided"\n', ("--seeds", "5,30"), "--seeds: 5 is among the experiment's own "
     "seeds"),
    ("", "", ("--methods", "lora"), "--methods lora: the experiment has no method 'lora'; its methods are planted, "
     "planted:size=2, naive"),
    ("[tune.planted]\nknob = {low = 1.0, high = 1e8, log = true}", "", ("--methods", "planned"),
     "--methods planned: the experiment has no method 'planned'; its methods are planted, planted:size=2, naive"),
    ("knob = {low", 'knob = {scenario = "class", low', (), "nothing is left to search in scenario task"),
    ("", "", ("--validation", "1"), "Invalid value for '--validation'"),
])
def test_bad_input_is_a_line_and_nothing_is_written(tune, tmp_path, old, new, args, line):
    (tmp_path / "mine.toml").write_text(FILE.replace(old, new))
    code, out, err = tune(*args)
    found = [e for e in err.splitlines() if line in e]
    assert (code, out) == (2, "") and found and all(e.startswith("Error: ") for e in err.splitlines()), err
    assert not (tmp_path / "search").exists()


def test_absent_libraries_are_a_line(tune, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "optuna", None)
        code, _, err = tune()
    assert (code, err.count("\n")) == (2, 1) and "pip install 'clbench[tune]'" in err
    monkeypatch.setitem(sys.modules, "tomlkit", None)
    code, _, err = tune()
    assert (code, err.count("\n")) == (2, 1) and "pip install 'clbench[tune]'" in err


def test_a_small_grid_is_tried_whole_and_needs_no_optuna(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    space = {"rank": Choices(values=(1, 2)), "init": Choices(values=("kaiming", "pissa"))}
    grid = sampler_for(space, ["rank"], 4)
    assert isinstance(grid, Grid)
    asked = grid.ask()
    assert asked == corners(space) and len(asked) == 4
    grid.tell([0.0] * 4)
    assert grid.ask() == []
    with pytest.raises(ClbenchError, match="needs Optuna"):
        sampler_for(space, ["rank"], 3)


def test_the_same_scores_lead_to_the_same_candidates():
    space = {"a": Range(low=1.0, high=1e6, log=True), "n": Range(low=1, high=8), "way": Choices(values=("x", "y"))}

    def tried(trials):
        sampler = TPE(space, ["n"], trials)
        found = []
        while asked := sampler.ask():
            found += asked
            sampler.tell([-abs(c["a"] - 50) for c in asked])
        return found

    longer = tried(12)
    assert len(longer) == 12 and tried(8) == longer[:8]
    assert all(1 <= c["a"] <= 1e6 and float(f"{c['a']:.3g}") == c["a"] for c in longer)
    assert {type(c["n"]) for c in longer} == {int} and {c["n"] for c in longer} <= set(range(1, 9))
    assert {c["way"] for c in longer} == {"x", "y"}


@pytest.mark.parametrize(("value", "axis", "expected"), [
    (1e6, Range(low=1.0, high=1e6, log=True), True), (9e5, Range(low=1.0, high=1e6, log=True), True),
    (1e3, Range(low=1.0, high=1e6, log=True), False), (1, Range(low=1, high=9), True), (5, Range(low=1, high=9), False),
    (4, Choices(values=(1, 2, 4)), True), (2, Choices(values=(1, 2, 4)), False), (2, Choices(values=(1, 2)), False),
    ("a", Choices(values=("a", "b", "c")), False), (True, Choices(values=(True, False)), False),
])
def test_a_best_value_at_an_end_is_noticed(value, axis, expected):
    assert is_at_end(value, axis) is expected


@pytest.mark.parametrize(("only", "labels"), [
    (["planted:size=2"], ["planted:size=2"]), (["planted"], ["planted", "planted:size=2"]), ([], None)])
def test_rows_are_chosen_by_their_labels_or_names(tune, only, labels):
    spec = build({"methods": ["planted", "planted:size=2", "naive"], "tune": {"planted": {"knob": [1.0, 10.0]}}})
    rows = [row.label for row in rows_of(spec, discover(), 2, only)]
    assert rows == (labels or ["planted", "planted:size=2"])


def tuned_rows(**values):
    """The rows of an experiment with a candidate's result in each, better in `class` where strength is 10."""
    registry = discover()
    spec = build({"scenario": "task,class", "tune": {"ewc": {"strength": [1.0, 10.0]}}, "seeds": [1000], **values})
    rows = rows_of(spec, registry, 2)
    for row in rows:
        asked = row.sampler.ask()
        records = []
        for candidate in asked:
            good = (candidate["strength"] == 10) == (row.scenario == "class")
            records.append(make_record("ewc", 1000, [[0.5], [0.9 if good else 0.6]], scenario=row.scenario,
                                       label=row.candidate(candidate).label))
        row.record_results(asked, records)
    return spec, rows, registry


def test_options_that_differ_by_scenario_make_rows_for_each():
    spec, rows, registry = tuned_rows(methods=["naive", "ewc"])
    found = choose_methods(spec, spec, rows, registry)
    assert [m.model_dump(mode="json", exclude_defaults=True) for m in found] == [
        {"name": "naive"}, {"name": "ewc", "options": {"strength": 1.0}, "scenario": ["task"]},
        {"name": "ewc", "options": {"strength": 10.0}, "scenario": ["class"]}]
    again = spec.model_copy(update={"methods": tuple(found)})
    planned = plan(again, registry)
    assert {(p.trial.scenario, p.label) for p in planned} == {
        ("task", "naive"), ("class", "naive"), ("task", "ewc:strength=1"), ("class", "ewc:strength=10")}
    assert [(r.label, r.scenario) for r in rows_of(again, registry, 2)] == [("ewc", "task"), ("ewc", "class")]


def test_a_tie_goes_to_the_lower_rate_in_the_file_the_table_and_the_notes():
    spec = build({"methods": "er", "tune": {"er": {"recipe": {"lr": [1e-5, 3e-5]}}}, "seeds": [1000, 1001]})
    registry = discover()
    row, = rows_of(spec, registry, 2, widen=1)
    acc = {1e-5: (0.52, 0.58), 3e-5: (0.51, 0.61), 1e-4: (0.3, 0.3)}  # differences -0.01, 0.03: mean 0.01, error 0.02
    rounds = []
    while asked := row.sampler.ask():
        rounds.append([c["recipe.lr"] for c in asked])
        row.record_results(asked, [make_record("er", seed, [[0.5], [value]], label=row.candidate(c).label)
                                   for c in asked for seed, value in zip(spec.seeds, acc[c["recipe.lr"]], strict=True)])
    assert rounds == [[1e-5, 3e-5], [1e-4]]  # the best mean decides what is widened, not the choice at the other edge
    assert [m.recipe for m in choose_methods(spec, spec, [row], registry)] == [{"lr": 1e-5}]
    made = account([row], spec, 2, {}, "", {}, widen=1)
    assert made.outcomes[0].widened == {"recipe.lr": 1} and made.outcomes[0].notes == tuple(row.notes)
    assert row.notes[1].startswith("recipe.lr=1e-5 (55.00 ± 3.00) was chosen: it is within one standard error of "
                                   "recipe.lr=3e-5 (56.00 ± 5.00") and len(row.notes) == 2
    assert table([row]).splitlines()[-1].split() == [
        "er", "task", "recipe.lr=1e-5", "55.00", "3.00", "56.00", "30.00", "3"]


def test_what_matters_in_one_scenario_is_searched_there_alone():
    infer = {"values": ["entropy", "prototype"], "scenario": "class"}
    registry = discover()
    spec = build({"scenario": "task,class", "methods": "pnn,lora",
                  "tune": {"pnn": {"infer": infer}, "lora": {"infer": infer, "alpha": [1, 2]}}})
    rows = rows_of(spec, registry, 4)
    assert [(r.label, r.scenario, list(r.space)) for r in rows] == [
        ("pnn", "class", ["infer"]), ("lora", "task", ["alpha"]), ("lora", "class", ["infer", "alpha"])]
    for row in rows:
        asked = row.sampler.ask()
        row.record_results(asked, [make_record(row.method.name, R=[[0.5], [0.8]], scenario=row.scenario,
                                               label=row.candidate(c).label) for c in asked])
    assert [(m.name, m.options, m.scenario) for m in choose_methods(spec, spec, rows, registry)] == [
        ("pnn", {"infer": "entropy"}, ("class",)), ("pnn", {}, ("task",)),
        ("lora", {"alpha": 1}, ("task",)), ("lora", {"infer": "entropy", "alpha": 1}, ("class",))]


def test_an_option_that_is_searched_in_another_scenario_only_stays_in_the_label():
    tune = {"lora": {"rank": {"values": [4, 8], "scenario": "class"}, "recipe": {"lr": [1e-3]}}}
    assert [row.label for row in rows_for(methods=["lora:rank=8"], tune=tune)] == ["lora:rank=8"]
    assert [row.label for row in rows_for(methods=["lora:rank=8"], tune=tune, scenario="class")] == ["lora"]


def test_rows_that_what_is_searched_would_make_equal_are_refused():
    with pytest.raises(SpecError, match="two methods have the options 'ewc', apart from what is searched"):
        tuned_rows(methods=["ewc", "ewc:strength=3.0"])


def rows_for(**values):
    return rows_of(build({"scenario": "task", **values}), discover(), 4)


def test_combinations_without_effect_are_left_out():
    rows = rows_for(methods=["lucir", "slca:align=true"], tune={
        "lucir": {"ranking": [0.0, 1.0], "margin": [0.3, 0.5]}, "slca": {"align": [False, True], "align_lr": [0.1]}})
    assert [row.sampler.ask() for row in rows] == [
        [{"ranking": 0.0, "margin": 0.5}, {"ranking": 1.0, "margin": 0.3}, {"ranking": 1.0, "margin": 0.5}],
        [{"align": True, "align_lr": 0.1}]]
    assert rows[0].sampler.notes == ["ranking=0 margin=0.3 was not tried: tune.lucir: margin has an effect only with "
                                     "ranking above 0; add that, or leave margin out"]
    for tune in ({"ranking": [0.0], "margin": [0.3]}, {"ranking": [0.0, 1.0], "margin": {"low": 0.1, "high": 0.4}}):
        with pytest.raises(SpecError, match="margin has an effect only with ranking above 0"):
            rows_for(methods=["lucir"], tune={"lucir": tune})


def test_a_method_of_another_scenario_is_left_out():
    methods = ["ewc", {"name": "ewc", "scenario": "class", "label": "x"}, {"name": "ewc", "scenario": "task",
                                                                        "label": "y"}]
    assert [row.label for row in rows_for(methods=methods, scenario="task", tune={})] == ["ewc", "y"]


def test_a_row_is_searched_by_its_label():
    rows = rows_of(build({"methods": ["lora:rank=8", "ewc"], "tune": {"ewc": {"strength": [1, 2]}}}), discover(), 4,
                   only=["lora:rank=8"])
    assert [(row.label, list(row.space)) for row in rows] == [("lora:rank=8", ["recipe.lr"])]


def test_scenarios_of_the_search_are_those_with_its_flags():
    spec = build({"methods": ["ewc", "naive"], "scenario": "class", "tune": {"ewc": {"strength": [1]}}})
    unplanned = spec.model_copy(update={"benchmark": spec.benchmark.model_copy(update={"name": "needs-flags"})})
    registry = discover()
    row, = rows_of(spec, registry, 2)
    row.record_results(row.sampler.ask(), [make_record("ewc", R=[[0.5], [0.8]], scenario="class",
                                                       label="ewc:strength=1")])
    assert [m.options for m in choose_methods(unplanned, spec, [row], registry)] == [{"strength": 1}, {}]


def test_a_method_for_no_scenario_of_the_experiment_is_refused():
    registry = discover()
    methods = ["naive", {"name": "ewc", "scenario": "class"}]
    assert [p.label for p in plan(build({"methods": methods, "scenario": "task,class", "seeds": 1}), registry)] == [
        "naive", "naive", "ewc"]
    with pytest.raises(SpecError, match="method 'ewc' is for scenario class only, but the experiment has scenario "
                                        "task: give"):
        plan(build({"methods": methods, "scenario": "task"}), registry)


def test_a_file_keeps_what_it_says_and_earlier_searches(tmp_path):
    source, out = tmp_path / "a.toml", tmp_path / "b.toml"
    source.write_text('# mine\nseeds = 1\n\n[recipe]\nepochs = 1  # few\n\n[[methods]]\nname = "ewc"\n\n[[methods]]\n'
                      'name = "lora"\nlabel = "x"\n\n[tune.ewc]\nstrength = [1.0, 10.0]\n')

    def search(label, command):
        return Search(command=command, versions={"torch": "2"}, validation=0.1, seeds=(7,), trials=2, sampler="grid",
                      space={label: {"strength": Range(low=1, high=2)}},
                      outcomes=(Outcome(method=label, scenario="task", widened={"strength": 1}, notes=("a", "b")),),
                      tried=(Tried(method=label, scenario="task", options={"strength": 1.5}, acc=(0.5,)),
                             Tried(method=label, scenario="task", options={"strength": 2}, failure="seed 7 diverged")))

    methods = [MethodSpec(name="ewc", options={"strength": 1.5}, scenario=("task",)),
               MethodSpec(name="lora", label="x")]
    write_tuned(out, source.read_text(), methods, search("ewc", "one"))
    text = out.read_text()
    assert text.startswith("# mine\n") and "# few" in text and "[[methods]]" not in text
    spec = build(tomllib.loads(text))
    assert spec.methods == tuple(methods) and spec.recipe.epochs == 1 and spec.tuning == (search("ewc", "one"),)
    write_tuned(out, text, methods, search("x", "two"))
    write_tuned(out, out.read_text(), methods, search("x", "three"))
    assert build(tomllib.loads(out.read_text())).tuning == (search("ewc", "one"), search("x", "three"))
    wider = search("x", "four")
    other = wider.model_copy(update={"tried": (wider.tried[0].model_copy(update={"options": {"strength": 3}}),)})
    write_tuned(out, out.read_text(), methods, other)  # all candidates of a row count, of all searches
    assert build(tomllib.loads(out.read_text())).tuning == (search("ewc", "one"), search("x", "three"), other)


def test_the_searches_of_the_committed_experiments_chose_their_options():
    registry = discover()
    for path in (ROOT / "benchmarks").rglob("*.toml"):
        if path.parent.name == "reference":
            continue
        spec = build(tomllib.loads(path.read_text()), str(path))
        assert all(not set(made.seeds) & set(spec.seeds) and made.validation > 0 for made in spec.tuning)
        left = {(t.method, t.scenario) for made in spec.tuning for t in made.tried}
        for method, scenario in itertools.product(spec.methods, {s for _, s in left}):
            if not method.runs_in(scenario):
                continue
            options = opt.validate(registry.strategy(method.name).options, method.options, method.name, "")
            tried = [t for _, t in find_candidates(spec, method, scenario, options)] or [
                t for made in spec.tuning for t in made.tried  # made before an option of the row was there
                if (t.method, t.scenario) == (method.name, scenario)]
            if not {name for t in tried for name in t.options} & set(method.given):
                continue  # the method as it is, beside a row with what the search chose
            left -= {(t.method, t.scenario) for t in tried}
            own = [score(t) for t in tried if t.options.items() <= method.given.items()]
            assert max(own) == score(choose(tried)), (path.name, method.name)
        assert not left, path.name
