import pytest

from clbench.core.registry import discover
from clbench.testing.checks import CHECKS, check

CHOSEN = [
    ("naive", {}), ("joint", {}), ("ewc", {}), ("ewc", {"mode": "online", "fisher": "sampled", "gamma": 0.9}),
    ("er", {"capacity": 10}), ("er", {"capacity": 10, "balance": "class"}),
    ("lora", {"rank": 2}), ("lora", {"rank": 2, "base": "random", "infer": "prototype"}),
    ("seq-lora", {"rank": 2}), ("seq-lora", {"rank": 2, "base": "random", "dora": True}), ("o-lora", {"rank": 2}),
    ("inflora", {"rank": 2}), ("inflora", {"rank": 2, "base": "random", "threshold": 0.6, "final_threshold": 0.8}),
    ("ewc-lora", {"rank": 2}), ("ewc-lora", {"rank": 2, "base": "random", "fisher": "sampled", "gamma": 0.9}),
    ("lora-mean", {"rank": 2}), ("lora-mean", {"rank": 2, "base": "random"}),
    ("pnn", {}), ("shared-private", {}), ("shared-private", {"private_width": 5, "infer": "max-logit"}),
    ("frozen", {}), ("frozen", {"base": "random"}), ("independent", {}),
    ("independent", {"base": "random", "infer": "prototype"}),
    ("si", {}), ("mas", {}), ("lwf", {}), ("a-gem", {"capacity": 10}), ("der", {"capacity": 10}),
    ("der++", {"capacity": 10}), ("er-ace", {"capacity": 10}),
    ("icarl", {"capacity": 10}), ("acl", {}), ("acl", {"memory": 3, "infer": "max-logit"}), ("packnet", {}),
    ("packnet", {"prune": 0.5, "infer": "prototype"}),
    ("ncm", {}), ("slda", {}), ("slda", {"base": "random"}), ("ranpac", {"projections": 20}),
    ("l2p", {"pool": 4, "top": 2, "length": 2}), ("l2p", {"base": "random"}),
]
REGISTRY = discover()
OTHERS = [(name, {}) for name in sorted(REGISTRY.strategies) if name not in dict(CHOSEN)
          and (origin := REGISTRY.origins["method", name]).distribution == "clbench"
          and origin.plugin != "clbench_avalanche"]  # checked in tests/plugins/test_avalanche.py


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize(("method", "options"), [*CHOSEN, *OTHERS], ids=lambda v: v if isinstance(v, str) else
                         ",".join(f"{k}={x}" for k, x in v.items()) or "-")
def test_our_strategies_keep_the_rules(method, options, name):
    check(method, name, options)
