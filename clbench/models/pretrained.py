"""Weights from a file into a model."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from clbench.errors import DataError
from clbench.models.network import Network


def load_weights(model: Network, path: Path) -> list[str]:
    """Copy a safetensors file of `model.state_dict()` names into the model; a head of another size is left as it was.

    Returns notes on what was left out.

    Raises:
        DataError: the file cannot be read, or a tensor other than the head's is missing, unknown or of another shape.
    """
    try:
        given = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"weights {path}: {error}") from None
    own = model.state_dict()
    wrong = sorted(set(given) ^ set(own)) + [n for n in own if n in given and own[n].shape != given[n].shape]
    body = [name for name in wrong if not name.startswith("head.")]
    if body:
        raise DataError(f"weights {path} do not fit the model: {', '.join(body[:3])}"
                        + (f" and {len(body) - 3} more" if len(body) > 3 else "")
                        + " missing, unknown or of another shape")
    model.load_state_dict({**own, **{n: t for n, t in given.items() if n not in wrong}})
    return ["weights: the head's size differs, it starts untrained"] if wrong else []
