"""The search space of each method for `clbench tune`: that of the experiment's file, or that of its options."""

from __future__ import annotations

from collections.abc import Sequence

from clbench.core import options as opt
from clbench.core.registry import Registry
from clbench.core.search_values import search_values
from clbench.experiment.search import Choices, Space
from clbench.experiment.spec import PUBLISHED, MethodSpec, Spec

RATE = "lr"
RATE_FACTORS = (0.1, 0.3, 1.0, 3.0)  # of the recipe's learning rate
DIGITS = 3  # significant digits of the learning rates


def spaces_of(spec: Spec, methods: Sequence[MethodSpec], registry: Registry, pretrained: bool) -> list[Space]:
    """Return the search space of each method.

    If the experiment has no [tune.METHOD] table, it is the default space. Otherwise it is the space of the method's
    label, or else of its strategy's name, or else an empty one.

    Args:
        spec: the experiment.
        methods: its methods, with sweeps expanded.
        registry: the installed plugins.
        pretrained: whether its model has pretrained weights.
    """
    if spec.tune:
        return [spec.tune.get(method.label or "") or spec.tune.get(method.name, {}) for method in methods]
    return [default_space(method, spec, registry, pretrained) for method in methods]


def default_space(method: MethodSpec, spec: Spec, registry: Registry, pretrained: bool) -> Space:
    """Return the values that a method's options declare (`SearchValues`), and learning rates around its own rate.

    Options that the experiment gives are not searched. A method with a closed-form solution has no learning rate.
    """
    info = registry.strategy(method.name)
    valid = opt.validate(info.options, method.options, method.name, "clbench methods").settled(pretrained)
    space = {option: Choices(values=values) for option, values in search_values(info.options).items()
             if option not in method.options}
    if not valid.trained_by_steps:
        return dict(space)
    recipe = info.recipe if method.recipe == PUBLISHED else method.recipe
    assert not isinstance(recipe, str)
    rate = recipe.get(RATE, spec.recipe.lr)
    rates = tuple(float(f"{rate * factor:.{DIGITS}g}") for factor in RATE_FACTORS)
    # A searched part replaces the whole published recipe, so its other parts are added with a single value each.
    fixed = {name: (value,) for name, value in recipe.items() if method.recipe == PUBLISHED}
    return {**space, **{name: Choices(values=values)
                        for name, values in opt.recipe_options({**fixed, RATE: rates}).items()}}
