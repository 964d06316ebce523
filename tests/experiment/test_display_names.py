"""Display names of methods: made from options, distinct in a section, and read back into ids."""

import re

import pytest
from helpers.records import make_record

import clbench
from clbench import cli
from clbench.core.registry import Registry, discover
from clbench.experiment.overrides import read_spec
from clbench.experiment.plan import plan
from clbench.report.analysis.readable import (
    as_ids,
    fill_display_name,
    name_settings,
    names_of,
    option_names,
    with_options,
)

REGISTRY = discover()
NAMES = names_of(REGISTRY)


def shown(*records, registry: Registry | None = None):
    """Return the display name of each method by its id."""
    setting, = name_settings(records, registry=registry)
    return {m.id: m.label for m in setting.methods}


def made(method, label=None, **options):
    return make_record(method, options=options, label=label or ":".join(
        [method, *(f"{name}={value}" for name, value in options.items())]))


def test_a_display_name_shows_options_by_their_values():
    assert option_names("DER ({capacity})") == {"capacity"} and option_names("EWC") == set()
    assert fill_display_name("LoRA r={rank}", {"rank": 8, "alpha": 2.0}) == "LoRA r=8"
    assert with_options("EWC", []) == "EWC" and with_options("EWC", ["a=1"]) == "EWC (a=1)"
    assert with_options("ER (500)", ["a=1", "b=2"]) == "ER (500, a=1, b=2)"


def test_methods_are_called_by_their_display_names():
    assert shown(made("lora", rank=8), made("er", capacity=500), make_record("ewc"), make_record("naive")) == {
        "lora:rank=8": "LoRA r=8", "er:capacity=500": "ER (500)", "ewc": "EWC", "naive": "Fine-tuning"}


def test_options_that_differ_are_added_until_names_are_distinct():
    found = shown(made("ranpac", ridge="1e6", scale=3), made("ranpac", ridge="1e3", scale=3), made("ranpac", scale=3),
                  made("er", capacity=500, outputs="own"), made("er", capacity=500, outputs="seen"),
                  made("er", capacity=200, outputs="own"))
    assert found == {
        "ranpac:ridge=1e6:scale=3": "RanPAC (ridge=1e6)", "ranpac:ridge=1e3:scale=3": "RanPAC (ridge=1e3)",
        "ranpac:scale=3": "RanPAC", "er:capacity=500:outputs=own": "ER (500, outputs=own)",
        "er:capacity=500:outputs=seen": "ER (500, outputs=seen)", "er:capacity=200:outputs=own": "ER (200)"}


def test_labels_that_somebody_chose_stay():
    assert shown(made("lora", "my favorite", rank=8), made("lora", rank=8, alpha=3)) == {
        "my favorite": "my favorite", "lora:rank=8:alpha=3": "LoRA r=8"}


def test_a_method_without_a_display_name_keeps_its_id():
    assert shown(made("somebodys", size=3), make_record("ewc")) == {"somebodys:size=3": "somebodys:size=3",
                                                                    "ewc": "EWC"}
    assert shown(make_record("lora")) == {"lora": "lora"}  # a record without the option that the name shows


def planned(methods, registry=REGISTRY):
    """Return the keys of the trials of methods on one seed."""
    return [one.trial.key for one in plan(read_spec(None, {}, {"methods": methods, "seeds": "1"}, ()), registry)]


@pytest.mark.parametrize("strategy", sorted(REGISTRY.strategies))
def test_the_display_name_of_default_options_plans_the_trial_of_the_bare_name(strategy):
    info = REGISTRY.strategies[strategy]
    options = info.options().model_dump() if info.options else {}
    name = fill_display_name(info.display_name, options) if info.display_name else strategy
    ids = as_ids(name, REGISTRY)
    assert ids == strategy or ids.startswith(f"{strategy}:")
    assert planned(ids) == planned(strategy)
    assert not info.display_name or as_ids(name.lower(), REGISTRY) == ids


def test_every_installed_method_of_clbench_has_a_display_name_of_its_own():
    ours = {name for name in REGISTRY.strategies if ":" not in name}
    assert ours <= NAMES.keys() and len({name.lower() for name in NAMES.values()}) == len(NAMES)


@pytest.mark.parametrize(("text", "expected"), [
    ("LoRA r=8", "lora:rank=8"), ("lora r=8, EWC", "lora:rank=8,ewc"), ("ER (500, outputs=own),naive",
                                                                       "er:capacity=500:outputs=own,naive"),
    ("EWC-LoRA r=2 (alpha=4)", "ewc-lora:rank=2:alpha=4"), ("Joint training", "joint"),
    ("RanPAC (ridge=1e6, scale=3)", "ranpac:ridge=1e6:scale=3"), ("LoRA r=8 of mine", "LoRA r=8 of mine"),
    ("lora:rank=2,nothing", "lora:rank=2,nothing"), ("", ""),
])
def test_display_names_are_read_back_into_ids(text, expected):
    assert as_ids(text, REGISTRY) == expected


def test_names_that_reports_show_are_read_back_into_their_ids():
    found = shown(made("lora", rank=8), made("er", capacity=500, outputs="own"), made("er", capacity=500),
                  made("ranpac", ridge="1e6"), made("ranpac"), make_record("joint"))
    assert as_ids(",".join(found.values()), REGISTRY) == ",".join(found)


def test_the_command_line_takes_display_names(capsys, tmp_path):
    arguments = ["--benchmark", "split-mnist-5k", "--seeds", "1", "--out", str(tmp_path), "--dry-run"]
    rows = []
    for methods in ("LoRA r=8,EWC", "lora:rank=8,ewc"):
        assert cli.call(["run", "--methods", methods, *arguments]) == 0
        rows.append([line for line in capsys.readouterr().out.splitlines() if re.match(r"[0-9a-f]{16} ", line)])
    assert rows[0] == rows[1] and len(rows[0]) == 2 and "lora:rank=8" in rows[0][0]


@pytest.mark.parametrize("methods", ["LoRA r=8,EWC", ["LoRA r=8", "EWC"]])
def test_python_takes_display_names(methods, tmp_path, monkeypatch):
    asked = []

    def stop(spec, *rest):
        asked.append(spec)
        raise KeyboardInterrupt

    monkeypatch.setattr("clbench.execution.run.prepare", stop)
    with pytest.raises(KeyboardInterrupt):
        clbench.run(methods=methods, out=tmp_path, seeds=1)
    spec, = asked
    assert [(m.name, m.options) for m in spec.methods] == [("lora", {"rank": 8}), ("ewc", {})]
