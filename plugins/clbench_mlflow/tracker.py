"""Write records as MLflow runs to a SQLite file.

`mlflow ui --backend-store-uri sqlite:///<run folder>/mlflow.db` shows them.

MLflow's file store is in maintenance mode, and from 3.7 on it needs an explicit opt-in.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any

from clbench.results import tracking
from clbench.results.records import Record
from clbench_mlflow import MLflowOptions

RUN = "clbench.run"  # the tag that identifies the run of a trial
ENDS = {"done": "FINISHED", "diverged": "FAILED", "failed": "FAILED"}


class MLflow:
    """Writes a run of `<folder>/mlflow.db` for each record."""

    def __init__(self, options: MLflowOptions, folder: Path) -> None:
        """Import MLflow, with its usage reports disabled. The database is created with the first record."""
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # otherwise it logs every table that it creates
        for module in ("sqlalchemy", "alembic"):  # mlflow-skinny does not include these
            tracking.library(module, "mlflow", "'clbench[mlflow]'")
        self.mlflow = tracking.library("mlflow", "mlflow", "'clbench[mlflow]'")
        self.options = options
        self.folder = folder

    @cached_property
    def client(self) -> Any:
        """Return the client of the run folder's database, even if the environment names a server."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.mlflow.MlflowClient(f"sqlite:///{(self.folder / 'mlflow.db').absolute()}")

    @cached_property
    def experiment(self) -> str:
        """Return the ID of the experiment. If needed, create it, with its artifacts in the run folder."""
        experiment = self.client.get_experiment_by_name(self.options.experiment)
        if experiment is not None:
            return str(experiment.experiment_id)
        return str(self.client.create_experiment(self.options.experiment,
                                                 (self.folder / "mlflow-artifacts").absolute().as_uri()))

    def log(self, record: Record) -> None:
        """Write the run of a record; an incomplete run is deleted and written again."""
        from mlflow.entities import Metric, Param

        run_id = tracking.run_id(record)
        for run in self.client.search_runs([self.experiment], f"tags.`{RUN}` = '{run_id}'"):
            if run.info.status in ENDS.values():
                return
            self.client.delete_run(run.info.run_id)
        start_time = round(1000 * record.provenance.started.timestamp())
        origin = {"key": record.key, "status": record.status, "plugin": record.provenance.plugin,
                  "device": record.provenance.device, "command": record.provenance.command}
        run = self.client.create_run(self.experiment, start_time=start_time, run_name=tracking.run_name(record),
                                     tags={RUN: run_id, **{f"clbench.{name}": text for name, text in origin.items()}})
        steps = list(tracking.steps(record))
        end = start_time + round(1000 * steps[-1].seconds) if steps else start_time
        values = []
        for step in steps:
            timestamp = start_time + round(1000 * step.seconds)
            values += [Metric(name, value, timestamp, step.tasks) for name, value in step.values.items()]
        values += [Metric(name, value, end, steps[-1].tasks) for name, value in tracking.final(record).items()]
        for start in range(0, len(values), BATCH):
            self.client.log_batch(run.info.run_id, metrics=values[start:start + BATCH])
        self.client.log_batch(run.info.run_id, params=[Param(name, str(value))
                                                       for name, value in tracking.parameters(record).items()])
        self.client.set_terminated(run.info.run_id, ENDS[record.status], end)


BATCH = 1000  # metrics that log_batch takes at once; a record has fewer than 100 parameters
