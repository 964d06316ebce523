"""Each tracker's logs, read back with the library's own reader, are the records."""

import os
import socket
import struct
from datetime import timedelta

import pytest
from helpers.records import make_record

from clbench.core.registry import discover
from clbench.results import tracking
from clbench.results.records import Costs, Timings

RECORDS = {
    "done": make_record("ewc", 3, label="ewc:strength=10", options={"strength": 10.0, "gamma": None}),
    "diverged": make_record("ewc", 4, status="diverged"),
    "failed": make_record("lora", 5, status="failed").model_copy(
        update={"R": [], "stream": None, "costs": Costs(), "timings": Timings()}),
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Refuse every connection but those to a Unix socket or to this machine."""
    connect = socket.socket.connect

    def only_here(self, address):
        assert not isinstance(address, tuple) or address[0] in ("127.0.0.1", "::1", "localhost"), address
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", only_here)


def log(name, folder):
    """Log all records twice, each time by a tracker of its own."""
    for _ in range(2):
        tracker = tracking.start(name, discover(), folder)[name.partition(":")[0]]
        for record in RECORDS.values():
            tracker.log(record)


def series(record):
    """Return (step, value) pairs by name."""
    found = {}
    for step in tracking.steps(record):
        for name, value in step.values.items():
            found.setdefault(name, []).append((step.tasks, value))
    return found


def test_tensorboard_has_the_records(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

    log("tensorboard", tmp_path)
    folders = {p.name: p for p in (tmp_path / "tensorboard").iterdir()}
    assert len(folders) == 3
    for status, record in RECORDS.items():
        name = f"{record.label.replace(':', '-')}-task-seed-{record.trial.seed}-{tracking.run_id(record)}"
        events = EventAccumulator(str(folders[name]))
        events.Reload()
        wanted = series(record) | {f"final/{k}": [(3, v)] for k, v in tracking.final(record).items()}
        assert set(events.Tags()["scalars"]) == set(wanted)
        for tag, pairs in wanted.items():
            scalars = events.Scalars(tag)
            assert [s.step for s in scalars] == [step for step, _ in pairs]
            assert [s.value for s in scalars] == pytest.approx([v for _, v in pairs], rel=1e-6)
        began = record.provenance.started.timestamp()
        if status != "failed":
            assert events.Scalars("accuracy/task1")[-1].wall_time == pytest.approx(
                began + list(tracking.steps(record))[-1].seconds)
        start, end = (plugin_data_pb2.HParamsPluginData.FromString(raw) for _, raw in
                      sorted(events.PluginTagToContent("hparams").items(), reverse=True))
        assert start.session_start_info.start_time_secs == began
        assert start.session_start_info.hparams["method"].string_value == record.trial.method.name
        assert start.session_start_info.hparams["recipe.lr"].number_value == record.trial.recipe.lr
        assert end.session_end_info.status == (api_pb2.STATUS_SUCCESS if status == "done" else api_pb2.STATUS_FAILURE)


def test_what_a_killed_tensorboard_tracker_left_is_written_anew(tmp_path):
    record = RECORDS["done"]
    half = tmp_path / "tensorboard" / f".{tracking.run_id(record)}"
    half.mkdir(parents=True)
    (half / "events.out.tfevents.1").write_text("cut off")
    tracking.start("tensorboard", discover(), tmp_path)["tensorboard"].log(record)
    whole, = (tmp_path / "tensorboard").iterdir()
    assert len(list(whole.iterdir())) == 1
    assert whole.name.startswith("ewc-strength=10-task-seed-3-")


def wandb_records(path):
    """Read a .wandb file: W&B's protocol buffers in LevelDB's log format (blocks of 32 kB, chunks of a record)."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # W&B's own process may write the last of a file some milliseconds after its run is finished

    data, position, parts = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while position + 7 <= len(data):
        length, kind = struct.unpack("<HB", data[position + 4:position + 7])
        if kind == 0:  # the rest of a block
            position += 32768 - position % 32768
            continue
        parts += data[position + 7:position + 7 + length]
        position += 7 + length
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
        if kind in (1, 4):  # full, last
            yield Record.FromString(parts)
            parts = b""


@pytest.mark.extra("wandb")
@pytest.mark.slow
def test_wandb_has_the_records_offline(tmp_path, monkeypatch):
    import json

    monkeypatch.setenv("WANDB_MODE", "online")  # whatever the environment says
    log("wandb:project=mine", tmp_path)
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"
    for status, record in RECORDS.items():
        own = tracking.run_id(record)
        file, = (tmp_path / "wandb").glob(f"offline-run-*-{own}/run-{own}.wandb")
        told = list(wandb_records(file))
        run = next(r.run for r in told if r.HasField("run"))
        assert (run.run_id, run.project, run.display_name) == (own, "mine", tracking.run_name(record))
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        assert tracking.parameters(record).items() <= config.items()
        assert config["key"] == record.key
        found = {}
        for r in told:
            if r.HasField("history"):
                values = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in r.history.item}
                for name in values.keys() - {"_step", "_runtime", "_timestamp"}:
                    found.setdefault(name, []).append((values["_step"], values[name]))
        assert found == series(record)
        summary = {i.key or "/".join(i.nested_key): json.loads(i.value_json)
                   for r in told if r.HasField("summary") for i in r.summary.update}
        assert summary.items() >= {**tracking.final(record), "status": status}.items()
        assert next(r.exit.exit_code for r in told if r.HasField("exit")) == (status != "done")


@pytest.mark.extra("wandb")
def test_what_a_killed_wandb_tracker_left_is_written_anew(tmp_path):
    record = RECORDS["done"]
    own = tracking.run_id(record)
    half = tmp_path / "wandb" / f"offline-run-20260101_000000-{own}"
    half.mkdir(parents=True)
    (half / f"run-{own}.wandb").write_text("cut off")
    tracking.start("wandb", discover(), tmp_path)["wandb"].log(record)
    whole, = (tmp_path / "wandb").glob(f"offline-run-*-{own}")
    run = next(r.run for r in wandb_records(whole / f"run-{own}.wandb") if r.HasField("run"))
    assert (run.run_id, run.run_group) == (own, tracking.group_name(record))


@pytest.mark.extra("mlflow")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what MLflow asks of SQLAlchemy
def test_mlflow_has_the_records(tmp_path, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://192.0.2.1")  # whatever the environment says
    log("mlflow:experiment=mine", tmp_path)
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("mine")
    assert experiment.artifact_location == (tmp_path / "mlflow-artifacts").as_uri()
    runs = {r.data.tags["clbench.key"]: r for r in client.search_runs([experiment.experiment_id])}
    assert len(runs) == 3
    for status, record in RECORDS.items():
        run = runs[record.key]
        assert run.info.run_name == tracking.run_name(record)
        assert run.info.status == ("FINISHED" if status == "done" else "FAILED")
        assert run.data.tags["clbench.status"] == status
        assert run.data.params == {name: str(value) for name, value in tracking.parameters(record).items()}
        wanted = series(record) | {name: [(3, v)] for name, v in tracking.final(record).items()}
        found = {name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
                 for name in run.data.metrics}
        assert found == wanted
        took = [step.seconds for step in tracking.steps(record)]
        end = record.provenance.started + timedelta(seconds=max(took, default=0))
        assert run.info.end_time == pytest.approx(1000 * end.timestamp(), abs=1)
