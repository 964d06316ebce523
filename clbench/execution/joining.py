"""Join the stream that a trial has learned with the stream of its new tasks, for `clbench continue`."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Literal

import torch

from clbench.core.errors import SpecError, list_names
from clbench.core.scenario import scenario_rules
from clbench.data.photo_samples import PhotoSamples
from clbench.data.samples import Samples
from clbench.data.stream import Stream, StreamTask, stored_inputs
from clbench.experiment.trial import Resolved, Trial
from clbench.persistence.snapshot import StreamOutline, make_noise_stream, names_of

Classes = Literal["same", "new"]  # whether new classes with the names of old classes are the same classes


def join_streams(outline: StreamOutline, earlier: Stream | None, more: Stream, trial: Trial,
                 classes: Classes | None) -> Stream:
    """Return a stream of the old tasks, with noise as training samples, followed by the new tasks.

    Raises:
        SpecError: the model cannot take the new samples, or their outputs are ambiguous.
    """
    refuse_samples(outline, more, trial.benchmark)
    outputs = outputs_of(outline, more, trial, classes)
    device, learned = more.tasks[0].test.y.device, len(outline.classes)
    tasks = list(make_noise_stream(outline).to(device).tasks)
    if earlier is not None:
        tasks = [replace(noise, test=_in_memory(task.test), class_names=task.class_names,
                         train_class_names=task.class_names)
                 for noise, task in zip(tasks, earlier.tasks, strict=True)]
    table = torch.tensor(outputs, device=device)
    for task in more.tasks:
        train, test = (part.relabeled(table[part.y], part.tasks + learned)
                       for part in (task.train, _in_memory(task.test)))
        tasks.append(StreamTask(tuple(outputs[output] for output in task.classes), train, test, task.class_names))
    return replace(more, tasks=tuple(tasks), classes=max(outline.outputs, max(outputs) + 1), prepare=outline.prepare)


def _in_memory(tests: Samples) -> Samples:
    """Return test samples whose photos are decoded, because photos of several benchmarks are joined only in memory."""
    return tests.take(torch.arange(len(tests))) if isinstance(tests, PhotoSamples) else tests


CONVERSIONS = {"uint8": 'x = (255 * x).round().clip(0, 255).astype("uint8"), if they are from 0 to 1',
               "float32": 'x = x.astype("float32") / 255, if the old ones are from 0 to 1'}  # by dtype


def refuse_samples(outline: StreamOutline, more: Stream, benchmark: Resolved) -> None:
    """Raise a SpecError that describes the required conversion if a model cannot take the new samples."""
    raw = stored_inputs(more.tasks[0].test)
    dtype, shape = str(raw.dtype).removeprefix("torch."), list(raw.shape[1:])
    mismatch = f"benchmark {benchmark.name} has samples {shape} ({dtype}), the model takes {outline.sample_shape} " \
               f"({outline.sample_dtype})"
    if shape != outline.sample_shape or list(more.input_shape) != outline.input_shape or more.is_text != (
            outline.sample_dtype == "int32"):
        resizable = "size" in benchmark.options and dtype == outline.sample_dtype == "uint8"
        if resizable and outline.sample_shape == [shape[0], outline.sample_shape[-1], outline.sample_shape[-1]]:
            raise SpecError(f"{mismatch}; add :size={outline.sample_shape[-1]} to the benchmark, which resizes them")
        raise SpecError(f"{mismatch}; choose a benchmark with the same")
    if (dtype == "uint8") != (outline.sample_dtype == "uint8"):
        raise SpecError(f"{mismatch}; convert the new ones: {CONVERSIONS[outline.sample_dtype]}")


def outputs_of(outline: StreamOutline, more: Stream, trial: Trial, classes: Classes | None) -> list[int]:
    """Return the index of the model's output for each class of the new stream, in the order of its class numbers.

    Raises:
        SpecError: new classes have the names of old ones and `classes` is None, or `classes` does not fit the scenario
            or the names.
    """
    benchmark = f"benchmark {trial.benchmark.name}"
    if scenario_rules(trial.scenario).shared_outputs:
        if classes == "new":
            raise SpecError(f"scenario {trial.scenario} has no outputs for new classes; leave --new-classes out")
        if more.classes != outline.outputs:
            raise SpecError(f"{benchmark} has {more.classes} classes, and all tasks of scenario {trial.scenario} share "
                            f"the {outline.outputs} outputs of the model; choose a benchmark with {outline.outputs} "
                            "classes")
        return _shared_outputs(outline.class_names, names_of(more), benchmark, classes)
    names = names_of(more)
    shared = [name for name in names if name in outline.class_names]
    examples = f"{', '.join(shared[:3])}{', ...' if len(shared) > 3 else ''}"
    if shared and classes is None:
        raise SpecError(f"{benchmark} has classes with the names of old ones ({examples}); say whether they train the "
                        "old outputs (--same-classes) or get new outputs (--new-classes)")
    if classes != "same":
        return [outline.outputs + output for output in range(more.classes)]
    if not shared:
        raise SpecError(f"{benchmark} has no class with the name of an old one ({', '.join(outline.class_names[:3])}, "
                        "...); leave --same-classes out")
    if any(names.count(name) > 1 or outline.class_names.count(name) > 1 for name in shared):
        raise SpecError(f"{benchmark}: several outputs have one name ({examples}), so --same-classes does not say "
                        "which are the same; use --new-classes")
    new_outputs = itertools.count(outline.outputs)
    return [outline.class_names.index(name) if name in shared else next(new_outputs) for name in names]


def _shared_outputs(old_names: list[str], names: list[str], benchmark: str, classes: Classes | None) -> list[int]:
    """Return the output of each new class if all tasks share the outputs; errors as in `outputs_of`."""
    if classes is None:
        if names != old_names and sorted(names) == sorted(old_names):
            raise SpecError(f"{benchmark} has the old classes in another order ({', '.join(names[:3])}; the model has "
                            f"{', '.join(old_names[:3])}); pass --same-classes to match them by name")
        return list(range(len(names)))
    if len(set(old_names)) < len(old_names) or sorted(names) != sorted(old_names):
        unknown_names = [name for name in names if name not in old_names] or old_names
        raise SpecError(f"{benchmark} has classes whose names do not match those of the model "
                        f"({', '.join(unknown_names[:3])}); leave --same-classes out to match them by position")
    return [old_names.index(name) for name in names]


def describe_matches(outline: StreamOutline, more: Stream, trial: Trial, classes: Classes | None) -> str:
    """Return a note on new classes that get the outputs of old ones with other names; empty if there are none."""
    matches = [f"{new} = {old}" for new, old in zip(names_of(more), outline.class_names, strict=False) if new != old]
    if classes is not None or not matches or not scenario_rules(trial.scenario).shared_outputs:
        return ""
    return f"new classes get the outputs of old ones by position: {list_names(matches)}"
