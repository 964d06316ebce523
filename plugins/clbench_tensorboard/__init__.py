"""`--log tensorboard`: event files in the run folder."""

from __future__ import annotations

from collections.abc import Sequence

from clbench import TrackerInfo, hookimpl


@hookimpl
def clbench_trackers() -> Sequence[TrackerInfo]:
    """Declare the tracker."""
    return (TrackerInfo("tensorboard", "clbench_tensorboard.tracker:TensorBoard",
                        "writes curves and hyperparameters to the run folder's tensorboard/"),)
