"""Give methods display names (`LoRA r=4`) for readers, or ids (`lora`) for files and scripts.

A display name is made from the options of a method, and `as_ids` converts it back into an id (`lora:rank=8`). The id of
a row leaves out the method's own hyperparameters if it is distinct without them, because tuning gives nearly every
method its own learning rate. `¶` marks these rows, and a note lists the hyperparameters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from string import Formatter
from typing import Any

from clbench.core.errors import SpecError, unknown
from clbench.core.options import OWN_RECIPE, format_value
from clbench.core.registry import Registry, installed
from clbench.report.analysis.grouping import Setting, group_by_setting
from clbench.report.analysis.method_records import MethodRecords
from clbench.report.formatting import clean
from clbench.results.records import Record, select_metric
from clbench.results.store import match_records

_COMMA = re.compile(r",(?![^(]*\))")  # a comma outside of parentheses
_RECIPE = re.compile(rf":{re.escape(OWN_RECIPE)}[^:]*")


def names_of(registry: Registry) -> dict[str, str]:
    """Return the display names of methods (`StrategyInfo.display_name`) by the names of their strategies."""
    return {name: info.display_name for name, info in registry.strategies.items() if info.display_name}


def option_names(display_name: str) -> set[str]:
    """Return the options that a display name shows.

    >>> option_names("LoRA r={rank}")
    {'rank'}
    """
    return {name for _, name, _, _ in Formatter().parse(display_name) if name}


def fill_display_name(display_name: str, options: Mapping[str, Any]) -> str:
    """Return a display name with the values of its options. If `per_class` is set, it replaces `capacity`.

    >>> fill_display_name("LoRA r={rank}", {"rank": 8})
    'LoRA r=8'
    >>> fill_display_name("ER ({capacity})", {"capacity": 200, "per_class": 20})
    'ER (per_class=20)'
    """
    values = {name: format_value(options[name]) for name in option_names(display_name)}
    if "capacity" in values and options.get("per_class") is not None:
        values["capacity"] = f"per_class={options['per_class']}"
    return display_name.format_map(values)


def with_options(name: str, options: list[str]) -> str:
    """Return a name with options after it in parentheses, or at the end of its own final parentheses.

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
    """Return the id of a display name. Other text is returned unchanged."""
    if text.strip().partition(":")[0] in registry.strategies:
        return text
    for strategy, display_name in names.items():
        pattern = "".join(re.escape(literal) + (rf"(?P<{name}>[^\s,()]+)" if name else "")
                          for literal, name, _, _ in Formatter().parse(display_name))
        more_pattern = r"(?:, (?P<_more>[^()]*)\)|\))" if pattern.endswith(r"\)") else r"(?: \((?P<_more>[^()]*)\))?"
        match = re.fullmatch(pattern.removesuffix(r"\)") + more_pattern, text.strip(), re.IGNORECASE)
        if match:
            options = [value if "=" in value else f"{name}={value}"
                       for name, value in match.groupdict().items() if name != "_more"]
            return ":".join([strategy, *options, *re.split(r",\s*", match["_more"] or "")]).rstrip(":")
    return text


def name_settings(records: Sequence[Record], baseline: str | None = None, hint: str = "", *, ids: bool = False,
                  registry: Registry | None = None, metric: str | None = None) -> list[Setting]:
    """Return the settings of records as `group_by_setting` does, with the names of methods that reports show.

    Args:
        records: all records of one report.
        baseline: the method that others are compared with, by its display name, its id or its whole label.
        hint: where a user finds the names of methods, for an error message.
        ids: whether methods are called by their ids instead of their display names.
        registry: has the display names of the methods; None for the installed methods.
        metric: the metric by which methods are ranked and tested; None for the objective's primary one.

    Raises:
        StoreError: there are no records, or one trial has two records that disagree.
        SpecError: no setting has the baseline, or records lack the metric.
    """
    id_by_label = row_ids(records)
    settings = group_by_setting([record.model_copy(update={"label": id_by_label[record.label]})
                                 for record in select_metric(records, metric)])
    if ids and baseline is None:
        return settings
    templates = names_of(registry or installed())
    displayed = [_with_display_names(setting, templates) for setting in settings]
    if baseline is None:
        return displayed
    baseline_id = id_by_label.get(baseline, baseline)
    known_names = dict.fromkeys(chain.from_iterable((m.label, m.id) for s in displayed for m in s.methods))
    if baseline_id not in known_names:
        raise SpecError(unknown("method", baseline, known_names, hint))
    labels = [setting.label_of(baseline_id) or baseline_id for setting in displayed]
    if not ids:
        return [replace(s, named_baseline=label) for s, label in zip(displayed, labels, strict=True)]
    return [replace(setting, named_baseline=next((m.id for m in named.methods if m.label == label), label))
            for setting, named, label in zip(settings, displayed, labels, strict=True)]


def find_trials(records: Sequence[Record], trial: str | None, registry: Registry) -> list[Record]:
    """Return the records that match a trial's name as in `match_records`, or by the display name that reports show."""
    matches = match_records(records, trial)
    if matches or trial is None or not records:
        return matches
    displayed = [record.model_copy(update={"label": record.label.casefold()})
                 for setting in name_settings(records, registry=registry) for record in setting.records]
    keys = {record.key for record in match_records(displayed, trial.casefold())}
    return [record for record in records if record.key in keys]


def row_ids(records: Iterable[Record]) -> dict[str, str]:
    """Return the method id of each label. Ids are the same in all settings and distinct within each of them."""
    short_names: dict[str, str] = {}
    rows: dict[tuple[tuple[str, ...], str], set[str]] = {}  # by setting and short name
    for record in records:
        short = short_names.setdefault(record.label, _RECIPE.sub("", record.label))
        rows.setdefault((record.trial.environment, short), set()).add(record.trial.method_config)
    shared_names = {short for (_, short), row_keys in rows.items() if len(row_keys) > 1}
    return {label: label if short in shared_names else short for label, short in short_names.items()}


def display_names(methods: Sequence[MethodRecords], templates: Mapping[str, str]) -> dict[str, str]:
    """Return a distinct display name for each method, by its id.

    If methods share a name, the options that differ are added: `RanPAC (ridge=1e6)`. Labels that a user chose stay.
    """
    names = {m.id: _display_name(m, templates.get(m.strategy, "")) for m in methods}
    methods_by_name: dict[str, list[MethodRecords]] = {}
    for m in methods:
        methods_by_name.setdefault(names[m.id], []).append(m)
    for name, group in methods_by_name.items():
        if len(group) > 1:
            options = {m.id: m.id.split(":")[1:] for m in group}
            for m in group:
                shown_options = option_names(templates.get(m.strategy, ""))
                if "capacity" in shown_options:
                    shown_options = {*shown_options, "per_class"}
                differing = [option for option in options[m.id] if option.partition("=")[0] not in shown_options
                             and not all(option in method_options for method_options in options.values())]
                names[m.id] = with_options(name, differing)
    all_names = list(names.values())
    return {id_: name if all_names.count(name) == 1 else id_ for id_, name in names.items()}


def _with_display_names(setting: Setting, templates: Mapping[str, str]) -> Setting:
    """Return a setting whose methods and records are called by their display names."""
    names = display_names(setting.methods, templates)
    labels: dict[str, str] = {}
    for m in setting.methods:
        labels |= {record.key: names[m.id] for record in m.records}

    def renamed(records: Sequence[Record]) -> tuple[Record, ...]:
        return tuple(record.model_copy(update={"label": labels[record.key]}) for record in records)

    methods = tuple(replace(m, label=names[m.id], id=m.id, records=renamed(m.records)) for m in setting.methods)
    return replace(setting, methods=methods, records=renamed(setting.records))


def _display_name(method: MethodRecords, template: str) -> str:
    """Return a method's display name with its options filled in, or its id if it has no display name."""
    options = method.records[0].trial.method.options
    if not template or method.id.split(":")[0] != method.strategy or not option_names(template) <= options.keys():
        return method.id
    return clean(fill_display_name(template, options))
