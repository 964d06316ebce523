"""The marks of rows in tables and their explanations in notes."""

from __future__ import annotations

from clbench.core.scenario import Outputs

INFERS, RECIPE, STALE, UNDERFIT, CHANCE = "†", "¶", "※", "△", "○"
OUTPUTS: dict[Outputs, str] = {"own": "‡", "all": "§"}
SHORT = {  # in the footnote of a table
    INFERS: "task ID inferred", OUTPUTS["own"]: "outputs = own in training",
    OUTPUTS["all"]: "outputs = all in training", STALE: "stale results",
    RECIPE: "trained with hyperparameters of its own (see the notes)", UNDERFIT: "underfit",
    CHANCE: "not better than guessing"}
MARKS = {
    INFERS: "The method was not given the task ID of a test sample and inferred it. Task-ID accuracy is how often it "
            "was right",
    OUTPUTS["own"]: "In training, new samples competed among the classes of their own task only (outputs = own), "
                    "instead of among all classes so far. Older records have no mark",
    OUTPUTS["all"]: "In training, new samples competed among all outputs of the stream, including those of later "
                    "classes (outputs = all). Older records have no mark",
    STALE: "Some results are stale: they come from other code or data than there are now, or from several states of "
           "the method's code. Notes say which",
    RECIPE: "The method was trained with hyperparameters of its own",
    UNDERFIT: "Underfit: the method had not learned its tasks when their steps ended, so its row says little about the "
              "method",
    CHANCE: "Not better than guessing: the 95% interval that the test samples give (Wilson) includes chance, or is "
            "below it",
}
