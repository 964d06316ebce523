"""`--log mlflow`: an MLflow database in the run folder."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from clbench import Options, TrackerInfo, hookimpl


class MLflowOptions(Options):
    """Options of `mlflow`."""

    experiment: str = Field("clbench", description="name of the MLflow experiment that the runs belong to")


@hookimpl
def clbench_trackers() -> Sequence[TrackerInfo]:
    """Declare the tracker."""
    return (TrackerInfo("mlflow", "clbench_mlflow.tracker:MLflow",
                        "writes MLflow runs to the run folder's mlflow.db (SQLite)", MLflowOptions),)
