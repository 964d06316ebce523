"""The report as JSON: the one model as data, raw numbers beside the tables' texts, keys always in the same order."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from clbench.report.model import Report

SCHEMA = 1  # counted up when a key changes its meaning or goes; new keys leave it


def render(report: Report) -> str:
    """Return report.json; docs/reports.md says what it holds."""
    return json.dumps(data(report), ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def data(report: Report) -> dict[str, Any]:
    """Return the report as plain values: the fields of `clbench.report.model`, figures in words only."""
    whole = asdict(report)
    for pictures in (whole["pictures"], *(section["pictures"] for section in whole["sections"])):
        for picture in pictures:
            del picture["points"], picture["results"]
    return {"schema": SCHEMA, **whole}
