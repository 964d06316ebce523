"""The benchmark `hf:NAME`: a data set that the library `datasets` reads from the Hugging Face Hub or a folder."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from clbench.core.errors import ClbenchError, DataError, MissingDataError, PluginError, list_names, typed_message
from clbench.data.own.benchmark import own_benchmark
from clbench.data.own.columns import feature_columns, index_note, label_candidates, label_column, labeled, numbers
from clbench.data.own.paths import files_below
from clbench.data.own.photos import read_photos
from clbench.data.own.samples import EXTRA, Labeled, Table, locate
from clbench.data.own.texts import length_note, texts_of, tokenized, tokenizer_files
from clbench.data.own_options import HubOptions
from clbench.data.raw import RawStream

TRAIN, TESTS = "train", ("test", "validation")
SAVED = ("dataset_dict.json", "state.json")  # a folder with one of them was written by save_to_disk
UNLABELED = -1  # the value of a ClassLabel in a test part whose labels are not published


def hub(name: str, options: HubOptions, data_dir: Path, seed: int) -> RawStream:
    """Return the stream of a data set of the `datasets` library.

    Raises:
        PluginError: the library is not installed.
        DataError: the library cannot load the data set, the data set has no images and no numbers as inputs, or
            `divide` raises an error.
    """
    where = f"benchmark {name!r}"
    train, test, notes = _parts(load(name, options, data_dir), where)
    label, label_notes = _label(train, options, where)
    needed = [column for column in (label, options.task_column, options.group, options.text_column) if column]
    if test is not None and (missing := [column for column in needed if column not in test.features]):
        raise DataError(f"{where}: its test part has no column {list_names(missing)}, only "
                        f"{list_names(test.features)}; take one part, as in split=train")
    if test is not None and _kind(test.features[label]) == "ClassLabel" and UNLABELED in test[label]:
        raise DataError(f"{where}: its test part is not labeled; take one part, as in split=train")
    parts = [part for part in (train, test) if part is not None]
    part_labels = [_read_labels(part, label, options, where) for part in parts]
    x, read_notes = _inputs(parts, label, options, where)
    return own_benchmark(x[0], part_labels[0], options, seed, where, x_test=x[1] if test is not None else None,
                         test=part_labels[1] if test is not None else None, augment=options.augmentation,
                         notes=[*notes, *label_notes, *read_notes])


def hub_files(name: str, options: Mapping[str, Any], data_dir: Path) -> list[Path]:
    """Return the files that are read: the files of a local folder, or the library's cache files of a data set."""
    tokenizer = tokenizer_files(options) if options.get("text_column") else []
    local, _ = _find_local(name, data_dir)
    if local is not None:
        local_files = [local] if local.is_file() else sorted(filter(Path.is_file, files_below(local)))
        return [*local_files, *tokenizer]
    loaded = load(name, HubOptions.stored(options), data_dir)
    parts = loaded.values() if isinstance(loaded, Mapping) else [loaded]
    files = chain.from_iterable(part.cache_files for part in parts)
    return [*(Path(file["filename"]) for file in files), *tokenizer]


def load(name: str, options: HubOptions, data_dir: Path) -> Any:
    """Return a data set, or several parts by name, as the library loads it; code of the data set is never run.

    Raises:
        PluginError: the library is not installed.
        DataError: the library cannot load the data set.
    """
    where = f"benchmark {name!r}"
    try:
        import datasets
    except ImportError as error:
        raise PluginError(f"{where} needs the library datasets, which is not installed: {EXTRA}") from error
    local_path, local_error = _find_local(name, data_dir)
    try:
        if local_path is not None and any((local_path / file).exists() for file in SAVED):
            loaded = datasets.load_from_disk(str(local_path))
            if options.config is not None:
                raise DataError(f"{where} was saved by save_to_disk, so it has no config; leave config out")
            if options.split is None:
                return loaded
            if not isinstance(loaded, Mapping):
                raise DataError(f"{where} was saved as a single part, so it has no splits; leave split out")
            if options.split not in loaded:
                raise DataError(f"{where} has no split {options.split!r}, only {list_names(loaded)}")
            return loaded[options.split]
        return datasets.load_dataset(str(local_path) if local_path is not None else name.partition(":")[2],
                                     options.config, split=options.split)
    except ClbenchError:
        raise
    except Exception as error:  # from the library, its readers or the network
        text = typed_message(error)
        raise (MissingDataError if local_error else DataError)(
            f"{local_error or f'{where}: '}the library datasets cannot load it: {text[:300]}") from error


def _find_local(name: str, data_dir: Path) -> tuple[Path | None, str]:
    """Return the folder or file that a name stands for, and an empty text.

    For a data set of the Hub, return None and the start of the error if the Hub does not have it either.
    """
    try:
        return locate(name, data_dir), ""
    except MissingDataError as error:
        return None, f"{error}; and "


def _parts(loaded: Any, where: str) -> tuple[Any, Any | None, list[str]]:
    """Return the training part (or the only part), the test part (or None), and notes."""
    if not isinstance(loaded, Mapping):
        return loaded, None, []
    names = list(loaded)
    if len(names) == 1:
        return loaded[names[0]], None, []
    tests = [n for n in TESTS if n in names]
    if TRAIN not in names:
        raise DataError(f"{where} has the splits {list_names(names)} and none named 'train'; choose one, as in "
                        f"split={names[0]}")
    notes = [] if tests[:1] == [TESTS[0]] else [f"the test part is the split {n!r}" for n in tests[:1]]
    if unused := [n for n in names if n not in (TRAIN, *tests[:1])]:
        notes.append(f"splits that were not used: {list_names(unused)}")
    return loaded[TRAIN], loaded[tests[0]] if tests else None, notes


def _label(train: Any, options: HubOptions, where: str) -> tuple[str, list[str]]:
    """Return the column of labels, and notes: the named one, else the only ClassLabel, else as in tables."""
    labels = [c for c in label_candidates(train.features, options) if _kind(train.features[c]) == "ClassLabel"]
    column, guesses = label_column(list(train.features), options, where)
    if guesses and len(labels) == 1:
        column, guesses = labels[0], []
    return column, [*index_note(train.features), *guesses]


def _read_labels(part: Any, label: str, options: HubOptions, where: str) -> Labeled:
    """Return labels, tasks and groups of a part; values of a ClassLabel are replaced by their names."""
    columns: dict[str, list[Any]] = {}
    classes: list[str] = []
    for column in filter(None, (label, options.task_column, options.group)):
        values, feature = list(part[column]), part.features[column]
        if _kind(feature) == "ClassLabel":
            names = [name.strip() for name in feature.names]
            values = [None if v is None or v == UNLABELED else names[v] for v in values]
            classes = list(dict.fromkeys(names)) if column == label else classes
        columns[column] = values
    return labeled(Table(columns), label, options, where, classes)


def _inputs(parts: Sequence[Any], label: str, options: HubOptions, where: str) -> tuple[list[Tensor], list[str]]:
    """Return the inputs of each part, and notes: the named texts, else the only column of images, else all numbers."""
    features = parts[0].features
    if (column := options.text_column) is not None:
        if column not in features:
            raise DataError(f"{where} has no column {column!r} of texts, only {list_names(features)}")
        return ([tokenized(texts_of(list(part[column]), where), options, where) for part in parts],
                [length_note(options)])
    feature_names = feature_columns(Table(dict.fromkeys(features, ())), label, options, where)
    image_columns = [c for c in feature_names if _kind(features[c]) == "Image"]
    if len(image_columns) > 1:
        raise DataError(f"{where} has several columns of images, {list_names(image_columns)}; leave all but one out "
                        f"(leave_out={'+'.join(image_columns[1:])})")
    other_columns = [c for c in feature_names if c not in image_columns]
    if image_columns:
        x, notes = _photos(parts, image_columns[0], options, where)
        return x, [*notes, *([f"columns that were not used: {list_names(other_columns)}"] if other_columns else [])]
    if text_columns := [c for c in feature_names if getattr(features[c], "dtype", "") in ("string", "large_string")]:
        raise DataError(f"{where}: {list_names(text_columns)} is text; name one for a model of text (text_column="
                        f"{text_columns[0]}), leave it out (leave_out={'+'.join(text_columns)}) or take columns of "
                        "images or numbers")
    tables = [Table({c: list(part[c]) for c in feature_names}) for part in parts]
    return [numbers(table, feature_names, where).float() for table in tables], [
        f"inputs are the columns {list_names(feature_names)}"]


def _photos(parts: Sequence[Any], column: str, options: HubOptions, where: str) -> tuple[list[Tensor], list[str]]:
    """Return the photos in a column, uint8 [N, C, H, W] of each part, and notes."""
    import datasets

    encoded = [list(part.cast_column(column, datasets.Image(decode=False))[column]) for part in parts]

    def open_image(source: Mapping[str, Any]) -> Image.Image:
        content = source["bytes"]
        return Image.open(io.BytesIO(content) if content is not None else source["path"])

    return read_photos(encoded, options, where, open_image, copies=2)  # they are divided into tasks later


def _kind(feature: Any) -> str:
    """Return the name of a feature's class."""
    return type(feature).__name__
