"""The table of `docs/benchmarks.md` with each paper's options: all of them are planned and read, on small trees."""

import hashlib
import re
from pathlib import Path

import pytest
from helpers import named_trees
from helpers.named_trees import WNIDS

from clbench import cli
from clbench.core.registry import discover
from clbench.data.named import by_class
from clbench.data.prepare import RandomResizedCrop
from clbench.data.stream import load_stream
from clbench.experiment.plan import plan
from clbench.experiment.spec import build

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLASSES = {"split-omnibenchmark": 300, "domainnet": 345, "core50": 50}
FIRST = {  # the first classes of orders, as the repositories have them
    (200, "numpy:1993"): (168, 136, 51, 9, 183, 101, 171, 99, 42, 159),
    (300, "numpy:1993"): (169, 221, 146, 296, 92, 229, 49, 70, 126, 77),
    (200, "python:1"): (33, 146, 79, 19, 23, 131, 12, 187)}


def rows(title):
    """Return the cells of each row of the table whose first heading is `title`."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith(f"| {title} |"))
    end = next(i for i in range(begin, len(lines)) if not lines[i].startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[begin + 2:end]]


def combinations():
    """Return the letter of the preprocessing and the benchmark with all options, for each benchmark in the table."""
    options = {letter: re.fullmatch("`(.*)`", added)[1] for letter, _, added in rows("preprocessing")}
    found = []
    for _, benchmarks, preprocessing, _ in rows("paper or repository"):
        letter = match[1] if (match := re.match(r"([A-E])(,|$)", preprocessing)) else ""
        names = [name for name in re.findall("`([^`]+)`", benchmarks) if re.match(r"split-|domainnet|core50", name)]
        assert names, benchmarks
        found += [(letter, ":".join(filter(None, [name, options.get(letter)]))) for name in names]
    return list(dict.fromkeys(found))


def first_of_each_data_set():
    """Return the first combination of each data set; the others take long together."""
    by_name = {written.partition(":")[0]: (letter, written) for letter, written in reversed(combinations())}
    return list(by_name.values())


def combinations_by_speed():
    """Return all combinations; only the first of each data set is not slow."""
    fast = first_of_each_data_set()
    return [pytest.param(*one, marks=() if one in fast else pytest.mark.slow) for one in combinations()]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return a data folder with every data set of the table, in all of its splits."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("imagenet-r", "imagenet-a"):
        named_trees.pilot(named_trees.raw_imagenet(folder / name), WNIDS)
    named_trees.coda_lists(named_trees.l2p_lists(folder / "imagenet-r"))
    named_trees.pilot(named_trees.cub(folder / "CUB_200_2011"), [f"{n:03}.Bird" for n in range(1, 201)])
    named_trees.pilot(folder / "omnibenchmark", [str(number) for number in range(300)])
    named_trees.domainnet(folder / "domainnet")
    named_trees.core50(folder / "core50")
    return folder


@pytest.fixture(autouse=True)
def small_data_sets(monkeypatch, data):
    named_trees.without_counts(monkeypatch)
    monkeypatch.setattr(by_class, "CODA_LISTS", [
        (name, hashlib.sha256((data / "imagenet-r" / name).read_bytes()).hexdigest())
        for name, _ in by_class.CODA_LISTS])


def test_the_table_has_all_data_sets_and_preprocessings():
    found = combinations()
    assert {letter for letter, _ in found} == {"", *"ABCDE"}
    assert {name.partition(":")[0] for _, name in found} == {
        "split-imagenet-r", "split-imagenet-a", "split-cub200", "split-omnibenchmark", "domainnet", "core50"}


@pytest.mark.parametrize(("letter", "written"), combinations_by_speed())
def test_options_of_a_paper_are_planned_and_read(data, letter, written):
    spec = build({"methods": "naive", "seeds": 1, "benchmark": written, "model": "mlp:width=10"})
    trial = plan(spec, discover())[0].trial
    options = trial.benchmark.options
    stream = load_stream(trial.benchmark, trial.scenario, 0, data, discover())
    name = written.partition(":")[0]
    classes = CLASSES.get(name, 200)
    by_class_alone = options.get("tasks") is not None
    assert len(stream.tasks) == (options["tasks"] if by_class_alone else {"domainnet": 6, "core50": 8}[name])
    assert sum(len(task.classes) for task in stream.tasks) == classes * (1 if by_class_alone else len(stream.tasks))
    assert stream.input_shape == (3, 224, 224)
    mean = (stream.prepare.mean, stream.prepare.std)
    assert mean == (IMAGENET if letter in ("C", "E") else ((), ()))
    if letter:
        crops = {"A": (0.05, "bilinear")}.get(letter, (0.08, None))
        assert stream.augment == RandomResizedCrop(None, *crops)
        format_of_tests = stream.tasks[0].test.photos.format
        assert format_of_tests.resize == 256
        assert format_of_tests.interpolation == ("bilinear" if letter in ("B", "C") else "bicubic")
    if first := FIRST.get((classes, options.get("class_order"))):
        natural = {"split-imagenet-r": WNIDS[::-1] if options.get("split") == "coda" else WNIDS,
                   "split-imagenet-a": WNIDS, "split-omnibenchmark": sorted(map(str, range(300)))}.get(name)
        if natural is None:
            end = "Bird" if options["split"] == "pilot" else "Bird_{}"
            natural = [f"{n:03}.{end.format(n)}" for n in range(1, 201)]
        order = [title for task in stream.tasks for title in task.class_names]
        assert order[:len(first)] == [natural[label] for label in first]


@pytest.mark.slow
@pytest.mark.parametrize(("letter", "written"), first_of_each_data_set())
def test_options_of_a_paper_pass_a_dry_run(data, tmp_path, capsys, letter, written):
    assert cli.call(["run", "--benchmark", written, "--model", "mlp:width=10", "--methods", "naive", "--seeds", "1",
                     "--dry-run", "--data", str(data), "--out", str(tmp_path / "out")]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if " naive " in line)
    assert "\u2013" not in row, row  # trainable parameters and FLOPs were counted
