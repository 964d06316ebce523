import pytest

from clbench.experiment.spec import Recipe
from clbench.training.budget import FEW, granted_in_words

HINT = ": few; --epochs N or --iterations N gives more"


@pytest.mark.parametrize(("recipe", "samples", "words"), [
    ({}, [96, 120], f"10 optimizer steps a task (96 to 120 samples, batch 128, 10 epochs){HINT}"),
    ({"epochs": 1}, [96], f"1 optimizer step a task (96 samples, batch 128, 1 epoch){HINT}"),
    ({"iterations": FEW}, [96], f"{FEW} optimizer steps a task (96 samples, batch 128, {FEW} iterations)"),
    ({"iterations": FEW - 1}, [96], f"{FEW - 1} optimizer steps a task (96 samples, batch 128, {FEW - 1} iterations)"
                                    f"{HINT}"),
    ({}, [800, 5000], "70 to 400 optimizer steps a task (800 to 5,000 samples, batch 128, 10 epochs)"),
    ({}, [300, 5000], f"30 to 400 optimizer steps a task (300 to 5,000 samples, batch 128, 10 epochs){HINT}"),
])
def test_the_steps_of_a_task_are_told_in_words(recipe, samples, words):
    assert granted_in_words(Recipe(**recipe), samples) == words
