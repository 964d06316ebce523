"""Entry points are read from folders without importlib.metadata, and must be what that finds."""

import sys
from importlib.metadata import entry_points

import pytest

from clbench.core.entry_points import disabled, read


def found_by_importlib(group):
    values = {}
    for entry in entry_points(group=group):
        values.setdefault(entry.name, []).append(entry.value)
    return {name: min(found) for name, found in sorted(values.items())}


def lay(place, folder, text):
    """Lay the metadata of a distribution into a place."""
    where = place / folder
    where.mkdir(parents=True)
    name = "METADATA" if folder.endswith(".dist-info") else "PKG-INFO"
    (where / name).write_text(f"Metadata-Version: 2.1\nName: {folder.partition('-')[0]}\nVersion: 1\n")
    if text is not None:
        (where / "entry_points.txt").write_text(text)


def test_all_groups_of_this_environment_are_read_as_importlib_does():
    groups = entry_points().groups
    assert {"clbench", "clbench.commands", "console_scripts"} <= set(groups)
    assert {group: read(group) for group in groups} == {group: found_by_importlib(group) for group in groups}
    assert read("clbench.no-such-group") == {}


def test_odd_places_and_files_are_read_as_importlib_does(tmp_path, monkeypatch):
    lay(tmp_path / "a", "one-1.0.dist-info", "[g]\nfirst = one:first\n# not = one:this\n\n[h]\nother = one:other\n")
    lay(tmp_path / "b", "one-2.0.dist-info", "[g]\nfirst = one:shadowed\ngone = one:gone\n")
    lay(tmp_path / "b", "Two.More-1.dist-info", "[h]\n[g]\n  spaced   =   two.more : thing [extra]\n")
    lay(tmp_path / "b", "three.egg-info", "[g]\negg=three:egg\nfirst = aaa:first\n")
    lay(tmp_path / "b", "nothing-1.dist-info", None)
    lay(tmp_path / "c", "two_more-2.dist-info", "[g]\nshadowed = two:shadowed\n")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "path", [*(str(tmp_path / place) for place in ("no-folder", "file", "a", "b", "c")), ""])
    monkeypatch.chdir(tmp_path)
    lay(tmp_path, "here-1.dist-info", "[g]\nhere = here:here\n")
    assert read("g") == found_by_importlib("g") == {
        "egg": "three:egg", "first": "aaa:first", "here": "here:here", "spaced": "two.more : thing [extra]"}


@pytest.mark.parametrize(("patterns", "hidden"), [
    ("", False), ("mine", True), ("clbench_mine", True), ("a, clb*", True), ("*", True), ("clbench", False),
    ("clbench_mine.commands", False)])
def test_what_is_disabled(patterns, hidden, monkeypatch):
    monkeypatch.setenv("CLBENCH_DISABLE_PLUGINS", patterns)
    assert disabled("mine", "clbench_mine.commands:group") is hidden
    assert not disabled("run", "clbench.cli.run:command")
