import pytest

from clbench.testing import CHECKS, check

METHODS = [
    ("naive", {}), ("joint", {}), ("ewc", {}), ("ewc", {"mode": "online", "fisher": "sampled", "gamma": 0.9}),
    ("er", {"capacity": 10}), ("er", {"capacity": 10, "balance": "class"}),
    ("lora", {"rank": 2}), ("lora", {"rank": 2, "base": "random", "infer": "prototype"}),
    ("pnn", {}), ("shared-private", {}), ("shared-private", {"private_width": 5, "infer": "max-logit"}),
]


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize(("method", "options"), METHODS, ids=lambda v: v if isinstance(v, str) else
                         ",".join(f"{k}={x}" for k, x in v.items()) or "-")
def test_our_strategies_keep_the_rules(method, options, name):
    check(method, name, options)
