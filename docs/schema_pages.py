"""Write toml-keys.md and record-schema.md from the pydantic models: `make docs-pages`."""

from __future__ import annotations

import re
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pages import code, table
from pydantic import AwareDatetime, BaseModel
from pydantic.fields import FieldInfo

from clbench.core.options import format_value
from clbench.experiment.arrival import Arrival
from clbench.experiment.execution_settings import ExecutionSettings, flag
from clbench.experiment.recipe import Recipe
from clbench.experiment.spec import Named, Spec
from clbench.report.formats.markdown import escape
from clbench.results.records import Record

HERE = Path(__file__).parent
GENERATED = "<!-- Made by `make docs-pages` from the pydantic models; what is written here is lost. -->"
TOML_KEYS = """\
Look up every key of a study file. [Describe a study in a file](study-files.md) shows how to write one. Unknown keys are
errors. Most keys are also arguments of `clbench.run`, and options of `clbench run` with hyphens instead of underscores.
`tune`, `tuning` and the keys of a method's table exist only in files."""
RECORD_SCHEMA = """\
Look up every field of a record, the JSON file that each trial writes to `records/`. Lists have one entry per task,
unless the table says otherwise. Tasks are counted from 0, accuracies are shares in [0, 1], and times are seconds.
Empty fields may be missing. The version of the schema changes if a field is removed or changes its meaning. The keys of
`recipe` and `arrival` are those of a [study file](toml-keys.md)."""
HEADINGS = {"Spec": "The file", "Recipe": "[recipe]", "Arrival": "[arrival]", "ExecutionSettings": "[execution]",
            "Named": "benchmark or model", "MethodSpec": "methods", "Range": "search range",
            "Choices": "search values", "Search": "tuning", "Record": "The record"}
NAMES = {str: "text", int: "integer", float: "number", bool: "true or false", Path: "path", dict: "table", Any: "value",
         AwareDatetime: "time"}
COUNTED = (int, float, Any)  # types whose names take a plural s


def main() -> None:
    """Write both pages."""
    for name, text in (("toml-keys.md", toml_keys()), ("record-schema.md", record_schema())):
        (HERE / name).write_text(text, encoding="utf-8")


def toml_keys() -> str:
    """Return toml-keys.md: the keys of a study file."""
    return page("Keys of a study file", TOML_KEYS, reached(Spec))


def record_schema() -> str:
    """Return record-schema.md: the fields of a record."""
    return page("Schema of a record", RECORD_SCHEMA, [m for m in reached(Record) if m not in (Recipe, Arrival)])


def page(title: str, text: str, listed: Iterable[type[BaseModel]]) -> str:
    """Return a page with a table for each model."""
    blocks = [GENERATED, f"# {title}", text]
    for model in listed:
        rows = [[code(field.alias or name), escape(kind(field)), default(model, name, field), meaning(field)]
                for name, field in model.model_fields.items()]
        blocks += [f"## {heading(model)}", table(["key", "type", "default", "meaning"], rows)]
    return "\n\n".join(blocks) + "\n"


def reached(root: type[BaseModel]) -> list[type[BaseModel]]:
    """Return a model and, recursively, the models in its fields, in breadth-first order."""
    found: list[type[BaseModel]] = []
    waiting = [root]
    while waiting:
        model = waiting.pop(0)
        if model not in found:
            found.append(model)
            waiting += [part for field in model.model_fields.values() for part in models(field.annotation)]
    return found


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models that occur in a type annotation, in order."""
    if isinstance(annotation, type) and not get_origin(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models(part)


def heading(model: type[BaseModel]) -> str:
    """Return the heading of a model's table."""
    return HEADINGS.get(model.__name__) or re.sub(r"(?<=[a-z])(?=[A-Z])", " ", model.__name__).capitalize()


def kind(field: FieldInfo) -> str:
    """Return the type of a field in words, with its limits."""
    limits = [f"{sign} {format_value(value)}" for rule in field.metadata for name, sign in (
        ("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")) if (value := getattr(rule, name, None)) is not None]
    return ", ".join([type_name(field.annotation), *limits])


def type_name(annotation: Any, plural: bool = False) -> str:
    """Return a type in words. A model has the name of its table's heading."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_name(parts[0], plural)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_name(part, plural) for part in parts if part is not type(None)))
    if origin is Literal:
        return ", ".join(map(str, parts))
    if origin in (list, tuple):
        return f"list{'s' * plural} of {type_name(parts[0], plural=True)}"
    if origin is dict:
        return f"table{'s' * plural} of {type_name(parts[1], plural=True)}"
    if annotation in NAMES:
        return NAMES[annotation] + "s" * (plural and annotation in COUNTED)
    return heading(annotation).strip("[]") if issubclass(annotation, BaseModel) else annotation.__name__


def default(model: type[BaseModel], name: str, field: FieldInfo) -> str:
    """Return the table cell for the default of a field; empty if the default is None or empty."""
    if field.is_required():
        return "*required*"
    if model is ExecutionSettings and flag(name).default:
        return escape(flag(name).default)
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Named):
        return code(value.name)
    if value is None or isinstance(value, BaseModel | dict) or value in ((), [], ""):
        return ""
    return code(",".join(map(str, value)) if isinstance(value, tuple) else format_value(value))


def meaning(field: FieldInfo) -> str:
    """Return the description of a field as a sentence."""
    text = field.description or ""
    parts = re.split(r"( *`[^`]*` *)", text[:1].upper() + text[1:].rstrip(".") + ".")
    return "".join(part if index % 2 else escape(part) for index, part in enumerate(parts))


if __name__ == "__main__":
    main()
