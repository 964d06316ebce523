"""Display names of methods (`LoRA r=8`): made from options for readers, and read back into ids (`lora:rank=8`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import Formatter
from typing import Any

from clbench.core.options import format_value
from clbench.core.registry import Registry

_COMMA = re.compile(r",(?![^(]*\))")  # outside of parentheses


def names_of(registry: Registry) -> dict[str, str]:
    """Return the display names of methods (`StrategyInfo.display_name`) by the names of their strategies."""
    return {name: info.display_name for name, info in registry.strategies.items() if info.display_name}


def option_names(display_name: str) -> set[str]:
    """Return the options that a display name shows.

    >>> option_names("LoRA r={rank}")
    {'rank'}
    """
    return {name for _, name, _, _ in Formatter().parse(display_name) if name}


def filled(display_name: str, options: Mapping[str, Any]) -> str:
    """Return a display name with the values of the options that it shows; a quota takes the place of a capacity.

    >>> filled("LoRA r={rank}", {"rank": 8}), filled("ER ({capacity})", {"capacity": 200, "per_class": 20})
    ('LoRA r=8', 'ER (per_class=20)')
    """
    values = {name: format_value(options[name]) for name in option_names(display_name)}
    if "capacity" in values and options.get("per_class") is not None:
        values["capacity"] = f"per_class={options['per_class']}"
    return display_name.format_map(values)


def with_options(name: str, options: list[str]) -> str:
    """Return a name with options behind it in parentheses, or inside the parentheses that it ends with.

    >>> with_options("RanPAC", ["ridge=1e6"]), with_options("ER (500)", ["outputs=own"])
    ('RanPAC (ridge=1e6)', 'ER (500, outputs=own)')
    """
    if not options:
        return name
    return (f"{name[:-1]}, " if name.endswith(")") else f"{name} (") + ", ".join(options) + ")"


def as_ids(methods: str, registry: Registry) -> str:
    """Return a comma-separated list of methods with ids instead of display names; other names stay unchanged.

    >>> from clbench.core.registry import discover
    >>> as_ids("LoRA r=8,ewc,ER (500, outputs=own)", discover())
    'lora:rank=8,ewc,er:capacity=500:outputs=own'
    """
    names = names_of(registry)
    return ",".join(_as_id(part, registry, names) for part in _COMMA.split(methods))


def _as_id(text: str, registry: Registry, names: Mapping[str, str]) -> str:
    """Return the id of a display name; other text as it is."""
    if text.strip().partition(":")[0] in registry.strategies:
        return text
    for strategy, display_name in names.items():
        pattern = "".join(re.escape(before) + (rf"(?P<{name}>[^\s,()]+)" if name else "")
                          for before, name, _, _ in Formatter().parse(display_name))
        more = r"(?:, (?P<_more>[^()]*)\)|\))" if pattern.endswith(r"\)") else r"(?: \((?P<_more>[^()]*)\))?"
        match = re.fullmatch(pattern.removesuffix(r"\)") + more, text.strip(), re.IGNORECASE)
        if match:
            shown = [value if "=" in value else f"{name}={value}"
                     for name, value in match.groupdict().items() if name != "_more"]
            return ":".join([strategy, *shown, *re.split(r",\s*", match["_more"] or "")]).rstrip(":")
    return text
