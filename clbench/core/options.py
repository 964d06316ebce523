"""Typed options: one pydantic class defines command line, TOML, documentation and label of a method or benchmark."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time
from itertools import chain, product
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
)

from clbench.core.compat import tomllib
from clbench.core.errors import SpecError, unknown
from clbench.core.option_marks import PerMember, search_values, without_effect
from clbench.core.scenario import Scenario

if TYPE_CHECKING:
    from typing_extensions import Self


class Strict(BaseModel):
    """Base of the parts of a spec. It is frozen, and rejects unknown keys and booleans in place of numbers.

    Fields in `LATER`, of the class or of a base, were added after the first records. They are not written if they have
    their defaults, so the keys of trials stay the same. `BEFORE` holds fields whose default differs from the earlier
    behavior, with the value of the earlier behavior. They are not written if they have this value.
    """

    LATER: ClassVar[tuple[str, ...]] = ()
    BEFORE: ClassVar[Mapping[str, Any]] = {}

    # A class is built on first use: building all the classes that a command reads took a third of its time.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants", defer_build=True)

    @model_serializer(mode="wrap")
    def _without_defaults(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the fields that were added later and have the value of the earlier behavior."""
        values: dict[str, Any] = write(self)
        fields = type(self).model_fields
        later_fields = set(chain.from_iterable(vars(cls).get("LATER", ()) for cls in type(self).__mro__))
        earlier = {**{n: fields[n].get_default(call_default_factory=True) for n in later_fields}, **self.BEFORE}
        return {n: value for n, value in values.items() if n not in earlier or getattr(self, n) != earlier[n]}

    @classmethod
    def stored(cls, values: Mapping[str, Any]) -> Self:
        """Validate stored values; a missing field in `BEFORE` gets the value of the earlier behavior."""
        return cls.model_validate({**cls.BEFORE, **values})

    @field_validator("*", mode="before")
    @classmethod
    def _reject_booleans(cls, value: Any, info: ValidationInfo) -> Any:
        """Reject true and false in place of a number, because pydantic would read them as 1 and 0."""
        if isinstance(value, bool):
            allowed = _allowed(cls, info.field_name)
            if bool not in allowed and {int, float} & allowed:
                raise ValueError(f"expected a number, got {str(value).lower()}")
        return value


def _allowed(model: type[BaseModel], field: str | None) -> set[Any]:
    """Return the types that a field of a model may have."""
    annotation = model.model_fields[field or ""].annotation
    return set(get_args(annotation) or (annotation,))


OWN_RECIPE = "recipe."  # prefix of the parts of a method's own recipe among its options
# The name of an option before "=". Other text before "=", such as a regular expression, belongs to a value.
_OPTION = re.compile(rf"\s*({re.escape(OWN_RECIPE)})?[\w-]+\s*")
_WORD = r"\w+|[A-Za-z]\w*(-\w+)*"  # an item of a list that is written with plus signs

# A number that can be a zero-dimensional tensor in `loss`: trials that differ only in such options train as one stack.
# `loss` may compute with it, but not branch on it or use it as a size. Elsewhere it is a plain float.
Scalar = Annotated[float, PerMember()]


class Options(Strict):
    """Base of every options class: fields carry type, bounds, default and a `description`."""

    model_config = ConfigDict(coerce_numbers_to_str=True)
    deciding: ClassVar[frozenset[str]] = frozenset()
    """Options that matter even if they are given as their default, because `settled` checks whether they are given."""

    @field_validator("*", mode="before")
    @classmethod
    def _read_none(cls, value: Any, info: ValidationInfo) -> Any:
        """Read 'none' as None for options that allow it."""
        return None if value == "none" and type(None) in _allowed(cls, info.field_name) else value

    @field_validator("*", mode="before")
    @classmethod
    def _split_at_plus(cls, value: Any, info: ValidationInfo) -> Any:
        """Read text as a list for options that are lists: `q+v` is q and v. A single number is a list of one item."""
        if get_origin(cls.model_fields[info.field_name or ""].annotation) is not list:
            return value
        if isinstance(value, int | float) and not isinstance(value, bool):
            return [value]
        return value.split("+") if isinstance(value, str) else value

    def settled(self, pretrained: bool, network: Callable[[], Any] | None = None) -> Options:
        """Return these options with concrete values in place of values that depend on the model, such as `auto`.

        The plan calls it before it makes a trial's key, so the key has these values. The default changes nothing.

        Args:
            pretrained: whether the model starts from pretrained weights.
            network: a function that builds the pretrained network on the meta device, or returns None if it cannot be
                built; None without weights, or if the size of images is not known.
        """
        return self

    def in_scenario(self, scenario: Scenario, boundaries: bool) -> Options:
        """Return settled options with their values for a scenario, with known boundaries or not. Default: no change."""
        return self

    def seed_problem(self, seeds: Sequence[int], validation: float) -> str:
        """Return why trials of these seeds cannot be run with these options; empty if they can.

        `validation` is the share of the training samples that is held out for evaluation; 0 means the test samples.
        """
        return ""

    @property
    def needs_boundaries(self) -> str:
        """Return why a `task_free` method needs to know where tasks end with these options; empty if it does not."""
        return ""

    @property
    def trained_by_steps(self) -> bool:
        """Return whether the recipe's learning rate matters; false if these options give a closed-form solution."""
        return True


def recipe_options(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a method's own recipe by the names that they have among its options, such as `recipe.lr`."""
    return {f"{OWN_RECIPE}{name}": value for name, value in parts.items()}


class NoOptions(Options):
    """Options of a method, benchmark or model that has no options."""


@dataclass(frozen=True)
class OptionDoc:
    """One option as the list commands show it."""

    name: str
    type: str
    default: Any  # None if there is no default
    required: bool
    meaning: str
    searched: tuple[Any, ...] = ()  # values that `clbench tune` tries by default


def document(options: type[Options]) -> list[OptionDoc]:
    """Describe each option of a class, in the order of declaration."""
    docs, searched = [], search_values(options)
    signs = [("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")]
    for name, field in options.model_fields.items():
        bounds = [f"{sign} {getattr(m, key)}" for m, (key, sign) in product(field.metadata, signs) if hasattr(m, key)]
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        docs.append(OptionDoc(name, " ".join([_type_name(field.annotation), *bounds]), default, field.is_required(),
                              field.description or "", searched.get(name, ())))
    return docs


def _type_name(annotation: Any) -> str:
    """Return the name of a type as users write its values: `int`, `entropy | prototype`, `int | none`."""
    # The origin is read first, because `dict[str, int]` is an instance of `type` on Python 3.10 only.
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(map(format_value, parts))
    if origin in (Annotated, Union, UnionType):
        return " | ".join(map(_type_name, parts[:1] if origin is Annotated else parts))
    if annotation is type(None):
        return "none"
    name = "..." if annotation is ... else getattr(annotation, "__name__", str(annotation))
    return f"{name}[{', '.join(map(_type_name, parts))}]" if parts else name


def parse_named(text: str) -> tuple[str, dict[str, Any]]:
    """Split `name:option=value:option=value` into the name and typed values.

    A part that is not `option=value` belongs to the part before it. So `package.module:function` and
    `torchvision:resnet18` are names, and in `layers=last:4` the value is `last:4`.

    >>> parse_named("lora:layers=last:4:rank=8")
    ('lora', {'layers': 'last:4', 'rank': 8})
    """
    head, *rest = text.split(":")
    name: list[str] = [head]
    options: dict[str, list[str]] = {}
    for part in rest:
        key, eq, value = part.partition("=")
        if eq and (not options or _OPTION.fullmatch(key)):
            last_option = options[key.strip()] = [value]
        elif options:
            last_option.append(part)
        else:
            name.append(part)
    if not all(name):
        raise SpecError(f"{text!r} is not a name with options: write name or name:option=value, as in lora:rank=8")
    return ":".join(name), {key: parse_value(":".join(parts)) for key, parts in options.items()}


def parse_value(text: str) -> Any:
    """Read a value as TOML would (numbers, true/false, lists, quoted text). Anything else, such as a date, is text.

    >>> parse_value("1e5"), parse_value("true"), parse_value("entropy")
    (100000.0, True, 'entropy')
    """
    try:
        value = tomllib.loads(f"value = {text}")["value"]
        return text if isinstance(value, date | time) else value
    except tomllib.TOMLDecodeError:
        return text


def format_value(value: Any) -> str:
    """Return a value as text that `parse_value` reads back; a list of words as `Options` reads it, `q+v`."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    if isinstance(value, float):
        short = [f"{value:g}", re.sub(r"\.?0*e\+?(-?)0*(\d)", r"e\1\2", f"{value:e}")]
        return min((text for text in short if float(text) == value), key=len, default=repr(value))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)} = {format_value(part)}" for key, part in value.items()) + "}"
    value = list(value) if isinstance(value, tuple) else value  # records hold tuples as lists
    if isinstance(value, list) and value and all(isinstance(v, str) and re.fullmatch(_WORD, v) for v in value):
        return "+".join(value)
    return str(value)


def validate(options: type[Options], raw: Mapping[str, Any], owner: str, listing: str,
             all_have_effect: bool = True) -> Options:
    """Build an options object; every mistake becomes a line of one `SpecError`, each beginning with `owner`.

    `listing` is the command that lists the options of `owner`, without its name: `clbench methods`. Unless
    `all_have_effect` is false, a changed option without effect (`OnlyWith`) is a mistake.
    """
    try:
        valid = options.model_validate(dict(raw))
    except ValidationError as error:
        raise SpecError("\n".join(explain(error, options, owner, listing))) from None
    if all_have_effect and (problem := without_effect(valid)):
        raise SpecError(f"{owner}: {problem}")
    return valid


def _hint(value: Any, options: type[Options], field: str = "") -> str:
    """Return a hint on the part of a wrong value that is not `option=value`, such as `alpha` in `rank=4:alpha`."""
    if not field or not isinstance(value, str) or ":" not in value:
        return ""
    annotation = options.model_fields[field].annotation
    if {str, Any, object} & {annotation, *get_args(annotation)} and get_origin(annotation) is not dict:
        return ""  # text may have colons
    part = value.split(":")[1]
    return f"; {part!r} " + ("is not option=value" if "=" in part else "lacks '=value'")


def explain(error: ValidationError, options: type[Options], owner: str, listing: str) -> list[str]:
    """Return pydantic's errors about an options class as lines of a message, with suggestions for unknown options."""
    lines = []
    for item in error.errors():
        path = [owner, *map(str, item["loc"][:1])]
        if item["type"] == "extra_forbidden":
            lines.append(f"{owner}: " + unknown("option", str(item["loc"][0]), options.model_fields,
                                                f"{listing} {shlex.quote(owner.removeprefix('tune.'))}"))
        else:
            message = item["msg"].removeprefix("Value error, ").replace("Input should be", "should be").replace(
                "Field required", f"has no default; give a value ({':'.join(path)}=VALUE), or a default in the plugin")
            input_text = "" if item["type"] in ("value_error", "missing") else f", got {quote(item['input'])}"
            lines.append(f"{'.'.join(path)}: {message}{input_text}{_hint(item['input'], options, *path[1:])}")
    return lines


def quote(value: Any) -> str:
    """Return a given value as errors show it: text in quotes, numbers as they are."""
    return repr(value) if isinstance(value, str) else format_value(value)


def label(name: str, options: Options, always: Collection[str] = (), never: Collection[str] = ()) -> str:
    """Return `name:option=value` for options that are changed, in `always` or deciding, except those in `never`."""
    always = {*always, *(options.deciding & options.model_fields_set)}
    changed = [f"{k}={format_value(getattr(options, k))}" for k, f in type(options).model_fields.items()
               if k not in never and (k in always or f.is_required()
                                      or getattr(options, k) != f.get_default(call_default_factory=True))]
    return ":".join([name, *changed])
