"""Runs of language models report by NLL: progress, report, tuning and explained differences."""

import pytest
from helpers.language_models import CITIES, make_model, save, write_lines

import clbench
from clbench import cli
from clbench.core.registry import discover
from clbench.execution import explaining, run, tuning
from clbench.experiment.plan import plan
from clbench.experiment.spec import build
from clbench.results.store import Store

pytest.importorskip("transformers")
pytest.importorskip("peft")


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Return an experiment on two tasks of a tiny model."""
    base, tasks = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("tasks")
    save(base, make_model())
    for name, answer in (("first", lambda city: city[0]), ("last", lambda city: city[-1])):
        write_lines(tasks / f"{name}.jsonl", [{"prompt": f"{name} {city}: ", "response": answer(city)}
                                              for city in CITIES])
    return {"benchmark": f"instructions:{tasks}", "model": f"hf:{base}", "scenario": "task", "methods": ["naive", "er"],
            "seeds": 2, "recipe": {"epochs": 1, "batch_size": 4, "lr": 1e-3}}


def test_a_run_and_its_report_are_by_nll(setting, tmp_path, capsys):
    results = clbench.run(setting, workers=0, threads=1, device="cpu", out=tmp_path, progress=True)
    printed = "".join(capsys.readouterr())
    assert f"naive seed 0: NLL {results[0].R[-1][0] * 0.5 + results[0].R[-1][1] * 0.5:.2f}" in printed
    report = (tmp_path / "report.md").read_text()
    assert "| final NLL (nats) ↓ |" in report and "2 tasks (first, last)" in report
    assert (tmp_path / "report.html").exists()
    assert cli.call(["report", str(tmp_path), "--metric", "exact", "--format", "md,html,latex,csv,json"]) == 0
    assert "| final exact match (%) ↑ |" in (tmp_path / "report.md").read_text()


def test_a_record_without_exact_match_or_its_scores_of_items_is_trained_again(setting, tmp_path):
    def train():
        values = setting | {"methods": ["naive"]}
        experiment = run.prepare(build(values), discover(), tmp_path)
        records = clbench.run(values, workers=0, threads=1, device="cpu", out=tmp_path)
        return experiment, {record.key: record for record in records}

    experiment, first = train()
    store, (without_exact, without_file) = Store(tmp_path), first
    assert len(experiment.missing) == 2 and not train()[0].missing
    store.write(first[without_exact].model_copy(update={"scores": {}}))
    store.items_path(without_file).unlink()
    with pytest.warns(UserWarning, match="without scores of single items"):
        experiment, again = train()
    assert experiment.staleness.lacking == {without_exact: "exact match", without_file: (
        f"scores of items ({without_file}.items.npz)")}
    assert len(experiment.missing) == 2
    for key, record in again.items():
        assert record.facts() == first[key].facts() and record.item_scores == first[key].item_scores
    assert {record.key: record.item_scores for record in store.read()[0]} == {
        key: record.item_scores for key, record in first.items()}


def test_tuning_and_explaining_know_the_metric_before_anything_is_trained(setting, tmp_path):
    registry = discover()
    spec = build(setting)
    assert {planned.metric for planned in plan(spec, registry)} == {"nll"}
    assert {row.metric for row in tuning.rows_of(spec, registry, trials=4)} == {"nll"}
    for name, rate in (("a", "1e-3"), ("b", "1e-2")):
        (tmp_path / f"{name}.toml").write_text("\n".join([
            *(f'{key} = "{setting[key]}"' for key in ("benchmark", "model", "scenario")), 'methods = ["naive"]',
            "seeds = [0]", "[recipe]", f"lr = {rate}"]))
    for metric, title in ((None, "NLL"), ("learned exact", "learned exact")):
        study = explaining.prepare(tmp_path / "a.toml", tmp_path / "b.toml", metric, {}, registry, 10, tmp_path)
        assert [measure.column.title for measure in study.measures] == [title, title]
