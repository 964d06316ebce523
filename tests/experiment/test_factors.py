import itertools

import pytest

from clbench.core.errors import SpecError
from clbench.core.registry import discover
from clbench.experiment.factors import METRIC, Part, compare, factors
from clbench.experiment.plan import plan
from clbench.experiment.spec import build


@pytest.fixture(scope="module")
def registry():
    return discover()


def pair(registry, a, b, metrics=("ACC", "ACC")):
    base = {"methods": ["naive"], "seeds": 2}
    return compare(build({**base, **a}), build({**base, **b}), registry, ("a.toml", "b.toml"), metrics)


def told(found):
    return {factor.name: factor.change for factor in factors(found.parts, found.refusal)}


HSU = {"benchmark": "split-mnist:padding=2:mean=0.1:deviation=0.2752", "recipe": {"epochs": 4}}
VAN_DE_VEN = {"benchmark": "split-mnist:class_order=seed", "recipe": {"iterations": 2000}}


def test_what_differs_is_listed_and_what_does_not_go_apart_is_one_factor(registry):
    found = pair(registry, HSU, VAN_DE_VEN)
    assert told(found) == {"class order": "natural -> seed", "padding": "2 -> 0", "mean and deviation":
                           "0.1, 0.2752 -> none, none", "budget": "4 epochs -> 2,000 iterations"}
    merged, = (factor for factor in factors(found.parts, found.refusal) if factor.why)
    assert merged.name == "mean and deviation" and "mean and deviation go together" in merged.why


@pytest.mark.parametrize(("a", "b"), [
    (HSU, VAN_DE_VEN),
    ({"model": "mlp:width=20", "methods": ["ewc:strength=10"]}, {"model": "cnn", "methods": ["lwf"]}),
    ({"benchmark": "split-cifar10:augment=none"}, {"benchmark": "split-cifar100:tasks=5", "validation": 0.1}),
    ({"scenario": "class", "methods": ["er:capacity=10"]}, {"scenario": "task", "methods": ["er:capacity=20"]}),
])
def test_the_ends_of_the_mixtures_are_the_experiments_themselves(registry, a, b):
    found = pair(registry, a, b)
    for spec, places in ((found.a, ()), (found.b, {part.place for part in found.parts})):
        assert [p.trial.key for p in found.mixture(places)] == [p.trial.key for p in plan(spec, registry)]


def test_every_mixture_of_the_factors_can_be_planned(registry):
    found = pair(registry, {"recipe": {"optimizer": "sgd", "momentum": 0.9, "lr": 0.1, "weight_decay": 1e-4}},
                 {"recipe": {"optimizer": "adam"}})
    assert told(found) == {"optimizer and momentum": "sgd, 0.9 -> adam, 0", "learning rate": "0.1 -> 1e-3",
                           "weight decay": "1e-4 -> 0"}
    kinds = factors(found.parts, found.refusal)
    keys = {found.mixture(frozenset().union(*(f.places for f in some)))[0].trial.key
            for size in range(4) for some in itertools.combinations(kinds, size)}
    assert len(keys) == 8


def test_options_that_only_one_side_has_go_with_the_name(registry):
    found = pair(registry, {"model": "mlp:width=20"}, {"model": "cnn:channels=4"})
    assert told(found) == {"model": "mlp -> cnn"}
    model = found.mixture({("model", "")})[0].trial.model
    assert (model.name, model.options["channels"]) == ("cnn", 4) and "width" not in model.options
    assert found.mixture(())[0].trial.model.options["width"] == 20


def test_what_a_method_is_trained_by_counts_and_not_where_it_is_written(registry):
    found = pair(registry, {"methods": [{"name": "naive", "recipe": {"lr": 0.01}}]}, {"recipe": {"lr": 0.02}})
    assert told(found) == {"learning rate": "0.01 -> 0.02"}
    with pytest.raises(SpecError, match=r"a.toml and b.toml are the same experiment"):
        pair(registry, {"methods": [{"name": "naive", "recipe": {"lr": 0.01}}]}, {"recipe": {"lr": 0.01}})


def test_the_metric_is_a_factor_that_decides_on_no_trial(registry):
    found = pair(registry, {}, {"seeds": [1, 2, 0]}, ("ACC", "AIA"))
    assert told(found) == {"metric": "ACC -> AIA"} and found.seeds == (0, 1)
    assert [p.trial.key for p in found.mixture({METRIC})] == [p.trial.key for p in found.mixture(())]


def test_values_of_the_same_name_say_whose_they_are(registry):
    found = pair(registry, {"benchmark": "split-mnist", "validation": 0.1}, {"benchmark": "split-mnist:tasks=2",
                                                                             "validation": 0.2})
    assert told(found) == {"tasks": "5 -> 2", "validation": "0.1 -> 0.2"}
    found = pair(registry, {"model": "timm:vit:size=32", "benchmark": "images:photos:size=32"},
                 {"model": "timm:vit:size=48", "benchmark": "images:photos:size=64"})
    assert told(found) == {"benchmark's size": "32 -> 64", "model's size": "32 -> 48"}


@pytest.mark.parametrize(("a", "line"), [
    ({"methods": ["naive", "ewc"]}, r"a.toml has 2 methods \(naive, ewc\); choose one by --method"),
    ({"scenario": "task,class"}, r"a.toml has 2 scenarios \(task, class\); choose one by --scenario"),
    ({"seeds": [7]}, "a.toml and b.toml have no seed in common; give both --seeds"),
])
def test_experiments_that_cannot_be_explained_are_refused(registry, a, line):
    with pytest.raises(SpecError, match=line):
        pair(registry, a, {"recipe": {"lr": 0.1}})


def made(count):
    return [Part(("recipe", str(i)), str(i), "a", "b") for i in range(count)]


def partitions(items):
    """Every way to put things into groups."""
    if not items:
        yield []
        return
    for rest in partitions(items[1:]):
        yield [{items[0]}, *rest]
        for i, group in enumerate(rest):
            yield [*rest[:i], {items[0], *group}, *rest[i + 1:]]


@pytest.mark.parametrize("tied", [[], [(0, 1)], [(0, 1), (3, 4)], [(0, 2), (2, 4)], [(0, 1), (1, 2), (2, 3), (3, 4)]])
def test_no_fewer_parts_could_be_merged(tied):
    def refusal(chosen):
        return "tied" if any((("recipe", str(i)) in chosen) != (("recipe", str(j)) in chosen) for i, j in tied) else ""

    def goes(groups):
        return not any(refusal(frozenset(("recipe", str(i)) for group in some for i in group))
                       for size in range(len(groups)) for some in itertools.combinations(groups, size))

    found = [{int(part.name) for part in factor.parts} for factor in factors(made(5), refusal)]
    assert goes(found) and len(found) == max(len(groups) for groups in partitions(list(range(5))) if goes(groups))


def test_of_many_parts_not_every_mixture_is_looked_at():
    seen = set()

    def refusal(chosen):
        seen.add(chosen)
        return "tied" if (("recipe", "3") in chosen) != (("recipe", "7") in chosen) else ""

    assert [factor.name for factor in factors(made(14), refusal) if factor.why] == ["3 and 7"] and len(seen) < 400
