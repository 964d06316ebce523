import pytest

from clbench.core.errors import SpecError
from clbench.core.registry import discover
from clbench.experiment.plan import plan
from clbench.experiment.search import Searched
from clbench.experiment.spec import build


@pytest.fixture(scope="module")
def registry():
    return discover()


def planned(registry, **values):
    return plan(build(values), registry)


def test_every_combination_is_a_trial_with_a_key_of_its_own(registry):
    trials = planned(registry, methods="naive,ewc,ewc:strength=10.0", seeds=2, scenario="task,class")
    assert len(trials) == 3 * 2 * 2
    assert len({p.trial.key for p in trials}) == len(trials)
    assert [p.label for p in trials[:3]] == ["naive", "ewc", "ewc:strength=10"]
    assert [p.reference for p in trials[:3]] == [True, False, False]


def test_the_key_does_not_depend_on_how_the_options_were_written(registry):
    one = planned(registry, methods=["lora:rank=4"], seeds=1)[0].trial
    two = planned(registry, methods=[{"name": "lora", "options": {}, "label": "mine"}], seeds=1)[0].trial
    assert one.key == two.key
    assert one.key != planned(registry, methods="lora:rank=8", seeds=1)[0].trial.key
    assert one.key != planned(registry, methods="lora", seeds=1, recipe={"lr": 0.1})[0].trial.key


def test_the_default_scenario_is_the_benchmarks_own(registry):
    assert planned(registry, methods="naive")[0].trial.scenario == "task"
    assert planned(registry, methods="naive", benchmark="rotated-mnist")[0].trial.scenario == "domain"


def test_all_mistakes_are_listed(registry):
    with pytest.raises(SpecError) as caught:
        planned(registry, methods="loraa,ewc:strenght=3", benchmark="split-mnst", model="mpl")
    assert str(caught.value).splitlines() == [
        "no benchmark 'split-mnst'; did you mean 'split-mnist' or 'split-mnist-5k'? (clbench benchmarks lists all)",
        "no model 'mpl'; did you mean 'mlp'? (clbench models lists all)",
        "no method 'loraa'; did you mean 'lora'? (clbench methods lists all). If it is in a file, add --plugin FILE",
        "ewc: no option 'strenght'; did you mean 'strength'? (clbench methods ewc lists all)",
    ]


@pytest.mark.parametrize(("written", "meant"), [
    ("image:photos", "images:photos"), ("photos", "images:photos"), ("photos:tasks=2", "images:photos"),
    ("rows.csv", "table:rows.csv"), ("array:x.npz", "arrays:x.npz"), ("tabel:rows.csv", "table:rows.csv"),
    ("csv:rows.csv", "table:rows.csv"), ("folder:photos", "images:photos"),
])
def test_a_path_without_its_kind_and_a_misspelled_kind_are_asked_back(registry, written, meant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "rows.csv").touch()
    with pytest.raises(SpecError, match=rf"^no benchmark .*; did you mean {meant}\? "):
        planned(registry, methods="naive", benchmark=written)
    (tmp_path / "image.py").write_text("def photos(): ...\n")  # then the name is that of a module of the user
    assert planned(registry, methods="naive", benchmark="image:photos")


@pytest.mark.parametrize("written", ["table:year=2020/d.csv", "table"])
def test_a_path_that_cannot_be_written_in_a_command_gets_the_form_for_a_file(registry, written):
    with pytest.raises(SpecError, match=r"no benchmark 'table' .* Write table:PATH; a path with = .* TOML file, as in "
                                        r'benchmark = \{name = "table:PATH"\}$'):
        planned(registry, methods="naive", benchmark=written)


@pytest.mark.parametrize("given", [{"benchmark": "images:{}"}, {"weights": "{}"}, {"execution": {"general": ["{}"]}},
                                   {"methods": "{}/mine.py:Mine"}])
def test_a_path_that_no_record_can_hold_is_refused(registry, given, tmp_path):
    path = b"/photos/th\xe8se".decode("utf-8", "surrogateescape")
    filled = {key: text.format(path) if isinstance(text, str) else {"general": [path]} for key, text in given.items()}
    with pytest.raises(SpecError, match=r"/photos/th\\xe8se\S* is not UTF-8, as records must be: rename it"):
        plan(build({"methods": "naive", **filled}), registry)


def test_an_option_without_a_value_is_not_taken_for_the_name_of_a_class(registry):
    with pytest.raises(SpecError, match=r"^method 'ewc': option 'strength' has no value; write ewc:strength=VALUE$"):
        planned(registry, methods="ewc:strength")


def test_the_command_that_lists_options_can_be_pasted(registry):
    with pytest.raises(SpecError, match=r"\(clbench benchmarks 'images:my photos' lists all\)$"):
        planned(registry, methods="naive", benchmark="images:my photos:siez=3")


def test_a_scenario_that_the_benchmark_has_not(registry):
    with pytest.raises(SpecError, match="'rotated-mnist' does not support scenario 'class': choose domain or task"):
        planned(registry, methods="naive", benchmark="rotated-mnist", scenario="class")


def test_two_rows_of_one_name_are_refused(registry):
    with pytest.raises(SpecError, match="two methods have the label 'lora'"):
        planned(registry, methods="lora,lora:rank=4")


def test_weights_count_by_their_content(registry, tmp_path):
    keys = []
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
        keys.append(planned(registry, methods="naive", weights=str(tmp_path / name))[0].trial.key)
    assert keys[0] == keys[1] != keys[2]
    with pytest.raises(SpecError, match=r"weights .* cannot be read .*check the path"):
        planned(registry, methods="naive", weights=str(tmp_path / "none"))


def test_a_row_that_was_searched_twice_has_the_candidates_of_both(registry):
    def search(label, option, values):
        return {"command": "clbench tune", "versions": {}, "validation": 0.1, "seeds": [1000], "trials": 2,
                "sampler": "every value of a grid", "space": {label: {option: {"values": values}}},
                "tried": [{"method": label, "scenario": "task", "options": {option: value}, "acc": [0.5]}
                          for value in values]}

    found = planned(registry, methods="er:capacity=50,naive", seeds=1, benchmark="split-mnist-5k", tuning=[
        search("er", "capacity", [10, 50]), search("er", "capacity", [50, 200]), search("lwf", "strength", [1.0, 2.0])])
    assert [p.searched for p in found] == [Searched(candidates=3, validation=0.1, seeds=(1000,)), None]
    labeled = {"name": "er", "options": {"capacity": 10}, "label": "mine"}
    own, other = planned(registry, methods=[labeled, "er:capacity=50"], seeds=1, benchmark="split-mnist-5k", tuning=[
        search("er", "capacity", [10, 50]), search("mine", "capacity", [10])])
    assert (own.searched.candidates, other.searched.candidates) == (1, 2)
    elsewhere = search("mine", "capacity", [10])
    elsewhere["tried"][0]["scenario"] = "class"
    row, = planned(registry, methods=[labeled], seeds=1, benchmark="split-mnist-5k", tuning=[
        search("er", "capacity", [10, 50]), elsewhere])
    assert row.searched.candidates == 2  # in its own scenario, only the unlabeled row was searched
