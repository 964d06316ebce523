"""Measure speed and memory for photos that stay in files (`read = files`): `python benchmarks/speed/photos.py --help`.

Speed is the number of photos per second that are loaded and prepared for a model. clbench and torchvision's ImageFolder
with torch's DataLoader process the same synthetic photos in the same way, in turns. Memory is the peak of a process
that loads a stream and reads all its training and test photos once, for several numbers of photos.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import processes
from compare import REPORTS
from processes import write
from tabulate import tabulate

CLASSES, BATCH, SIZE, RESIZED = 10, 64, 224, 256
MOST_IN_MEMORY = 10_000  # photos; memory that grows with their number needs no measurement of more
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def write_photos(folder: Path, count: int, distinct: int, height: int, width: int) -> None:
    """Write JPEG photos of smooth noise, one folder per class. Only `distinct` photos differ; others are hard links."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    made: list[Path] = []
    for number in range(count):
        path = folder / f"class{number % CLASSES}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number < distinct:
            coarse = Image.fromarray(generator.integers(0, 256, (height // 8, width // 8, 3), np.uint8))
            coarse.resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)
            made.append(path)
        else:
            os.link(made[number % distinct], path)


def stream_of(folder: Path, data: Path, **options: Any) -> Any:
    """Return the stream of a folder, with two tasks."""
    from clbench.core.registry import discover
    from clbench.data.own_options import ImagesOptions
    from clbench.data.stream import load_stream
    from clbench.experiment.trial import Resolved

    resolved = Resolved(name=f"images:{folder}", options=ImagesOptions(tasks=2, **options).model_dump())
    return load_stream(resolved, "class", 0, data, discover())


def passes_of_clbench(folder: Path, data: Path, crops: bool) -> Callable[[], Iterator[Any]]:
    """Return a function that yields the prepared batches of an epoch over all training photos, in random order."""
    import torch

    from clbench.data.photo_samples import PhotosAhead, Request
    from clbench.data.prepare import Prepare, RandomResizedCrop
    from clbench.data.samples import Samples

    stream = stream_of(folder, data, read="files", resize=RESIZED, crop=SIZE, interpolation="bilinear")
    train = Samples.concat(*(task.train for task in stream.tasks))
    prepare, crop = Prepare(MEAN, STD), RandomResizedCrop(SIZE)
    generator = torch.Generator().manual_seed(0)

    def batches() -> Iterator[Any]:
        rows = torch.split(torch.randperm(len(train), generator=generator), BATCH)
        requests = [Request(part, crop, crop.draw(len(part), generator), whole=False) if crops else Request(part)
                    for part in rows]
        ahead = PhotosAhead(train, iter(requests))
        for request in requests:
            yield prepare(ahead.take_crops(request)[1] if crops else ahead.take(request.rows).x)

    return batches


def passes_of_torchvision(folder: Path, crops: bool, workers: int) -> Callable[[], Iterator[Any]]:
    """Return a function that yields the batches of an epoch over all photos in random order, by persistent workers."""
    from torch.utils.data import DataLoader
    from torchvision import transforms as T
    from torchvision.datasets import ImageFolder

    begin = [T.RandomResizedCrop(SIZE), T.RandomHorizontalFlip()] if crops else [T.Resize(RESIZED), T.CenterCrop(SIZE)]
    data = ImageFolder(str(folder), T.Compose([*begin, T.ToTensor(), T.Normalize(MEAN, STD)]))
    loader = DataLoader(data, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    return lambda: (x for x, _ in loader)


def processor_seconds() -> float:
    """Return the processor seconds of this process and its ended children, on Linux also of children still alive."""
    total = sum(os.times()[:4])
    for child in multiprocessing.active_children():
        if sys.platform == "linux":
            fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def rate(batches: Callable[[], Iterator[Any]]) -> tuple[float, float]:
    """Return photos per second, and processor milliseconds per photo, of an epoch."""
    began, computed, count = time.perf_counter(), processor_seconds(), 0
    for x in batches():
        assert x.shape[1:] == (3, SIZE, SIZE)
        count += len(x)
    return count / (time.perf_counter() - began), 1000 * (processor_seconds() - computed) / count


def measure_speed(found: argparse.Namespace) -> dict[str, Any]:
    """Return the photos per second of each way, measured in turns, and the median ratio of two neighboring passes."""
    import torch

    torch.set_num_threads(found.cores)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "photos")
        write_photos(folder, found.photos, found.photos, 375, 500)
        for kind, crops in (("center crop", False), ("random resized crop", True)):
            ways = {"clbench": passes_of_clbench(folder, Path(place, "data"), crops),
                    "torchvision": passes_of_torchvision(folder, crops, found.cores)}
            for way in ways.values():
                rate(way)  # warm-up: starts processes and threads
            passes: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
            for _ in range(found.repeats):
                for name, way in ways.items():
                    passes[name].append(rate(way))
            rates = {name: [value for value, _ in values] for name, values in passes.items()}
            work = {name: statistics.median(value for _, value in values) for name, values in passes.items()}
            pairs = zip(rates["clbench"], rates["torchvision"], strict=True)
            results[kind] = {
                **{name: [round(value) for value in values] for name, values in rates.items()},
                "ratio": round(statistics.median(ours / theirs for ours, theirs in pairs), 2),
                "processor ms per photo": {name: round(value, 2) for name, value in work.items()}}
    return results


def measure_memory(count: int, read: str) -> dict[str, Any]:
    """Return the peak memory of two processes that use `count` photos: the first, which lists them, and a later one."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "photos")
        write_photos(folder, count, min(count, 300), 80, 96)
        peaks = [json.loads(subprocess.run([sys.executable, __file__, "--use", str(folder), place, read], check=True,
                                           stdout=subprocess.PIPE, text=True).stdout) for _ in range(2)]
    result = {"photos": count, "read": read, **{f"{when} MB": round(peak["bytes"] / 1e6)
                                                for when, peak in zip(("first", "later"), peaks, strict=True)}}
    print(json.dumps(result), file=sys.stderr, flush=True)
    return result


def use(folder: str, place: str, read: str) -> None:
    """Load a stream, read its photos once and print the peak memory of this process (Linux)."""
    import torch

    from clbench.training.costs import PeakMemory  # a child's `ru_maxrss` begins with the peak of its parent

    memory = PeakMemory(torch.device("cpu"))
    stream, used = stream_of(Path(folder), Path(place, "data"), read=read, size=64), 0
    for task in stream.tasks:
        used += sum(len(stream.prepare(part.x)) for part in task.train.chunks(BATCH))
    used += sum(len(x) for x, _, _ in stream.tests.batches(BATCH))
    print(json.dumps({"bytes": memory.host(), "used": used}))


def render(speed: dict[str, Any], memory: Sequence[dict[str, Any]], machine: dict[str, str]) -> str:
    """Return the measurements as Markdown."""
    def pipe(rows: list[list[object]], headers: list[str]) -> str:
        return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True,
                        colalign=("left", *["right"] * (len(headers) - 1)))

    text = ["# Photos that stay in their files\n"]
    if speed:
        rows: list[list[object]] = [[kind, *(round(statistics.median(one[way])) for way in ("clbench", "torchvision")),
                                     f"{one['ratio']:.2f}"] for kind, one in speed.items()]
        text += ["Photos per second that are decoded and prepared (medians), and the median ratio of "
                 "two neighboring passes. torchvision is its `ImageFolder` with torch's `DataLoader`, with the same "
                 "transforms and as many processes as cores.\n",
                 pipe(rows, ["transforms", "clbench", "torchvision", "ratio"]), ""]
    if memory:
        text += ["Peak memory in MB of a process that loads a stream and reads all its photos once. `read=files` "
                 "decodes them batch by batch; `read=memory` holds them all, at 64 x 64 pixels. The *first* process "
                 "lists and hashes the files, a *later* one reads the list.\n",
                 pipe([[f"{one['photos']:,}", one["read"], one["first MB"], one["later MB"]] for one in memory],
                      ["photos", "read", "first", "later"]), ""]
    return "\n".join([*text, tabulate(list(machine.items()), ["machine and run", ""], tablefmt="pipe",
                                      disable_numparse=True), ""])


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write photos.md and photos.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=1000,
                        help="of 500 x 375 pixels, for speed; 0: do not measure speed (1000)")
    parser.add_argument("--repeats", type=int, default=20, help="passes of each way (20)")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1, help="processes of the DataLoader (all)")
    parser.add_argument("--counts", default="1000,10000,50000",
                        help="of photos, for memory; empty: do not measure memory (1000,10000,50000)")
    parser.add_argument("--out", type=Path, default=REPORTS, help="folder of photos.md and photos.json")
    parser.add_argument("--use", nargs=3, help=argparse.SUPPRESS)
    found = parser.parse_args(argv)
    if found.use:
        use(*found.use)
        return 0
    before, began = processes.busy_elsewhere(), time.perf_counter()
    speed = measure_speed(found) if found.photos else {}
    memory = [measure_memory(count, read) for count in map(int, filter(None, found.counts.split(",")))
              for read in ("files", "memory") if read == "files" or count <= MOST_IN_MEMORY]
    after = processes.busy_elsewhere()
    busy = "unknown" if before is None or after is None else f"{(after - before) / (time.perf_counter() - began):.2f}"
    machine = {**processes.machine(found.cores), "command": shlex.join(["python", *sys.argv]),
               "date": time.strftime("%Y-%m-%d"), "cores that other processes kept busy": busy}
    write(found.out, "photos", render(speed, memory, machine), {"machine": machine, "speed": speed, "memory": memory})
    return 0


if __name__ == "__main__":
    sys.exit(main())
