"""The benchmark `instructions:PATH`: prompts and responses as tokens, with a file or a folder for each task.

PATH is a folder that has for each task NAME.jsonl, of which a share is held out as the test, or a folder NAME with
train.jsonl and test.jsonl. The files can also be .json files. Other files are not tasks. PATH can also be a single
file, in which a field names the task of each item.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clbench.core import seeds, tokens
from clbench.core.errors import DataError
from clbench.core.files import readable_name
from clbench.core.objective import CAUSAL_LM
from clbench.data.own.dividing import held_out_count, listed_positions
from clbench.data.own.instruction_tokens import ItemTokenizer, Tokenized, show_scored
from clbench.data.own.instructions import Item, read_items
from clbench.data.own.paths import data_files, files_by_stem
from clbench.data.own.samples import locate, sort_names
from clbench.data.own.texts import tokenizer_files
from clbench.data.own_options import InstructionOptions
from clbench.data.raw import RawStream, Split
from clbench.data.stream import Stream
from clbench.models.causal_lm import load_tokenizer
from clbench.models.hf_files import folder_of
from clbench.models.scoring import IGNORED, MULTIPLE, TokenItem, round_up

SUFFIXES = (".jsonl", ".json")


@dataclass(frozen=True)
class TaskItems:
    """The items of a task."""

    name: str
    train: list[Item]
    test: list[Item]


def instructions(name: str, options: InstructionOptions, data_dir: Path, seed: int) -> RawStream:
    """Return the stream of the tasks of a folder or a file; it does not depend on the seed.

    Raises:
        DataError: a file cannot be read, a task lacks items, or an item does not fit into `length` tokens.
    """
    where = f"benchmark {name!r}"
    tasks = _order_tasks(_read_tasks(locate(name, data_dir), options, where), options, where)
    if not options.tokenizer:
        raise DataError(f"{where}: no tokenizer is chosen; a model hf:NAME brings its own, else give tokenizer=NAME")
    tokenizer = ItemTokenizer(load_tokenizer(folder_of(options.tokenizer)), options.length, options.cut_responses)
    parts = [[tokenizer.tokenize(items) for items in (task.train, task.test)] for task in tasks]
    items = [item for pair in parts for part in pair for item in part.items]
    length = min(options.length, round_up(max(len(item.ids) for item in items), MULTIPLE))
    train, test = ([Split(*as_tensors(pair[i].items, length)) for pair in parts] for i in (0, 1))
    return RawStream(tuple(train), tuple(test), ((),) * len(tasks), objective=CAUSAL_LM.name,
                     task_names=tuple(task.name for task in tasks),
                     notes=tuple([f"items: at most {length} tokens of the tokenizer {options.tokenizer}",
                                  *_notes(parts)]))


def as_tensors(items: Sequence[TokenItem], length: int) -> tuple[Tensor, Tensor]:
    """Return tokens and labels, both int32 [N, L]; a label is the token itself if it is scored, else -100."""
    x = torch.full((len(items), length), tokens.NO_TOKEN, dtype=tokens.DTYPE)
    y = torch.full((len(items), length), IGNORED, dtype=tokens.DTYPE)
    for row, item in enumerate(items):
        x[row, :len(item.ids)] = torch.tensor(item.ids, dtype=tokens.DTYPE)
        scored = torch.tensor(item.scored)
        y[row, scored] = x[row, scored]
    return x, y


def instruction_files(name: str, options: Mapping[str, Any], data_dir: Path) -> list[Path]:
    """Return the files of a benchmark `instructions:...`, including those of its tokenizer."""
    template = sorted(folder_of(options["tokenizer"]).glob("*.jinja"))
    return [*data_files(locate(name, data_dir), SUFFIXES), *tokenizer_files(options), *template]


def _read_tasks(place: Path, options: InstructionOptions, where: str) -> list[TaskItems]:
    """Return the tasks of a file or a folder."""
    if place.is_file():
        return list(_tasks_of_file(place, options, where))
    if options.task_column is not None:
        raise DataError(f"{where}: task_column is of one file, and {place} is a folder with a file or folder for each "
                        "task; leave it out")
    task_files = files_by_stem(place, SUFFIXES, where)
    if {"train", "test"} <= task_files.keys():
        raise DataError(f"{where}: {place} has the files train and test, which would be two tasks; put them into a "
                        "folder with the name of their task")
    tasks = [_hold_out(stem, read_items(path), options, where) for stem, path in task_files.items()]
    for folder in sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith(".")):
        files = files_by_stem(folder, SUFFIXES, where)
        train, test = files.get("train"), files.get("test")
        if train is not None and test is not None:
            tasks.append(TaskItems(readable_name(folder.name), read_items(train), read_items(test)))
        elif train is not None or test is not None:
            raise DataError(f"{where}: {folder} has no {'test' if test is None else 'train'}.jsonl next to its "
                            f"{'train' if test is None else 'test'} file")
    names = [task.name for task in tasks]
    if duplicates := [name for name in names if names.count(name) > 1]:
        raise DataError(f"{where}: {place} has the task {duplicates[0]!r} twice")
    if not tasks:
        raise DataError(f"{where}: {place} has no tasks; expected for each task NAME.jsonl, or NAME/train.jsonl and "
                        "NAME/test.jsonl")
    return tasks


def _tasks_of_file(path: Path, options: InstructionOptions, where: str) -> Iterator[TaskItems]:
    """Yield the tasks that a field of a file names."""
    if options.task_column is None:
        raise DataError(f"{where}: one file needs task_column=FIELD, which names each item's task; or name a folder "
                        "with a file for each task")
    items_by_task: dict[str, list[Item]] = {}
    for item in read_items(path, options.task_column):
        items_by_task.setdefault(getattr(item, "task", ""), []).append(item)
    for name, items in items_by_task.items():
        yield _hold_out(name, items, options, where)


def _hold_out(name: str, items: list[Item], options: InstructionOptions, where: str) -> TaskItems:
    """Return a task with a share of its items held out as the test, the same items for every seed."""
    count = held_out_count(len(items), options.held_out)
    if count < 1:
        raise DataError(f"{where}: task {name!r} has one item only; it needs one to train on and one to test")
    order = torch.randperm(len(items), generator=seeds.generator(0, "held out", len(items))).tolist()
    test = set(order[:count])
    return TaskItems(name, [item for i, item in enumerate(items) if i not in test],
                     [item for i, item in enumerate(items) if i in test])


def _order_tasks(tasks: list[TaskItems], options: InstructionOptions, where: str) -> list[TaskItems]:
    """Return tasks in the order of the options, or by name."""
    by_name = {task.name: task for task in tasks}
    names = sort_names(by_name)
    if options.tasks_in_order:
        names = [names[i] for i in listed_positions(options.tasks_in_order, names, "tasks_in_order", where)]
    return [by_name[name] for name in names]


def _notes(parts: Sequence[Sequence[Tokenized]]) -> Iterator[str]:
    """Yield notes for the user: on items that were cut, and on test items that are copies of training items."""
    counts = ("cut_prompts", "cut_responses", "unscored_turns")
    yield from Tokenized((), **{name: sum(getattr(part, name) for pair in parts for part in pair)
                                for name in counts}).notes()
    train_ids = {item.ids for pair in parts for item in pair[0].items}
    test_items = [item for pair in parts for item in pair[1].items]
    copy_count = sum(item.ids in train_ids for item in test_items)
    if copy_count:
        yield f"{copy_count} of {len(test_items)} test items are exact copies of training items"


def examples(stream: Stream, tokenizer: str) -> Iterator[str]:
    """Yield the first training item of each task as text, with its scored tokens marked."""
    loaded = load_tokenizer(folder_of(tokenizer))
    for name, task in zip(stream.task_names, stream.tasks, strict=True):
        x, y = task.train.x[0], task.train.y[0]
        item = TokenItem(tuple(x[x >= 0].tolist()), tuple((y != IGNORED).nonzero().flatten().tolist()))
        yield f"task {name}, the first of {len(task.train)} items, scored tokens marked:\n{show_scored(item, loaded)}"
