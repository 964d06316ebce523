r"""Any text as LaTeX that shows it: special characters escaped, accents and symbols as commands, ASCII alone."""

from __future__ import annotations

import unicodedata
from itertools import zip_longest

_SPECIAL = {"\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_",
            "%": r"\%", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
            ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}", "'": r"\textquotesingle{}",
            "`": r"\textasciigrave{}", "[": "{[}", "]": "{]}", "*": "{*}"}  # a command before these might take them
_LETTERS = {"ß": "ss", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "å": "aa", "Å": "AA", "ł": "l",
            "Ł": "L", "đ": "dj", "Đ": "DJ", "þ": "th", "Þ": "TH", "ð": "dh",
            "\N{LATIN SMALL LETTER DOTLESS I}": "i", "ŋ": "ng", "Ŋ": "NG"}
_SYMBOLS = {
    "\N{NO-BREAK SPACE}": "~", "\N{EN DASH}": "--", "\N{EM DASH}": "---", "\N{HORIZONTAL ELLIPSIS}": r"\ldots{}",
    "\N{LEFT SINGLE QUOTATION MARK}": r"\textquoteleft{}", "\N{RIGHT SINGLE QUOTATION MARK}": r"\textquoteright{}",
    "\N{LEFT DOUBLE QUOTATION MARK}": r"\textquotedblleft{}", "†": r"$^{\dagger}$", "‡": r"$^{\ddagger}$",
    "\N{RIGHT DOUBLE QUOTATION MARK}": r"\textquotedblright{}", "§": r"\S{}", "•": r"\textbullet{}",
    "°": r"\textdegree{}", "€": r"\texteuro{}", "\N{REPLACEMENT CHARACTER}": "?"}
_MATH = {"±": "pm", "\N{MULTIPLICATION SIGN}": "times", "÷": "div", "·": "cdot", "↑": "uparrow", "↓": "downarrow",
         "→": "rightarrow", "←": "leftarrow", "↔": "leftrightarrow", "≤": "leq", "≥": "geq", "≠": "neq",
         "≈": "approx", "∞": "infty", "∈": "in", "√": "surd", "∑": "sum", "∂": "partial", "∇": "nabla",
         "\N{MINUS SIGN}": "-", "²": "^2", "³": "^3", "µ": "mu"}
_GREEK = "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΥΦΨΩ"  # those that LaTeX has a command for
_ACCENTS = dict(zip("\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0327\u0328",
                    "`'^~=u.\"rHvck", strict=True))


def escape(text: str) -> str:
    r"""Return text as LaTeX that shows it, ASCII alone; a character that plain LaTeX lacks becomes U+XXXX.

    >>> print(escape("a_b & 50% ± é \u6f22"))
    a\_b \& 50\% $\pm$ \'{e} \texttt{U+6F22}
    """
    return "".join(_character(c) + ("{}" if c == after and c in "-," else "")  # two would become one sign
                   for c, after in zip_longest(text, text[1:]))


def _character(c: str) -> str:
    if c in _TABLE:
        return _TABLE[c]
    if c.isascii():
        return c
    base, mark = (parts := unicodedata.normalize("NFD", c))[0], parts[1:]
    if base.isascii() and base.isalpha() and mark in _ACCENTS:
        return rf"\{_ACCENTS[mark]}{{{base}}}"
    return rf"\texttt{{U+{ord(c):04X}}}"


def _greek(letter: str) -> str:
    """Return the name of a Greek letter as LaTeX has it: alpha, Omega."""
    name = unicodedata.name(letter).split()[-1].lower().replace("lamda", "lambda")
    return name if letter.islower() else name.capitalize()


_TABLE = {**_SPECIAL, **_SYMBOLS, **{c: rf"\{name}{{}}" for c, name in _LETTERS.items()},
          **{c: f"${name if name in ('-', '^2', '^3') else chr(92) + name}$" for c, name in _MATH.items()},
          **{c: rf"$\{_greek(c)}$" for c in _GREEK}}
