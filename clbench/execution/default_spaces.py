"""What `clbench tune` searches of each method: what the experiment's file says, or what its options declare."""

from __future__ import annotations

from collections.abc import Sequence

from clbench.core import options as opt
from clbench.core.registry import Registry
from clbench.core.search_values import search_values
from clbench.experiment.search import Choices, Space
from clbench.experiment.spec import PUBLISHED, MethodSpec, Spec

RATE = "lr"
RATE_FACTORS = (0.1, 0.3, 1.0, 3.0)  # of the recipe's learning rate
DIGITS = 3  # significant ones of the learning rates


def spaces_of(spec: Spec, methods: Sequence[MethodSpec], registry: Registry, pretrained: bool) -> list[Space]:
    """Return the space of each method: without any [tune.METHOD] table, its default space.

    With tables, it is that of the method's label, else that of its strategy's name, else an empty one.

    Args:
        spec: the experiment.
        methods: its methods, sweeps taken apart.
        registry: what is installed.
        pretrained: whether its model has pretrained weights.
    """
    if spec.tune:
        return [spec.tune.get(method.label or "") or spec.tune.get(method.name, {}) for method in methods]
    return [default_space(method, spec, registry, pretrained) for method in methods]


def default_space(method: MethodSpec, spec: Spec, registry: Registry, pretrained: bool) -> Space:
    """Return the values that a method's options declare (`SearchValues`), and learning rates around its own.

    Options that the experiment gives stay as they are. A closed form has no learning rate.
    """
    info = registry.strategy(method.name)
    valid = opt.validate(info.options, method.options, method.name, "clbench methods").settled(pretrained)
    space = {option: Choices(values=values) for option, values in search_values(info.options).items()
             if option not in method.options}
    if not valid.trained_by_steps:
        return dict(space)
    own = info.recipe if method.recipe == PUBLISHED else method.recipe
    assert not isinstance(own, str)
    rate = own.get(RATE, spec.recipe.lr)
    rates = tuple(float(f"{rate * factor:.{DIGITS}g}") for factor in RATE_FACTORS)
    # A searched part replaces a published recipe as a whole, so its other parts come along, with a single value each.
    fixed = {name: (value,) for name, value in own.items() if method.recipe == PUBLISHED}
    return {**space, **{name: Choices(values=values)
                        for name, values in opt.recipe_options({**fixed, RATE: rates}).items()}}
