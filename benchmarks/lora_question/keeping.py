"""Keep what a script beside this file has found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def keep(found: Sequence[dict[str, Any]], file: Path, by: Sequence[str]) -> None:
    """Write findings to a JSON file; those that it has stay, unless new ones agree with them in all that `by` names."""
    fresh = [[one[name] for name in by] for one in found]
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    found = [*(one for one in kept if [one.get(name) for name in by] not in fresh), *found]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
