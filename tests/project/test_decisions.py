"""The records of decisions in docs/decisions/ have their form and length, and the index lists each of them once."""

import re

import pytest
from helpers import ROOT

FOLDER = ROOT / "docs" / "decisions"
PAGES = sorted(path for path in FOLDER.glob("*.md") if path.name != "index.md")
MOST_WORDS = 150
DATE = r"\(20\d\d-\d\d-\d\d[^()]*\)"
FORM = re.compile(rf"\n\n\*\*Context\.\*\* .+\n\*\*Decision\.\*\* .+\n\*\*Consequence\.\*\* .+{DATE}\n*", re.DOTALL)


def records(path):
    """Return the heading and the text of each record of a page."""
    parts = re.split(r"^## (.+)$", path.read_text(), flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def anchor(heading):
    """Return the name by which GitHub and the site link to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def malformed(heading, text):
    """Return whether a record lacks a part, its date, or is too long."""
    words = [word for word in f"{heading} {text}".split() if re.search(r"\w", word)]
    return not FORM.fullmatch(text) or len(words) > MOST_WORDS


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_record_has_context_decision_consequence_and_date_in_150_words(path):
    assert [heading for heading, text in records(path) if malformed(heading, text)] == []


def test_the_index_lists_every_record_of_every_page_once_and_in_order():
    listed = re.findall(r"^- \[(.+)\]\((\w+\.md)#(.+)\)$", (FOLDER / "index.md").read_text(), re.MULTILINE)
    pages = list(dict.fromkeys(page for _, page, _ in listed))
    assert sorted(pages) == [path.name for path in PAGES]
    assert listed == [(heading, page, anchor(heading)) for page in pages for heading, _ in records(FOLDER / page)]


def test_a_record_without_a_part_or_a_date_or_with_too_many_words_is_found():
    good = "\n\n**Context.** a\n**Decision.** b\n**Consequence.** c (2026-11-24)\n\n"
    assert not malformed("It stands", good)
    assert malformed("It stands", good.replace("**Decision.** b\n", ""))
    assert malformed("It stands", good.replace(" (2026-11-24)", ""))
    assert malformed("It stands", good.replace("a\n", "a " * MOST_WORDS + "\n"))
