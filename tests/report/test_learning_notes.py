import pytest
from helpers.records import make_matrix, make_record

from clbench.experiment.recipe import Recipe
from clbench.experiment.trial import Weights
from clbench.report.analysis.learning import falling_loss, trains_heads_slowly
from clbench.report.analysis.method_records import MethodRecords
from clbench.report.tables import build

BEHIND = "just after a task was learned, its accuracy is 20 or more points below that of joint training"


def diagonal(value):
    """An R whose tasks have this accuracy just after their training."""
    R = make_matrix(3)
    for i in range(3):
        R[i + 1][i] = value
    return R


def records(low=0.9, losses=(), method="ewc", steps=None, **kwargs):
    found = []
    for seed in (0, 1):
        found += [make_record("joint", seed, diagonal(0.95))]
        record = make_record(method, seed, diagonal(low), **kwargs)
        costs = record.costs if steps is None else record.costs.model_copy(update={"steps": steps})
        found.append(record.model_copy(update={"last_losses": list(losses), "costs": costs}))
    return found


def told(found, words):
    section, = build(found).sections
    return [note for note in section.notes if words in note]


def test_a_method_whose_loss_still_falls_is_named_in_the_first_note():
    section, = build(records(losses=[[0.4, 0.3], [0.35, 0.25], [0.2, 0.25]])).sections
    assert section.notes[0].startswith("Not converged: the training loss was still falling when a task's steps ended")
    assert "EWC (0.32 to 0.27)" in section.notes[0] and "--epochs" in section.notes[0]
    assert ("Caution", "Not converged when a task's steps ended: EWC.") in section.headline


def test_losses_that_settle_or_fall_in_a_few_tasks_or_by_a_small_share_are_no_news():
    def falls(*pairs):
        return falling_loss([make_record().model_copy(update={"last_losses": [list(p) for p in pairs]})]) is not None

    assert falls((1.0, 0.9), (1.0, 0.9))
    assert not falls((0.05, 0.03), (0.05, 0.03))  # by half, but there is nothing left to fall
    assert not falls((2.0, 1.0), (0.5, 0.5), (0.5, 0.5))  # one task of three
    assert not falls((9.0, 8.9), (9.0, 8.9))  # 1 % of a loss that counts other things too
    assert not falls((0.5, 0.6), (0.5, 0.6))
    assert not falls() and not falls(())  # older records, methods without steps


def test_learning_accuracy_far_below_that_of_joint_training_is_told():
    note, = told(records(0.7), BEHIND)
    assert "joint training at the same time (95.0%, mean over tasks)" in note
    assert "EWC (70.0)" in note and "steps" not in note
    assert not told(records(0.8), BEHIND)


def test_what_says_nothing_of_learning_is_left_out():
    inferred = [[1.0] * 3] * 4
    assert not told(records(0.5, task_inference=inferred), BEHIND)  # had to infer the task
    assert not told(records(0.5, steps=[70, 0, 0]), BEHIND)  # a closed form
    assert not told(records(0.5, method="naive"), BEHIND)  # a reference
    assert not told(records(0.5)[1::2], BEHIND)  # nobody ran joint


def test_in_scenario_class_only_methods_that_competed_with_old_classes_are_judged():
    def judged(outputs):
        found = [make_record("joint", seed, diagonal(0.95), scenario="class") for seed in (0, 1)]
        found += [make_record("ewc", seed, diagonal(0.5), scenario="class") for seed in (0, 1)]
        return bool(told([r.model_copy(update={"outputs": outputs}) for r in found], BEHIND))

    assert judged("seen")
    assert not judged("own") and not judged(None)


SLOW = ("One learning rate for pretrained backbone and new heads, which is probably too low for the heads (tune "
        "--head-lr, too): ")


def fine_tuned(method="ewc", steps=64, backbone=1500, **kwargs):
    """Return a record of a method that trains 1,000 values of a pretrained model, with the rates of `kwargs`."""
    record = make_record(method, recipe=Recipe(iterations=64), own_recipe=kwargs, parameters={"base": backbone},
                         notes=["weights: no head of this size, it starts untrained"])
    trial = record.trial.model_copy(update={"weights": Weights(path="vit.safetensors", sha256="0" * 64)})
    return record.model_copy(update={"trial": trial, "key": trial.key, "costs": record.costs.model_copy(
        update={"steps": [steps] * 3})})


def test_a_pretrained_backbone_and_new_heads_with_one_low_rate_are_told():
    section, = build([fine_tuned(lr=1e-5), fine_tuned("er", lr=1e-5, head_lr=0.01)]).sections
    assert ("Caution", f"{SLOW}EWC.") in section.headline
    note, = (note for note in section.notes if "--head-lr" in note)
    assert "nearly random: EWC. Tune --head-lr, too" in note


@pytest.mark.parametrize("changes", [
    {"lr": 1e-3},  # the heads move by up to 0.06 in 64 steps
    {"lr": 1e-5, "steps": 6400},
    {"lr": 1e-5, "optimizer": "sgd"},
    {"lr": 1e-5, "head_lr": 1e-5},  # chosen for the heads
    {"lr": 1e-5, "backbone": 2001},  # the method trains less than half of the backbone
], ids=str)
def test_rates_that_suit_the_heads_or_have_no_backbone_to_train_are_no_news(changes):
    assert trains_heads_slowly(records_of(fine_tuned(lr=1e-5)))
    assert not trains_heads_slowly(records_of(fine_tuned(**changes)))


def test_without_new_heads_or_pretrained_weights_there_is_no_such_caution():
    assert not trains_heads_slowly(records_of(fine_tuned(lr=1e-5).model_copy(update={"notes": []})))
    assert not trains_heads_slowly(records_of(make_record("ewc", recipe=Recipe(lr=1e-5))))


def records_of(record):
    return MethodRecords("EWC", (record,), (0,))
