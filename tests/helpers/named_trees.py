"""Published data sets in their real folder layout, with all classes and a few tiny photos of each class."""

import io

from PIL import Image

from clbench.data.named.by_class import CUBOptions, ImageNetAOptions, ImageNetROptions
from clbench.data.named.by_domain import DomainNetOptions

DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
WNIDS = [f"n{1443537 + 7 * number:08}" for number in range(200)]


def png(number):
    """Return the bytes of a photo of 8 x 8 pixels whose color encodes a number."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number % 251, number // 251, 7)).save(file, "PNG")
    return file.getvalue()


def write(folder, names, number):
    """Write photos of a class into its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        (folder / name).write_bytes(png(3 * number + index))


def raw_imagenet(root, each=5):
    """Write the folders of ImageNet-R or ImageNet-A, with a text file next to them as in the archive."""
    for number, wnid in enumerate(WNIDS):
        write(root / wnid, [f"art_{index}.jpg" for index in range(each)], number)
    (root / "README.txt").write_text("about it")
    return root


def coda_lists(root):
    """Write lists in CODA-Prompt's format. Their labels are not in the order of folders; return the labels' order."""
    order = WNIDS[::-1]
    for part, names in (("train", (0, 2, 3)), ("test", (1,))):
        rows = [(f"data/imagenet-r/{wnid}/art_{index}.jpg", label) for index in names
                for label, wnid in enumerate(order)]
        text = "data:\n" + "".join(f"- {path}\n" for path, _ in rows)
        (root / f"imagenet-r_{part}.yaml").write_text(text + "targets:\n" + "".join(f"- {y}\n" for _, y in rows))
    return order


def l2p_lists(root):
    """Write lists in L2P's format, with two training photos and one test photo per class."""
    for name, numbers in (("train_list.txt", (0, 2)), ("val_list.txt", (1,))):
        (root / name).write_text("".join(f"{wnid}/art_{number}.jpg {label}\n" for number in numbers
                                         for label, wnid in enumerate(WNIDS)))
    return root


def pilot(root, names):
    """Write folders in PILOT's layout."""
    for number, name in enumerate(names):
        write(root / "train" / name, ["a.png", "b.png"], number)
        write(root / "test" / name, ["c.png"], number)
    return root


def cub(root):
    """Write CUB-200-2011 with its three lists. Each class has two training photos and one test photo."""
    lines = {"images": [], "image_class_labels": [], "train_test_split": []}
    row = 0
    for number in range(1, 201):
        folder = f"{number:03}.Bird_{number}"
        write(root / "images" / folder, [f"Bird_{i}.jpg" for i in range(3)], number)
        for index in range(3):
            row += 1
            lines["images"].append(f"{row} {folder}/Bird_{index}.jpg")
            lines["image_class_labels"].append(f"{row} {number}")
            lines["train_test_split"].append(f"{row} {int(index != 1)}")
    for name, content in lines.items():
        (root / f"{name}.txt").write_text("\n".join(content) + "\n")
    return root


def without_counts(monkeypatch):
    """Disable the check of the number of photos, because these data sets have few."""
    for options in (ImageNetROptions, ImageNetAOptions, CUBOptions, DomainNetOptions):
        monkeypatch.setattr(options, "SAMPLES", (0, 0))
    for options in (ImageNetAOptions, CUBOptions):
        monkeypatch.setattr(options, "PILOT_SAMPLES", (0, 0))


def domainnet(root):
    """Write DomainNet with its official lists: one training and one test photo per class and domain.

    Two are missing: the training photo of class 327 and the test photo of class 301 in domain painting.
    """
    for domain in DOMAINS:
        for part in ("train", "test"):
            rows = [(f"{domain}/class_{label:03}/{domain}_{part}.jpg", label) for label in range(345)
                    if (domain, part, label) not in (("painting", "train", 327), ("painting", "test", 301))]
            for path, label in rows:
                write((root / path).parent, [(root / path).name], label)
            (root / f"{domain}_{part}.txt").write_text("".join(f"{path} {label}\n" for path, label in rows))
    return root


def core50(root, run=0, sessions=(5, 1, 2, 4, 6, 8, 9, 11)):
    """Write CORe50 with the lists of one run: NI by session, NC by objects. The run's order of objects sets the labels.
    """
    path = "s{0}/o{1}/C_{0:02}_{1:02}_000.png"
    for session in range(1, 12):
        for number in range(1, 51):
            file = root / "core50_128x128" / path.format(session, number)
            write(file.parent, [file.name], number + 50 * session)
    order = list(range(50, 0, -1))  # order of objects in NC
    label = {number: place for place, number in enumerate(order)}
    test = [(s, number) for s in (3, 7, 10) for number in range(1, 51)]
    new = [order[:10], *(order[begin:begin + 5] for begin in range(10, 50, 5))]
    batches = {"NI": [[(s, number) for number in range(1, 51)] for s in sessions],
               "NC": [[(s, number) for s in sessions for number in numbers] for numbers in new]}
    for kind, parts in batches.items():
        folder = root / "batches_filelists" / f"{kind}_inc" / f"run{run}"
        folder.mkdir(parents=True, exist_ok=True)
        named = {**{f"train_batch_{n:02}": part for n, part in enumerate(parts)}, "test": test}
        for name, rows in named.items():
            (folder / f"{name}_filelist.txt").write_text(
                "".join(f"{path.format(s, number)} {label[number]}\n" for s, number in rows))
    return root


def clear10(root):
    """Write CLEAR-10: 10 buckets with 10 classes and a background."""
    names = ["BACKGROUND", "baseball", "bus", "camera", "cosplay", "dress", "hockey", "laptop", "racing", "soccer",
             "sweater"]
    for part, each in (("train", 2), ("test", 1)):
        for bucket in range(1, 11):
            for number, name in enumerate(names):
                write(root / part / "labeled_images" / str(bucket) / name, [f"{i}.jpg" for i in range(each)], number)
        (root / part / "class_names.txt").write_text("\n".join(names))
        (root / part / "labeled_metadata.json").write_text("{}")
    return root
