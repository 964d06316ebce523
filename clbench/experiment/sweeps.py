"""Sweeps: a method with several values for an option becomes a row for each of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, product
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from clbench.core.errors import ClbenchError
from clbench.core.options import OWN_RECIPE, format_value, parse_value, recipe_options
from clbench.core.registry import Registry
from clbench.experiment.recipe import Recipe
from clbench.experiment.spec import MethodSpec

_COUNTABLE = (int, float, bool, type(None))


def expand(methods: Sequence[MethodSpec], registry: Registry,
           problems: list[str]) -> list[tuple[MethodSpec, tuple[str, ...]]]:
    """Return a method for every combination of its options' values, each with the names of the options that vary.

    Whether a value is a sweep depends on the option's type. A list is a sweep if the option takes a single value, and
    one value if the option takes a list. A list of lists (`[["q", "v"], ["k"]]`) is a sweep for an option that takes a
    list of single values. Text with commas (`1,2,4`, from a flag) is a sweep for numbers, true/false, named choices and
    lists (`q+v,k`). It is one value for an option that is text itself, such as a regular expression.

    Empty sweeps, and values that a comma turned into names of methods, are added to `problems`, a line each.
    """
    rows = []
    for method in _drop_strays(methods, registry, problems):
        swept = {name: values for name, value in method.given.items()
                 if (values := _values(value, _annotation(method, name, registry))) is not None}
        problems += [f"{method.name}.{name}: a sweep needs at least one value, got []"
                     for name, values in swept.items() if not values]
        for chosen in product(*swept.values()):
            options = dict(zip(swept, chosen, strict=True))
            label = method.label and ":".join([method.label, *(f"{k}={format_value(v)}" for k, v in options.items())])
            row = method.with_options({**method.given, **options})  # all options, so that `combine` removes none
            rows.append((row.model_copy(update={"label": label}), tuple(swept)))
    return rows


def _values(given: Any, annotation: Any) -> list[Any] | None:
    """Return the values of a sweep; None if `given` is one value, or a value that validation will reject."""
    kinds = _list_types(annotation)
    if not kinds:
        return None
    if isinstance(given, list | tuple):
        is_nested = bool(given) and all(isinstance(value, list | tuple) for value in given)
        return None if any(map(_holds_several, kinds)) and not (is_nested and _is_flat(annotation)) else list(given)
    if isinstance(given, str) and "," in given and given not in kinds and _split_on_commas(kinds):
        return [parse_value(part.strip()) for part in given.split(",")]
    return None


def _is_flat(annotation: Any) -> bool:
    """Return whether no value of this type contains a list: true for `list[int]` and `tuple[int, ...]`."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Annotated, Union, UnionType):
        return all(map(_is_flat, parts[:1] if origin is Annotated else parts))
    if origin in (list, tuple):
        return not any(map(_holds_several, chain.from_iterable(map(_list_types, parts))))
    return not any(map(_holds_several, _list_types(annotation)))


def _holds_several(kind: Any) -> bool:
    """Return whether a value of this type is a list, or may be one."""
    return kind is Any or kind is object or (isinstance(kind, type) and kind is not str and issubclass(kind, Iterable))


def _split_on_commas(kinds: Sequence[Any]) -> bool:
    """Return whether none of these types is free text, which may contain commas; the text form of a list has none."""
    return all(kind is list or kind in _COUNTABLE or (not isinstance(kind, type) and kind is not Any) for kind in kinds)


def types_of(method: MethodSpec, option: str, registry: Registry) -> list[Any]:
    """Return the types and the named choices that an option takes; none if the option or method does not exist."""
    return _list_types(_annotation(method, option, registry))


def _annotation(method: MethodSpec, option: str, registry: Registry) -> Any:
    """Return an option's type; `...` if the option or method does not exist. The method may be the name of a class."""
    if option.startswith(OWN_RECIPE):
        part = Recipe.model_fields.get(option.removeprefix(OWN_RECIPE))
        return part.annotation if part else ...
    try:
        field = registry.strategy(method.name).options.model_fields.get(option)
    except ClbenchError:  # the plan reports it
        return ...
    return field.annotation if field else ...


def _list_types(annotation: Any) -> list[Any]:
    """Return the parts of a type: int and NoneType for `int | None`, the choices of a Literal, list for `list[int]`."""
    origin = get_origin(annotation)
    if annotation is ...:
        return []
    if origin is Annotated:
        return _list_types(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return list(chain.from_iterable(map(_list_types, get_args(annotation))))
    return list(get_args(annotation)) if origin is Literal else [origin or annotation]


def _drop_strays(methods: Sequence[MethodSpec], registry: Registry, problems: list[str]) -> list[MethodSpec]:
    """Return the methods without names such as the `2` of `lora:rank=1,2`; `problems` gets a line for each of them."""
    remaining: list[MethodSpec] = []
    strays: dict[int, list[str]] = {}  # by the index in `remaining` of the method that they belong to
    for method in methods:
        if remaining and method.name not in registry.strategies and _continues(remaining[-1], method.name, registry):
            strays.setdefault(len(remaining) - 1, []).append(method.name)
        else:
            remaining.append(method)
    for i, stray_names in strays.items():
        if remaining[i].options and remaining[i].changed_parts:  # which of them was written last is not known any more
            problems.append(f"{remaining[i].name}: a comma begins the next method, so {', '.join(stray_names)} is no "
                            f"further value; a row for each value is --set {remaining[i].name}.OPTION=VALUE,VALUE")
            continue
        option, first_value = list(remaining[i].given.items())[-1]
        written = f"{option}={','.join([format_value(first_value), *stray_names])}"
        kinds, as_list = types_of(remaining[i], option, registry), ""
        if kinds == [str]:
            values = ", ".join(f'"{value}"' for value in (first_value, *stray_names))
            problems.append(f"{remaining[i].name}:{written}: a comma begins the next method; a row for each value is "
                            f"--set '{remaining[i].name}.{option}=[{values}]'")
            continue
        if kinds == [tuple]:
            problems.append(f"{remaining[i].name}:{written}: a comma begins the next method; a list of values is "
                            f"{option}={'+'.join([format_value(first_value), *stray_names])}")
            continue
        if kinds == [list]:
            as_list = f"; a list of them is {option}={'+'.join([format_value(first_value), *stray_names])}"
        problems.append(f"{remaining[i].name}:{written}: a comma begins the next method; a row for each value is "
                        f"--set {remaining[i].name}.{written}{as_list}")
    return remaining


def _continues(method: MethodSpec, text: str, registry: Registry) -> bool:
    """Return whether `text` looks like one more value of the method's last option or part of a recipe."""
    last_options = [list(given)[-1] for given in (method.options, recipe_options(method.changed_parts)) if given]
    return any(_is_another_value(text, method, option, registry) for option in last_options)


def _is_another_value(text: str, method: MethodSpec, option: str, registry: Registry) -> bool:
    """Return whether `text` looks like one more value of a method's option."""
    kinds = types_of(method, option, registry)
    if kinds == [list]:
        members = get_args(_annotation(method, option, registry))
        return set(text.split("+")) <= set(chain.from_iterable(map(_list_types, members)))
    if kinds == [str]:  # free text, in which only `last:2` after `last:1` is surely no method
        word, colon, _ = text.partition(":")
        return bool(colon) and str(method.given[option]).startswith(word + colon)
    if kinds == [tuple]:
        return not isinstance(parse_value(text), str)
    named = text in kinds or (text == "none" and type(None) in kinds)
    return bool(kinds) and _split_on_commas(kinds) and (named or not isinstance(parse_value(text), str))
