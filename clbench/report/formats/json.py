"""The report as JSON: the model as data, raw numbers with the texts of the tables, keys always in the same order."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pydantic import BaseModel

from clbench.core.objective import ACCURACY, Metric
from clbench.report.model import Report

SCHEMA = 1  # raised when a key changes its meaning or is removed, not for new keys


def render(report: Report) -> str:
    """Return report.json. docs/reports.md describes its fields."""
    return json.dumps(data(report), ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def data(report: Report) -> dict[str, Any]:
    """Return the report as plain values: the fields of `clbench.report.model`, without the numbers of figures."""
    values = _to_dicts(report)
    for section, model in zip(values["sections"], report.sections, strict=True):
        del section["choosable"]  # `clbench choose --format json` has it
        section["summary"] = model.summary
        section["results"] = list(map(_with_curves, section["results"]))
    return {"schema": SCHEMA, **_with_pictures({**values, "sections": list(map(_with_pictures, values["sections"]))})}


def _to_dicts(value: Any) -> Any:
    """Return dataclasses as dictionaries. `dataclasses.asdict` is slower, because it copies every number."""
    if isinstance(value, (str, int, float)) or value is None:
        return value
    if isinstance(value, (list, tuple)):
        return type(value)(map(_to_dicts, value))
    if isinstance(value, Metric):  # as in records, which do not name accuracy
        return "" if value == ACCURACY else value.name
    if isinstance(value, BaseModel):  # as in a record
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {name: _to_dicts(item) for name, item in value.items()}
    return {field.name: _to_dicts(getattr(value, field.name)) for field in fields(value)}


def _with_pictures(part: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a report or section, with figures in words under `pictures`, their key in schema 1.

    Empty names of classes, texts about errors and tables of general texts are left out, and so is the metric if it is
    accuracy.
    """
    optional = ("task_classes", "anatomy", "confusions", "metric", "general")
    return {"pictures" if name == "figures" else name: list(map(_describe, value)) if name == "figures" else value
            for name, value in part.items() if value or name not in optional}


def _with_curves(result: dict[str, Any]) -> dict[str, Any]:
    """Return a method's results. Curves, names of tasks and further metrics are left out if there are none."""
    return {name: value for name, value in result.items() if value or name not in ("curves", "task_names", "scores")}


def _describe(figure: dict[str, Any]) -> dict[str, Any]:
    numbers = ("points", "results", "axis", "table", "metric", "selection")
    return {name: value for name, value in figure.items() if name not in numbers}
