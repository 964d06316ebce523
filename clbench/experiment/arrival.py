"""How a stream's training samples arrive: blurred, recurring, long-tailed, with known or hidden boundaries.

docs/task-free-streams.md has the definitions and their sources. Test samples never change, and the columns of R remain
the tasks of the benchmark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from clbench.core.errors import SpecError
from clbench.core.options import Options, Strict, format_value
from clbench.core.scenario import Scenario

Boundaries = Literal["given", "hidden"]
ONE_PASS = ("with boundaries = hidden the stream passes once, one step per batch, so {name} = {value} does not apply: "
            "leave it out")
ONLINE_EVERY = 50  # default number of steps between evaluations with `online`
ONLINE_BATCH = 10  # new samples per step of `online`, the batches of the papers in which each sample is seen once


class Arrival(Strict):
    """How training samples arrive; the defaults are the benchmark's own tasks, one after the other."""

    LATER = ("blur", "repeat", "imbalance", "boundaries")

    model_config = ConfigDict(allow_inf_nan=False)
    blur: float = Field(
        0.0, ge=0, le=1, description="share of each task's training samples that arrives during other tasks")
    repeat: float = Field(0.0, ge=0, le=1, description="probability that a class returns in each later task; its "
                          "samples are divided among all tasks that have it")
    imbalance: float = Field(1.0, ge=1, description="number of training samples of the most frequent class divided by "
                             "the number of the rarest: a long tail over classes in random order")
    boundaries: Boundaries = Field("given", description="whether the method knows where tasks end. given: it does; "
                                   "hidden: it gets the stream as one task, in order of arrival, in one pass")

    @property
    def moves(self) -> bool:
        """Return whether samples may arrive in other tasks than in the benchmark."""
        return bool(self.blur or self.repeat)

    @property
    def changes(self) -> bool:
        """Return whether the tasks have other training samples than in the benchmark, which depend on the seed."""
        return self.moves or self.imbalance > 1

    @property
    def hidden(self) -> bool:
        """Return whether the ends of tasks are hidden from the method."""
        return self.boundaries == "hidden"

    def __str__(self) -> str:
        """Return the settings that differ from the defaults, as in `blur 0.1, boundaries hidden`; empty for none."""
        return ", ".join(f"{name} {format_value(value)}" for name, value in self.model_dump().items())

    def scenario_problem(self, scenario: Scenario) -> str:
        """Return why this arrival is incompatible with a scenario; empty if it is compatible."""
        if scenario != "task" or not (self.moves or self.hidden):
            return ""
        name = "blur" if self.blur else "repeat" if self.repeat else "boundaries = hidden"
        return (f"scenario task gives task IDs at test time, and with {name} there are none: choose --scenario class "
                "or domain")

    def method_problem(self, method: str, needs_boundaries: str, parts_per_task: bool) -> str:
        """Return why a method cannot learn from a stream with this arrival; empty if it can.

        Args:
            method: the label of the method.
            needs_boundaries: why the method needs to know where tasks end; empty if it does not.
            parts_per_task: whether the method has a part for each task.
        """
        if parts_per_task and self.moves:
            name = "blur" if self.blur else "repeat"
            return (f"method {method!r} has a part for each task, but with {name} a class arrives in several tasks: "
                    f"leave the method out, or {name}")
        if self.hidden and (needs_boundaries or parts_per_task):
            reason = needs_boundaries or "it has a part for each task"
            return (f"method {method!r} needs to know where tasks end ({reason}), but boundaries are hidden: leave the "
                    "method out, or use --boundaries given")
        return ""


def settle(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return an experiment's plain values, with the recipe completed for `online` and hidden boundaries.

    `online` means one pass in batches of 10, with evaluation during training. Hidden boundaries mean one pass. A batch
    size or evaluation interval that the user gave takes precedence.

    Raises:
        ValueError: a budget is given that is not one pass.
    """
    out = dict(values)
    recipe, arrival = out.get("recipe") or {}, out.get("arrival") or {}
    if isinstance(recipe, BaseModel):
        recipe = recipe.model_dump(exclude_unset=True)
    online = out.get("online") is True
    boundaries = arrival.get("boundaries") if isinstance(arrival, Mapping) else getattr(arrival, "boundaries", None)
    if not (online or boundaries == "hidden") or not isinstance(recipe, Mapping):
        return out
    for name in ("epochs", "iterations"):
        value = recipe.get(name)
        if value is not None and (name, value) != ("epochs", 1):
            if boundaries == "hidden":
                raise ValueError(ONE_PASS.format(name=name, value=value))
            raise ValueError(f"online learning is one pass in batches of {ONLINE_BATCH}, so {name} = {value} does "
                             "not apply: leave one of the two out")
    if boundaries == "hidden" and recipe.get("repeats") not in (None, 1):
        raise ValueError(ONE_PASS.format(name="repeats", value=recipe["repeats"]))
    out["recipe"] = {**({"batch_size": ONLINE_BATCH} if online else {}), **recipe, "epochs": 1}
    if online and isinstance(execution := out.get("execution") or {}, Mapping):
        out["execution"] = {"evaluate_every": ONLINE_EVERY, **execution}
    return out


def refuse_for_arrival(arrival: Arrival, rows: Sequence[tuple[str, Any, Options, Mapping[str, Any]]],
                       online: bool = False) -> None:
    """Check that methods can learn from a stream with this arrival of samples.

    Args:
        arrival: how samples arrive.
        rows: label, declaration, options and own recipe of each method.
        online: whether the experiment is online learning.

    Raises:
        SpecError: some methods cannot; a line for each.
    """
    problems = []
    for label, info, options, recipe in rows:
        reason = options.needs_boundaries if info.task_free else "it is not declared task_free"
        problems.append(arrival.method_problem(label, reason, info.parts_per_task))
        one_pass = "boundaries = hidden" if arrival.hidden else "online = true" if online else ""
        if one_pass and (recipe.get("iterations") or recipe.get("epochs", 1) != 1
                         or (arrival.hidden and recipe.get("repeats"))):
            problems.append(f"method {label!r}: {one_pass} is one pass; leave the budget out of its recipe")
    if any(problems):
        raise SpecError("\n".join(dict.fromkeys(filter(None, problems))))
