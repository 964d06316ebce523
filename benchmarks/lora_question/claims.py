"""Write docs/lora-claims.md, a page for each claim in docs/claims, and docs/claims/rows.csv from committed records.

`python benchmarks/lora_question/claims.py` lists the committed pages that are not current; `--write` writes all pages.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from claim_list import CLAIMS
from claim_pages import ClaimResult, claim_page, rows_csv
from claim_summary import studies_page, summary_page
from evidence import ROOT, Study, read_studies

DOCS = ROOT / "docs"


def render_pages(studies: list[Study]) -> Mapping[Path, str]:
    """Return the text of each file, by its path."""
    claims = [ClaimResult.of(claim, studies) for claim in CLAIMS]
    folder = DOCS / "claims"
    return {DOCS / "lora-claims.md": summary_page(claims), folder / "rows.csv": rows_csv(claims),
            folder / "studies.md": studies_page(studies),
            **{folder / f"{claim.slug}.md": claim_page(claim) for claim in claims}}


def main() -> None:
    """Write the pages, or list those that are not current."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the pages")
    write = parser.parse_args().write
    pages = render_pages(read_studies())
    for path, text in pages.items():
        if write:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            print(f"{path.relative_to(ROOT)} is not current")
    if write:
        for path in (DOCS / "claims").glob("*.md"):
            if path not in pages:
                path.unlink()


if __name__ == "__main__":
    main()
