"""Override the settings of an experiment file: by flags or Python arguments, or by tuned options in a new file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from clbench.core.compat import tomllib
from clbench.core.errors import ClbenchError, SpecError, StoreError
from clbench.core.files import write_atomically
from clbench.core.options import format_value, parse_value
from clbench.core.registry import Registry, installed
from clbench.experiment.recipe import BUDGET, Recipe, combine
from clbench.experiment.search import Search
from clbench.experiment.spec import TABLES, MethodSpec, Spec, build, read_toml, split_names
from clbench.experiment.sweeps import expand
from clbench.experiment.trial import Resolved

LONG = ("outcomes", "tried")  # keys of a search whose lists are written with one value per line
Note = Callable[[str], None]


def merge(values: Mapping[str, Any], given: Mapping[str, Any], registry: Registry | None = None,
          note: Note | None = None) -> dict[str, Any]:
    """Return the values of a file, overridden by `given`; None means not given.

    `given` is flat: the keys of the recipe, of the arrival and of the execution settings are on the same level as the
    others. A budget in epochs replaces one in iterations and vice versa; `online` replaces both and the batch size.
    What belonged to other replaced parts of the recipe is removed (`combine`).

    A method may be given by its name, its label, or either with options as in tables. If the file has this method, or a
    row of its sweep, the method of the file with its recipe is used. If not, the method is added; `note` is called
    with a message if the file has a method of the same name. `registry` has the installed methods (None: `installed`).
    """
    out = dict(values)
    if given.get("online") and isinstance(out.get("recipe"), Mapping):  # it replaces the file's budget
        out["recipe"] = {k: v for k, v in out["recipe"].items() if k not in BUDGET}
    if isinstance(out.get("recipe"), Mapping):
        out["recipe"] = combine(out["recipe"], {k: v for k, v in given.items()
                                                if k in Recipe.model_fields and v is not None})
    for key, value in given.items():
        if value is None:
            continue
        table = next((name for name, model in TABLES.items() if key in model.model_fields), None)
        if table:
            table_values = out.get(table, {})
            if not isinstance(table_values, Mapping):
                continue  # a mistake in the file, which validation reports
            out[table] = {**table_values, key: value}
        elif key == "methods":
            out["methods"] = _pick(values.get("methods"), value, registry, note)
        else:
            out[key] = value
    return out


def _pick(known: Any, wanted: Any, registry: Registry | None, note: Note | None) -> Any:
    """Replace names among the wanted methods with the file's methods that have these names, or rows of their sweeps."""
    known, wanted = map(split_names, (known, wanted))
    if not isinstance(known, list | tuple) or not isinstance(wanted, list | tuple):
        return wanted
    chosen: list[Any] = []
    for method in wanted:
        matches = [k for k in known if isinstance(method, str) and (method in _calls(k) or _denotes(method, k))]
        if isinstance(method, str) and not matches:
            matches = _pick_rows(method, known, registry or installed(), note)
        chosen += [k for k in matches if k not in chosen] if matches else [method]
    return chosen


def _pick_rows(text: str, known: Sequence[Any], registry: Registry, note: Note | None) -> list[MethodSpec]:
    """Return the rows of the file's sweeps that a text means; each is the file's method with one value per option."""
    wanted = _parse(text)
    matches, other_rows = [], []
    for method in filter(None, map(_parse, known)):
        if wanted is None or wanted.name not in (method.name, method.label):
            continue
        for row, swept in expand([method], registry, []):
            values = {name: row.given[name] for name in swept}
            if _same_method(wanted, row) or (wanted.name == method.label and wanted.given == values):
                # A list with one value, so that the label of the row stays the same.
                matches.append(method.with_options(method.given | {name: [value] for name, value in values.items()}))
            other_rows.append(row.label or _full_name(row))
    if note and other_rows and not matches:
        note(f"{text} is none of the file's methods ({', '.join(other_rows)}), so it is added, with the experiment's "
             "recipe and scenarios")
    return matches


def _calls(method: Any) -> set[str]:
    """Return the names by which an unparsed method of a file can be selected."""
    if isinstance(method, str):
        return {method, method.partition(":")[0]}
    return {str(method[k]) for k in ("label", "name") if k in method} if isinstance(method, Mapping) else set()


def _parse(method: Any) -> MethodSpec | None:
    """Return an unparsed method as a `MethodSpec`; None for a mistake, which the experiment's validation reports."""
    try:
        return MethodSpec.model_validate(method)
    except ValidationError:
        return None


def _denotes(text: str, method: Any) -> bool:
    """Return whether a text means an unparsed method of a file."""
    wanted, file_method = _parse(text), _parse(method)
    return wanted is not None and file_method is not None and _same_method(wanted, file_method)


def _same_method(wanted: MethodSpec, method: MethodSpec) -> bool:
    """Return whether two methods have the same name and options, and `wanted` has the same or no recipe."""
    wanted_options, options = ({name.replace("-", "_"): format_value(value) if isinstance(value, list) else value
                                for name, value in m.options.items()} for m in (wanted, method))
    return wanted.name == method.name and wanted_options == options and wanted.recipe in ({}, method.recipe)


def set_options(spec: Spec, settings: Mapping[str, Any] | Iterable[str]) -> Spec:
    """Apply `METHOD.OPTION=VALUE` settings to every method with that label or strategy name.

    The keys of a mapping are `METHOD.OPTION`. If an option has several values, the plan makes a row of each
    (`clbench.experiment.sweeps`).

    Raises:
        SpecError: a setting does not have that form or names no method of the experiment; a line for each mistake.
    """
    methods, problems = list(spec.methods), []
    # The settings of a row are applied together, because one can remove what another sets (`combine`).
    changes_by_row: list[dict[str, Any]] = [{} for _ in methods]
    for setting in settings:
        # A setting changes the name of a row that is written with its options; the first name stays valid.
        names_by_row = [names_of(old) | names_of(new) for old, new in zip(spec.methods, methods, strict=True)]
        names = set(chain.from_iterable(names_by_row))
        fitting = [name for name in names if setting.startswith(f"{name}.")]
        target = max(fitting, key=len, default=setting.partition("=")[0].rpartition(".")[0])
        option, eq, text = setting[len(target) + 1:].partition("=")
        value = _to_python(settings[setting]) if isinstance(settings, Mapping) else parse_value(text)
        if not (target and option) or bool(eq) == isinstance(settings, Mapping):
            problems.append(f"--set {setting}: expected METHOD.OPTION=VALUE, e.g. lora.rank=4")
        elif target not in names:
            problems.append(f"--set {setting}: the experiment has no method {target!r}; its methods are "
                            + ", ".join(sorted(names)))
        else:
            for own_names, changes in zip(names_by_row, changes_by_row, strict=True):
                if target in own_names:
                    changes[option.strip().replace("-", "_")] = value
            methods = [m.with_options(changes) for m, changes in zip(spec.methods, changes_by_row, strict=True)]
    if problems:
        raise SpecError("\n".join(problems))
    return spec.model_copy(update={"methods": tuple(methods)})


def _to_python(value: Any) -> Any:
    """Return a range, or an array or number of NumPy, as a list or number of Python; other values as they are."""
    return list(value) if isinstance(value, range) else value.tolist() if hasattr(value, "tolist") else value


def names_of(method: MethodSpec) -> set[str]:
    """Return the names that select a method: its label, its strategy's name, and the name with options as given."""
    return {name for name in (method.label, method.name, _full_name(method)) if name}


def _full_name(method: MethodSpec) -> str:
    """Return a method's name with its options as given."""
    return str(Resolved(name=method.name, options=method.given))


def read_spec(source: Path | None, values: Mapping[str, Any], given: Mapping[str, Any],
              options: Mapping[str, Any] | Iterable[str], registry: Registry | None = None,
              note: Note | None = None) -> Spec:
    """Return the experiment of a file (or of `values`), overridden by `given` and `options`.

    `registry` and `note` are those of `merge`.

    Raises:
        SpecError: it is not a valid experiment; the message has a line for each mistake.
    """
    if source:
        values = read_toml(source)
    spec = build(merge(values, given, registry, note), str(source) if source else "")
    return set_options(spec, options)


def tomlkit() -> Any:
    """Import and return tomlkit, which writes TOML and is installed by the extra `tune`."""
    try:
        import tomlkit
    except ImportError:
        raise ClbenchError("clbench tune needs tomlkit, which is not installed: pip install 'clbench[tune]'") from None
    return tomlkit


def write_tuned(path: Path, source: str, methods: Sequence[MethodSpec], made: Search) -> Spec:
    """Write the experiment with the text `source`, with these methods and this search.

    Earlier searches are kept, except those whose candidates were all searched again.

    Returns:
        The experiment that was written.

    Raises:
        StoreError: the file cannot be written.
    """
    toml = tomlkit()
    document = toml.parse(source)
    candidates = [(tried.method, tried.scenario, tried.options) for tried in made.tried]
    earlier = [s for s in document.unwrap().get("tuning", [])
               if not all((t["method"], t["scenario"], t["options"]) in candidates for t in s["tried"])]
    for key in ("methods", "tuning"):
        document.pop(key, None)
    document["methods"] = _lines([_write_method(method) for method in methods])
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


def _write_method(method: MethodSpec) -> str | dict[str, Any]:
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
