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
    """Return report.json; docs/reports.md says what it holds."""
    return json.dumps(data(report), ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def data(report: Report) -> dict[str, Any]:
    """Return the report as plain values: the fields of `clbench.report.model`, figures in words only."""
    whole = _plain(report)
    for section in whole["sections"]:
        del section["choosable"]  # `clbench choose --format json` has it
        section["results"] = list(map(_with_curves, section["results"]))
    return {"schema": SCHEMA, **_with_pictures({**whole, "sections": list(map(_with_pictures, whole["sections"]))})}


def _plain(value: Any) -> Any:
    """Return dataclasses as dictionaries, as `dataclasses.asdict` does, which copies every number and takes longer."""
    if isinstance(value, (str, int, float)) or value is None:
        return value
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    if isinstance(value, Metric):  # as records name it, which leave out accuracy
        return "" if value == ACCURACY else value.name
    if isinstance(value, BaseModel):  # as a record writes it
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}


def _with_pictures(part: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a report or section with its figures in words, as `pictures`: their key in schema 1.

    Names of classes, texts about errors and the metric are left out if there are none.
    """
    return {"pictures" if name == "figures" else name: list(map(_in_words, value)) if name == "figures" else value
            for name, value in part.items() if value or name not in ("task_classes", "anatomy", "confusions", "metric")}


def _with_curves(result: dict[str, Any]) -> dict[str, Any]:
    """Return a method's results, without curves, names of tasks and further metrics if there are none."""
    return {name: value for name, value in result.items() if value or name not in ("curves", "task_names", "scores")}


def _in_words(figure: dict[str, Any]) -> dict[str, Any]:
    numbers = ("points", "results", "axis", "table", "metric")
    return {name: value for name, value in figure.items() if name not in numbers}
