"""Pages, messages, docstrings and names keep to the project's vocabulary: old words do not come back.

Each word of `OLD_WORDS` has a plain replacement, such as "next to" for "beside" or "again" for "anew".
"""

import ast
import re

import pytest
from helpers import ROOT

OLD_WORDS = (
    "told", "tells", "beside", "anew", "whoever", "mind:", "supposes", "as ever", "and kin", "front of accuracy",
    "decided by", "no search on record", "shown to be", "is no method", "it is said", "which is said", "learn on",
    "learns on", "the winner", "heads alone", "bear company", "standing", "cannot be had", "ruins the base",
    "cannot tell", "whatever")
PATTERN = re.compile("|".join(rf"(?<![\w.-]){re.escape(word)}(?![\w-])" for word in OLD_WORDS), re.IGNORECASE)
# The option `standardise` and the field `licence` keep their names, because records have them.
BRITISH = re.compile(r"labelled(?!by)|labelling|colour|optimis|normalis|\bgrey|initialis|[cC]entre[ds]?\b|neighbour|"
                     r"tokenis|regularis|penalis|behaviour|modelling|standardise[ds]\b", re.IGNORECASE)
NO_PROSE = re.compile(r"^```.*?^```|^    \S.*?$|`[^`\n]*`|<!--.*?-->|\]\([^)]*\)", re.DOTALL | re.MULTILINE)
PAGES = sorted({str(path.relative_to(ROOT)) for path in [
    ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("reports/**/*.md")]})


def old_words(text):
    """Return the words of a text that have plain replacements."""
    return PATTERN.findall(text)


def messages(path):
    """Return the string literals of a module that are no docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {id(node.body[0].value) for node in ast.walk(tree)
                  if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
                  and node.body and isinstance(node.body[0], ast.Expr)}
    return [node.value for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_no_old_words(page):
    assert old_words(NO_PROSE.sub("", (ROOT / page).read_text(encoding="utf-8"))) == []


def test_messages_have_no_old_words():
    modules = [*(ROOT / "clbench").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]
    found = {str(path.relative_to(ROOT)): words for path in modules if (words := old_words(" ".join(messages(path))))}
    assert found == {}


def test_code_and_pages_are_in_american_spelling():
    files = [*(ROOT / "clbench").rglob("*.py"), *(ROOT / "plugins").rglob("*.py"), *(ROOT / "docs").glob("*.md"),
             ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    found = {str(path.relative_to(ROOT)): words for path in files
             if (words := BRITISH.findall(path.read_text(encoding="utf-8")))}
    assert found == {}


def test_old_words_are_found_in_prose_and_not_in_code():
    assert old_words(NO_PROSE.sub("", "It stands beside `told` and\n\n    told\n\n<!-- anew --> [told](told.md)")) == [
        "beside", "told"]
