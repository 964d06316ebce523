import json
import re
import subprocess
import sys

import pytest
from helpers import ROOT

import clbench
from clbench import cli
from clbench.accounting.count import Count
from clbench.cli.params import format_scaled, ratio, size
from clbench.report.formatting import NONE


def call(capsys, *args):
    code = cli.call(["params", *map(str, args)])
    out, err = capsys.readouterr()
    return code, out, err


def cells(line, separator=r"  +"):
    return [cell for cell in re.split(separator, line.strip()) if cell]


LAYER = [["full fine-tuning", "1,000,000", "1,000,000", "4 MB", "1x"],
         ["frozen", "1,000,000", "0", "0 B", NONE],
         ["LoRA r=4", "1,008,000", "8,000", "32 KB", "125x fewer"],
         ["LoRA r=8", "1,016,000", "16,000", "64 KB", "62x fewer"],
         ["LoRA r=16", "1,032,000", "32,000", "128 KB", "31x fewer"]]


def test_one_layer_as_text(capsys):
    code, out, err = call(capsys, "--layer", "1000x1000", "--rank", "4,8,16")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "layer 1000x1000"
    assert cells(lines[2]) == ["method", "parameters", "trainable", "bytes per task", "ratio to full"]
    assert list(map(cells, lines[4:9])) == LAYER


def test_one_layer_as_markdown(capsys):
    _, out, _ = call(capsys, "--layer", "1000x1000", "--format", "md")
    rows = [cells(line, r"\s*\|\s*") for line in out.splitlines() if line.startswith("|")]
    assert rows[2:] == LAYER


def test_the_table_of_the_documentation_is_what_the_command_prints(capsys):
    _, out, _ = call(capsys, "--layer", "1000x1000", "--rank", "4,8,16", "--format", "md")
    table = "\n".join(line for line in out.splitlines() if line.startswith("|"))
    document = ROOT.joinpath("docs", "count-costs.md").read_text()
    assert table.count("\n") == 6 and f"\n\n{table}\n\n" in document


def test_one_layer_as_json(capsys):
    _, out, _ = call(capsys, "--layer", "1000x1000", "--rank", "10", "--format", "json")
    found = json.loads(out)
    assert found["layer"] == [1000, 1000]
    lora = found["methods"][-1]
    assert lora["method"] == "LoRA r=10"
    assert (lora["trainable"], lora["trainable_bytes"], lora["ratio_to_full"]) == ([20_000], [80_000], 50.0)
    assert found["methods"][1]["ratio_to_full"] is None


def test_a_convolution(capsys):
    _, out, _ = call(capsys, "--layer", "64x32x3x3", "--rank", "4")
    row = next(line for line in out.splitlines() if line.startswith("LoRA"))
    assert cells(row) == ["LoRA r=4", "19,840", "1,408", "5.63 KB", "13x fewer"]


def test_a_plugins_declaration_brings_rows_of_its_own(capsys, tmp_path):
    (tmp_path / "probes.py").write_text(
        "from clbench import Options, Strategy, StrategyInfo, hookimpl\n\n\n"
        "class ProbeOptions(Options):\n    rank: int = 1\n\n\n"
        "@hookimpl\ndef clbench_strategies():\n"
        "    return [StrategyInfo('probe', Strategy, 'as naive', ProbeOptions, layer_rows=(\n"
        "        ('Probe of {rank}', 'rank={rank}'), ('Probe', '')))]\n")
    code, out, err = call(capsys, "--layer", "10x10", "--rank", "2,3", "--plugin", tmp_path / "probes.py")
    assert (code, err) == (0, "")
    assert [cells(line)[0] for line in out.splitlines()[4:10]] == [
        "full fine-tuning", "frozen", "LoRA r=2", "LoRA r=3", "Probe of 2", "Probe of 3"]
    assert out.count("Probe  ") == 1


@pytest.mark.parametrize("args", [("params", "--layer", "10x10"), ("params", "--model", "mlp"),
                                  ("pretrain", "split-mnist-5k", "--out", "w.safetensors")])
def test_without_a_baseline_there_is_nothing_to_compare_with(args, capsys, monkeypatch):
    monkeypatch.setenv("CLBENCH_DISABLE_PLUGINS", "clbench_naive")
    assert cli.call([*args]) == 2
    assert capsys.readouterr().err == (
        "Error: no method that is installed is full fine-tuning (StrategyInfo.baseline); clbench methods shows which "
        "plugins are disabled or broken\n")


NETWORK = ("--model", "mlp:width=100", "--methods", "lora:rank=2,ewc,er,pnn,shared-private", "--tasks", 3)


def test_a_network_has_what_is_trained_what_is_kept_and_the_flops(capsys, tmp_path):
    code, out, err = call(capsys, *NETWORK, "--format", "json", "--plot", tmp_path / "growth.png")
    assert (code, err) == (0, "")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(out)
    assert (found["tasks"], found["outputs"], found["inputs"]) == (3, 30, [3, 32, 32])
    by_name = {m["method"]: m for m in found["methods"]}
    assert list(by_name) == ["full fine-tuning", "lora:rank=2", "ewc", "er", "pnn", "shared-private"]
    full, lora, ewc, er, pnn = (by_name[m] for m in ("full fine-tuning", "lora:rank=2", "ewc", "er", "pnn"))
    assert ewc["trainable"] == er["trainable"] == full["trainable"] == [full["parameters"][0]] * 3
    assert [kept["bytes"]["importance"] for kept in ewc["kept"]] == [8 * full["parameters"][0] + 4] * 3
    assert er["kept"][-1]["replay_samples"] == 200
    assert lora["ratio_to_full"] == full["trainable"][-1] / lora["trainable"][-1] > 10
    assert pnn["bytes"] == sorted(pnn["bytes"]) and pnn["flops"] > 3 * full["flops"] > 0


def test_a_network_as_text_and_markdown(capsys):
    _, out, _ = call(capsys, *NETWORK)
    _, document, _ = call(capsys, *NETWORK, "--format", "md")
    _, facts, _ = call(capsys, *NETWORK, "--format", "json")
    lora = json.loads(facts)["methods"][1]
    row = next(line for line in out.splitlines() if line.startswith("lora:rank=2"))
    assert cells(row)[1:3] == [f"{lora['parameters'][-1]:,}", f"{lora['trainable'][-1]:,}"]
    assert cells(row)[-2:] == [size(lora["bytes"][-1]), format_scaled(lora["flops"])]
    assert f"{lora['trainable'][0]:,} in task 1, {lora['trainable'][1]:,} in tasks 2-3" in out
    marked = next(line for line in document.splitlines() if line.startswith("| lora"))
    assert cells(marked, r"\s*\|\s*") == cells(row)
    tables = [line for line in document.splitlines() if line.startswith("| 3 ")]
    assert cells(tables[1], r"\s*\|\s*")[2] == size(lora["bytes"][2])


def test_options_reach_the_methods(capsys):
    _, out, _ = call(capsys, "--model", "mlp:width=20", "--methods", "lora", "--set", "lora.rank=3", "--tasks", 2,
                     "--classes", 4, "--input-shape", "1x5x6", "--scenario", "class", "--format", "json")
    lora = json.loads(out)["methods"][1]
    assert lora["method"] == "lora:rank=3"
    assert lora["trainable"][1] == 3 * (30 + 20) + 3 * (20 + 20) + 21 * 2


def test_the_figure_is_the_same_each_time(capsys, tmp_path):
    for name in ("a.svg", "b.svg"):
        assert call(capsys, "--model", "mlp:width=20", "--tasks", 2, "--plot", tmp_path / name)[0] == 0
    text = (tmp_path / "a.svg").read_text()
    assert "Bytes kept after each task" in text
    assert text.startswith("<?xml") and text == (tmp_path / "b.svg").read_text()
    assert call(capsys, "--model", "mlp", "--tasks", 2, "--plot", tmp_path / "no" / "c.svg")[::2] == (
        2, f"Error: cannot write {tmp_path}/no/c.svg: No such file or directory\n")


@pytest.mark.parametrize(("args", "message"), [
    ([], "give --layer OUTxIN or --model NAME, one of them"),
    (["--layer", "10x10", "--model", "mlp"], "give --layer OUTxIN or --model NAME, one of them"),
    (["--layer", "10x"], "Invalid value for '--layer': expected positive numbers with x between them"),
    (["--layer", "10x10x10"], "no layer has a weight with 3 dimensions; give OUTxIN (Linear) or OUTxINxHxW (Conv2d)"),
    (["--layer", "10x10", "--rank", "4,"], "Invalid value for '--rank': expected ranks such as 4,8,16, got '4,'"),
    (["--layer", "10x10", "--rank", "11"], "lora: rank = 11 exceeds the width 10"),
    (["--layer", "10x10", "--tasks", "3"], "--tasks goes with --model, not with --layer"),
    (["--model", "mlp", "--rank", "4"], "--rank goes with --layer; with --model give --methods lora:rank=4"),
    (["--model", "mpl"], "no model 'mpl'; did you mean 'mlp'?"),
    (["--model", "mlp", "--methods", "loraa"], "no method 'loraa'; did you mean "),
    (["--model", "mlp", "--classes", "7"], "7 classes cannot be shared out equally among 10 tasks"),
    (["--model", "mlp", "--plot", "x.gif"], "Invalid value for '--plot': expected a file that ends in .png or .svg"),
    (["--model", "mlp", "--plot", "x.svg", "--tasks", "1"], "--plot shows growth over tasks; give --tasks 2 or more"),
    (["--model", "mlp", "--methods", "lora:base=pretrained"], "lora: base = pretrained needs a pretrained model"),
])
def test_bad_input_is_one_line(args, message, capsys):
    code, out, err = call(capsys, *args)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"Error: {message}")


def test_help_and_mistakes_need_no_torch():
    code = ("import sys\nfrom clbench import cli\nassert cli.call(['params', '--help']) == 0\n"
            "assert cli.call(['params', '--layer', '3x']) == 2\nassert 'torch' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_numbers_are_short():
    assert [size(n) for n in (0, 999, 999_600, 1_500, 4_000_000, 86_567_656)] == [
        "0 B", "999 B", "1 MB", "1.5 KB", "4 MB", "86.6 MB"]
    full = Count("full", trainable=[100])
    ratios = {1: "100x fewer", 3: "33x fewer", 40: "2.5x fewer", 100: "1x", 250: "2.5x more", 0: NONE}
    assert {n: ratio(Count("m", trainable=[n]), full) for n in ratios} == ratios


@pytest.mark.extra("timm")
@pytest.mark.slow
def test_a_pretrained_model_with_a_size_is_counted_as_a_run_records_it(capsys, tmp_path):
    import timm
    from safetensors.torch import save_file

    weights = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), weights)
    record, = clbench.run(methods="lora", benchmark="helpers.tiny_benchmarks:pictures", model="timm:test_vit:size=32",
                          weights=str(weights), seeds=1, epochs=1, workers=0, device="cpu", out=tmp_path / "run")
    _, out, _ = call(capsys, "--model", "timm:test_vit:size=32", "--pretrained", "--methods", "lora", "--tasks", 2,
                     "--classes", 4, "--input-shape", "3x16x16", "--samples", 24, "--format", "json")
    found = json.loads(out)
    lora = found["methods"][1]
    assert found["inputs"] == [3, 32, 32]
    assert lora["trainable"] == record.costs.trainable and lora["trainable"][0] < 20_000  # no task trains the base
    assert [kept["bytes"] for kept in lora["kept"]] == record.costs.bytes
    assert lora["flops"] == record.costs.inference_flops[-1]


@pytest.mark.slow
@pytest.mark.extra("timm")
def test_a_pretrained_transformer_is_counted_with_the_papers_layers_without_a_size_too(capsys):
    def trainable(*more):
        out = call(capsys, "--model", "timm:test_vit", "--methods", "lora", "--input-shape", "3x160x160", "--format",
                   "json", *more)[1]
        return json.loads(out)["methods"][1]["trainable"][-1]

    with_all = trainable("--set", "lora.layers=all", "--pretrained")
    assert trainable("--pretrained") < with_all == trainable("--set", "lora.base=random")
