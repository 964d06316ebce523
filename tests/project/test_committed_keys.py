"""Each committed file still plans the trials of its committed records: a changed default changes no old result."""

from pathlib import Path

import pytest

from clbench.core import files
from clbench.core.pretrained import PretrainedInfo
from clbench.core.registry import discover
from clbench.experiment import plan as planning
from clbench.experiment import references, spec
from clbench.results.store import Store

ROOT = Path(__file__).resolve().parents[2]
STUDIES = [path for path in sorted((ROOT / "benchmarks").rglob("*.toml"))
           if (ROOT / "reports" / path.relative_to(ROOT / "benchmarks").with_suffix("") / "records").is_dir()]
REFERENCES = [path for name, path in references.shipped().items()
              if (ROOT / "reports" / "verify" / name / "records").is_dir()]
OLDER = {"split_mnist_5k": {"er", "lora"}}  # rows whose records lack options that every key has had since
AMENDED = {"chaudhry-permuted-mnist": {"a-gem"}, "hsu-split-mnist": {"lwf"},  # cells that have other settings since
           "van-de-ven-permuted-mnist": {"ewc", "online-ewc"}, "van-de-ven-split-mnist": {"ewc", "online-ewc"}}
MODELS = files.default_data_dir() / "models"


def keys_of_records(folder):
    records, problems = Store(folder).read()
    assert records and not problems
    older = OLDER.get(folder.name, set()) | AMENDED.get(folder.name, set())
    return {record.key: record.label for record in records if record.label not in older}, records


def with_marks(path):
    """Return a parameter of a study, marked with what its network needs."""
    model = spec.read_toml(path)["model"]
    marks = []
    if model.startswith("timm:"):
        marks = [pytest.mark.extra("timm")]
    if model.startswith("hf:"):
        name = model.removeprefix("hf:").partition(":")[0].rpartition("/")[2]
        marks = [pytest.mark.extra("text") if (MODELS / name).is_dir() else pytest.mark.skip(
            f"no {name} in the data folder: benchmarks/texts/fetch.py brings it")]
    return pytest.param(path, marks=marks, id=path.stem)


@pytest.mark.parametrize("path", [with_marks(path) for path in STUDIES])
def test_a_study_plans_the_keys_of_its_records(path, monkeypatch):
    folder = ROOT / "reports" / path.relative_to(ROOT / "benchmarks").with_suffix("")
    recorded, records = keys_of_records(folder)
    trial = records[0].trial
    known = PretrainedInfo(trial.model.options.get("size"), trial.preprocessing)
    monkeypatch.setattr(planning, "find_weights", lambda *_: (trial.weights, known))  # which are not committed
    planned = planning.plan(spec.build(spec.read_toml(path), str(path)), discover())
    lost = recorded.keys() - {row.trial.key for row in planned}
    assert not lost, f"rows whose options have other defaults now: {sorted({recorded[key] for key in lost})}"


@pytest.mark.parametrize("path", REFERENCES, ids=lambda path: path.stem)
def test_a_reference_plans_the_keys_of_its_records(path):
    recorded, records = keys_of_records(ROOT / "reports" / "verify" / path.stem)
    reference = references.read_reference(path)
    seeds = 1 + max(record.trial.seed for record in records)
    planned = reference.plan(reference.cells, discover(), {"seeds": seeds})
    lost = recorded.keys() - {row.trial.key for rows in planned for row in rows}
    assert not lost, f"cells whose options have other defaults now: {sorted({recorded[key] for key in lost})}"
