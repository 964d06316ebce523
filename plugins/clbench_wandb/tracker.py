"""Write records as offline runs of Weights & Biases; `wandb sync <run folder>/wandb/offline-run-*` uploads them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from clbench.results import tracking
from clbench.results.records import Record
from clbench_wandb import WandBOptions

WHOLE = "clbench-whole"  # an empty file in the folder of a run that was finished; wandb sync does not send it


class WandB:
    """Writes a run `<folder>/wandb/offline-run-<time>-<id>` for each record."""

    def __init__(self, options: WandBOptions, folder: Path) -> None:
        """Import wandb, with its error reports disabled."""
        os.environ["WANDB_ERROR_REPORTING"] = "false"
        self.wandb = tracking.library("wandb", "wandb", "'clbench[wandb]'")
        self.options = options
        self.folder = folder

    def log(self, record: Record) -> None:
        """Write the run of a record; an incomplete run is deleted and written again."""
        run_id = tracking.run_id(record)
        for folder in list((self.folder / "wandb").glob(f"offline-run-*-{run_id}")):
            if (folder / WHOLE).exists():
                return
            shutil.rmtree(folder)
        # The trial is over, so facts about this process would say nothing about it.
        settings = self.wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True,
                                       x_disable_stats=True, x_disable_meta=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        run = self.wandb.init(
            mode="offline", dir=str(self.folder), project=self.options.project, id=run_id, settings=settings,
            name=tracking.run_name(record), group=tracking.group_name(record),
            config={**tracking.parameters(record), "key": record.key, "plugin": record.provenance.plugin,
                    "device": record.provenance.device, "command": record.provenance.command}, reinit="create_new")
        for step in tracking.steps(record):
            run.log(dict(step.values), step=step.tasks)
        run.summary.update({**tracking.final(record), "status": record.status})
        run.finish(exit_code=0 if record.status == "done" else 1)
        (Path(run.dir).parent / WHOLE).touch()
