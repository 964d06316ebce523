"""The report as JSON: the model as data, raw numbers with the texts of the tables, keys always in the same order."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from clbench.report.model import Report

SCHEMA = 1  # raised when a key changes its meaning or is removed, not for new keys


def render(report: Report) -> str:
    """Return report.json; docs/reports.md says what it holds."""
    return json.dumps(data(report), ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def data(report: Report) -> dict[str, Any]:
    """Return the report as plain values: the fields of `clbench.report.model`, figures in words only."""
    whole = asdict(report)
    for section in whole["sections"]:
        section["results"] = list(map(_with_curves, section["results"]))
    return {"schema": SCHEMA, **_with_pictures({**whole, "sections": list(map(_with_pictures, whole["sections"]))})}


def _with_pictures(part: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a report or section with its figures in words, as `pictures`: their key in schema 1.

    Names of classes and what is said of errors are left out where there are none.
    """
    return {"pictures" if name == "figures" else name: list(map(_in_words, value)) if name == "figures" else value
            for name, value in part.items() if value or name not in ("task_classes", "anatomy", "confusions")}


def _with_curves(result: dict[str, Any]) -> dict[str, Any]:
    """Return a method's results with its curves as a record writes them; without the key where there are none."""
    curves = [curve.model_dump(mode="json") for curve in result["curves"]]
    return {name: value for name, value in result.items() if name != "curves"} | ({"curves": curves} if curves else {})


def _in_words(figure: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in figure.items() if name not in ("points", "results", "axis", "table")}
