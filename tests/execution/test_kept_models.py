"""What `--keep models` keeps answers, in another process, as the trial did."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, TESTS
from helpers.doc_blocks import blocks
from helpers.methods import METHODS
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import clbench
from clbench.core.errors import DataError, SpecError, StoreError
from clbench.core.hookspecs import StrategyInfo
from clbench.core.registry import discover
from clbench.data.stream import load_stream
from clbench.execution.exporting import export
from clbench.execution.raw_samples import raw_samples
from clbench.persistence.snapshot import training_state
from clbench.results.store import MODEL, Store
from clbench.strategy.base import Strategy
from clbench.testing.tiny import bench

PICTURES = "helpers.tiny_benchmarks:pictures"
VIT = ("l2p", "dualprompt", "coda-prompt", "s-iprompts", "ease", "mos")  # need tokens
PLAIN = {"naive", "joint", "ewc", "er", "gdumb", "mir", "gpm", "slca", "wa", "gem", "rwalk", "fetril",
         "generative-replay"}  # one network
# Given the task, most methods are the network of scenario class; these have parts or a prediction rule per task.
PER_TASK = ("naive", "lora", "pnn", "independent", "shared-private", "packnet", "acl", "icarl", "ncm", "hat", "l2p")
EVERY = {"class": METHODS, "task": [m for m in METHODS if m[0] in PER_TASK]}
AGAIN = """
import json, pathlib, sys
import clbench
from clbench.results.store import Store
rows = {}
for run in sys.argv[1:]:
    for record in Store(pathlib.Path(run)).read()[0]:
        if record.status != "done":
            continue
        model = clbench.load_model(run, record.key)
        rows[record.name] = [model.header.kind, model.evaluate(pathlib.Path(run))]
print(json.dumps(rows))
"""
TORCH_ALONE = """
import sys
import torch
images, labels, tasks = torch.load(sys.argv[2])
program = torch.export.load(sys.argv[1]).module()
given = [(images, tasks)] if sys.argv[3] == "task" else [(images,)]
print((program(*given[0]).argmax(1) == labels).double().mean().item(), program(*(g[:1] for g in given[0])).shape[0],
      "clbench" in sys.modules)
"""


def label(name, options):
    return ":".join([name, *(f"{o}={str(v).lower() if isinstance(v, bool) else v}" for o, v in options.items())])


def train(folder, methods, scenario="class", **more):
    return clbench.run(**{"methods": methods, "benchmark": PICTURES, "model": "mlp:width=16", "scenario": scenario,
                          "seeds": 1, "epochs": 2, "batch_size": 12, "workers": 0, "keep": "models", "out": folder,
                          **more})


def python(code, *arguments):
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True,
                          cwd=TESTS, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def trained(folder, scenario, methods):
    """Train methods in a scenario; return what the records say, and what another process makes of the models."""
    names = [label(*m) for m in methods]
    tokens = [n for n in names if n.split(":")[0] in VIT]
    parts = [(folder / "mlp", [n for n in names if n not in tokens], "mlp:width=16"),
             (folder / "vit", tokens, "vit-tiny:width=12:depth=2:heads=3:patch=8")]
    parts = [part for part in parts if part[1]]
    records = [r for part, own, model in parts for r in train(part, ",".join(own), scenario, model=model)]
    return {r.name: r for r in records}, json.loads(python(AGAIN, *(part for part, _, _ in parts)))


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    return {scenario: trained(tmp_path_factory.mktemp(scenario), scenario, methods)
            for scenario, methods in EVERY.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("scenario", "name", "options"), [
    pytest.param(scenario, *method, id=f"{scenario}-{label(*method)}") for scenario, methods in EVERY.items()
    for method in methods])
def test_a_fresh_process_gives_the_last_row_of_every_method_exactly(every, scenario, name, options):
    records, rows = every[scenario]
    record = next(r for r in records.values() if r.trial.method.name == name
                  and all(r.trial.method.options[o] == v for o, v in options.items()))
    assert record.status == "done" and not any("no model" in note for note in record.notes)
    assert rows[record.name] == ["network" if name in PLAIN else "strategy", record.R[-1]]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(folder, "er,lora,icarl", "class,task", epochs=3)
    return folder


def records_of(run):
    return {(r.label, r.trial.scenario): r for r in Store(run).read()[0]}


def samples_of(record, tmp_path):
    stream = load_stream(record.trial.benchmark, record.trial.scenario, 0, tmp_path, discover())
    return stream, [task.test for task in stream.tasks]


@pytest.mark.parametrize("scenario", ["class", "task"])
@pytest.mark.parametrize("method", ["er", "lora", "icarl"])
def test_predict_takes_raw_images_and_names_classes(run, method, scenario, tmp_path):
    record = records_of(run)[method, scenario]
    model = clbench.load_model(run, record.key)
    _, parts = samples_of(record, tmp_path)
    for task, part in enumerate(parts):
        found = model.predict(part.x.numpy(), task if scenario == "task" else None)
        right = np.mean([c == y for c, y in zip(found.classes, part.y.tolist(), strict=True)])
        assert right == pytest.approx(record.R[-1][task], abs=1e-9)  # the same batches or not: no sample on the edge
        assert found.names == [model.class_names[c] for c in found.classes]
        assert found.logits.shape == (len(part), 4)
        offered = [2 * task, 2 * task + 1] if scenario == "task" else [0, 1, 2, 3]
        others = [c for c in range(4) if c not in offered]
        assert torch.isinf(found.logits[:, others]).all()
        assert torch.allclose(model.predict(part.x.float() / 255, task).logits, found.logits, atol=1e-5)


def test_a_read_only_array_gives_the_same_answer_without_a_warning(run, recwarn):
    model = clbench.load_model(run, records_of(run)["er", "class"].key)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    photo = np.asarray(Image.fromarray(pixels)).transpose(2, 0, 1)[None]
    assert not photo.flags.writeable
    assert torch.equal(model.predict(photo).logits, model.predict(photo.copy()).logits)
    assert not recwarn.list


def test_the_docs_way_to_predict_a_photo_reads_it_as_the_benchmark_does(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for color in range(4):
        for number in range(10):
            path = Path("photos", f"color {color}", f"{number}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            width, height = generator.integers(30, 60, 2)
            pixels = generator.integers(0, 80, (height, width, 3)) + 150 * np.eye(4, 3)[color]
            photo = Image.fromarray(pixels.astype(np.uint8))
            exif = photo.getexif()
            exif[0x0112] = 6  # taken with the camera turned
            photo.save(path, exif=exif)
    record, = clbench.run(methods="lora", benchmark="images:photos:tasks=2:size=16", model="mlp:width=16", seeds=1,
                          epochs=20, batch_size=4, workers=0, keep="models", out="runs/photos")
    block, = (b.text for b in blocks((ROOT / "docs/save-models.md").read_text()) if "new.jpg" in b.text)
    stream = load_stream(record.trial.benchmark, "task", 0, tmp_path, discover())
    assert record.R[-1][0] == 1
    for color in record.stream.class_names[0]:
        shutil.copy(f"photos/{color}/0.png", "new.jpg")
        exec(block, {})
        assert capsys.readouterr().out == f"['{color}']\n"
    model, part = clbench.load_model("runs/photos"), stream.tasks[0].test
    photos = [path for path in Path("photos").rglob("*.png") if path.parent.name in record.stream.class_names[0]]
    found, expected = (model.predict(inputs, task=0).logits for inputs in (photos, part.x))
    for logits in expected:  # the split has another order, and a batch of another size rounds differently
        assert any(torch.allclose(logits, other, rtol=0, atol=1e-5) for other in found)
    assert model.predict(str(photos[0]), task=0).names == [photos[0].parent.name]
    Path("broken.jpg").write_text("no photo")
    with pytest.raises(DataError, match=r"1 of 2 photos cannot be read.*broken.jpg \(UnidentifiedImageError"):
        model.predict([photos[0], "broken.jpg"], task=0)


@pytest.mark.parametrize("size, options", [((50, 40), {"resize": 24, "crop": 16, "interpolation": "bilinear"}),
                                           ((400, 300), {"size": 16}), ((20, 12), {})])
def test_paths_of_photos_are_read_as_the_benchmark_reads_them(tmp_path, size, options):
    generator = np.random.default_rng(1)
    for name in ("a", "b"):
        for number in range(4):
            path = tmp_path / "photos" / name / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = generator.integers(0, 255, (6, 8, 3)).astype(np.uint8)
            Image.fromarray(coarse).resize(size).save(path)
    settings = "".join(f":{name}={value}" for name, value in options.items())
    record, = clbench.run(methods="naive", benchmark=f"images:{tmp_path}/photos:tasks=1{settings}", seeds=1, epochs=1,
                          model="mlp:width=4", batch_size=4, workers=0, keep="models", out=tmp_path / "run")
    model = clbench.load_model(tmp_path / "run")
    stream = load_stream(record.trial.benchmark, "task", 0, tmp_path, discover())
    paths = sorted((tmp_path / "photos").rglob("*.jpg"))
    read = raw_samples(paths, record, model.sample_shape, torch.uint8, discover())
    stored = torch.cat([part.x for part in (stream.tasks[0].train, stream.tasks[0].test)])
    assert {pixels.numpy().tobytes() for pixels in read} == {pixels.numpy().tobytes() for pixels in stored}
    if not options:
        Image.new("RGB", (12, 20)).save(tmp_path / "other.png")
        with pytest.raises(DataError, match="it does not have 20 x 12 pixels, as the others have"):
            model.predict(tmp_path / "other.png", task=0)


def test_what_a_model_cannot_answer_is_said(run, tmp_path):
    by, images = records_of(run), torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    model = clbench.load_model(run, by["er", "task"].key)
    with pytest.raises(SpecError, match="scenario task, which gives the task: say task=0 to task=1"):
        model.predict(images)
    with pytest.raises(SpecError, match="has learned tasks 0 to 1, not 2"):
        model.predict(images, task=2)
    with pytest.raises(DataError, match=r"takes samples \[N, 3, 16, 16\], not \[3, 16, 16\]"):
        model.predict(images[0], task=0)
    with pytest.raises(DataError, match=r"as uint8, or as numbers in \[0, 1\]; these go from 0 to 255"):
        model.predict(images.float() + torch.arange(2).view(2, 1, 1, 1) * 255, task=0)
    with pytest.raises(DataError, match="of finite numbers, and these contain NaN or infinity"):
        model.predict(images + torch.nan, task=0)
    for wrong in (Image.new("RGB", (16, 16)), [images[0], images[1]], np.array(["a"])):
        with pytest.raises(DataError, match=rf"takes samples \[N, 3, 16, 16\] as a tensor or an array of numbers, and "
                                            rf"this {type(wrong).__name__} is not one: give photos as a list of paths"):
            model.predict(wrong, task=0)
    with pytest.raises(SpecError, match="has no plain network that answers"):
        clbench.load_model(run, by["icarl", "class"].key, task=0)
    with pytest.raises(SpecError, match="has learned tasks 1 to 2, not 3"):  # the command counts from 1
        export(run, by["er", "task"].key, tmp_path, task=2)
    with pytest.raises(SpecError, match="for one task: name it, --task 1 to 2"):
        export(run, by["lora", "task"].key, tmp_path, "torch-export")
    with pytest.raises(SpecError, match="the task is not given: leave --task out"):
        export(run, by["er", "class"].key, tmp_path, "torch-export", task=1)
    path = Store(run).artifacts / by["er", "class"].key / MODEL
    content = path.read_bytes()
    path.write_bytes(content[:100])
    with pytest.raises(StoreError, match="cannot be read"):
        clbench.load_model(run, by["er", "class"].key)
    path.unlink()
    with pytest.raises(StoreError, match="run the experiment again with --keep models"):
        export(run, by["er", "class"].key, tmp_path)
    path.write_bytes(content)


def test_a_file_of_another_format_is_refused_with_what_to_do(run):
    record = records_of(run)["er", "class"]
    path = Store(run).artifacts / record.key / MODEL
    content = path.read_bytes()
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["clbench"])
    save_file(load_file(path), path, {"clbench": json.dumps(header | {"schema_version": 1})})
    with pytest.raises(StoreError, match="another version of clbench wrote it in another format; remove it and run the "
                                         "experiment again with --keep models"):
        clbench.load_model(run, record.key)
    path.write_bytes(content)


def test_samples_that_are_there_to_learn_on_are_not_in_the_file(run):
    record = records_of(run)["icarl", "class"]
    assert not {"memory_x", "memory_y"} & load_file(Store(run).artifacts / record.key / MODEL).keys()
    assert "means" in load_file(Store(run).artifacts / record.key / MODEL)


class Neighbors(Strategy):
    """Predicts with the samples that it stores, unlike `Replays`."""

    roles = (("memory", "replay"),)

    def __init__(self, model, stream_info, options=None):
        super().__init__(model, stream_info, options)
        self.register_buffer("memory", torch.ones(3))

    def forward(self, x, task=None):
        return self.model(x) * self.memory.sum()


class Replays(Neighbors):
    def forward(self, x, task=None):
        return self.model(x)


@pytest.mark.parametrize(("cls", "left_out"), [(Neighbors, set()), (Replays, {"memory"})])
def test_state_that_predictions_read_is_saved_whatever_its_role(cls, left_out):
    trained = bench(StrategyInfo("mine", cls, ""), {}, "class")
    assert training_state(trained.strategy, trained.stream) == left_out
    assert torch.equal(trained.strategy.memory, torch.ones(3))


def test_a_method_that_cannot_be_saved_has_a_note(tmp_path):
    record, = train(tmp_path, "avalanche:Naive")
    assert record.status == "done"
    assert any(note.startswith("--keep could not save the method: Avalanche keeps") for note in record.notes)


def test_a_run_that_asks_for_models_trains_once_more_what_has_none(tmp_path):
    first, = train(tmp_path, "naive", keep="nothing")
    assert not Store(tmp_path).artifacts.exists()
    again, = train(tmp_path, "naive")
    assert again.R == first.R and (Store(tmp_path).artifacts / first.key / MODEL).is_file()
    third, = train(tmp_path, "naive")
    assert third.provenance.started == again.provenance.started  # nothing was run
    assert train(tmp_path, "naive", keep="nothing")[0] == third


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["class", "task"])
def test_a_program_needs_torch_alone(run, scenario, tmp_path):
    record = records_of(run)["er", scenario]
    program, about = export(run, record.key, tmp_path, "torch-export")
    stream, parts = samples_of(record, tmp_path)
    torch.save((torch.cat([p.x for p in parts]), torch.cat([p.y for p in parts]), torch.cat([p.tasks for p in parts])),
               tmp_path / "samples.pt")
    accuracy, single, imported = python(TORCH_ALONE, program, tmp_path / "samples.pt", scenario).split()
    sizes = [len(p) for p in parts]
    assert float(accuracy) == pytest.approx(np.average(record.R[-1], weights=sizes)) and imported == "False"
    assert single == "1"
    said = json.loads(about.read_text())
    assert said["accuracy"] == record.R[-1] and said["samples"]["dtype"] == "uint8" and said["plain_network"]
    assert said["samples"]["shape"] == [3, 16, 16] and len(said["classes"]) == stream.classes


@pytest.mark.extra("onnx")
def test_an_onnx_program_answers_as_the_model(run, tmp_path):
    from onnx.reference import ReferenceEvaluator

    record = records_of(run)["er", "class"]
    program, _ = export(run, record.key, tmp_path, "onnx")
    images = samples_of(record, tmp_path)[1][0].x
    found, = ReferenceEvaluator(str(program)).run(None, {"images": images.numpy()})
    assert np.allclose(found, clbench.load_model(run, record.key).predict(images).logits, atol=1e-5)


@pytest.mark.extra("onnx")
def test_an_onnx_program_that_answers_differently_is_refused(run, tmp_path, monkeypatch):
    export_as_is = torch.onnx.export

    def export_another(program, **settings):
        for parameter in program.state_dict.values():
            parameter.data.mul_(1.01)
        return export_as_is(program, **settings)

    monkeypatch.setattr(torch.onnx, "export", export_another)
    with pytest.raises(SpecError, match="its logits differ from the model's"):
        export(run, records_of(run)["er", "class"].key, tmp_path, "onnx")
    assert not list(tmp_path.glob("*.onnx"))


def test_a_failed_export_leaves_an_earlier_program(run, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no graph")

    key = records_of(run)["er", "class"].key
    files = {"model.json": json.dumps({"record": key}).encode(), "model.pt2": b"earlier"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(torch.export, "export", fail)
    with pytest.raises(SpecError, match="cannot be written as one program"):
        export(run, key, tmp_path, "torch-export")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


@pytest.mark.parametrize("form", ["safetensors", "torch-export"])
@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json", "config.json", "model.pt2",
                                  "model.json"])
def test_another_model_is_not_replaced(run, tmp_path, name, form):
    (tmp_path / name).write_bytes(b"[1]")
    with pytest.raises(StoreError, match=rf"has a {name} that is not from an export of er/0; choose another"):
        export(run, records_of(run)["er", "class"].key, tmp_path, form)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {name: b"[1]"}


def test_an_export_is_replaced_by_the_same_trial_only(run, tmp_path):
    by = records_of(run)
    first, _ = export(run, by["er", "class"].key, tmp_path)
    content = first.read_bytes()
    with pytest.raises(StoreError, match="choose another folder"):
        export(run, by["icarl", "class"].key, tmp_path)
    assert first.read_bytes() == content
    first.write_bytes(b"torn")
    export(run, by["er", "class"].key, tmp_path)
    assert first.read_bytes() == content


def test_weights_are_those_of_the_plain_network(run, tmp_path):
    by = records_of(run)
    exported, _ = export(run, by["er", "class"].key, tmp_path / "er")
    network = clbench.load_model(run, by["er", "class"].key, task=0)
    tensors = load_file(exported)
    assert tensors.keys() == network.state_dict().keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in network.state_dict().items())
    merged, about = export(run, by["lora", "task"].key, tmp_path / "lora", task=1)
    one = clbench.load_model(run, by["lora", "task"].key, task=1)
    assert all(torch.equal(t, one.state_dict()[n]) for n, t in load_file(merged).items())
    description = json.loads(about.read_text())
    assert (description["task"], description["plain_network"]) == (1, True)
    assert description["samples"]["shape"] == [3, 16, 16]  # and the preprocessing
    whole, _ = export(run, by["icarl", "class"].key, tmp_path / "icarl")
    assert Path(whole).read_bytes() == (Store(run).artifacts / by["icarl", "class"].key / MODEL).read_bytes()


@pytest.mark.slow
@pytest.mark.extra("timm")
def test_weights_have_the_names_of_the_library_that_the_model_is_from(tmp_path):
    import timm

    record, = train(tmp_path, "er", model="timm:test_vit:size=32", epochs=1)
    exported, _ = export(tmp_path, record.key, tmp_path / "home")
    theirs = timm.create_model("test_vit", num_classes=4, img_size=32).eval()
    theirs.load_state_dict(load_file(exported))
    model = clbench.load_model(tmp_path, record.key)
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.allclose(theirs(model.prepare(images)), model.predict(images).logits, atol=1e-5)
    if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 6):  # older ones do not trace this attention
        program, _ = export(tmp_path, record.key, tmp_path / "home", "torch-export")
        assert program.stat().st_size > 0


def test_trained_in_a_stack_or_on_other_streams_it_is_right_to_a_sample(tmp_path):
    for name, more in (("stack", {"methods": "ewc", "seeds": 2, "stack": 2}),
                       ("blur", {"methods": "er", "blur": 0.2}),
                       ("hidden", {"methods": "er", "boundaries": "hidden"}),
                       ("domain", {"methods": "icarl", "scenario": "domain",
                                   "benchmark": "helpers.tiny_benchmarks:shifting"})):
        for record in train(tmp_path / name, **{"epochs": 1, **more}):
            row = clbench.load_model(tmp_path / name, record.key).evaluate(tmp_path)
            sizes = record.stream.test_samples
            assert all(abs(a - b) * size < 1.5 for a, b, size in zip(row, record.R[-1], sizes, strict=True)), name


DROPPING = """
import math
import torch
from torch import nn
from clbench import Block, ModelInfo, Network, hookimpl

def build(options, input_shape, classes):
    rates = [rate.item() for rate in torch.linspace(0, 0.1, 2)]  # needs values, as code of stochastic depth does
    first = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), 9), nn.Dropout(rates[0]))
    return Network([Block(first, nn.Tanh())], nn.Linear(9, classes))

@hookimpl
def clbench_models():
    return [ModelInfo("dropping", build, "one layer")]
"""


def test_a_model_that_needs_values_is_kept(tmp_path):
    file = tmp_path / "clbench_dropping.py"
    file.write_text(DROPPING)
    record, = clbench.run(methods="naive", benchmark="split-mnist-5k:tasks=2", model="dropping", seeds=1, iterations=2,
                          workers=0, keep="models", plugins=file, out=tmp_path / "run", progress=False)
    assert record.status == "done" and record.notes == []
    assert clbench.load_model(tmp_path / "run", plugins=file).network is not None
