"""An accelerator simulated on the CPU: device tensors that cannot be mixed with host tensors, and a list of waits.

    with Simulated() as device:                      # torch.device("simulated", 0)
        model.to("simulated")(x.to("simulated"))     # mixing them with host tensors raises, as on CUDA
    waits                                            # where the host waited for the device (.item(), bool(), .tolist())

A wrapper subclass holds a CPU tensor and reports `simulated:0` as its device (torch's PrivateUse1 slot, set up from
Python; an experimental interface of torch 2.9). Every operation runs on the CPU tensors inside, so results equal the
CPU's bit for bit. Mistakes that fail on any accelerator fail here: a tensor left on the host, a factory without
`device=`, `.numpy()` of a device tensor. Waits in the hot loop are recorded. vmap, functional_call, autograd and
optimizers work.
Not simulated: pinned memory, streams, autocast (bf16), CUDA graphs, kernels.
"""
from __future__ import annotations

import traceback

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

HOST_TENSORS_ALLOWED = {"aten::copy_", "aten::_to_copy", "aten::index", "aten::index_put_", "aten::_index_put_impl_",
                        "aten::index_put"}  # CUDA also allows copies from the host and indices on the host
FIRST_DECIDES = HOST_TENSORS_ALLOWED - {"aten::_to_copy"}  # their result is on the device of the first argument
waits: list[str] = []


class Module:
    """The functions that torch expects in `torch.simulated`.

    The device is available only in `Simulated()`, so that other tests of the same process find no accelerator.
    """

    contexts = 0  # of `Simulated`, now open

    def is_initialized(self): return True
    def is_available(self): return Module.contexts > 0
    def current_device(self): return 0
    def device_count(self): return 1
    def synchronize(self, device=None): pass
    def _is_in_bad_fork(self): return False
    def manual_seed(self, seed): pass
    def manual_seed_all(self, seed): pass
    def get_rng_state(self, device=None): return torch.get_rng_state()  # random numbers come from the CPU's generator
    def set_rng_state(self, state, device=None): pass
    def get_amp_supported_dtype(self): return [torch.bfloat16, torch.float16]


_setup_privateuseone_for_python_backend("simulated", backend_module=Module())
DEVICE = torch.device("simulated", 0)


def note_wait() -> None:
    waits.append("".join(traceback.format_stack(limit=10)[:-2]))


class SimulatedTensor(torch.Tensor):
    """A wrapper of a CPU tensor, `raw`, that reports the simulated device as its device."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw):
        return torch.Tensor._make_wrapper_subclass(cls, raw.size(), strides=raw.stride(), dtype=raw.dtype,
                                                   storage_offset=raw.storage_offset(), layout=raw.layout,
                                                   device=DEVICE)

    def __init__(self, raw):
        self.raw = raw

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return on_device(func, args, kwargs or {})

    @property
    def data(self):
        return torch._C.TensorBase.data.__get__(self)

    @data.setter
    def data(self, new):
        torch._C.TensorBase.data.__set__(self, new)
        self.raw = new.raw

    def tolist(self):
        note_wait()
        return self.raw.tolist()

    def untyped_storage(self): return self.raw.untyped_storage()
    def data_ptr(self): return self.raw.data_ptr()
    def __repr__(self): return f"SimulatedTensor({self.raw!r})"

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            new = SimulatedTensor(self.raw.detach().clone())
            memo[id(self)] = (torch.nn.Parameter(new, self.requires_grad) if isinstance(self, torch.nn.Parameter)
                              else new.requires_grad_(self.requires_grad))
        return memo[id(self)]


def on_device(func, args, kwargs):
    """Run an operation on the CPU tensors inside.

    Raises:
        RuntimeError: an accelerator would not allow the operation.
    """
    name = func._schema.name
    flat, spec = tree_flatten((args, kwargs))
    here = [a for a in flat if isinstance(a, SimulatedTensor)]
    host = [a for a in flat if isinstance(a, torch.Tensor) and not isinstance(a, SimulatedTensor)]
    if here and name not in HOST_TENSORS_ALLOWED and any(h.dim() for h in host):
        raise RuntimeError(f"Expected all tensors to be on the same device: {name} got "
                           f"{[tuple(h.shape) for h in host]} of the host beside "
                           f"{[tuple(s.shape) for s in here]} of {DEVICE}")
    if name == "aten::_local_scalar_dense" and here:
        note_wait()
    if name in FIRST_DECIDES:
        result_here = isinstance(args[0], SimulatedTensor)
        if here and not result_here and name != "aten::copy_":
            raise RuntimeError(f"{name}: a tensor of the host indexed by, or given, tensors of {DEVICE}")
    elif kwargs.get("device") is not None:
        result_here = torch.device(kwargs["device"]).type == DEVICE.type
    else:
        result_here = bool(here)
    wrappers = {id(s.raw): s for s in here}
    plain_args, plain_kwargs = tree_unflatten(
        [a.raw if isinstance(a, SimulatedTensor) else torch.device("cpu") if isinstance(a, torch.device) else a
         for a in flat], spec)
    plain_kwargs.pop("pin_memory", None)

    def wrap(result):
        if not result_here or not isinstance(result, torch.Tensor) or isinstance(result, SimulatedTensor):
            return result
        return wrappers[id(result)] if id(result) in wrappers else SimulatedTensor(result)  # in place: the argument

    results, shape = tree_flatten(func(*plain_args, **plain_kwargs))
    return tree_unflatten([wrap(r) for r in results], shape)


class Simulated(TorchDispatchMode):
    """Context in which operations accept `device="simulated"`."""

    def __enter__(self):
        super().__enter__()
        Module.contexts += 1
        return DEVICE

    def __exit__(self, *exception):
        Module.contexts -= 1
        return super().__exit__(*exception)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        flat, _ = tree_flatten((args, kwargs or {}))
        if any(isinstance(a, SimulatedTensor) or (isinstance(a, torch.device) and a.type == DEVICE.type) for a in flat):
            return on_device(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


def raw(tensor):
    return tensor.raw if isinstance(tensor, SimulatedTensor) else tensor


def _empty(size, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    return SimulatedTensor(torch.empty(size, dtype=dtype, memory_format=memory_format or torch.contiguous_format))


def _empty_strided(size, stride, dtype=None, layout=None, device=None, pin_memory=None):
    return SimulatedTensor(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source, target, non_blocking=False):
    raw(target).copy_(raw(source))
    return target


_library = torch.library.Library("aten", "IMPL")  # torch's C++ code calls these directly, not through the dispatch mode
_library.impl("empty.memory_format", _empty, "PrivateUse1")
_library.impl("empty_strided", _empty_strided, "PrivateUse1")
_library.impl("_copy_from", _copy_from, "PrivateUse1")
