"""Write records as TensorBoard event files, with TensorBoard's own writer and without torch."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

from clbench.core.options import Options
from clbench.results import tracking
from clbench.results.records import Record


class TensorBoard:
    """Writes a run `<folder>/tensorboard/<label>-<scenario>-seed<seed>-<id>` for each record."""

    def __init__(self, _options: Options, folder: Path) -> None:
        """Import TensorBoard."""
        tracking.library("tensorboard.summary.writer.event_file_writer", "tensorboard", "tensorboard")
        self.folder = folder / "tensorboard"

    def log(self, record: Record) -> None:
        """Write the event file of a record; an existing run is complete and is not changed."""
        run_id = tracking.run_id(record)
        if any(self.folder.glob(f"*-{run_id}")):
            return
        unfinished = self.folder / f".{run_id}"
        shutil.rmtree(unfinished, ignore_errors=True)  # left by a process that was killed
        write(record, unfinished)
        os.replace(unfinished, self.folder / f"{re.sub(r'[^A-Za-z0-9.=]+', '-', tracking.run_name(record))}-{run_id}")


def write(record: Record, folder: Path) -> None:
    """Write an event file with hyperparameters, scalars by the number of learned tasks, and the trial's status."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import summary_v2
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    start_time = record.provenance.started.timestamp()
    steps = list(tracking.steps(record))
    last = steps[-1] if steps else tracking.Step(0, 0.0, {})
    writer = EventFileWriter(str(folder))
    try:
        head = summary_v2.hparams_pb(tracking.parameters(record), trial_id=record.key, start_time_secs=start_time)
        writer.add_event(Event(wall_time=start_time, summary=head))
        final_values = {f"final/{name}": value for name, value in tracking.final(record).items()}
        for step in (*steps, tracking.Step(last.tasks, last.seconds, final_values)):
            scalars = Summary(value=[Summary.Value(tag=name, simple_value=v) for name, v in step.values.items()])
            writer.add_event(Event(wall_time=start_time + step.seconds, step=step.tasks, summary=scalars))
        end = start_time + last.seconds
        writer.add_event(Event(wall_time=end, summary=ended(record.status == "done", end)))
    finally:
        writer.close()


def ended(well: bool, time: float) -> Any:
    """Return the summary that makes the table of hyperparameters show a run's final status.

    TensorBoard's own function for this (`hparams.summary.session_end_pb`) needs TensorFlow.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    status = api_pb2.Status.STATUS_SUCCESS if well else api_pb2.Status.STATUS_FAILURE
    info = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time)
    data = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=info))
    return Summary(value=[Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=data,
                                        tensor=metadata.NULL_TENSOR)])
