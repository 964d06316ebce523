import pytest
import torch

from clbench.core.hookspecs import StrategyInfo
from clbench.core.registry import discover
from clbench.strategy.base import Strategy
from clbench.testing.checks import CHECKS, check

CHOSEN = [
    ("naive", {}), ("joint", {}), ("ewc", {}), ("ewc", {"mode": "online", "fisher": "sampled", "gamma": 0.9}),
    ("er", {"capacity": 10}), ("er", {"capacity": 10, "balance": "class"}),
    ("lora", {"rank": 2}), ("lora", {"rank": 2, "base": "random", "infer": "prototype"}),
    ("seq-lora", {"rank": 2}), ("seq-lora", {"rank": 2, "base": "random", "dora": True}), ("o-lora", {"rank": 2}),
    ("er", {"capacity": 10, "share": 0.3}), ("seq-lora", {"rank": 2, "replay": 0.3, "capacity": 10}),
    ("seq-lora", {"rank": 2, "base": "random", "merge": True}),
    ("inflora", {"rank": 2}), ("inflora", {"rank": 2, "base": "random", "threshold": 0.6, "final_threshold": 0.8}),
    ("sd-lora", {"rank": 2}),
    ("sd-lora", {"rank": 3, "base": "random", "later_ranks": {"2": 2}, "magnitudes": "layer", "norm": "product"}),
    ("lora-sub", {"rank": 2}), ("lora-sub", {"rank": 2, "base": "random", "threshold": 0.5, "scaled": False}),
    ("ewc-lora", {"rank": 2}), ("ewc-lora", {"rank": 2, "base": "random", "fisher": "sampled", "gamma": 0.9}),
    ("lora-mean", {"rank": 2}), ("lora-mean", {"rank": 2, "base": "random"}),
    ("pnn", {}), ("shared-private", {}), ("shared-private", {"private_width": 5, "infer": "max-logit"}),
    ("frozen", {}), ("frozen", {"base": "random"}), ("independent", {}),
    ("independent", {"base": "random", "infer": "prototype"}),
    ("si", {}), ("mas", {}), ("l2", {}), ("lwf", {}), ("a-gem", {"capacity": 10}), ("der", {"capacity": 10}),
    ("gem", {"capacity": 10}), ("rwalk", {"interval": 3}), ("xdg", {"gated": 0.5}), ("xdg", {"infer": "max-logit"}),
    ("cls-er", {"capacity": 10, "stable_rate": 0.8, "stable_decay": 0.5}),
    ("acil", {"projections": 20}), ("acil", {"projections": 20, "compensation": 0.6}),
    ("fetril", {}), ("fetril", {"base": "random", "nearest": "euclidean"}),
    ("generative-replay", {"width": 16}), ("generative-replay", {"targets": "soft", "width": 16, "generator_lr": 0.01}),
    ("der++", {"capacity": 10}), ("er-ace", {"capacity": 10}),
    ("icarl", {"capacity": 10}), ("acl", {}), ("acl", {"memory": 3, "infer": "max-logit"}), ("packnet", {}),
    ("packnet", {"prune": 0.5, "infer": "prototype"}), ("packnet", {"infer": "gaussian", "infer_normalize": True}),
    ("lora", {"rank": 2, "infer": "gaussian"}),
    ("ncm", {}), ("slda", {}), ("slda", {"base": "random"}), ("ranpac", {"projections": 20}),
    ("l2p", {"pool": 4, "top": 2, "length": 2}), ("l2p", {"base": "random"}), ("slca", {}),
    ("dualprompt", {}), ("dualprompt", {"base": "random", "start": "new", "g_blocks": 0}),
    ("s-iprompts", {"clusters": 2, "distance": "l2"}), ("s-iprompts", {"base": "random", "infer": "max-logit"}),
    ("coda-prompt", {}), ("coda-prompt", {"base": "random", "components": 6, "ortho": 0.1}),
    ("simplecil", {}), ("fecam", {}), ("fecam", {"covariance": "common", "base": "random"}),
    ("bic", {"capacity": 20}), ("wa", {"capacity": 10}), ("wa", {"capacity": 10, "clip": False}),
    ("dynamic-er", {"capacity": 10}), ("dynamic-er", {"capacity": 10, "align_weights": False, "auxiliary": 0.5}),
    ("lucir", {"capacity": 10}), ("podnet", {"capacity": 10, "finetune_steps": 0.4}),
    ("podnet", {"capacity": 10, "nca": "paper", "proxies": 1, "finetune_steps": 0.0}),
    ("ease", {"width": 3}), ("ease", {"base": "random", "width": 3, "dropout": 0.0, "beta": 1.0, "donors": "next"}),
    ("ease", {"adapter": "lora", "width": 2}),
    ("mos", {"width": 3, "align_epochs": 2}),
    ("mos", {"adapter": "lora", "width": 2, "base": "random", "dropout": 0.0, "moves": 0, "ensemble": False}),
    ("slca++", {"rank": 2}), ("slca++", {"rank": 2, "base": "random"}),
    ("lae", {"width": 2, "decay": 0.5}), ("lae", {"width": 2, "base": "random", "freeze": 0.0}),
    ("gdumb", {"capacity": 10}), ("mir", {"capacity": 20, "replayed": 3}), ("hat", {}),
    ("osf", {}), ("osf", {"base": "random", "preserved": 0.0, "final_preserved": 0.6}), ("osf", {"convolutions": True}),
    ("hat", {"infer": "prototype", "s_max": 50.0}), ("gpm", {}), ("gpm", {"threshold": 0.6, "outputs": "seen"}),
]
REGISTRY = discover()
OTHERS = [(name, {}) for name in sorted(REGISTRY.strategies) if name not in dict(CHOSEN)
          and (origin := REGISTRY.origins["method", name]).distribution == "clbench"
          and origin.plugin != "clbench_avalanche"]  # checked in tests/plugins/test_avalanche.py


def cases():
    """Each method with options; more options of one are a second look, for which there is `make test-slow`."""
    seen = set()
    for method, options in [*CHOSEN, *OTHERS]:
        yield pytest.param(method, options, marks=[pytest.mark.slow] if method in seen else [])
        seen.add(method)


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize(("method", "options"), list(cases()), ids=lambda v: v if isinstance(v, str) else
                         ",".join(f"{k}={x}" for k, x in v.items()) or "-")
def test_our_strategies_keep_the_rules(method, options, name):
    check(REGISTRY.strategy(method), name, options)


class Means(Strategy):
    """Stores NaN for classes that do not occur, as `class_means` does."""

    def after_task(self, task):
        self.register_buffer("means", torch.full((3,), torch.nan))


@pytest.mark.parametrize("rule", ["checkpoint", "loss-is-pure", "predict-changes-nothing", "copy", "repeatable"])
def test_a_buffer_with_nan_is_not_called_changed(rule):
    check(StrategyInfo("x", Means, ""), rule)


@pytest.mark.parametrize("rule", ["loss-is-pure", "declarations"])
def test_batch_normalization_is_no_impure_loss(rule):
    check(StrategyInfo("x", Strategy, "", check_model="resnet18"), rule)
