"""`--log wandb`: Weights & Biases runs in the run folder, offline."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from clbench import Options, TrackerInfo, hookimpl


class WandBOptions(Options):
    """Options of `wandb`."""

    project: str = Field("clbench", description="name of the project that wandb sync uploads the runs to")


@hookimpl
def clbench_trackers() -> Sequence[TrackerInfo]:
    """Declare the tracker."""
    return (TrackerInfo("wandb", "clbench_wandb.tracker:WandB", "writes W&B runs to the run folder's wandb/; "
                        "wandb sync uploads them", WandBOptions),)
