"""A trial that had ended learns on: as if it had never ended, where nothing has to grow; else with new outputs."""

import json
import random
from dataclasses import replace

import pytest
import torch
from helpers.named_trees import write
from PIL import Image

import clbench
from clbench import cli
from clbench.core.errors import ClbenchError, DataError, SpecError, StoreError
from clbench.core.registry import discover, installed
from clbench.execution.continuing import changed_recipe, continue_trial
from clbench.execution.exporting import export
from clbench.execution.joining import outputs_of, refuse_samples
from clbench.execution.loading import find_record
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.spec import Recipe
from clbench.experiment.trial import Resolved, Trial
from clbench.persistence.snapshot import read
from clbench.report.analysis.notes import title
from clbench.results.store import MODEL, STATE, Store
from clbench.training.loop import TrainingLoop

SHIFTING, PICTURES = "helpers.tiny_benchmarks:shifting", "helpers.tiny_benchmarks:pictures"
METHODS = "naive,ewc,er,lora"


def train(folder, benchmark, scenario, methods=METHODS, **more):
    return {r.label: r for r in clbench.run(**{
        "methods": methods, "benchmark": benchmark, "model": "mlp:width=12", "scenario": scenario, "seeds": 1,
        "iterations": 4, "batch_size": 12, "workers": 0, "keep": "state", "out": folder, **more})}


def go_on(folder, record, benchmark, **more):
    return continue_trial(folder, record.key, Resolved(name=benchmark), ExecutionSettings(), "cpu", **more)


@pytest.fixture(scope="module")
def domain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("domain")
    return folder, train(folder, SHIFTING, "domain"), train(folder / "twice", f"{SHIFTING}_twice", "domain",
                                                            keep="nothing")


@pytest.mark.parametrize("label", METHODS.split(","))
@pytest.mark.slow
def test_where_outputs_are_shared_it_is_as_if_the_stream_had_been_one(domain, label):
    folder, first, twice = domain
    whole, made = twice[label].R, go_on(folder, first[label], SHIFTING)
    assert made.status == "done" and made.label == label
    assert [row[3:] for row in whole[3:]] == made.R
    assert [made.earlier.before, *made.earlier.after] == [row[:3] for row in whole[3:]]
    assert made.trial.continues.parent == first[label].key and made.trial.continues.tasks == 3
    assert Store(folder).get(made.key) == made
    found = find_record(Store(folder), f"{label}/0", installed())
    assert found.key == first[label].key  # the name is still the parent's
    assert "shifting after helpers.tiny" in title(made)
    with pytest.raises(StoreError, match=r"has gone on to helpers\.tiny_benchmarks:shifting before"):
        go_on(folder, first[label], SHIFTING)


def test_the_state_of_the_optimizer_is_kept_where_it_fits(tmp_path):
    recipe = {"methods": "naive", "optimizer_state": "keep"}
    first = train(tmp_path / "first", SHIFTING, "domain", **recipe)["naive"]
    twice = train(tmp_path / "twice", f"{SHIFTING}_twice", "domain", keep="nothing", **recipe)["naive"]
    made = go_on(tmp_path / "first", first, SHIFTING)
    assert [row[3:] for row in twice.R[3:]] == made.R and twice.last_losses[3:] == made.last_losses
    other = go_on(tmp_path / "first", first, SHIFTING, recipe={"optimizer": "sgd"})
    assert "the optimizer began without state, because the tasks before were learned with optimizer = adam, " \
           "optimizer_state = keep" in other.notes
    grown = train(tmp_path / "grown", PICTURES, "class", **recipe)["naive"]
    made = go_on(tmp_path / "grown", grown, PICTURES, classes="new")
    assert made.status == "done" and "the optimizer began without the state of parameters of another shape: " in str(
        made.notes)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    return folder, train(folder, PICTURES, "class,task", "er,lora,slca", out=folder)


def in_scenario(folder, label, scenario):
    return next(r for r in Store(folder).read()[0] if r.trial.scenario == scenario and r.label == label
                and r.trial.continues is None)


@pytest.mark.parametrize("scenario", ["class", "task"])
@pytest.mark.parametrize("label", ["er", "lora"])
def test_outputs_grow_and_what_was_known_is_known_before_it_goes_on(pictures, label, scenario, tmp_path):
    folder, _ = pictures
    record = in_scenario(folder, label, scenario)
    made = go_on(folder, record, PICTURES, out=tmp_path, classes="new")
    assert made.earlier.before == record.R[-1]
    assert made.stream.classes == [[4, 5], [6, 7]] and len(made.R) == 3
    old, new = clbench.load_model(folder, record.key), clbench.load_model(tmp_path, made.key)
    assert (old.outline.outputs, new.outline.outputs) == (4, 8)
    if label == "er":  # the memory of the old tasks came along
        assert made.costs.replay_samples[-1] > 0
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    found = new.predict(images, task=3 if scenario == "task" else None)
    assert set(found.classes) <= ({6, 7} if scenario == "task" else set(range(8)))
    again = go_on(tmp_path, made, PICTURES, classes="new")  # a child goes on too
    assert again.trial.continues.tasks == 4 and again.stream.classes == [[8, 9], [10, 11]]
    assert any("what became of the old tasks is not known" in note for note in again.notes)
    for longer, row in ((made, [*made.earlier.after[-1], *made.R[-1]]), (again, [None] * 4 + again.R[-1])):
        task = 1 if (label, scenario) == ("er", "class") else None
        about = json.loads(export(tmp_path, longer.key, tmp_path / f"home-{longer.key}", task=task)[1].read_text())
        tasks = [[2 * index, 2 * index + 1] for index in range(len(row))]
        assert (about["tasks"], about["accuracy"]) == (tasks, row)
        names = clbench.load_model(tmp_path, longer.key).class_names
        assert about["class_names"] == [[names[output] for output in outputs] for outputs in tasks]
    if label == "lora":  # its exported adapters are those of the first trial
        with pytest.raises(SpecError, match="has no plain network that answers"):
            clbench.load_model(tmp_path, made.key, task=3)


def test_training_that_fails_ends_in_an_error_with_its_reason(pictures, tmp_path, monkeypatch):
    folder, _ = pictures

    def fail(self, task):
        raise RuntimeError("the driver has failed")

    monkeypatch.setattr(TrainingLoop, "train_task", fail)
    with pytest.raises(ClbenchError, match="er/0 failed to continue training: RuntimeError: the driver has failed"):
        go_on(folder, in_scenario(folder, "er", "class"), PICTURES, out=tmp_path, classes="new")
    assert Store(tmp_path).read()[0] == []


def test_what_cannot_go_on_is_refused_in_a_line(pictures, domain, tmp_path):
    folder, _ = pictures
    with pytest.raises(SpecError, match=r"slca cannot continue training: it stores class_\w+ .* with more outputs"):
        go_on(folder, in_scenario(folder, "slca", "class"), PICTURES, classes="new")
    record = in_scenario(folder, "er", "class")
    with pytest.raises(SpecError, match=r"has samples \[1, 6, 6\] .* the model takes \[3, 16, 16\]"):
        go_on(folder, record, SHIFTING)
    path = Store(folder).artifacts / record.key / STATE
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(StoreError, match="run the experiment again with --keep state"):
        go_on(folder, record, PICTURES)
    path.write_bytes(content[:200])
    with pytest.raises(StoreError, match="cannot be read"):
        go_on(folder, record, PICTURES)
    path.write_bytes(content)


def test_what_is_divided_among_tasks_cannot_go_on(tmp_path):
    (record,) = train(tmp_path, SHIFTING, "domain", "coda-prompt", model="vit-tiny:width=12:depth=2:heads=3:patch=2"
                      ).values()
    with pytest.raises(SpecError, match=r"it stores \S+ .*, of which it is not known how it grows with more tasks"):
        go_on(tmp_path, record, SHIFTING)


def test_the_commands(pictures, tmp_path, capsys):
    folder, _ = pictures
    record = in_scenario(folder, "er", "class")
    assert cli.call(["continue", str(folder), record.key, "--benchmark", PICTURES, "--out", str(tmp_path),
                     "--device", "cpu", "--new-classes", "--epochs", "2", "--lr", "0.01"]) == 0
    out = capsys.readouterr().out
    (made,) = Store(tmp_path).read()[0]
    assert (made.trial.recipe.epochs, made.trial.recipe.iterations, made.trial.recipe.lr) == (2, None, 0.01)
    assert made.trial.recipe.batch_size == record.trial.recipe.batch_size == 12  # the parent's
    assert made.costs.steps == [2 * -(-count // 12) for count in made.stream.train_samples]
    assert f"continues er/0 ({record.key}), which had learned 2 tasks" in out and "old tasks: " in out
    assert cli.call(["export", str(tmp_path), "--to", str(tmp_path / "home")]) == 0
    assert "model.safetensors (" in capsys.readouterr().out
    assert cli.call(["report", str(tmp_path)]) == 0
    assert cli.call(["continue", str(folder), record.key, "--benchmark", "split-mnits"]) == 2
    assert "did you mean 'split-mnist'" in capsys.readouterr().err


def test_two_new_classes_are_one_task_and_photos_of_another_size_are_resized_by_an_option(tmp_path, capsys):
    def photos(name, classes, side):
        for number, label in enumerate(classes):
            (tmp_path / name / label).mkdir(parents=True)
            for index in range(5):
                Image.new("RGB", (side, side), (60 * number, index, 0)).save(tmp_path / name / label / f"{index}.png")
        return f"images:{tmp_path / name}"

    old, new = photos("old", "abcd", 8), photos("new", "ef", 12)
    (record,) = train(tmp_path / "run", old, "class", "er", data=tmp_path).values()
    call = ["continue", str(tmp_path / "run"), record.key, "--device", "cpu", "--data", str(tmp_path), "--benchmark"]
    assert cli.call([*call, new]) == 2
    assert "the model takes [3, 8, 8] (uint8); add :size=8 to the benchmark" in capsys.readouterr().err
    assert cli.call([*call, f"{new}:size=8"]) == 0
    (made,) = [r for r in Store(tmp_path / "run").read()[0] if r.trial.continues]
    assert made.stream.classes == [[4, 5]] and made.trial.benchmark.options["tasks"] == 1


@pytest.mark.parametrize("keeps_old", [True, False])
def test_photos_that_stay_in_their_files_can_be_the_old_and_the_new_tasks(tmp_path, keeps_old):
    def photos(name, classes):
        for number, label in enumerate(classes):
            write(tmp_path / name / label, [f"{i}.png" for i in range(5)], number)
        return f"images:{tmp_path / name}:read=files"

    old, new = photos("old", "abcd"), f"images:{tmp_path / 'new'}"
    photos("new", "efgh")
    (record,) = train(tmp_path / "run", old, "class", "naive", data=tmp_path).values()
    if not keeps_old:
        (tmp_path / "old").rename(tmp_path / "elsewhere")
    made = continue_trial(tmp_path / "run", record.key, Resolved(name=new, options=record.trial.benchmark.options),
                          ExecutionSettings(data=tmp_path), "cpu")
    assert made.stream.classes == [[4, 5], [6, 7]] and (made.earlier is not None) is keeps_old


def test_classes_with_the_names_of_old_ones_have_to_be_told_apart(pictures, tmp_path):
    folder, _ = pictures
    record = in_scenario(folder, "er", "class")
    with pytest.raises(SpecError, match=r"names of old ones \(0, 1, 2, \.\.\.\); say .*--same-classes.*--new-cl"):
        go_on(folder, record, PICTURES)
    same = go_on(folder, record, PICTURES, out=tmp_path, classes="same")
    assert same.stream.classes == [[0, 1], [2, 3]] and same.earlier.before == record.R[-1]
    assert same.R[0] == record.R[-1]  # the tests are the old ones
    assert clbench.load_model(tmp_path, same.key).outline.outputs == 4
    other = go_on(folder, record, PICTURES, out=tmp_path, classes="new")
    assert same.key != other.key and same.trial.environment != other.trial.environment
    assert "same_classes" not in other.model_dump_json()  # the key of records that were made before it could be said


def test_a_classs_outputs_are_found_by_its_name(pictures):
    folder, _ = pictures
    record = in_scenario(folder, "er", "class")
    outline = read(Store(folder).artifacts / record.key / MODEL).header.outline.model_copy(
        update={"class_names": ["cat", "dog", "hen", "cow"]})
    stream = TrialRunner(ExecutionSettings(), "cpu", "", discover()).stream(record.trial)
    tasks = [replace(task, class_names=names) for task, names in zip(stream.tasks, (("cow", "pig"), ("cat", "owl")),
                                                                     strict=True)]
    more = replace(stream, tasks=tuple(tasks))
    assert outputs_of(outline, more, record.trial, "same") == [3, 4, 0, 5]
    assert outputs_of(outline, more, record.trial, "new") == [4, 5, 6, 7]
    with pytest.raises(SpecError, match=r"several outputs have one name \(cow, cat\)"):
        outputs_of(outline.model_copy(update={"class_names": ["cat", "cow", "cow", "hen"]}), more, record.trial, "same")
    with pytest.raises(SpecError, match="no class with the name of an old one"):
        outputs_of(outline.model_copy(update={"class_names": ["a", "b", "c", "d"]}), more, record.trial, "same")


def test_shared_outputs_are_matched_by_name_if_the_user_says_so(pictures):
    folder, _ = pictures
    trial = in_scenario(folder, "er", "class").trial.model_copy(update={"scenario": "domain"})
    outline = read(Store(folder).artifacts / in_scenario(folder, "er", "class").key / MODEL).header.outline.model_copy(
        update={"outputs": 2, "class_names": ["cat", "dog"]})
    stream = TrialRunner(ExecutionSettings(), "cpu", "", discover()).stream(trial)

    def named(*names):
        return replace(stream, tasks=tuple(replace(task, class_names=names) for task in stream.tasks))

    assert outputs_of(outline, named("dog", "cat"), trial, "same") == [1, 0]
    assert outputs_of(outline, named("cat", "dog"), trial, None) == outputs_of(outline, named("hen", "owl"), trial,
                                                                              None) == [0, 1]
    with pytest.raises(SpecError, match=r"another order \(dog, cat; the model has cat, dog\); pass --same-classes"):
        outputs_of(outline, named("dog", "cat"), trial, None)
    with pytest.raises(SpecError, match=r"do not match those of the model \(owl\); leave --same-classes out"):
        outputs_of(outline, named("cat", "owl"), trial, "same")


def write_table(path, columns=("a", "b", "c"), labels=("north", "south")):
    """Write 40 rows in two places; the values of a column depend on its name, and a label on the value of a."""
    draws = random.Random(0)
    rows = [{name: draws.gauss(0, 1) for name in ("a", "b", "c")} | {"place": i % 2} for i in range(40)]
    lines = [",".join([*columns, "place", "label"])]
    lines += [",".join([*(str(row[name]) for name in (*columns, "place")), labels[row["a"] > 0]]) for row in rows]
    path.write_text("\n".join(lines))
    return Resolved(name=f"table:{path}", options={"task_column": "place"})


def test_columns_of_a_table_have_the_order_of_training_and_other_class_names_are_a_note(tmp_path):
    old = write_table(tmp_path / "old.csv")
    train(tmp_path / "run", f"{old.name}:task_column=place", "domain", "er")
    turned = write_table(tmp_path / "turned.csv", columns=("c", "a", "b"))
    with pytest.raises(DataError, match=r"another order \(the first difference: c instead of a\)"):
        continue_trial(tmp_path / "run", None, turned, ExecutionSettings(), "cpu")
    for labels, note in ((("north", "south"), None), (("nord", "sud"), "by position: nord = north, sud = south")):
        record = continue_trial(tmp_path / "run", None, write_table(tmp_path / f"{labels[0]}.csv", labels=labels),
                                ExecutionSettings(), "cpu", out=tmp_path / "next")
        assert [text.rpartition("ones ")[2] for text in record.notes if "by position" in text] == [note] * bool(note)


def test_samples_of_another_type_come_with_their_conversion(pictures):
    folder, _ = pictures
    record = in_scenario(folder, "er", "class")
    outline = read(Store(folder).artifacts / record.key / MODEL).header.outline
    stream = TrialRunner(ExecutionSettings(), "cpu", "", discover()).stream(record.trial)
    refuse_samples(outline, stream, Resolved(name="mine"))
    with pytest.raises(SpecError, match=r"the model takes \[3, 16, 16\] \(float32\); convert .*astype\(\"float32\"\)"):
        refuse_samples(outline.model_copy(update={"sample_dtype": "float32"}), stream, Resolved(name="mine"))


def test_a_recipe_of_the_methods_own_gives_way_to_what_is_said_now():
    trial = Trial(benchmark=Resolved(name="a"), scenario="task", model=Resolved(name="mlp"), method=Resolved(name="er"),
                  recipe=Recipe(lr=0.1, epochs=5), own_recipe={"lr": 0.3, "batch_size": 16}, seed=0)
    assert changed_recipe(trial, {}) == {}
    made = trial.model_copy(update=changed_recipe(trial, {"lr": 0.01, "iterations": 7}))
    assert made.trained_by == Recipe(lr=0.01, iterations=7, batch_size=16)
    assert made.own_recipe == {"batch_size": 16}
    with pytest.raises(SpecError, match=r"recipe: epochs and iterations both set the budget"):
        changed_recipe(trial, {"epochs": 1, "iterations": 2})
    with pytest.raises(SpecError, match="momentum is an option of sgd, which adam does not use"):
        changed_recipe(trial, {"momentum": 0.5})
    sgd = trial.model_copy(update={"own_recipe": {"optimizer": "sgd", "momentum": 0.9}})
    made = sgd.model_copy(update=changed_recipe(sgd, {"momentum": 0.5}))
    assert made.recipe == trial.recipe and made.own_recipe == {"optimizer": "sgd", "momentum": 0.5}
