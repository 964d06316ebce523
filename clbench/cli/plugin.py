"""The option of commands that use plugins which are files."""

from pathlib import Path

import click

plugin_option = click.option("--plugin", "plugins", multiple=True, metavar="FILE", help="Use this Python file's plugin "
                             "without installing it; repeatable.", type=click.Path(path_type=Path))
