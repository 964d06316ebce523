import torch

from clbench.training import hashes
from clbench.training.hashes import hashed


def test_hashes_are_of_all_bytes_and_leave_shared_memory_shared(monkeypatch):
    monkeypatch.setattr(hashes, "PIECE", 8)
    tensor = torch.arange(7, dtype=torch.float32)
    shared = torch._lazy_clone(tensor)
    tensors = {"a": tensor, "b": shared, "c": tensor.view(7, 1), "d": tensor.to(torch.bfloat16),
               "e": torch.cat([tensor[:-1], tensor[-1:] + 1]), "f": torch.tensor(True), "g": tensor.flip(0).flip(0)}
    found = hashed(tensors)
    assert found["a"] == found["b"] == found["g"]
    assert len(set(found.values())) == 5
    assert torch._C._is_cow_tensor(shared)
