from typing import Annotated, Any, ClassVar, Literal, Optional

import pytest
from pydantic import Field, TypeAdapter, create_model

from clbench.core.errors import SpecError
from clbench.core.option_marks import OnlyWith, marks, without_effect
from clbench.core.options import Options, Scalar, document, format_value, label, parse_named, parse_value, validate
from clbench.core.registry import discover


class Sample(Options):
    rank: int = Field(4, ge=1, description="columns of A")
    alpha: float | None = Field(None, gt=0, description="scale")
    layers: str = "all"
    flag: bool = False


@pytest.mark.parametrize(("text", "name", "options"), [
    ("lora", "lora", {}),
    ("lora:rank=4:alpha=8.0", "lora", {"rank": 4, "alpha": 8.0}),
    ("package.module:function", "package.module:function", {}),
    ("torchvision:resnet18:width=2", "torchvision:resnet18", {"width": 2}),
    ("x:layers=blocks.0", "x", {"layers": "blocks.0"}),
    ("lora:layers=last:4:rank=8", "lora", {"layers": "last:4", "rank": 8}),
    ("torchvision:vit_b_16:layers=blocks:2", "torchvision:vit_b_16", {"layers": "blocks:2"}),
    ("x:layers=(?:a|b)(?=c):rank=2", "x", {"layers": "(?:a|b)(?=c)", "rank": 2}),
    ('x:ranks={"(?:a|b)" = 2}:rank=3', "x", {"ranks": {"(?:a|b)": 2}, "rank": 3}),
    ("x:url=http://host:80", "x", {"url": "http://host:80"}),
    ("a:rank=1:oops", "a", {"rank": "1:oops"}),
])
def test_names_are_parsed(text, name, options):
    assert parse_named(text) == (name, options)


def test_a_list_may_have_one_number():
    kind = create_model("Lists", __base__=Options, names=(list[str], []), sizes=(list[int], []))
    options = validate(kind, parse_named("x:names=2020:sizes=10")[1], "x", "clbench methods")
    assert (options.names, options.sizes) == (["2020"], [10])
    assert validate(kind, {"names": "0+a"}, "x", "clbench methods").names == ["0", "a"]
    with pytest.raises(SpecError, match="sizes"):
        validate(kind, {"sizes": True}, "x", "clbench methods")


@pytest.mark.parametrize("text", ["", "a:", ":rank=1"])
def test_malformed_names_are_refused(text):
    with pytest.raises(SpecError):
        parse_named(text)


@pytest.mark.parametrize("value", [1, 2.5, 1e5, 1e-3, 1e-10, 1.2345678, 0.1, 250.0, True, False, "entropy",
                                   {}, {"blocks\\.0": 2, "b": 3}])
def test_values_survive_writing_and_reading(value):
    assert parse_value(format_value(value)) == value


def test_a_date_is_text():
    for text in ("2024-01-31", "07:32:00", "2024-01-31T07:32:00"):
        assert parse_value(text) == text


@pytest.mark.parametrize("words", [["a"], ["a", "b_2"], ["all-linear"], ["all-linear", "q"], ["3"], ["2026-11-29"]])
def test_lists_of_words_survive_as_well(words):
    written = format_value(words)
    read = parse_value(written)
    assert ([str(read)] if not isinstance(read, list | str) else read.split("+") if isinstance(read, str) else read
            ) == words
    assert ("[" in written) is (words == ["2026-11-29"])


def test_types_are_coerced_and_checked():
    assert validate(Sample, {"rank": "8", "alpha": "none", "layers": 3}, "lora", "x") == Sample(rank=8, layers="3")


def test_every_mistake_is_named_with_its_place():
    with pytest.raises(SpecError) as caught:
        validate(Sample, {"rank": 0, "ranck": 1}, "lora", "clbench methods")
    lines = str(caught.value).splitlines()
    assert lines == ["lora.rank: should be greater than or equal to 1, got 0",
                     "lora: no option 'ranck'; did you mean 'rank'? (clbench methods lora lists all)"]


@pytest.mark.parametrize(("text", "line"), [
    ("lora:rank=4:alpha", "lora.rank: should be a valid integer, unable to parse string as an integer, got '4:alpha'; "
                          "'alpha' lacks '=value'"),
    ("lora:flag=true:alpha:8", "lora.flag: should be a valid boolean, unable to interpret input, got 'true:alpha:8'; "
                               "'alpha' lacks '=value'"),
    ("lora:rank=4:al pha=8", "lora.rank: should be a valid integer, unable to parse string as an integer, got "
                             "'4:al pha=8'; 'al pha=8' is not option=value"),
    ("lora:ranck=4:8", "lora: no option 'ranck'; did you mean 'rank'? (x lora lists all)"),
    ("lora:layers=last:4", None),
])
def test_an_option_without_its_value_is_named(text, line):
    name, given = parse_named(text)
    if line is None:
        assert label(name, validate(Sample, given, name, "x")) == text
        return
    with pytest.raises(SpecError) as caught:
        validate(Sample, given, name, "x")
    assert str(caught.value) == line


def test_a_boolean_is_no_number():
    with pytest.raises(SpecError, match=r"^lora.rank: expected a number, got true$"):
        validate(Sample, {"rank": True}, "lora", "x")


def test_labels_show_what_differs_from_the_defaults():
    assert label("lora", Sample()) == "lora"
    assert label("lora", Sample(rank=8, alpha=1e5)) == "lora:rank=8:alpha=1e5"


def test_labels_know_defaults_that_are_made_anew_and_options_that_have_none():
    class Made(Options):
        needed: int
        several: list[int] = Field(default_factory=lambda: [1, 2])

    assert label("x", Made(needed=3)) == "x:needed=3"
    assert label("x", Made(needed=3, several=[4])) == "x:needed=3:several=[4]"


def test_labels_show_options_that_decide_by_being_given():
    class Decided(Options):
        deciding = frozenset({"where"})
        where: str = "all"

    assert [label("x", Decided()), label("x", Decided(where="all"))] == ["x", "x:where=all"]


def test_an_option_that_came_later_is_written_only_where_it_says_something():
    class Newer(Sample):
        LATER = ("flag", "several")

        several: list[int] = Field(default_factory=list)

    old = Sample(rank=8).model_dump()
    del old["flag"]
    assert Newer(rank=8).model_dump() == Newer(rank=8, several=[], flag=False).model_dump() == old
    assert Newer(rank=8, several=[1]).model_dump() == {**old, "several": [1]}
    assert Newer(flag=True).model_dump_json() == '{"rank":4,"alpha":null,"layers":"all","flag":true}'
    assert Newer.model_validate(Newer(several=[1]).model_dump()) == Newer(several=[1])


def test_documentation_has_type_bounds_default_and_meaning():
    docs = {d.name: d for d in document(Sample)}
    assert docs["rank"].type == "int >= 1"
    assert docs["rank"].default == 4
    assert docs["rank"].meaning == "columns of A"
    assert docs["alpha"].type == "float | none > 0"


@pytest.mark.parametrize(("annotation", "name"), [
    (int, "int"), (Scalar, "float"), (int | None, "int | none"), (Optional[int], "int | none"),  # noqa: UP045
    (Literal["a", 2, True, None], "a | 2 | true | none"), (Literal["a"] | int, "a | int"), (Any, "Any"),
    (dict[str, int], "dict[str, int]"), (tuple[int, ...], "tuple[int, ...]"),
    (list[Scalar] | None, "list[float] | none"),
])
def test_types_are_named_alike_on_every_python(annotation, name):
    options = create_model("Typed", __base__=Options, value=(annotation, ...))
    assert document(options)[0].type == name


def test_what_was_done_before_an_option_came_keeps_its_key_and_is_read_again():
    class Changed(Options):
        BEFORE: ClassVar = {"form": "old"}
        form: Literal["old", "new"] = "new"
        rank: int = 4

    assert Changed().model_dump() == {"form": "new", "rank": 4}
    assert Changed(form="old").model_dump() == {"rank": 4}
    assert Changed.stored({"rank": 4}) == Changed(form="old")
    assert Changed.stored(Changed().model_dump()) == Changed()


class Dependent(Options):
    targets: Literal["hard", "soft", "mixed"] = "hard"
    temperature: Annotated[Scalar, OnlyWith("targets", "soft", "mixed")] = 2.0
    share: float = 0.0
    capacity: Annotated[int, OnlyWith("share")] = 200
    align: bool = False
    align_lr: Annotated[float, OnlyWith("align")] = 0.01
    per_class: int | None = None
    quota: Annotated[str, OnlyWith("per_class")] = "class"


@pytest.mark.parametrize(("given", "needed"), [
    ({"temperature": 3}, "targets = soft or mixed"), ({"capacity": 7}, "share above 0"),
    ({"align_lr": 0.1}, "align = true"), ({"quota": "task"}, "per_class")])
def test_an_option_without_effect_is_refused(given, needed):
    with pytest.raises(SpecError) as refused:
        validate(Dependent, given, "er", "clbench methods")
    (name,) = given
    assert str(refused.value) == f"er: {name} has an effect only with {needed}; add that, or leave {name} out"


@pytest.mark.parametrize("given", [
    {}, {"temperature": 2.0}, {"temperature": 3, "targets": "soft"}, {"temperature": 3, "targets": "mixed"},
    {"capacity": 7, "share": 0.5}, {"align_lr": 0.1, "align": True}, {"quota": "task", "per_class": 1}])
def test_an_option_with_an_effect_is_accepted(given):
    assert validate(Dependent, given, "er", "clbench methods").model_dump() == {**Dependent().model_dump(), **given}


@pytest.mark.parametrize("method", discover().strategies.values(), ids=lambda info: info.name)
def test_a_method_names_options_that_it_has(method):
    for name, mark in marks(method.options, OnlyWith).items():
        assert mark.option in method.options.model_fields, name
        for value in mark.values:  # pydantic refuses a value that the option cannot have
            TypeAdapter(method.options.model_fields[mark.option].annotation).validate_python(value)
    if not any(field.is_required() for field in method.options.model_fields.values()):
        assert without_effect(method.options()) == ""
