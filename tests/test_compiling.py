import pytest
import torch
from test_ensemble import lead

from clbench import compiling, ensemble, training
from clbench.compiling import Compiler
from clbench.errors import SpecError
from clbench.plan import plan
from clbench.plugins import discover
from clbench.spec import Recipe, build
from clbench.trial import Runner

CPU = torch.device("cpu")
RECIPE = Recipe(optimizer="sgd", lr=0.05, batch_size=10, epochs=2)  # 24 samples: batches of two sizes
METHODS = [("naive", {}), ("joint", {}), ("ewc", {"strength": 10.0}), ("er", {"capacity": 20}),
           ("lora", {"rank": 2, "dropout": 0.3}), ("pnn", {}), ("shared-private", {"private_width": 5}),
           ("seq-lora", {"rank": 2, "dora": True}), ("o-lora", {"rank": 2}), ("inflora", {"rank": 2}), ("frozen", {}),
           ("independent", {})]


def compiled(compiler, monkeypatch, *args, **kwargs):
    """Train as `lead` does, with a compiler."""
    plain = ensemble.make_engine
    with monkeypatch.context() as patch:
        patch.setattr(training, "make_engine", lambda s, recipe, previous, _: plain(s, recipe, previous, compiler))
        return lead(*args, **kwargs)


@pytest.mark.parametrize(("method", "options"), METHODS)
@pytest.mark.parametrize("seeds", [[0], [0, 1]])
def test_every_method_compiles_as_one_graph_alone_and_stacked(method, options, seeds, monkeypatch):
    info, compiler = discover().strategy(method), Compiler(CPU, "aot_eager")
    for ours, theirs in zip(compiled(compiler, monkeypatch, info, options, seeds, RECIPE, tasks=2),
                            lead(info, options, seeds, RECIPE, tasks=2), strict=True):
        for name, tensor in theirs.strategy.state_dict().items():
            torch.testing.assert_close(ours.strategy.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)
    assert compiler.notes == []
