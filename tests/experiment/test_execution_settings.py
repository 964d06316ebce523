"""One object says how trials are run: made from a file, flags or arguments, and sent to workers as it is."""

import inspect
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from helpers.references import write

import clbench
from clbench import cli
from clbench.core.errors import SpecError
from clbench.core.files import default_data_dir
from clbench.core.registry import discover
from clbench.execution import api
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.plan import plan
from clbench.experiment.spec import TABLES, Spec, build

FIELDS = list(ExecutionSettings.model_fields)
FILE = """
methods = ["naive"]

[execution]
workers = 3
stack = 2
compile = true
"""
NEW_FIELD = """
    import inspect
    from pydantic import Field
    from clbench.experiment import execution_settings

    class More(execution_settings.ExecutionSettings):
        be_patient: int = Field(3, ge=1, description="How patient.")

    execution_settings.ExecutionSettings = More

    import clbench
    from clbench import cli
    from clbench.cli import run as run_command
    from clbench.execution import api, run
    from clbench.execution.workers.protocol import REQUESTS

    told = []

    def look(ready, *_, **__):
        start = run.plan_workers(ready, "").start
        told.append(REQUESTS.validate_json(start.line()).settings.be_patient)
        return 0

    run_command.run_missing = look
    api.experiment.execute = lambda ready, *_, **__: [] if look(ready) == 0 else None
    api.experiment.write_report = lambda _: None
    assert cli.call(["run", "mine.toml"]) == cli.call(["run", "mine.toml", "--be-patient", "5"]) == 0
    clbench.run("mine.toml")
    clbench.run("mine.toml", be_patient=6)
    clbench.run(methods="naive")
    assert told == [4, 5, 4, 6, 3], told
    assert inspect.signature(clbench.run).parameters["be_patient"].default == 3
    assert "        be_patient: How patient. [default: 3]" in clbench.run.__doc__
    cli.call(["run", "--help-all"])
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(FILE)
    return path


@pytest.fixture
def seen(monkeypatch):
    """Take down the settings of each run instead of running it."""
    found = []

    def look(ready, *_, **__):
        found.append(ready.spec.execution)
        return 0

    monkeypatch.setattr("clbench.cli.run.run_missing", look)
    monkeypatch.setattr(api.experiment, "execute", lambda ready, *_, **__: [] if look(ready) == 0 else None)
    monkeypatch.setattr(api.experiment, "write_report", lambda _: None)
    return found


def test_a_new_field_is_a_flag_a_key_and_an_argument_and_reaches_workers(tmp_path):
    (tmp_path / "mine.toml").write_text('methods = ["naive"]\n[execution]\nbe_patient = 4\n')
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(NEW_FIELD)], cwd=tmp_path, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    assert "--be-patient INTEGER RANGE" in done.stdout and "How patient.  [default: 3]" in done.stdout


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_documented_for_python(name):
    assert name in inspect.signature(clbench.run).parameters and name in api.KEYS
    assert f"\n        {name}: {ExecutionSettings.model_fields[name].description.split()[0]}" in clbench.run.__doc__


def test_flags_and_arguments_override_the_file(file, seen):
    assert cli.call(["run", str(file)]) == 0
    assert cli.call(["run", str(file), "--workers", "1", "--no-compile", "--retries", "0"]) == 0
    clbench.run(file)
    clbench.run(file, workers=1, compile=False, retries=0, stack=None)
    whole, changed = ({"workers": 3, "stack": 2, "compile": True},
                      {"workers": 1, "stack": 2, "compile": False, "retries": 0})
    assert seen == [ExecutionSettings(**values) for values in (whole, changed, whole, changed)]


def test_a_reference_is_run_as_flags_say(tmp_path, seen):
    assert cli.call(["verify", str(write(tmp_path)), "--workers", "2", "--data", str(tmp_path)]) == 0
    assert seen == [ExecutionSettings(workers=2, data=tmp_path)]


def test_how_trials_are_run_is_no_part_of_them():
    plain, other = ({"methods": "naive", "seeds": 1}, {"methods": "naive", "seeds": 1, "execution": {"stack": 7}})
    assert plan(build(plain), discover()) == plan(build(other), discover())


def test_mistakes_in_the_table_are_named_with_their_place():
    with pytest.raises(SpecError) as caught:
        build({"methods": "naive", "execution": {"worker": 2, "threads": 0, "executor": "rya", "gpus": float("inf"),
                                                 "retries": True}}, "x.toml")
    assert str(caught.value).splitlines() == [
        "x.toml: execution.threads: should be greater than or equal to 1, got 0",
        "x.toml: execution.executor: no executor 'rya'; did you mean 'ray'? (clbench run --help lists all)",
        "x.toml: execution.gpus: should be a finite number, got inf",
        "x.toml: execution.retries: expected a number, got true",
        "x.toml: execution.worker: no key 'worker'; did you mean 'workers'? (docs/toml-keys.md lists all)"]


@pytest.mark.parametrize(("values", "words"), [
    ({"address": "a:1"}, "--address and --gpus apply only to a Ray cluster: add --executor ray, or leave them out"),
    ({"gpus": 0}, "--address and --gpus apply only to a Ray cluster: add --executor ray, or leave them out"),
    ({"evaluate_samples": 50},
     "--evaluate-samples applies only with --evaluate-every: add --evaluate-every N, or leave it out"),
    ({"executor": "ray", "workers": 0}, "--workers 0 runs trials in this process and --executor ray on a "
                                        "cluster: leave one of them out")])
def test_settings_that_contradict_each_other_are_refused(values, words):
    with pytest.raises(SpecError) as caught:
        build({"methods": "naive", "execution": values})
    assert str(caught.value) == f"execution: {words}"


def test_the_keys_of_all_tables_are_distinct():
    names = [name for model in (Spec, *TABLES.values()) for name in model.model_fields]
    assert len(set(names)) == len(names)


def test_data_lie_where_the_user_says(monkeypatch):
    assert ExecutionSettings().data_dir == default_data_dir()
    assert ExecutionSettings(data="here").data_dir == Path("here")
    monkeypatch.setenv("HOME", "/somewhere")
    assert ExecutionSettings(data="~/sets").data_dir == Path("/somewhere/sets")
