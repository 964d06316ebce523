"""Write measurements to files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write(folder: Path, name: str, text: str, found: Mapping[str, Any]) -> None:
    """Write a report as NAME.md and its measurements as NAME.json, and print the report."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(text)
    (folder / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    print(text)
