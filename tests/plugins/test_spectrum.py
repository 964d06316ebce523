import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from clbench_lora import spectrum, spectrum_view
from clbench_lora.run_adapters import TrialAdapters, trials_with_adapters
from clbench_lora.spectrum import (
    Change,
    changes_of,
    energy_at,
    energy_shares,
    measured_layers,
    rank_holding,
    singular_values,
    spectra,
    thirds,
    weight_changes,
)
from helpers.records import make_matrix, make_record
from safetensors.torch import load_file
from torch import nn

from clbench import cli
from clbench.core.artifacts import save_tensors
from clbench.core.errors import StoreError
from clbench.core.registry import discover, installed
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.plan import plan
from clbench.experiment.spec import build
from clbench.models.network import Block, Network
from clbench.results.records import Record
from clbench.results.store import Store

SHAPES = {"blocks.0.body.1": (12, 30), "blocks.1.body": (8, 3, 3, 3)}
RANKS = {"blocks.0.body.1": 3, "blocks.1.body": 2}


def low_rank(shape, rank, seed=0):
    """Return a matrix of a rank with singular values 2^(rank-1), ..., 2, 1."""
    generator = np.random.default_rng(seed)
    wide = int(np.prod(shape[1:]))
    u, v = (np.linalg.qr(generator.normal(size=(n, rank)))[0] for n in (shape[0], wide))
    return torch.from_numpy((u * 2.0 ** np.arange(rank)[::-1] @ v.T).reshape(shape))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=str)
def test_a_known_change_has_its_rank_and_its_singular_values(shape):
    found = singular_values(low_rank(shape, 4)).numpy()
    np.testing.assert_allclose(found[:4], [8, 4, 2, 1], rtol=1e-12)
    np.testing.assert_allclose(found, np.linalg.svd(low_rank(shape, 4).numpy().reshape(shape[0], -1))[1], atol=1e-12)
    assert len(found) == shape[0]
    energies = np.array([64, 80, 84, 85]) / 85
    np.testing.assert_allclose(energy_shares(found.tolist())[:4], energies, rtol=1e-12)
    assert [rank_holding(found.tolist(), share) for share in (0.75, 0.9, 0.95, 0.99)] == [1, 2, 3, 4]


def test_ranks_hold_what_numpy_says_on_noise():
    matrix = np.random.default_rng(4).normal(size=(9, 14))
    found = singular_values(torch.from_numpy(matrix)).tolist()
    total = (matrix**2).sum()
    for share in (0.9, 0.95, 0.99, 1.0):
        rank = rank_holding(found, share)
        u, s, v = np.linalg.svd(matrix, full_matrices=False)
        held = [((u[:, :r] * s[:r] @ v[:r])**2).sum() / total for r in (rank - 1, rank)]
        assert held[0] < share <= held[1] + 1e-12


def test_nothing_changed_has_rank_0():
    assert rank_holding([0.0, 0.0], 0.9) == 0
    assert energy_shares([0.0, 0.0]) == [1.0, 1.0]
    assert energy_at([Change("k", 0, 0, "a", (2, 2), (0.0, 0.0))], 0) == 1.0


def test_energy_of_several_layers_is_pooled():
    changes = [Change("k", 0, 0, "a", (2, 3), (3.0, 1.0)), Change("k", 0, 0, "b", (2, 3), (4.0, 2.0))]
    assert [energy_at(changes, r) for r in range(3)] == [0, 25 / 30, 1]


def test_layers_are_linear_and_convolution_weights_of_the_blocks(tmp_path, monkeypatch):
    model = Network([Block(nn.Embedding(5, 4), nn.Identity()), Block(nn.Linear(4, 3), nn.BatchNorm1d(3)),
                     Block(nn.ConvTranspose2d(2, 3, 1), nn.Identity()), Block(nn.Conv2d(3, 3, 1), nn.Identity())],
                    nn.Linear(3, 2))
    monkeypatch.setattr(TrialAdapters, "architecture", lambda self: model)
    layers = measured_layers(make_record("independent"), tmp_path, installed())
    assert layers == {"blocks.1.body": True, "blocks.3.body": True}
    base = model.state_dict()
    tuned = {name: t + 1 for name, t in base.items()}
    (name, change), (other_name, _) = weight_changes(base, tuned, layers)
    assert (name, other_name) == ("blocks.1.body", "blocks.3.body") and change.dtype == torch.float64
    torch.testing.assert_close(change, torch.ones(3, 4, dtype=torch.float64))
    with pytest.raises(StoreError, match=r"blocks\.1\.body\.weight of the base is missing or has another shape"):
        list(weight_changes(base, {}, layers))


def keep(store, record, ranks=RANKS):
    """Write a trial of independent whose changes have known ranks."""
    folder = store.artifacts / record.key
    base = {f"{name}.weight": torch.randn(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    save_tensors(folder / "base.safetensors", base)
    for task in range(len(record.R) - 1):
        tuned = {f"{name}.weight": base[f"{name}.weight"] + low_rank(SHAPES[name], rank, task)
                 for name, rank in ranks.items()}
        save_tensors(folder / f"task{task}" / "model.safetensors", tuned)
    store.write(record)


@pytest.fixture
def run(tmp_path):
    torch.manual_seed(0)
    store = Store(tmp_path)
    for seed in range(2):
        keep(store, make_record("independent", seed, make_matrix(2, 0.1), reference=True,
                                options={"base": "task1", "infer": "entropy"}))
        store.write(make_record("frozen", seed, make_matrix(2, -0.1), options={"base": "task1"}, reference=True))
        for rank in (4, 1):
            store.write(make_record("lora", seed, make_matrix(2, 0.01 * rank + 0.02 * seed), label=f"lora:rank={rank}",
                                    options={"rank": rank, "base": "task1", "rank_pattern": {}, "layers": "all"}))
        store.write(make_record("naive", seed, make_matrix(2)))
    return tmp_path


def test_spectra_put_accuracies_beside_what_a_rank_holds(run):
    found, = spectra(run)
    assert found.layers == list(SHAPES) and len(found.changes) == 2 * 2 * 2
    assert {(c.layer, c.rank(0.99), c.full_rank) for c in found.changes} == {("blocks.0.body.1", 3, 12),
                                                                             ("blocks.1.body", 2, 8)}
    assert [(r.label, r.rank, r.accuracy.n) for r in found.reached] == [
        ("frozen", 0, 2), ("lora:rank=1", 1, 2), ("lora:rank=4", 4, 2), ("independent", None, 2)]
    assert [r.energy for r in found.reached] == pytest.approx([0, (16 + 4) / (21 + 5), 1, 1])
    assert found.reached[1].accuracy.mean == pytest.approx(np.mean([0.86 + 0.01, 0.86 + 0.03]), abs=0.02)
    assert found.notes == []


def test_settings_do_not_mix_and_other_bases_are_noted(run):
    store = Store(run)
    keep(store, make_record("independent", 0, make_matrix(2), scenario="class", options={"base": "random"}))
    store.write(make_record("lora", 0, make_matrix(2), scenario="class", label="mine", options={
        "rank": 2, "base": "task1", "rank_pattern": {"x": 1}, "layers": "last"}))
    store.write(make_record("independent", 7, make_matrix(2), status="diverged", options={"base": "random"}))
    first, second = spectra(run)
    assert len(first.changes) == 8 and len(second.changes) == 4
    assert "scenario task" in first.setting and "scenario class" in second.setting
    assert [(r.label, r.rank, r.energy) for r in second.reached] == [("mine", None, None), ("independent", None, 1.0)]
    assert second.notes == ["mine starts from another W (base = task1) than independent (base = random)",
                            "mine adapts some layers only (layers = last); the energy next to it is that of all"]


def test_rows_with_a_recipe_of_their_own_do_not_mix(run):
    store = Store(run)
    options = {"base": "task1", "infer": "entropy"}
    keep(store, make_record("independent", 0, make_matrix(2), reference=True, options=options, label="slower",
                            own_recipe={"lr": 1e-4}), ranks={"blocks.0.body.1": 1, "blocks.1.body": 1})
    store.write(make_record("lora", 0, make_matrix(2), label="lora:rank=1:recipe.lr=1e-4", own_recipe={"lr": 1e-4},
                            options={"rank": 1, "base": "task1", "rank_pattern": {}, "layers": "all"}))
    first, second = sorted(spectra(run), key=lambda s: s.label)
    assert (first.label, len(first.changes)) == ("independent", 8)
    assert (second.label, {c.rank(0.99) for c in second.changes}) == ("slower", {1})
    assert [(r.label, r.accuracy.n) for r in second.reached] == [
        ("frozen", 2), ("lora:rank=1", 2), ("lora:rank=1:recipe.lr=1e-4", 1), ("lora:rank=4", 2), ("slower", 1)]


@pytest.fixture
def fused(tmp_path, monkeypatch):
    """Return a run whose layer for q, k and v changed in orthogonal directions: q by 4, k not at all, v by 3 and 2."""
    name, out = "blocks.1.body.attn.qkv", "blocks.1.body.attn.proj"
    monkeypatch.setattr(spectrum, "measured_layers", lambda *_: {name: True, out: True})
    left, right = (torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0] for _ in range(2))
    change = torch.zeros(18, 6, dtype=torch.float64)
    change[:6] = 4 * torch.outer(left[0], right[0])
    change[12:] = 3 * torch.outer(left[1], right[1]) + 2 * torch.outer(left[2], right[2])
    store = Store(tmp_path)
    record = make_record("independent", 0, make_matrix(1), tasks=1, reference=True, options={"base": "task1"})
    folder = store.artifacts / record.key
    base = {f"{name}.weight": torch.randn(18, 6, dtype=torch.float64), f"{out}.weight": torch.zeros(6, 6).double()}
    save_tensors(folder / "base.safetensors", base)
    save_tensors(folder / "task0" / "model.safetensors", {
        f"{name}.weight": base[f"{name}.weight"] + change, f"{out}.weight": torch.outer(left[0], right[3])})
    store.write(record)
    for options in ({"layers": "all"}, {"layers": "all", "targets": ["q", "v"]}):
        store.write(make_record("lora", 0, make_matrix(1), tasks=1, label=f"lora:{len(options)}",
                                options={"rank": 1, "base": "task1", "rank_pattern": {}, **options}))
    return tmp_path


def test_q_k_and_v_of_one_layer_are_shown_apart(fused, capsys):
    found, = spectra(fused)
    assert found.layers == ["blocks.1.body.attn.qkv", *(f"blocks.1.body.attn.qkv.{part}" for part in "qkv"),
                            "blocks.1.body.attn.proj"]
    assert found.finest == found.layers[1:]
    shown = {c.layer.removeprefix("blocks.1.body.attn."): c for c in found.changes}
    assert {name: (c.shape, c.full_rank, c.rank(0.99)) for name, c in shown.items()} == {
        "qkv": ((18, 6), 6, 3), "qkv.q": ((6, 6), 6, 1), "qkv.k": ((6, 6), 6, 0), "qkv.v": ((6, 6), 6, 2),
        "proj": ((6, 6), 6, 1)}
    assert shown["qkv"].singular[:4] == pytest.approx([4, 3, 2, 0], abs=1e-9)
    assert shown["qkv.v"].singular[:3] == pytest.approx([3, 2, 0], abs=1e-9)
    energies = {r.label: r.energy for r in found.reached}
    assert energies["lora:1"] == pytest.approx((16 + 1) / 30)  # rank 1 for the whole layer
    assert energies["lora:2"] == pytest.approx((16 + 9 + 1) / 30)  # rank 1 for each part
    assert found.notes == ["lora:2 adapts some layers only (targets = q+v); the energy next to it is that of all"]
    code, text, _ = call(capsys, fused, "--plot", fused / "a.svg")
    assert code == 0 and "qkv.v  " in text and "A layer for q, k and v at once is shown whole" in text
    assert (fused / "a.svg").stat().st_size > 10_000
    change = json.loads(call(capsys, fused, "--format", "json")[1])[0]["changes"][1]
    assert (change["layer"], change["whole"]) == ("blocks.1.body.attn.qkv.q", "blocks.1.body.attn.qkv")


class Stage(nn.Module):
    """A stage as in TinyViT: a convolution before an attention, which may order its rows by head."""

    def __init__(self, by_head):
        super().__init__()
        self.downsample = nn.Conv2d(4, 4, 1)
        self.attn = nn.Module()
        self.attn.qkv = nn.Linear(4, 12)
        self.attn.proj = nn.Linear(4, 4)
        if by_head:
            self.attn.key_dim = 2


@pytest.mark.parametrize("by_head", [False, True])
def test_layers_are_in_the_models_order_and_have_parts_only_if_their_rows_are_not_ordered_by_head(
        tmp_path, monkeypatch, by_head):
    model = Network([Block(Stage(by_head), nn.Identity()) for _ in range(11)], nn.Linear(4, 2))
    monkeypatch.setattr(TrialAdapters, "architecture", lambda self: model)
    for file in ("base.safetensors", "task0/model.safetensors"):
        save_tensors(tmp_path / file, {name: t for name, t in model.state_dict().items() if name.startswith("blocks")})
    found = [c.layer for c in changes_of(make_record("independent", 0, make_matrix(1), tasks=1), tmp_path, installed())]
    parts = [] if by_head else ["attn.qkv.q", "attn.qkv.k", "attn.qkv.v"]
    assert found == [f"blocks.{i}.body.{name}" for i in range(11)
                     for name in ("downsample", "attn.qkv", *parts, "attn.proj")]


def test_layers_named_qkv_that_are_not_three_of_one_width_are_shown_whole():
    assert list(thirds("blocks.1.attn.qkv", torch.zeros(12, 4))) == ["q", "k", "v"]
    for layer, shape in (("blocks.1.attn.qkv", (8, 4)), ("blocks.1.attn.qkv", (12, 4, 1, 1)), ("blocks.1.qkv", (12, 4)),
                         ("blocks.1.attn.proj", (12, 4))):
        assert thirds(layer, torch.zeros(shape)) == {}


def call(capsys, *args):
    code = cli.call(["lora", "spectrum", *map(str, args)])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_prints_text_markdown_and_json(run, capsys):
    code, text, err = call(capsys, run)
    assert (code, err) == (0, "")
    layer = next(line.split() for line in text.splitlines() if line.startswith("blocks.0"))
    assert layer == ["blocks.0.body.1", "12x30", "12", "2.0,", "17%", "2.0,", "17%", "3.0,", "25%"]
    assert next(line.split() for line in text.splitlines() if line.startswith("lora:rank=1"))[1:3] == ["1", "76.92"]
    _, document, _ = call(capsys, run, "--format", "md")
    assert document.startswith("## independent: split-mnist-5k")
    assert "| 2.0, 17% |" in " ".join(document.split())
    _, facts, _ = call(capsys, run, "--format", "json")
    found, = json.loads(facts)
    change = found["changes"][0]
    assert (change["layer"], change["ranks"], change["full_rank"]) == (
        "blocks.0.body.1", {"0.9": 2, "0.95": 2, "0.99": 3}, 12)
    assert change["relative_ranks"]["0.99"] == 0.25
    assert change["singular"][:3] == pytest.approx([4, 2, 1])
    assert [r["rank"] for r in found["reached"]] == [0, 1, 4, None]


def test_the_figure_is_drawn_and_the_same_each_time(run, capsys, tmp_path):
    for name in ("a.svg", "b.svg", "c.png"):
        assert call(capsys, run, "--plot", tmp_path / name)[0] == 0
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert call(capsys, run, "--plot", tmp_path / "no" / "c.svg")[::2] == (
        2, f"Error: cannot write {tmp_path}/no/c.svg: No such file or directory\n")


def test_many_layers_and_settings_are_drawn(run, tmp_path):
    found, = spectra(run)
    found.changes = [Change("k", 0, 0, f"blocks.{i}", (4, 4), (4.0, 2.0, 1.0, 0.0)) for i in range(20)]
    spectrum_view.draw([found, found], tmp_path / "many.png")
    assert (tmp_path / "many.png").stat().st_size > 10_000


def test_bad_input_is_one_line(tmp_path, run, capsys):
    code, out, err = call(capsys, tmp_path / "nothing")
    assert (code, out) == (2, "") and err.startswith(f"Error: no trial of independent with its weights in {tmp_path}")
    assert call(capsys, run, "--plot", "x.gif")[0] == 2
    numeric = make_record("independent").model_dump(by_alias=True) | {"metric": "rmse"}
    Store(tmp_path / "numeric").write(Record.model_validate(numeric))
    assert call(capsys, tmp_path / "numeric")[2] == (
        f"Error: no spectrum of {tmp_path}/numeric: it needs the weights of each task's model, which independent saves "
        "for classification only\n")
    broken = next(Store(run).artifacts.glob("*/task0/model.safetensors"))
    broken.write_bytes(b"nothing")
    code, _, err = call(capsys, run)
    assert code == 2 and err.startswith(f"Error: weights {broken} cannot be read") and err.count("\n") == 1


def test_help_needs_no_torch():
    code = ("import sys\nfrom clbench import cli\nassert cli.call(['lora', 'spectrum', '--help']) == 0\n"
            "assert cli.call(['lora', '--help']) == 0\nassert 'torch' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_run_is_measured(tmp_path):
    registry, store = discover(), Store(tmp_path)
    runner = TrialRunner(ExecutionSettings(), "cpu", "a test", registry, store.artifacts)
    methods = ["independent", "frozen", {"name": "lora", "options": {"rank": [1, 2]}}]
    for one in plan(build({"methods": methods, "model": "mlp:width=16", "seeds": 1,
                           "recipe": {"iterations": 20, "batch_size": 32}}), registry):
        store.write(runner.run(one))
    found, = spectra(tmp_path)
    assert found.layers == ["blocks.0.body.1", "blocks.1.body"]
    assert [c.task for c in found.changes if c.layer == found.layers[0]] == list(range(5))
    assert all(1 <= c.rank(0.9) <= c.rank(0.99) <= 16 for c in found.changes)
    assert [r.rank for r in found.reached] == [0, 1, 2, None]
    assert 0 < found.reached[1].energy < found.reached[2].energy < 1
    weights = load_file(store.artifacts / found.changes[0].trial / "base.safetensors")["blocks.1.body.weight"]
    assert {k.record.trial.method.name for k in trials_with_adapters(tmp_path)} == {"lora"}
    lora = next(r for r in store.read()[0] if r.trial.method.name == "lora")
    assert torch.equal(load_file(store.artifacts / lora.key / "base.safetensors")["blocks.1.body.weight"], weights)
