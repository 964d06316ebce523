"""Configure Sphinx, which builds these pages into build/docs: `make docs`."""

import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import results_site  # a module in this folder

project = "clbench"
author = "the clbench authors"
release = metadata.version("clbench")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
smartquotes = False  # quotes in docstrings are code
highlight_language = "bash"  # indented blocks are commands
myst_heading_anchors = 3  # links to headings work as on GitHub

html_theme = "furo"
html_title = f"clbench {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]

autodoc_member_order = "bysource"
autodoc_mock_imports = ["transformers"]  # one of its classes is a base class here
autodoc_typehints = "none"  # docstrings give shapes and units, which type hints do not
default_role = "code"  # in docstrings `x` is code


def plain(_app: Any, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Escape `*` and `|` in docstrings outside code, so that they are not taken for markup."""
    lines[:] = [re.sub(r"(`[^`]*`)|([*|])", lambda found: found[1] or "\\" + found[2], line) for line in lines]


def setup(app: Any) -> None:
    """Register the functions that Sphinx calls during the build."""
    app.connect("source-read", results_site.lead)
    app.connect("build-finished", results_site.write_pages)
    app.connect("autodoc-process-docstring", plain)
