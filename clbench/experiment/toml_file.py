"""Write chosen options and their search into an experiment's file; the rest of it, including comments, stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clbench.core.compat import tomllib
from clbench.core.errors import ClbenchError, StoreError
from clbench.core.files import write_atomically
from clbench.experiment.search import Search
from clbench.experiment.spec import MethodSpec, Spec, build

LONG = ("outcomes", "tried")  # of a search: lists with a value on each line


def tomlkit() -> Any:
    """Return the library that writes TOML, which an extra brings."""
    try:
        import tomlkit
    except ImportError:
        raise ClbenchError("clbench tune needs tomlkit, which is not installed: pip install 'clbench[tune]'") from None
    return tomlkit


def write_tuned(path: Path, source: Path, methods: Sequence[MethodSpec], made: Search) -> Spec:
    """Write the experiment of a file with these methods and this search; earlier searches of other rows stay.

    Returns:
        The experiment that was written.

    Raises:
        StoreError: the file cannot be written.
    """
    toml = tomlkit()
    document = toml.parse(source.read_text())
    earlier = [s for s in document.unwrap().get("tuning", []) if not set(s["space"]) <= set(made.space)]
    for key in ("methods", "tuning"):
        document.pop(key, None)
    document["methods"] = _lines([_as_written(method) for method in methods])
    searches = toml.aot()
    for search in [*earlier, made.model_dump(mode="json", exclude_defaults=True)]:
        table = toml.item({key: value for key, value in search.items() if key not in LONG})
        for key in LONG:
            if key in search:
                table[key] = _lines(search[key])
        searches.append(table)
    document["tuning"] = searches
    text = toml.dumps(document)
    tuned = build(tomllib.loads(text))
    assert tuned.methods == tuple(methods)
    try:
        write_atomically(path, text)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
    return tuned


def _as_written(method: MethodSpec) -> str | dict[str, Any]:
    """Return a method as a user would write it."""
    values = method.model_dump(mode="json", exclude_defaults=True)
    return method.name if list(values) == ["name"] else values


def _lines(values: Sequence[Any]) -> Any:
    """Return a TOML array with a value on each line."""
    array = tomlkit().array()
    for value in values:
        array.append(_inline(value))
    return array.multiline(True)


def _inline(value: Any) -> Any:
    """Return a value that is written on one line."""
    toml = tomlkit()
    if not isinstance(value, Mapping):
        return toml.item(value)
    table = toml.inline_table()
    table.update({key: _inline(part) for key, part in value.items()})
    return table
