"""A folder that the user cannot read, also if the user is root."""

import errno
import os
from pathlib import Path


def make_unreadable(monkeypatch, folder):
    """Let methods of paths fail for a folder as they do if the user has no rights to it, in Python 3.10 to 3.13."""
    def refusing(name):
        method = getattr(Path, name)

        def called(path, *args, **kwargs):
            if folder in path.parents or (path == folder and name == "iterdir"):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return method(path, *args, **kwargs)

        return called

    for name in ("exists", "is_file", "is_dir", "iterdir"):
        monkeypatch.setattr(Path, name, refusing(name))
