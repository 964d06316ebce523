"""The built-in text on which a language model's general ability is measured."""

from importlib.resources import files


def test_the_probe_is_small_plain_text_in_different_paragraphs_with_its_license():
    folder = files("clbench.data") / "probe"
    content = (folder / "english.txt").read_bytes()
    assert 8_000 < len(content) <= 50_000 and content.isascii()
    paragraphs = content.decode().strip().split("\n\n")
    assert len(set(paragraphs)) == len(paragraphs) >= 30
    assert all("\n" not in text and len(text.split()) >= 40 for text in paragraphs)
    assert "CC0 1.0" in (folder / "README.md").read_text(encoding="utf-8")
