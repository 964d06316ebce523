"""Numbers to predict, whole: metrics by hand from predictions, every method, refusals, reports and until decided."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from clbench import cli, load_model
from clbench.core.errors import ClbenchError, DataError, SpecError, StoreError
from clbench.core.registry import discover
from clbench.execution.deciding import states
from clbench.execution.exporting import export
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.plan import plan
from clbench.experiment.spec import build
from clbench.experiment.until import UntilDecided
from clbench.report.analysis.grouping import group_by_setting
from clbench.results.curve import row_after
from clbench.results.store import Store

SITES, ROWS = ("north", "south", "west"), 40
FAST = {"epochs": 5, "batch_size": 16, "lr": 0.05, "optimizer": "sgd"}


def write_sites(path, scale=1.0, shift=0.0, noise=0.1):
    """Write rows of three sites, whose price depends on two numbers, on each site in another way."""
    draw = np.random.default_rng(0)
    lines = ["area,age,site,price"]
    for number, site in enumerate(SITES):
        for area, age in draw.normal(size=(ROWS, 2)):
            price = (number - 1) * area + 2 * age + draw.normal(0, noise)
            lines.append(f"{area},{age},{site},{scale * price + shift}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_sites(tmp_path_factory.mktemp("sites") / "sites.csv")


def spec_of(table, methods, scenario="domain", seeds=1, model="mlp:width=16", recipe=FAST, options="", **values):
    return build({"benchmark": f"table:{table}:target_column=price:task_column=site{options}", "model": model,
                  "methods": methods, "scenario": scenario, "seeds": seeds, "recipe": recipe,
                  "execution": {"data": table.parent}, **values})


def run(table, methods, **values):
    spec = spec_of(table, methods, **values)
    runner = TrialRunner(spec.execution, "cpu", "a test")
    planned = plan(spec, discover())
    runner.prepare(planned[0].trial)
    return [record for one in planned for record in runner.run_stack([one])]


def rows_of(table):
    """Return inputs and targets of each site as the file has them."""
    lines = [line.split(",") for line in table.read_text().splitlines()[1:]]
    return {site: (np.array([[float(a), float(b)] for a, b, s, _ in lines if s == site]),
                   np.array([float(price) for *_, s, price in lines if s == site])) for site in SITES}


def test_metrics_are_those_of_the_predictions_in_the_unit_of_the_target(tmp_path):
    table, out = write_sites(tmp_path / "sites.csv", scale=1000, shift=50_000), tmp_path / "run"
    arguments = ["--benchmark", f"table:{table}:target_column=price:task_column=site", "--methods", "naive", "--seeds",
                 "1", "--epochs", "5", "--keep", "models", "--out", str(out), "--workers", "0", "--data", str(tmp_path)]
    assert cli.call(["run", *arguments]) == 0
    record, = Store(out).read()[0]
    assert record.metric == "rmse" and record.stream.classes == [[], [], []]
    assert record.stream.task_names == list(SITES)
    runner = TrialRunner(ExecutionSettings(data=tmp_path), "cpu", "a test")
    stream, model = runner.stream(record.trial), load_model(out)
    lines = table.read_text().splitlines()[1:]
    for task, known in enumerate(stream.tasks):
        cells = [lines[row].split(",") for row in known.test_rows.tolist()]
        assert {site for _, _, site, _ in cells} == {SITES[task]}
        inputs = np.array([[float(area), float(age)] for area, age, *_ in cells])
        targets = np.array([float(price) for *_, price in cells])
        answers = model.predict(inputs.astype(np.float32))
        assert answers.classes == [] and answers.tasks is None
        errors = np.array(answers.numbers) - targets
        assert record.R[-1][task] == pytest.approx(np.sqrt(np.mean(errors**2)), rel=1e-4)
        assert record.scores["r2"][-1][task] == pytest.approx(1 - np.mean(errors**2) / np.var(targets), abs=1e-4)
    assert model.evaluate(tmp_path) == pytest.approx(record.R[-1])
    first = np.array([float(lines[row].split(",")[-1]) for row in range(ROWS)
                      if row not in stream.tasks[0].test_rows.tolist()])
    assert stream.target == pytest.approx((first.mean(), first.std()))

    _, description = export(out, None, tmp_path / "to", "torch-export")
    program = torch.export.load(tmp_path / "to" / "model.pt2").module()
    target = json.loads(description.read_text())["target"]
    outputs = program(torch.from_numpy(inputs.astype(np.float32)))[:, 0].detach().numpy()
    assert outputs * target["deviation"] + target["mean"] == pytest.approx(answers.numbers, rel=1e-5)


def test_the_unit_of_the_target_changes_nothing_else(tmp_path, table):
    large = write_sites(tmp_path / "large.csv", scale=1e6, shift=-3e6)
    one, other = run(table, ["naive"])[0], run(large, ["naive"])[0]
    assert np.array(other.R) == pytest.approx(1e6 * np.array(one.R), rel=1e-4)
    assert np.array(other.scores["r2"]) == pytest.approx(np.array(one.scores["r2"]), abs=1e-4)


def test_training_on_conflicting_sites_forgets_and_joint_training_with_ids_does_not(table):
    recipe = {"epochs": 60, "batch_size": 16, "lr": 0.01}
    naive, = run(table, ["naive"], recipe=recipe)
    assert naive.R[1][0] < 0.5 < naive.R[-1][0]  # north is -area + 2 age, west area + 2 age
    joint, = run(table, ["joint"], scenario="task", recipe=recipe)
    assert min(joint.scores["r2"][-1]) > 0.9 > naive.scores["r2"][-1][0]


METHODS = ["naive", "joint", "independent:infer=gaussian", "l2:strength=0.1", "si:strength=0.1", "ewc:strength=1",
           "ewc:strength=1:fisher=sampled", "ewc:strength=1:fisher=empirical", "ewc:strength=1:mode=online",
           "er:capacity=20", "a-gem:capacity=20:balance=reservoir", "seq-lora:rank=2",
           "lora:rank=2:infer=gaussian", "o-lora:rank=2"]


@pytest.mark.parametrize("scenario", ["task", "domain"])
@pytest.mark.parametrize("method", METHODS)
def test_every_enabled_method_learns(table, method, scenario):
    if scenario == "task":
        method = method.replace(":infer=gaussian", "")
    record, = run(table, [method], scenario=scenario, recipe={"epochs": 20, "batch_size": 16, "lr": 0.01})
    assert record.status == "done", record.failure
    assert record.R[1][0] < 0.75 * record.R[0][0]  # the first site, just after it
    assert record.outputs is None and (record.task_inference is None) == ("gaussian" not in method)


def test_the_methods_that_declare_the_objective_are_those_that_are_tested():
    able = {name for name, info in discover().strategies.items() if "regression" in info.objectives}
    assert able == {method.partition(":")[0] for method in METHODS}


@pytest.mark.parametrize("method", ["naive", "ewc:strength=1", "er:capacity=20", "si"])
def test_stacked_seeds_are_those_that_run_alone(table, method):
    spec = spec_of(table, [method], seeds=2)
    planned = plan(spec, discover())
    stacked = TrialRunner(spec.execution, "cpu", "a test").run_stack(planned)
    alone = run(table, [method], seeds=2)
    for one, other in zip(stacked, alone, strict=True):
        assert one.status == "done" and not any("ran alone" in note for note in one.notes)
        assert np.array(one.R) == pytest.approx(np.array(other.R), rel=1e-3)


@pytest.mark.parametrize(("methods", "values", "message"), [
    (["naive"], {"scenario": "class"}, "scenario class needs classes; choose scenario task or domain"),
    (["lwf"], {}, r"method 'lwf' trains classifiers.*has numbers to predict; methods for them are a-gem, er, ewc"),
    (["lora:rank=2"], {}, "'lora': .* numeric target is inferred from its features; write lora:infer=gaussian, or "),
    (["ewc:fisher=predicted"], {}, "choose fisher = exact, sampled or empirical"),
    (["er:balance=class"], {}, "balance = class divides the memory among classes, which this benchmark does not have"),
    (["er:weights=by-task"], {}, "weights = by-task needs classes, which this benchmark does not have"),
    (["naive"], {"execution": {"probe": True}}, "--probe is about classes, which this benchmark does not have"),
    (["naive"], {"execution": {"general": ["english"]}}, "--general scores texts under language models"),
    (["naive"], {"options": ":label_column=age"}, "label_column is about classes, and price has numbers to predict"),
    (["naive"], {"options": ":tasks=2"}, "tasks divides the data by class, but the options also say"),
    (["naive"], {"arrival": {"blur": 0.5}}, "leave blur, repeat, imbalance and boundaries out")])
def test_what_needs_classes_is_refused_in_one_sentence(table, methods, values, message):
    if "execution" in values:
        values = {"execution": {"data": table.parent, **values["execution"]}}
    with pytest.raises(SpecError, match=message) as caught:
        run(table, methods, **values)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("scenario", ["task", "domain"])
def test_curves_have_the_metrics_of_evaluations_and_do_not_change_training(table, scenario):
    stacked = run(table, ["naive"], scenario=scenario, seeds=2)
    seen = run(table, ["naive"], scenario=scenario, seeds=2,
               execution={"data": table.parent, "evaluate_every": 3, "evaluate_samples": 1000})
    for record, without in zip(seen, stacked, strict=True):
        assert record.facts() == without.facts() and record.curve.metric == "rmse"
        for name, matrix in (("rmse", record.R), ("r2", record.scores["r2"])):
            for task in range(len(SITES)):
                assert row_after(record.curve.by_metric(name), task) == pytest.approx(matrix[task + 1][:task + 1],
                                                                                      rel=1e-5)


def test_data_without_tasks_or_with_a_missing_number_are_refused(tmp_path, table):
    with pytest.raises(DataError, match=r"no classes by which samples could be divided.*task_column=NAME"):
        spec = build({"benchmark": f"table:{table}:target_column=price:leave_out=site", "methods": ["naive"],
                      "seeds": 1, "execution": {"data": tmp_path}})
        TrialRunner(spec.execution, "cpu", "a test").prepare(plan(spec, discover())[0].trial)
    broken = tmp_path / "broken.csv"
    broken.write_text(table.read_text().rsplit(",", 1)[0] + ",\n")
    with pytest.raises(DataError, match=r"row 120 \(line 121 of the file\), column 'price': the value is missing; "
                       "write a number, or remove the row$"):
        run(broken, ["naive"])


def test_features_of_numbers_and_continued_training_are_refused(tmp_path, table, capsys):
    benchmark, out = f"table:{table}:target_column=price:task_column=site", tmp_path / "run"
    assert cli.call(["run", "--benchmark", benchmark, "--methods", "naive", "--seeds", "1", "--epochs", "1", "--keep",
                     "state", "--out", str(out), "--workers", "0", "--data", str(tmp_path)]) == 0
    capsys.readouterr()
    assert cli.call(["continue", str(out), "--benchmark", benchmark, "--data", str(tmp_path)]) == 2
    assert "predicts numbers, and such a model cannot continue training" in capsys.readouterr().err


def test_arrays_with_targets_are_the_same_stream(tmp_path, table):
    sites = rows_of(table)
    arrays = {"X": np.concatenate([x for x, _ in sites.values()]).astype(np.float32),
              "price": np.concatenate([y for _, y in sites.values()]), "task": np.repeat(SITES, ROWS)}
    np.savez(tmp_path / "sites.npz", **arrays)
    np.save(tmp_path / "X.npy", arrays["X"])
    np.save(tmp_path / "y.npy", arrays["price"])

    def stream_of(benchmark):
        spec = build({"benchmark": benchmark, "methods": ["naive"], "seeds": 1, "execution": {"data": tmp_path}})
        trial = plan(spec, discover())[0].trial
        assert trial.scenario == "domain"
        return TrialRunner(spec.execution, "cpu", "a test").stream(trial)

    one = stream_of(f"table:{table}:target_column=price:task_column=site:standardise=false")
    other = stream_of(f"arrays:{tmp_path / 'sites.npz'}:targets=price")
    assert other.target == one.target and other.task_names == one.task_names
    for ours, theirs in zip(one.tasks, other.tasks, strict=True):
        assert (ours.train.y == theirs.train.y).all() and (ours.test.x == theirs.test.x).all()
    split = {f"{name}_{part}": values[part == "test"::2] for name, values in arrays.items()
             for part in ("train", "test")}
    np.savez(tmp_path / "split.npz", **split)
    divided = stream_of(f"arrays:{tmp_path / 'split.npz'}:targets=price")
    first = split["price_train"][split["task_train"] == "north"]
    assert divided.target == pytest.approx((first.mean(), first.std()))
    expected = (split["price_test"][split["task_test"] == "west"] - first.mean()) / first.std()
    assert divided.tasks[2].test.y.numpy() == pytest.approx(expected, abs=1e-5)
    with pytest.raises(DataError, match="no classes by which samples could be divided"):
        stream_of(f"arrays:{tmp_path / 'X.npy'}:targets=y.npy")
    with pytest.raises(DataError, match="has no array 'cost'"):
        stream_of(f"arrays:{tmp_path / 'sites.npz'}:targets=cost")


def test_images_with_numbers_to_predict_are_normalized_as_the_weights_were_trained(tmp_path):
    draw = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", X=draw.integers(0, 255, (40, 3, 8, 8), dtype=np.uint8), v=draw.normal(size=40),
             task=np.repeat([1, 2], 20))
    values = {"benchmark": f"arrays:{tmp_path}/a.npz:targets=v", "model": "cnn:channels=2:size=8", "methods": "naive",
              "execution": {"data": tmp_path}}
    runner = TrialRunner(ExecutionSettings(data=tmp_path), "cpu", "a test")
    trial = plan(build(values), discover())[0].trial
    network = runner.build(trial, runner.stream(trial))[0].model
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, tmp_path / "w.safetensors")
    (tmp_path / "w.json").write_text(json.dumps({"input_size": [3, 8, 8], "mean": [0.5] * 3, "std": [0.25] * 3}))
    trial = plan(build({**values, "weights": str(tmp_path / "w.safetensors")}), discover())[0].trial
    stream = runner.stream(trial)
    assert stream.predicts_numbers and (stream.prepare.mean, stream.prepare.std) == ((0.5,) * 3, (0.25,) * 3)
    augmented = plan(build({**values, "benchmark": values["benchmark"] + ":augment=crop-flip"}), discover())[0].trial
    with pytest.raises(DataError, match="with numbers to predict are not augmented, nor normalized"):
        runner.stream(augmented)


def test_reports_choose_and_until_follow_the_direction_and_the_unit(tmp_path, table, capsys):
    records = run(table, ["naive", "er:capacity=60"], seeds=3, recipe=FAST | {"epochs": 20})
    for record in records:
        Store(tmp_path).write(record)
        sizes = np.cumsum(record.stream.test_samples)[:-1]
        for name, row in (("rmse", record.R[-1]), ("r2", record.scores["r2"][-1])):
            parts = np.split(record.item_scores.scores(name).astype(float), sizes)
            assert [part.mean() for part in parts] == pytest.approx(row, rel=1e-5)
    assert cli.call(["report", str(tmp_path)]) == 0
    text = (tmp_path / "report.md").read_text()
    assert "final RMSE" in text and "R² is the share of the variance" in text and "in the target's unit" in text
    assert "Tables show means over tasks." in text and "t-tests over seeds and test samples" in text
    capsys.readouterr()
    assert cli.call(["choose", str(tmp_path), "--format", "json"]) == 0
    chosen = json.loads(capsys.readouterr().out)
    setting, = group_by_setting(Store(tmp_path).read()[0])
    finals = {label: np.mean(list(by_seed.values())) for label, by_seed in setting.values(setting.final).items()}
    assert min(finals, key=finals.get).startswith("er") and "er" in json.dumps(chosen)
    state, = states(records, UntilDecided(first=3, most=5))
    naive, = {r.trial.method_config for r in records if r.label == "naive"}
    assert state.decided.get(naive) != "the best"


def test_the_influence_of_an_item_on_the_rmse_is_its_derivative():
    import torch

    from clbench.strategy.objectives import Regression

    class Known:
        class stream_info:
            target = (10.0, 3.0)

    squares, y = torch.tensor([1.0, 4.0, 0.25]).double(), torch.tensor([0.0, 1.0, 2.0]).double()
    weights = torch.full((3,), 1 / 3, dtype=torch.float64, requires_grad=True)
    rmse = 3 * ((weights * squares).sum() / weights.sum()).sqrt()
    derivative, = torch.autograd.grad(rmse, weights)
    means = {"error": squares.mean().expand(3), "target": y.mean().expand(3), "square": y.square().mean().expand(3)}
    found = Regression().contributions(Known, {"error": squares, "target": y, "square": y**2}, means)
    assert (found["rmse"] - rmse).tolist() == pytest.approx(derivative.tolist())
    assert found["r2"].tolist() == pytest.approx((1 - squares / y.var(correction=0)).tolist())


def test_equal_targets_have_an_r2_of_0_or_1():
    import torch

    from clbench.strategy.objectives import Regression

    class Known:
        class stream_info:
            target = (0.0, 1.0)

    means = {"error": torch.tensor([0.0, 0.5]), "target": torch.ones(2), "square": torch.ones(2)}
    assert Regression().metrics(Known, means)["r2"].tolist() == [1.0, 0.0]


def test_equal_targets_far_from_0_have_no_variance_and_no_part_in_intervals():
    import torch

    from clbench.strategy.objectives import Regression

    class Known:
        class stream_info:
            target = (0.0, 1.0)

    y = torch.full((7,), 3.1415927)
    scores = Regression().scores(Known, torch.stack([y + 1, torch.full_like(y, -torch.inf)], 1), y)
    means = {name: values.double().mean().expand(7) for name, values in scores.items()}
    assert Regression().metrics(Known, means)["r2"].tolist() == [0.0] * 7
    assert Regression().contributions(Known, scores, means)["r2"].tolist() == [0.0] * 7


def test_dry_run_and_storage_are_estimated(table, tmp_path, capsys):
    benchmark = f"table:{table}:target_column=price:task_column=site"
    assert cli.call(["run", "--benchmark", benchmark, "--methods", "naive,er,ewc,lora:rank=2:infer=gaussian", "--seeds",
                     "1", "--epochs", "4", "--dry-run", "--out", str(tmp_path / "run"), "--data", str(tmp_path)]) == 0
    assert "cannot be counted" not in capsys.readouterr().out


def test_a_validation_split_and_tuning_follow_the_metric(table):
    record, = run(table, ["naive"], validation=0.25)
    assert record.stream.test_samples == [8, 8, 8] and record.status == "done"


def test_lora_has_no_network_for_a_task(table, tmp_path):
    (record,) = run(table, "lora:rank=2:infer=gaussian")
    Store(tmp_path).write(record)
    for load in (load_model, lambda folder, task: export(folder, None, tmp_path / "to", task=task)):
        with pytest.raises(StoreError, match="predicts numbers, for which lora saves no adapters: run it with --keep"):
            load(tmp_path, task=0)


def test_a_model_that_was_not_saved_is_not_called_a_language_model(table, tmp_path):
    (record,) = run(table, ["naive"])
    Store(tmp_path).write(record)
    with pytest.raises(StoreError, match=r"model\.safetensors does not exist: run the experiment again with --keep"):
        export(tmp_path, None, tmp_path / "to")
    with pytest.raises(SpecError, match="the network of naive was not saved"):
        export(tmp_path, None, tmp_path / "to", task=0)


def test_an_embedding_of_numbers_is_refused(table):
    from clbench.execution.embedding import prepare

    trial = plan(spec_of(table, ["naive"]), discover())[0].trial
    with pytest.raises(ClbenchError, match="a file of features has classes; leave its target out"):
        prepare(trial, ExecutionSettings(data=table.parent), "cpu", discover())
