import re
import zipfile

import pytest
from helpers import ROOT
from helpers.references import CELLS, HEAD, text, write

from clbench.core.errors import SpecError
from clbench.core.registry import discover
from clbench.experiment import references

SHIPPED = sorted((ROOT / "benchmarks" / "reference").glob("*.toml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_the_shipped_references_can_be_planned_and_name_their_source(path, tmp_path):
    name, reference = references.find(path.stem)
    assert name == path.stem
    assert reference.url.startswith("https://")
    given = {}
    if reference.weights:
        with pytest.raises(SpecError, match=r"name their file \(--weights FILE\)$"):
            reference.plan(reference.cells, discover())
        (tmp_path / "base.safetensors").write_bytes(b"read when a trial starts")
        given = {"weights": str(tmp_path / "base.safetensors")}
    planned = reference.plan(reference.cells, discover(), given)
    assert [one[0].label for one in planned] == [c.label for c in reference.cells]
    # Two numbers of one method, by two metrics, are of the same trials.
    first = {(c.scenario, c.label): one for c, one in zip(reference.cells, planned, strict=True)}
    assert len({p.trial.key for one in planned for p in one}) == sum(map(len, first.values()))
    assert all(bool(p.trial.weights) == bool(reference.weights) for one in planned for p in one)


def test_split_mnist_of_van_de_ven_is_dealt_out_by_seed_with_strengths_of_each_scenario():
    _, reference = references.find("van-de-ven-split-mnist")
    planned = reference.plan(reference.cells, discover(), {"seeds": 1})
    trials = {(one[0].trial.scenario, one[0].label): one[0].trial for one in planned}
    assert {t.benchmark.options["class_order"] for t in trials.values()} == {"seed"}
    # param_values.py of the author's code at commit f0b1461: EWC's strength, online EWC's strength and gamma.
    for scenario, ewc, online, gamma in (("task", 1e7, 1e8, 0.8), ("domain", 1e6, 1e8, 0.7), ("class", 1e8, 1e9, 0.8)):
        for method, mode, strength, decay in (("ewc", "separate", ewc, 1), ("online-ewc", "online", online, gamma)):
            options = trials[scenario, method].method.options
            assert (options["strength"], options["mode"], options["fisher"], options["gamma"]) == (
                strength, mode, "predicted", decay)
            assert options["fisher_samples"] is None


def test_permuted_mnist_of_van_de_ven_has_the_strengths_of_each_scenario():
    _, reference = references.find("van-de-ven-permuted-mnist")
    trials = {(one[0].trial.scenario, one[0].label): one[0].trial.method.options
              for one in reference.plan(reference.cells, discover(), {"seeds": 1})}
    for scenario, ewc, online, gamma, si in (("task", 500, 500, 0.8, 5), ("domain", 500, 1000, 0.9, 5),
                                             ("class", 1, 5, 1, 0.1)):
        assert (trials[scenario, "ewc"]["strength"], trials[scenario, "ewc"]["fisher"]) == (ewc, "predicted")
        assert (trials[scenario, "online-ewc"]["strength"], trials[scenario, "online-ewc"]["gamma"]) == (online, gamma)
        assert (trials[scenario, "si"]["strength"], trials[scenario, "si"]["damping"],
                trials[scenario, "si"]["gradient"]) == (si, 0.1, "total")


def test_amended_cells_of_other_tables():
    def options(name, label):
        _, reference = references.find(name)
        cell, = (c for c in reference.cells if c.label == label)
        return reference.plan([cell], discover(), {"seeds": 1})[0][0].trial.method.options

    gem = options("chaudhry-permuted-mnist", "a-gem")
    assert (gem["per_class"], gem["quota"], gem["samples"]) == (25, "class-and-task", 256)
    assert options("mammoth-split-cifar10", "er-ace")["head"] == "cosine"
    assert {label: options("der-split-cifar10", label)["alpha"] for label in ("der-200", "der-500", "der++-200",
                                                                              "der++-500")
            } == {"der-200": 0.3, "der-500": 0.3, "der++-200": 0.1, "der++-500": 0.2}
    _, hsu = references.find("hsu-split-mnist")
    assert "lwf" not in {cell.label for cell in hsu.cells}


def test_tables_on_cifar_have_the_settings_of_their_codes():
    def trials(name):
        _, reference = references.find(name)
        planned = reference.plan(reference.cells, discover(), {"seeds": 1}, dry_run=True)
        return {one[0].label: one[0].trial for one in planned}

    # config/zz_SD-LoRA/sd_lora-vit-cifar100-b10-10-10.yaml of LibContinual: init_mag
    assert trials("libcontinual-sd-lora-split-cifar100")["sd-lora"].method.options["magnitude"] == 1
    # models/config/l2p.yaml of Mammoth: pull_constraint_coeff
    assert trials("mammoth-prompts-split-cifar100")["l2p"].method.options["pull"] == 0.5
    # models/der.py, derpp.py and agem.py of Mammoth: the loss reads all outputs of the network
    assert {trials(name)[label].method.options["outputs"] for name, label in (
        ("mammoth-split-cifar100", "der"), ("mammoth-split-cifar100", "der++"), ("mammoth-split-cifar10", "a-gem"))
        } == {"all"}
    # scripts/reproduce.json and models/slca_utils/slca.py of Mammoth: no --optim_wd
    slca = trials("mammoth-slca-split-cifar100")["slca"].recipe
    assert (slca.weight_decay, slca.momentum) == (0, 0.9)
    # RanPAC.py steps its schedule after each epoch; args/cifar224_publish.csv has shuffle and seed 1993
    ranpac = trials("ranpac-split-cifar100")
    adapted = ranpac["ranpac-adapted"]
    assert (adapted.recipe.schedule, adapted.recipe.schedule_by, adapted.recipe.head_decay) == (
        "cosine", "epoch", "learning")
    assert {trial.benchmark.options["class_order"] for label, trial in ranpac.items()
            if label not in ("linear-probe", "full-fine-tuning")} == {"numpy:1993"}
    assert {ranpac[label].recipe.schedule for label in ("linear-probe", "full-fine-tuning")} == {"constant"}


def test_lwf_of_2018_is_of_the_trials_of_the_table_of_2019():
    planned = {}
    for name in ("van-de-ven-2018-split-mnist", "van-de-ven-split-mnist"):
        _, reference = references.find(name)
        planned[name] = {p.trial.key for one in reference.plan(reference.choose(methods=["lwf"]), discover())
                         for p in one}
    assert planned["van-de-ven-2018-split-mnist"] == planned["van-de-ven-split-mnist"]


def test_the_file_of_the_docs_is_one(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(re.search(r"^```toml\n(.*?)^```$", (ROOT / "docs" / "verify.md").read_text(), re.M | re.S)[1])
    reference = references.read_reference(file)
    assert len(reference.plan(reference.cells, discover())) == 2


def test_a_wheel_carries_the_references(tmp_path):
    from hatchling.builders.wheel import WheelBuilder

    wheel, = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    inside = {name.removeprefix("clbench/reference/") for name in zipfile.ZipFile(wheel).namelist()
              if name.startswith("clbench/reference/")}
    assert inside == {path.name for path in SHIPPED} | {"status.json"}


def test_an_installed_clbench_reads_those_beside_it(tmp_path, monkeypatch):
    (tmp_path / "reference").mkdir()
    (tmp_path / "reference" / "mine.toml").write_text(text())
    monkeypatch.setattr(references, "PACKAGE", tmp_path)
    assert list(references.shipped()) == ["mine"]
    assert references.find("mine")[1].title == "Tiny"


def test_cells_have_recipes_of_their_own_and_what_is_given_goes_before_the_file(tmp_path):
    reference = references.read_reference(write(tmp_path))
    specs = [reference.spec(cell, {"seeds": 3, "device": "cpu"}) for cell in reference.cells]
    assert [s.recipe.lr for s in specs] == [1e-3, 3e-3, 1e-3]
    assert {s.recipe.iterations for s in specs} == {15}
    assert {(s.seeds, s.device) for s in specs} == {((0, 1, 2), "cpu")}
    assert [m.label for s in specs for m in s.methods] == ["naive", "naive", "er-20"]


def test_a_cell_may_have_a_benchmark_and_a_model_of_its_own(tmp_path):
    own = CELLS[0] + '\nbenchmark = "split-mnist-5k:tasks=2"\nmodel = "linear"'
    reference = references.read_reference(write(tmp_path, cells=[own, CELLS[1]]))
    trials = [one[0].trial for one in reference.plan(reference.cells, discover())]
    assert [(t.benchmark.options["tasks"], t.model.name) for t in trials] == [(2, "linear"), (5, "mlp")]


def test_cells_are_chosen_by_scenario_and_label(tmp_path):
    reference = references.read_reference(write(tmp_path))
    naive, _, er = reference.cells
    assert reference.choose() == list(reference.cells)
    assert reference.choose(["task"]) == [naive]
    assert reference.choose((), ["er-20"]) == [er]
    with pytest.raises(SpecError) as error:
        reference.choose(["domain"], ["er"])
    assert str(error.value).splitlines() == [
        "the table has no scenario 'domain' (it has task, class)",
        "the table has no method 'er' (it has naive, er-20)"]
    with pytest.raises(SpecError, match=r"no method 'nai'; did you mean 'naive'\? \(it has naive, er-20\)"):
        reference.choose((), ["nai"])


@pytest.mark.parametrize(("parts", "message"), [
    ({"head": HEAD.replace("seeds = 16", "seeds = 0")}, "seeds: Input should be greater than or equal to 1"),
    ({"head": HEAD.replace("seeds = 16", "seeds = 1")}, "reference: seeds: one run has no spread"),
    ({"cells": [CELLS[0] + "\nruns = [89.0, 91.0]"]}, "reference: naive: as many runs are listed as seeds says"),
    ({"cells": [CELLS[0] + "\nruns = [89.0, 92.0]"]}, "cells.0: published is 90, the mean of the runs 90.500"),
    ({"cells": [CELLS[1] + "\nruns = [19.0, 21.0]"]}, "cells.0: sd is 4, that of the runs is another"),
    ({"head": HEAD.replace("widest", "wides")}, "tolerance.wides: Extra inputs are not permitted"),
    ({"head": HEAD.replace('url = "https://example.org/paper"\n', "")}, "url: Field required"),
    ({"head": HEAD.replace("[experiment]", '[experiment]\nmethods = ["naive"]')},
     "reference: experiment: methods is given by the cells"),
    ({"cells": [CELLS[0], CELLS[0]]}, "reference: two cells are naive in scenario task"),
    ({"cells": [CELLS[0].replace("sem = 0.5", "")]}, "cells.0: a number without its spread"),
    ({"cells": [CELLS[0] + "\nsd = 1.0"]}, "cells.0: give sem or sd, not both"),
    ({"cells": [CELLS[0] + '\nallowance = 2.0\nreason = "so"']},
     "reference: naive: allowance and rounding alone reach the widest tolerance that decides"),
    ({"cells": [CELLS[0] + "\nallowance = 1.0"]}, "cells.0: an allowance needs its reason"),
    ({"cells": [CELLS[0].replace("90.0", "900.0")]}, "cells.0.published: Input should be less than or equal to 100"),
    ({"cells": ["scenario = [", CELLS[0]]}, "cannot be read as TOML"),
])
def test_a_faulty_file_is_named_with_what_is_wrong(parts, message, tmp_path):
    path = write(tmp_path, **parts)
    with pytest.raises(SpecError) as error:
        references.find(str(path))
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)


def test_mistakes_in_the_experiment_are_named_too(tmp_path):
    reference = references.read_reference(write(tmp_path, head=HEAD.replace("iterations = 15", "iterations = 0")))
    with pytest.raises(SpecError, match=r"^Tiny: recipe.iterations: "):
        reference.spec(reference.cells[0])


@pytest.mark.parametrize(("name", "message"), [
    ("van-de-ven-split-minst", "did you mean 'van-de-ven-split-mnist'"), ("absent.toml", "no experiment file absent")])
def test_a_reference_that_is_not_there_is_one_line(name, message):
    with pytest.raises(SpecError, match=message):
        references.find(name)
