"""A CUDA device that does not exist, for torch's CPU build: tensors say `cuda:0` and hold nothing.

Torch's FakeTensorMode gives such tensors. Four things are missing, and added here:
1. a device guard and hooks (C++, compiled by g++), without which backward ends the process;
2. what CUDA's kernels refuse and fake ones do not: unequal dtypes in products and norms;
3. the choice of an attention kernel: flash for half precision without a mask, else the
   memory-efficient one;
4. the functions of `torch.cuda` that accelerate and the package call.

It reaches into private parts of torch; where those have moved, `install` raises Moved.
Not seen: values (overflow, NaN), cuDNN's workspace, fragmentation, streams, several processes.
"""

import ctypes
import importlib.util
import itertools
import subprocess
import traceback
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

SHIM = r"""
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
using namespace c10;

struct Guard : impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  Stream stream() const { return Stream(Stream::DEFAULT, getDevice()); }
  Device getDevice() const override { return Device(DeviceType::CUDA, 0); }
  Stream getStream(Device) const noexcept override { return stream(); }
  Stream exchangeStream(Stream given) const noexcept override { return given; }
  void record(void**, const Stream&, const DeviceIndex, const EventFlag) const override {}
  void block(void*, const Stream&) const override {}
};
static Guard guard;
static impl::DeviceGuardImplRegistrar registrar(DeviceType::CUDA, &guard);

#define YES(name) bool name() const override { return true; }
struct Hooks : at::CUDAHooksInterface {
  Hooks(at::CUDAHooksArgs) {}
  YES(hasCUDA) YES(isBuilt) YES(isAvailable) YES(hasCuDNN) YES(compiledWithCuDNN)
  void init() const override {}
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  long versionCuDNN() const override { return 91000; }
  long versionRuntimeCuDNN() const override { return 91000; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
};
namespace at { C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, Hooks) }
"""
SAME_DTYPE = {  # kernels whose tensors must be of one dtype
    *("addmm", "mm", "bmm", "baddbmm", "convolution", "linear"),
    *("native_layer_norm", "native_group_norm"),
}
STAGED = 1 << 16  # bytes up to which CUDA copies from any memory without waiting
PINNED: set[int] = set()  # storages in memory from which the device copies by itself
ASKS = {"nonzero", "masked_select"}  # kernels whose result's size only the device knows


class Moved(RuntimeError):
    """A private part of torch is not where it was; nothing can be said."""


def install(folder: Path) -> None:
    """Makes torch believe in the device; before `import torch`, which asks for the hooks once.

    folder: where the compiled shim is kept, for the next time.
    """
    try:
        _load_shim(folder)
        _patch_torch()
    except (OSError, ImportError, AttributeError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", b"") or b""
        raise Moved(f"{error} {said.decode()[:500]}".strip()) from error


def _load_shim(folder: Path) -> None:
    spec = importlib.util.find_spec("torch")
    torch = Path(str(spec and spec.origin)).parent
    version = (torch / "version.py").stat().st_mtime_ns
    library, source = folder / f"shim-{version}.so", folder / "shim.cpp"

    if not library.is_file():
        source.write_text(SHIM)
        flags = ["-O0", "-std=c++20", "-shared", "-fPIC", f"-I{torch}/include", f"-L{torch}/lib"]
        made = library.with_suffix(".partial")
        command = ["g++", str(source), *flags, "-lc10", "-ltorch_cpu", "-o", str(made)]
        subprocess.run(command, check=True, capture_output=True)
        made.replace(library)

    for name in ("libtorch_global_deps.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(torch / "lib" / name), ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(library))


def _patch_torch() -> None:
    import torch
    import torch.utils._device
    from torch._subclasses.fake_tensor import FakeTensorMode

    # the device is there, and answers
    torch.cuda.is_available = lambda: True
    torch.cuda.is_initialized = lambda: True
    torch.cuda.device_count = lambda: 1
    torch.cuda.current_device = lambda: 0
    torch.cuda.set_device = lambda device: None
    torch.cuda.synchronize = lambda device=None: None
    torch.cuda.empty_cache = lambda: None
    torch.cuda.is_bf16_supported = lambda including_emulation=True: True
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.cuda.Event = _Event
    FakeTensorMode.avoid_device_init = property(lambda self: True)

    # what knows no fake tensors: pinned memory, and drawing a module's first weights
    torch.utils._device._device_constructors()  # remembers torch.empty before it is replaced
    empty, empty_like = torch.empty, torch.empty_like
    torch.empty = lambda *a, pin_memory=False, **k: empty(*a, **k)
    torch.empty_like = lambda *a, pin_memory=False, **k: (
        _pin(empty_like(*a, **k)) if pin_memory else empty_like(*a, **k)
    )
    torch.Tensor.pin_memory = _pin
    torch.nn.Module._apply = _apply
    for name in ("uniform_", "normal_", "kaiming_uniform_", "xavier_uniform_"):
        setattr(torch.nn.init, name, lambda tensor, *a, **k: tensor)
    torch.nn.functional.scaled_dot_product_attention = _attention


def _pin(tensor: Any, *_: Any) -> Any:
    PINNED.add(tensor.untyped_storage()._cdata)
    return tensor


class _Event:
    def __init__(self, **_: Any) -> None:
        pass

    def record(self, *_: Any) -> None:
        """Takes no time."""

    def synchronize(self) -> None:
        """Nothing is under way."""


def _apply(module: Any, function: Any, recurse: bool = True) -> Any:
    """As torch's own, which cannot exchange fake parameters."""
    import torch

    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                moved = function(parameter)
                if moved is not parameter:
                    own = torch.nn.Parameter(moved.detach(), parameter.requires_grad)
                    part._parameters[name] = own
        part._buffers.update({n: b if b is None else function(b) for n, b in part._buffers.items()})
    return module


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Takes the kernel that a GPU of compute capability 8 or more would take."""
    import torch

    if torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        query, key, value = (x.to(dtype) for x in (query, key, value))
    if not query.dtype == key.dtype == value.dtype:
        raise TypeError(f"attention of {query.dtype}, {key.dtype}, {value.dtype}")

    aten, half = torch.ops.aten, (torch.float16, torch.bfloat16)
    if attn_mask is None and query.dtype in half and query.shape[-1] <= 256:
        flash = aten._scaled_dot_product_flash_attention
        return flash(query, key, value, dropout_p, is_causal, scale=scale)[0]

    if attn_mask is not None:
        shape = (*query.shape[:-1], key.shape[-2])
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).expand(*shape)
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    efficient = aten._scaled_dot_product_efficient_attention
    return efficient(query, key, value, attn_mask, keep, dropout_p, is_causal, scale=scale)[0]


def make_watch() -> Any:
    """Returns a mode that counts bytes on the device, kernels, and where the host waits.

    Its attributes: `peak` in bytes, `kernels` (views left out), `waits` by place; `hold(tensors)`
    counts what lies on the device before.
    """
    import torch
    from torch._subclasses.fake_tensor import DataDependentOutputException
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Watch(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.live: dict[int, int] = {}
            self.now = self.peak = self.kernels = 0
            self.waits: Counter[str] = Counter()
            self.numbers = itertools.count()

        def hold(self, tensors: Any) -> None:
            for storage in (x.untyped_storage() for x in tensors if x.device.type == "cuda"):
                key = storage._cdata
                if key not in self.live:
                    self.live[key] = storage.nbytes()
                    self.now += self.live[key]
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._free, key)

        def _free(self, key: int) -> None:
            self.now -= self.live.pop(key, 0)

        def _count(self, name: str) -> None:
            if where := place():  # what a test itself does is not counted
                self.waits[f"{name} {where}"] += 1

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            name, kwargs = func.overloadpacket.__name__, kwargs or {}
            given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
            on_gpu = any(x.device.type == "cuda" for x in given)
            if name in SAME_DTYPE and on_gpu and len({x.dtype for x in given}) > 1:
                raise TypeError(f"{name} of {[str(x.dtype) for x in given]}")
            if name == "_local_scalar_dense" and on_gpu:
                self._count("item")
                return 1.0 if given[0].is_floating_point() else 1

            try:
                out = func(*args, **kwargs)
            except DataDependentOutputException:  # a number on the host: no two are the same
                return next(self.numbers)
            made = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
            if self._waits(name, args, kwargs, given, made):
                self._count(name)
            self.kernels += on_gpu and func.namespace == "aten" and not func.is_view
            self.hold(made)
            return out

        @staticmethod
        def _waits(name: str, args: Any, kwargs: Any, given: Any, made: Any) -> bool:
            """Whether the host stands still: blocking copies, and what the host must know."""
            on_gpu = any(x.device.type == "cuda" for x in given)
            crosses = len({x.device.type for x in (*given, *made)}) > 1
            if name in ("_to_copy", "copy_"):
                is_async = kwargs.get("non_blocking") or True in args[2:]
                return crosses and not (is_async and all(map(_leaves_at_once, given)))
            return on_gpu and (name in ASKS or name == "index" and crosses)

    return Watch()


def _leaves_at_once(tensor: Any) -> bool:
    """Whether a copy from or to a tensor need not wait: pinned, or small enough to be staged."""
    if tensor.device.type == "cuda" or tensor.nbytes <= STAGED:
        return True
    return tensor.untyped_storage()._cdata in PINNED


def place() -> str:
    """Says which function of the package called, the innermost one; "" if none did."""
    frames = [frame for frame in traceback.extract_stack() if "/diffews/" in frame.filename]
    return f"{Path(frames[-1].filename).name} {frames[-1].name}" if frames else ""
