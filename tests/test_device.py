import pytest
import torch

from clbench.device import pick_device
from clbench.errors import SpecError


def test_devices():
    assert pick_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises(SpecError, match="no device 'cuda:3' here"):
            pick_device("cuda:3")
