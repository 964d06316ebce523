"""Write the results of scripts to a JSON file that may already have results of other runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def merge_results(results: Sequence[dict[str, Any]], file: Path, by: Sequence[str]) -> None:
    """Write results to a JSON file; a stored result stays unless a new one has the same values of all names in `by`."""
    new_keys = [[result[name] for name in by] for result in results]
    stored = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    merged = [*(result for result in stored if [result.get(name) for name in by] not in new_keys), *results]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(merged, indent=1) + "\n", encoding="utf-8")
