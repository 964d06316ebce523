"""What comes from elsewhere is data: it is never run, leads out of no folder, and what is wrong with it is said."""

import ast
import json

import pytest
from clbench_lora.files import CONFIG, INFO, MODEL, read_adapter, read_base
from helpers import ROOT
from helpers.records import make_record
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import ones

from clbench.core.errors import ClbenchError, StoreError
from clbench.core.registry import discover
from clbench.experiment.plan import plan
from clbench.experiment.spec import build
from clbench.persistence import snapshot
from clbench.persistence.strategy_state import SnapshotError
from clbench.results.records import Record
from clbench.results.store import Problem, Store, read_record

SOURCES = sorted([*(ROOT / "clbench").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")])
RUNS_CODE = {"pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads", "marshal.load", "shelve.open",
             "joblib.load", "dill.load", "dill.loads", "yaml.load", "eval", "exec"}
RUNS_WHAT_THE_USER_NAMES = {("clbench/core/user_code.py", "exec")}  # --plugin FILE and file.py:function are code
FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) |
                      st.sampled_from(["../../x", "lora", "1e400", "0" * 16, "\x00"]),
                      lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
                      max_leaves=5)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_that_is_loaded_can_run_code(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        allowed = (str(path.relative_to(ROOT)), name) in RUNS_WHAT_THE_USER_NAMES
        assert allowed or name not in RUNS_CODE, f"line {node.lineno}: {name} can run what it reads"
        if name in ("torch.load", "torch.hub.load_state_dict_from_url", "load_state_dict_from_url"):
            assert keywords.get("weights_only") == "True", f"line {node.lineno}: {name} without weights_only=True"
        if name in ("np.load", "numpy.load"):
            assert keywords.get("allow_pickle", "False") == "False", f"line {node.lineno}: {name} with pickles"


def places(value, path=()):
    """Yield the path of every value in nested lists and dictionaries."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def mutated(data, value):
    """Put another value somewhere into a copy of what JSON can hold, or leave something out."""
    copy = json.loads(json.dumps(value))
    *path, last = data.draw(st.sampled_from([p for p in places(copy) if p]))
    where = copy
    for key in path:
        where = where[key]
    if data.draw(st.booleans()):
        where[last] = data.draw(VALUES)
    else:
        del where[last]
    return copy


def bitten(data, whole):
    """Cut bytes off or change some."""
    start = data.draw(st.integers(0, len(whole)))
    return whole[:start] + data.draw(st.binary(max_size=6)) + whole[start + data.draw(st.integers(0, 6)):][
        :data.draw(st.sampled_from([None, 0, 40]))]


SPEC = {"benchmark": {"name": "split-mnist-5k", "options": {}}, "scenario": ["task", "class"], "model": "mlp:width=40",
        "seeds": [0, 1], "recipe": {"optimizer": "adam", "lr": 0.001, "iterations": 20, "batch_size": 8},
        "methods": ["naive", {"name": "lora", "options": {"rank": [1, 2]}, "label": "l"}], "device": "cpu"}
REGISTRY = discover()


@pytest.mark.slow
@FUZZ
@given(st.data())
def test_mutated_specs_give_clear_errors(data):
    try:
        plan(build(mutated(data, SPEC)), REGISTRY)
    except ClbenchError as error:
        assert str(error)


@pytest.mark.slow
@FUZZ
@given(st.data())
def test_mutated_records_are_records_or_problems(tmp_path_factory, data):
    record = make_record()
    path = tmp_path_factory.mktemp("fuzz") / f"{record.key}.json"
    whole = json.loads(record.model_dump_json(by_alias=True))
    path.write_bytes(json.dumps(mutated(data, whole)).encode("utf-8", "replace") if data.draw(st.booleans())
                     else bitten(data, record.model_dump_json(by_alias=True).encode()))
    found = read_record(path)
    assert isinstance(found, Record | Problem)
    assert isinstance(found, Record) or "\n" not in str(found)
    assert not isinstance(found, Record) or found.key == record.key


@pytest.mark.slow
@FUZZ
@given(st.data())
def test_mutated_adapters_and_checkpoints_give_clear_errors(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz")
    tensors = save({"base_model.model.blocks.0.body.lora_A.weight": ones(2, 3)}, {"clbench": "{}", "sha256": "0"})
    (folder / MODEL).write_bytes(bitten(data, tensors))
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["../../x"]}
    (folder / CONFIG).write_text(json.dumps(mutated(data, config)))
    (folder / INFO).write_text(json.dumps({"trial": "../..", "task": 0, "classes": [0], "base": "0"}))
    for read in (lambda: read_adapter(folder), lambda: read_base(folder / MODEL)):
        try:
            read()
        except StoreError as error:
            assert "\n" not in str(error)
    try:
        snapshot.read(folder / MODEL)
    except SnapshotError as error:
        assert "the snapshot cannot be read" in str(error)


def test_a_record_names_no_place_outside_its_folder(tmp_path):
    record, store = make_record(), Store(tmp_path / "run")
    store.write(record)
    for key in ("../../etc", "/etc/passwd", "a/b"):
        text = record.model_dump_json(by_alias=True).replace(record.key, key)
        (store.records / "x.json").write_text(text)
        # A key is a hash of the trial, checked when it is read.
        assert "key" in read_record(store.records / "x.json").reason
