"""Edited code and changed data give no old results."""

import json
import re
import sys
import threading

import numpy
import pytest
from helpers.hostile import write_distribution
from helpers.records import make_record

import clbench
from clbench import cli
from clbench.core.errors import PluginError, SpecError, StaleError
from clbench.core.registry import discover
from clbench.execution import reuse, run
from clbench.execution.reuse import StalenessReport
from clbench.execution.workers.plan import Listener
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.spec import build
from clbench.experiment.trial import PlannedTrial
from clbench.results import provenance
from clbench.results.provenance import stale_records
from clbench.results.records import Probe
from clbench.results.store import Store

HALF = """
from clbench import Strategy, StrategyInfo, hookimpl

class Half(Strategy):
    def loss(self, batch):
        return super().loss(batch) * 1.0

@hookimpl
def clbench_strategies():
    return [StrategyInfo("half", "half_of_mine:Half", "fine-tuning")]
"""
STREAM = """
import numpy
import torch
from avalanche.benchmarks import tensors_benchmark

def resized():
    x = torch.tensor(numpy.load({path!r}))[:, :32]
    y = torch.arange(40) % 2
    x[:, 0] = y
    parts = [(x, y + 2 * task) for task in range(2)]
    return tensors_benchmark(train_tensors=parts, test_tensors=parts, task_labels=[0, 0], complete_test_set_only=False)
"""
SMALL = {"seeds": 2, "iterations": 20, "device": "cpu", "threads": 1, "workers": 0, "model": "mlp:width=16"}


def forget(*names):
    """Forget modules, as a new process begins without them."""
    for module in [m for m in sys.modules if m.partition(".")[0] in names]:
        del sys.modules[module]


@pytest.fixture
def stream(tmp_path, monkeypatch):
    """Return the file of a benchmark that is a function; its name is `stream_of_mine:resized`."""
    monkeypatch.chdir(tmp_path)
    numpy.save(tmp_path / "x.npy", numpy.random.default_rng(0).random((40, 64), numpy.float32))
    file = tmp_path / "stream_of_mine.py"
    file.write_text(STREAM.format(path=str(tmp_path / "x.npy")))
    yield file
    forget("stream_of_mine")


@pytest.fixture
def plugin(tmp_path):
    file = tmp_path / "half_of_mine.py"
    file.write_text(HALF)
    yield file
    forget("half_of_mine")


@pytest.fixture
def half(plugin, stream, tmp_path):
    """Return a function that runs the plugin on the benchmark; its results are there already."""
    def call(**settings):
        return clbench.run(**{"methods": "half,naive", "benchmark": "stream_of_mine:resized", "plugins": [plugin],
                              "out": tmp_path / "run", **SMALL, **settings})

    call()
    return call


def final(records, label="half"):
    return [r.R[-1] for r in records if r.label == label]


def times(records):
    return {r.key: r.provenance.started for r in records}


def test_a_plugin_whose_loss_is_multiplied_by_0_gives_no_old_results(half, plugin, tmp_path, capsys):
    first = half()
    plugin.write_text(HALF.replace("* 1.0", "* 0"))
    with pytest.raises(StaleError) as caught:
        half()
    head, line = str(caught.value).splitlines()
    assert head.startswith(f"2 results in {tmp_path / 'run'} are stale, because code or data") and "--rerun" in head
    assert line == "half, seeds 0, 1: the method's code (half_of_mine)"
    assert times(Store(tmp_path / "run").read()[0]) == times(first)
    command = ["run", "--methods", "half,naive", "--benchmark", "stream_of_mine:resized", "--plugin", str(plugin),
               "--seeds", "2", "--iterations", "20", "--model", "mlp:width=16", "--device", "cpu", "--out",
               str(tmp_path / "run")]
    assert cli.call(command) == 2
    assert "half, seeds 0, 1: the method's code (half_of_mine)" in capsys.readouterr().err
    assert cli.call([*command, "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert out.count("done, stale") == 2 and "Stale: half, seeds 0, 1" in err
    again = half(stale="rerun")
    assert final(again) != final(first) and final(again, "naive") == final(first, "naive")
    changed = {r.key for r in again if r.provenance.started != times(first)[r.key]}
    assert changed == {r.key for r in again if r.label == "half"}  # only the stale ones
    assert times(half()) == times(again)


def test_results_that_are_kept_are_marked_until_the_code_is_what_it_was(half, plugin, tmp_path):
    first = half()
    plugin.write_text(HALF.replace("* 1.0", "* 0"))
    kept = half(stale="keep")
    assert final(kept) == final(first) and times(kept) == times(first)
    assert [r.stale for r in kept if r.label == "half"] == [["the method's code (half_of_mine)"]] * 2
    page = (tmp_path / "run" / "report.md").read_text()
    assert re.search(r"\| half ※[△○]* +\|", page) and re.search(r"\| Fine-tuning[ △○]* +\|", page)
    assert ("half: the results of seeds 0, 1 are stale, because the method's code (half\\_of\\_mine) changed after "
            "they were made; --keep-stale kept them") in page
    with pytest.raises(StaleError):
        half()  # accepting is said each time
    plugin.write_text(HALF)
    assert not any(r.stale for r in half())
    assert "※" not in (tmp_path / "run" / "report.md").read_text()


def test_the_error_about_stale_results_agrees_in_number_and_counts_those_that_diverged(tmp_path):
    records = {r.key: r for r in (make_record("ewc"), make_record("ewc", 1, status="diverged"))}
    done, diverged = ({key: ["the data"]} for key in records)
    one = str(reuse.refusal(done, records, tmp_path))
    assert one.startswith(f"1 result in {tmp_path} is stale, ") and "train it again, or --keep-stale to keep it," in one
    assert str(reuse.refusal(diverged, records, tmp_path)).startswith(f"1 result in {tmp_path} (1 diverged) is stale")
    several = str(reuse.refusal(done | diverged, records, tmp_path))
    assert several.startswith(f"2 results in {tmp_path} (1 diverged) are stale")
    assert "train them again, or --keep-stale to keep them," in several


def test_a_comment_changes_nothing(half, plugin, stream):
    first = half()
    plugin.write_text("# mine\n" + HALF.replace("* 1.0", "*  1.0  # all of it"))
    stream.write_text(stream.read_text() + "\n# the end\n")
    forget("stream_of_mine")
    assert times(half()) == times(first)


def test_a_row_of_several_states_of_its_code_says_so(half, plugin, tmp_path):
    plugin.write_text(HALF.replace("* 1.0", "* 0.5"))
    half(seeds=[2])
    page = (tmp_path / "run" / "report.md").read_text()
    assert re.search(r"\| half ※[△○]* +\|", page) and "its seeds come from different states of its code" in page


def test_a_benchmark_that_resizes_to_48_instead_of_32(half, stream):
    first = half()
    stream.write_text(stream.read_text().replace(":32", ":48"))
    with pytest.raises(PluginError, match="stream_of_mine was edited after this Python process imported it"):
        half()
    forget("stream_of_mine")
    with pytest.raises(StaleError, match="naive, seeds 0, 1: the benchmark's code \\(stream_of_mine\\)"):
        half()
    again = half(stale="rerun")
    assert [r.stream.input_shape for r in first + again] == [[32]] * 4 + [[48]] * 4


def test_data_that_changed_behind_the_same_code(half, stream, tmp_path):
    first = half()
    numpy.save(tmp_path / "x.npy", numpy.random.default_rng(1).random((40, 64), numpy.float32))
    with pytest.raises(StaleError, match="half, seeds 0, 1: the data of stream_of_mine:resized"):
        half()
    again = half(stale="rerun")
    assert {r.stream.fingerprint for r in first}.isdisjoint({r.stream.fingerprint for r in again})
    (tmp_path / "x.npy").unlink()
    heard = Notes()
    spec = build({"methods": "half,naive", "benchmark": "stream_of_mine:resized", "model": "mlp:width=16", "seeds": 2,
                  "device": "cpu", "recipe": {"iterations": 20}})
    run.execute(run.prepare(spec, discover(files=[tmp_path / "half_of_mine.py"]), tmp_path / "run"), heard, command="")
    assert len(heard) == 1 and "is not known" in heard[0] and "x.npy" in heard[0]


class Notes(list, Listener):
    def note(self, text):
        self.append(text)


def test_looking_at_a_benchmark_leaves_it_unimported(stream, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    with reuse._forgetting(["stream_of_mine"]):
        __import__("stream_of_mine")
    assert "stream_of_mine" not in sys.modules and "numpy" in sys.modules


INSTALLED = """
from clbench import ModelInfo, StrategyInfo, hookimpl

@hookimpl
def clbench_models():
    return [ModelInfo("net", "net_of_mine.net:build", "a network")]

@hookimpl
def clbench_strategies():
    return [StrategyInfo("quarter", "net_of_mine.method:Quarter", "fine-tuning")]
"""
NET = """
from torch import nn
from clbench.models.network import Block, Network

def build(options, input_shape, classes):
    return Network([Block(nn.Linear(input_shape[0], 8), nn.ReLU())], nn.Linear(8, classes))
"""
METHOD = """
from clbench import Strategy

class Quarter(Strategy):
    def loss(self, batch):
        return super().loss(batch) * 1.0
"""


@pytest.mark.parametrize(("file", "old", "new"), [("net.py", "ReLU", "Tanh"), ("method.py", "* 1.0", "* 0")])
def test_an_installed_package_that_brings_a_method_and_a_model(file, old, new, stream, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path / "site")
    write_distribution(tmp_path / "site", "nets", ["net_of_mine"])
    folder = tmp_path / "site" / "net_of_mine"
    folder.mkdir()
    for name, text in (("__init__.py", INSTALLED), ("net.py", NET), ("method.py", METHOD)):
        (folder / name).write_text(text)

    def call():
        forget("net_of_mine", "stream_of_mine")  # as a new process begins
        return clbench.run(methods="quarter", benchmark="stream_of_mine:resized", out="run",
                           **{**SMALL, "model": "net"})

    first = call()
    (folder / file).write_text("# mine\n" + (folder / file).read_text())
    assert times(call()) == times(first)
    (folder / file).write_text((folder / file).read_text().replace(old, new))
    line = "quarter, seeds 0, 1: the method's code (net_of_mine) and the model's code (net_of_mine)"
    with pytest.raises(StaleError, match=re.escape(line)):
        call()
    forget("net_of_mine")


def record_of(planned, **changes):
    return make_record(planned.trial.method.name, tasks=5, versions={"clbench": "0.0.9"}).model_copy(
        update={"trial": planned.trial, "key": planned.trial.key, "label": planned.label, **changes})


@pytest.fixture
def older(tmp_path):
    """Return an experiment whose records are those of an older version: they do not tell their code."""
    spec, registry = build({"methods": "ewc,naive", "seeds": 1, "device": "cpu"}), discover()
    for planned in run.plan(spec, registry):
        Store(tmp_path).write(record_of(planned))
    return spec, registry


def test_folders_of_older_versions_stand_and_the_other_clbench_is_told(older, tmp_path):
    for path in (tmp_path / "records").glob("*.json"):
        old = json.loads(path.read_text())
        del old["stale"], old["provenance"]["code"]
        old["stream"].pop("data", None)
        path.write_text(json.dumps(old))
    heard = Notes()
    records = run.execute(run.prepare(*older, tmp_path), heard, command="")
    assert [r.label for r in records] == ["ewc", "naive"] and not any(r.stale for r in records)
    assert heard[0].startswith("2 results were made by clbench 0.0.9 at commit 0000000000, and this is clbench ")


def test_another_version_of_clbench_alone_makes_nothing_stale(older, tmp_path, monkeypatch):
    spec, registry = older
    ready = run.prepare(spec, registry, tmp_path)
    known = [r.model_copy(update={"provenance": r.provenance.model_copy(update={
        "code": run.code_of(r.trial, registry), "git": "1" * 40})}) for r in ready.results()]
    for record in known:
        Store(tmp_path).write(record)
    monkeypatch.setattr(provenance, "git_commit", lambda: "2" * 40 + "+dirty")
    ready = run.prepare(spec, registry, tmp_path)
    assert not ready.staleness.reasons and "at commit 2222222222+dirty. clbench keeps them" in ready.staleness.notes[0]
    assert [list(r.provenance.code) for r in known] == [["method"]] * 2  # the others are clbench's


def test_a_record_that_another_process_trained_meanwhile_by_other_code_is_kept_and_marked(older, tmp_path):
    spec, registry = older
    store, planned = Store(tmp_path), run.plan(spec, registry)[0]
    code = {"method": run.code_of(planned.trial, registry)["method"].model_copy(update={"hash": "other"})}

    def made(year, **changes):
        record = record_of(planned, **changes)
        return record.model_copy(update={"provenance": record.provenance.model_copy(update={
            "code": code, "started": record.provenance.started.replace(year=year)})})

    store.write(made(2020))
    heard = Notes()
    ready = run.prepare(spec, registry, tmp_path, on_stale="rerun")
    assert ready.missing == [planned]
    keeper = run.RecordKeeper(ready, heard)
    keeper.relabel()
    store.write(made(2020, label="labeled by another"))  # the same training: it is still to be replaced
    store.clear(planned.trial.key)
    assert keeper.claim(planned)
    keeper.claims.release(planned.trial.key)
    store.write(made(2021))
    assert not keeper.claim(planned)
    assert heard[0].startswith("another clbench process has run ")
    assert "with other code (the method's code (clbench_ewc" in heard[0]
    assert store.get(planned.trial.key).stale and store.get(planned.trial.key).provenance.started.year == 2021
    keeper.claims.close()


def test_what_a_stale_result_exported_goes_before_it_is_run_anew_but_not_behind_a_checkpoint(tmp_path):
    store = Store(tmp_path)
    for key in ("a", "b"):
        (store.artifacts / key).mkdir(parents=True)
        (store.artifacts / key / "old.bin").write_text("")
    (store.checkpoints / "b").mkdir(parents=True)
    store.clear("a")
    store.clear("b")
    assert [p.name for p in store.artifacts.iterdir()] == ["b"]


def test_what_is_to_be_done_is_one_of_three(tmp_path):
    with pytest.raises(SpecError, match="stale = 'yes': write 'refuse' or 'rerun' or 'keep'"):
        clbench.run(methods="naive", stale="yes", out=tmp_path)


def test_stale_records_of_a_folder(older, tmp_path):
    spec, registry = older
    ready = run.prepare(spec, registry, tmp_path)
    ewc, naive = ready.results()
    other = {"method": run.code_of(ewc.trial, registry)["method"].model_copy(update={"hash": "other"})}
    stale = ewc.model_copy(update={"provenance": ewc.provenance.model_copy(update={"code": other})})
    gone = stale.model_copy(update={"trial": stale.trial.model_copy(update={
        "method": stale.trial.method.model_copy(update={"name": "uninstalled"})})})
    (found, reasons), = stale_records([ewc, naive, stale, gone], registry)
    assert found is stale and reasons == ["the method's code (clbench_ewc)"]


def test_records_that_lack_what_a_run_asks_for_are_made_once_more_and_others_stay(tmp_path):
    def prepared(**settings):
        spec = build({"methods": "naive", "seeds": 1, "scenario": ["class", "domain", "task"], "model": "mlp:width=16",
                      "recipe": {"iterations": 2}, "execution": settings})
        return run.prepare(spec, discover(), tmp_path)

    made = {p.trial.scenario: make_record("naive", scenario=p.trial.scenario).model_copy(
        update={"key": p.trial.key, "trial": p.trial}) for p in prepared().planned}
    for record in made.values():
        Store(tmp_path).write(record)
    assert not prepared().missing
    for settings, asked, scenarios in (({"probe": True}, "--probe", {"class", "domain"}),
                                       ({"anatomy": "each"}, "--anatomy each", {"class"})):
        again = prepared(**settings)
        assert {p.trial.scenario for p in again.missing} == scenarios
        again_text = "them again; their" if len(scenarios) > 1 else "it again; its"
        assert any(f" {asked}, which this run needs. clbench trains {again_text} other results stay" in note
                   for note in again.staleness.notes)
        assert not again.staleness.reasons  # nothing is refused as stale
    for record in made.values():
        Store(tmp_path).write(record.model_copy(update={"probe": Probe(missing="it shows no features")}))
    assert not prepared(probe=True).missing


def test_a_benchmark_that_takes_long_to_read_is_named_while_it_is_read(half, tmp_path, monkeypatch):
    heard, told, load = [], threading.Event(), numpy.load

    def slow_load(path):
        assert told.wait(60), "nobody was told that the benchmark is being read"
        return load(path)

    def note(text):
        heard.append(text)
        told.set()

    forget("stream_of_mine")
    monkeypatch.setattr(numpy, "load", slow_load)
    monkeypatch.setattr(reuse, "LONG", 0.01)
    spec = build({"methods": ["half", "naive"], "benchmark": "stream_of_mine:resized", "model": SMALL["model"],
                  "seeds": SMALL["seeds"], "recipe": {"iterations": SMALL["iterations"]}})
    ready = run.prepare(spec, discover(files=[tmp_path / "half_of_mine.py"]), tmp_path / "run", note=note)
    assert heard == ["reading stream_of_mine:resized, to know whether its results still stand ..."]
    assert not ready.staleness.reasons and not ready.missing


def test_a_note_says_which_outputs_a_kept_result_or_that_of_another_process_lacks(tmp_path):
    record = make_record("ewc", scenario="class")
    planned, asked = PlannedTrial(record.trial, "ewc", False), ExecutionSettings(probe=True)
    for keeps, count in ((True, 1), (False, 0)):
        report = StalenessReport(reasons={record.key: ["the method's code"]})
        reuse.add_missing_outputs(report, [planned], {record.key: record}, asked, tmp_path, keeps)
        assert not report.lacking and len(report.notes) == count
        assert all(note.startswith("1 stale result is kept without --probe") for note in report.notes)
    assert "has run ewc/0 without --probe" in reuse.note_on_external(record, [], asked, tmp_path)
    assert "with other code" in reuse.note_on_external(record, ["the method's code"], asked, tmp_path)
    assert reuse.note_on_external(record, [], ExecutionSettings(), tmp_path) == ""
