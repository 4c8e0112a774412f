"""A CUDA device without a GPU: tensors say ``cuda:0``, values are computed on the CPU, bit for bit those of a
CPU run.

What CUDA refuses is refused (two devices in one operation, ``numpy()`` of a tensor on the GPU); what makes
the host wait for the GPU is counted with the line that does it, and so are operations, about the kernels that
a GPU would launch. Autograd, autocast with CUDA's own lists, ``GradScaler``, optimisers and checkpoints take
CUDA's paths: a shim in C++, compiled once, makes torch's dispatcher and engine believe in a device, and a
tensor subclass with CUDA's dispatch keys holds the values. torch's own ``FakeTensorMode`` cannot stand in: on
a build for the CPU it aborts the process at the first operation that takes part in a backward pass.

It has to be imported before torch, whose device hooks are read once: ``pytest -p pretend_device``.

Limits: one device; attention is counted as its decomposition (more operations than one fused kernel); no
model of memory; no NCCL; an in-place operation that changes a tensor's shape raises NotImplementedError.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

_SHIM = r"""
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
using c10::Device; using c10::DeviceIndex; using c10::Stream; using c10::kCUDA;
struct Guard final : public c10::impl::NoOpDeviceGuardImpl<kCUDA> {
  Device exchangeDevice(Device) const override { return Device(kCUDA, 0); }
  Device getDevice() const override { return Device(kCUDA, 0); }
  Stream getStream(Device) const noexcept override { return Stream(Stream::DEFAULT, Device(kCUDA, 0)); }
  Stream getNewStream(Device d, int) const override { return getStream(d); }
  Stream exchangeStream(Stream s) const noexcept override { return s; }
  void record(void**, const Stream&, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};
namespace at {
struct CUDAHooks final : public CUDAHooksInterface {  // torch looks the class up by this name
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
};
REGISTER_CUDA_HOOKS(CUDAHooks);
}
C10_REGISTER_GUARD_IMPL(CUDA, Guard);
extern "C" int ready() { return at::detail::getCUDAHooks().hasCUDA(); }
"""

#: Where the compiled shim is kept.
_KEPT = Path(os.environ.get("WSSS_CACHE") or tempfile.gettempdir()) / "pretend-device"


def _install() -> None:
    """Make torch's C++ side believe in one CUDA device without kernels."""
    found = importlib.util.find_spec("torch")  # which does not import it
    assert found is not None
    assert found.origin is not None
    root = Path(found.origin).parent
    version = (root / "version.py").read_text(encoding="utf-8")
    key = hashlib.sha256((_SHIM + version + str(root)).encode()).hexdigest()[:16]
    library = _KEPT / f"{key}.so"
    if not library.exists():
        _KEPT.mkdir(parents=True, exist_ok=True)
        source, made = (_KEPT / f"{key}.{os.getpid()}.{end}" for end in ("cpp", "so"))
        source.write_text(_SHIM, encoding="utf-8")
        compiler = ["g++", "-shared", "-fPIC", "-w", "-std=c++20", f"-I{root}/include", source, "-o", made]
        subprocess.run([*compiler, f"-L{root}/lib", "-ltorch_cpu", "-lc10"], check=True)
        made.replace(library)
        source.unlink()
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(root / "lib" / name), mode=ctypes.RTLD_GLOBAL)
    if not ctypes.CDLL(str(library)).ready():
        raise ImportError("import pretend_device before torch")


if "torch" in sys.modules:
    raise ImportError("import pretend_device before torch")
_install()

import torch  # noqa: E402
import torch.optim.optimizer as _optimizer  # noqa: E402
import torch.utils._pytree as pytree  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

#: Operations that wait for the device inside; bincount does it twice.
_WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "_unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "masked_select",
    "equal",
    "_linalg_eigh",
    "_linalg_svd",
    "multinomial",
    "bincount",
}
#: Operations, beside the pointwise ones, that take a scalar tensor of the CPU among tensors of the GPU.
_TAKE_SCALARS = {
    "masked_fill",
    "masked_fill_",
    "index_fill",
    "index_fill_",
    "fill_",
    "where",
    "index_put",
    "index_put_",
    "_index_put_impl_",
    "lerp_",
    "_foreach_add",
    "_foreach_add_",
    "_foreach_mul_",
    "_foreach_div_",
}
_INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}
#: The code under test: of a stack, the innermost frame below one of these is the place.
_ROOTS = tuple(f"{os.sep}{name}{os.sep}" for name in ("harness", "methods"))


class Mixed(RuntimeError):
    """Tensors of two devices in one operation."""


class Cuda(torch.Tensor):
    """A tensor that says it is on ``cuda:0``; ``inner`` holds its values on the CPU."""

    inner: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Cuda:
        like: dict[str, Any] = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        own = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, **like, dtype=inner.dtype, device=torch.device("cuda:0")
        )
        own.inner = inner
        return own

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping | None = None
    ) -> Any:
        return _run(func, args, dict(kwargs or {}))

    def __repr__(self) -> str:
        return f"Cuda({self.inner!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:  # as a checkpoint that is read with map_location="cpu"
        return self.inner.detach().__reduce_ex__(protocol)

    def tolist(self) -> Any:
        """Through the CPU, which waits."""
        return self.cpu().tolist()

    def numpy(self, **options: Any) -> Any:
        """Refused, as CUDA does."""
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def __array__(self, dtype: Any = None) -> Any:
        return self.numpy()


class _Again(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping | None = None
    ) -> Any:
        return _run(func, args, dict(kwargs or {}))


class Pretend(_Again):
    """While it is entered, device ``cuda`` exists.

    Args:
        strict: raise :class:`Mixed` where tensors of two devices meet, and not only count it.

    Attributes:
        waits: by (reason, place), how often the host waited for the device.
        copies: likewise, copies between host and device that nobody waited for.
        operations: by place, operations on the device, views aside.
        on_cpu: by place, operations on tensors of the CPU.
        kinds: by operation, which kernels the device needs.
        mixed: places where tensors of two devices met.
        sent: bytes copied to the device.
    """

    now: Pretend | None = None

    def __init__(self, strict: bool = True) -> None:
        super().__init__()
        self.strict = strict
        self.clear()

    def clear(self) -> None:
        """Count from nothing."""
        self.waits: Counter[tuple[str, str]] = Counter()
        self.copies: Counter[tuple[str, str]] = Counter()
        self.operations: Counter[str] = Counter()
        self.on_cpu: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.mixed: Counter[str] = Counter()
        self.sent = 0

    def __enter__(self) -> Pretend:
        Pretend.now = self
        self._threads = torch.autograd.set_multithreading_enabled(False)  # backward in this thread: one stack
        self._threads.__enter__()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") meets the dispatcher
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # .data = would keep the old class
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(False)
        torch.__future__.set_overwrite_module_params_on_conversion(False)
        self._threads.__exit__(*error)
        Pretend.now = None

    def report(self) -> str:
        """What was counted, waits line by line."""
        lines = [f"{self.operations.total()} operations, {self.waits.total()} waits"]
        lines += [f"  MIXED {where}" for where in self.mixed]
        lines += [f"  wait x{number} {why}: {where}" for (why, where), number in self.waits.most_common()]
        return "\n".join(lines)


def place() -> str:
    """The line of the code under test that is being run."""
    frame, outer = sys._getframe(1), None
    while frame is not None:
        name = frame.f_code.co_filename
        if any(root in name for root in _ROOTS) and "site-packages" not in name:
            return f"{'/'.join(Path(name).parts[-3:])}:{frame.f_lineno} {frame.f_code.co_name}"
        if outer is None and f"{os.sep}torch{os.sep}" not in name and name != __file__:
            outer = f"{Path(name).name}:{frame.f_lineno}"
        frame = frame.f_back
    return outer or "?"


def _is_plain(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not isinstance(value, Cuda)


def _run(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        with _Again():  # inference mode hands composite operations over whole
            return func.decompose(*args, **kwargs)
    seen = Pretend.now or Pretend()
    name = func.overloadpacket.__name__
    flat, spec = pytree.tree_flatten((args, kwargs))
    ours = [x for x in flat if isinstance(x, Cuda)]
    plain = [x for x in flat if _is_plain(x)]
    asked = kwargs.get("device")
    on_gpu = bool(ours) if asked is None else torch.device(asked).type == "cuda"
    view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
    if not ours and not on_gpu:
        if plain and not view:
            seen.on_cpu[place()] += 1
        return func(*args, **kwargs)
    here = place()
    seen.kinds[name] += 1
    if name in ("_to_copy", "copy_"):
        _count_copy(seen, name, here, args, kwargs, on_gpu)
    elif ours and plain:
        _check_devices(seen, func, here, args, [*ours, *plain])
    _count_waits(seen, name, here, args, kwargs)
    if not view:
        seen.operations[here] += 1
    cpu = torch.device("cpu")
    flat = [x.inner if isinstance(x, Cuda) else cpu if isinstance(x, torch.device) else x for x in flat]
    inner_args, inner_kwargs = pytree.tree_unflatten(flat, spec)
    inner_kwargs.pop("pin_memory", None)
    with torch.inference_mode(False), torch.no_grad():  # wrappers of normal tensors may be viewed anywhere
        return _wrapped(func, args, kwargs, _computed(func, inner_args, inner_kwargs), on_gpu)


def _count_copy(
    seen: Pretend, name: str, here: str, args: Sequence[Any], kwargs: Mapping[str, Any], on_gpu: bool
) -> None:
    """Copies between devices, those that are waited for among the waits."""
    source, target = (args[0], on_gpu) if name == "_to_copy" else (args[1], isinstance(args[0], Cuda))
    if isinstance(source, Cuda) == target:
        return
    free = kwargs.get("non_blocking") or (name == "copy_" and args[2:] and args[2])
    way = "host to device" if target else "device to host"
    (seen.copies if free else seen.waits)[way, here] += 1
    if target and isinstance(source, torch.Tensor):
        seen.sent += source.numel() * source.element_size()


def _check_devices(
    seen: Pretend, func: Any, here: str, args: Sequence[Any], tensors: Sequence[torch.Tensor]
) -> None:
    """Refuse what CUDA does; indices of the CPU are moved, which is waited for."""
    name = func.overloadpacket.__name__
    plain = [x for x in tensors if _is_plain(x)]
    taken = all(x.dim() == 0 for x in plain) and (torch.Tag.pointwise in func.tags or name in _TAKE_SCALARS)
    if name in _INDEXED and isinstance(args[0], Cuda):
        if moved := sum(_is_plain(x) for x in args[1]):
            seen.waits["host to device (index)", here] += moved
        taken = all(x.dim() == 0 for x in args[2:3] if _is_plain(x))
    if not taken:
        what = ", ".join(f"{'cuda' if isinstance(x, Cuda) else 'cpu'}{list(x.shape)}" for x in tensors)
        seen.mixed[f"{here}: {name} of {what}"] += 1
        if seen.strict:
            raise Mixed(
                f"Expected all tensors to be on the same device, found cuda:0 and cpu: {here}: {name}"
            )


def _count_waits(seen: Pretend, name: str, here: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    if name in _WAITING or (name == "repeat_interleave" and kwargs.get("output_size") is None):
        seen.waits[name, here] += 2 if name == "bincount" else 1
    elif name.startswith("index") and len(args) > 1 and isinstance(args[1], list | tuple):
        masks = sum(isinstance(x, Cuda) and x.dtype in (torch.bool, torch.uint8) for x in args[1])
        filled = name != "index" and isinstance(args[2], torch.Tensor) and args[2].numel() == 1
        if masks and not filled:  # with one value it is masked_fill inside
            seen.waits["boolean mask", here] += masks


def _computed(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The values, in float32 where the CPU lacks a kernel in half precision that CUDA has."""
    if func.overloadpacket.__name__ in ("_softmax", "_log_softmax") and args[2]:  # half in, float32 out
        args = (args[0].float(), args[1], False)
    try:
        return func(*args, **kwargs)
    except (RuntimeError, NotImplementedError) as error:
        halves = {"'Half'": torch.half, "'BFloat16'": torch.bfloat16}
        low = next((dtype for word, dtype in halves.items() if word in str(error)), None)
        if low is None or "not implemented" not in str(error):
            raise

    def cast(values: Any, source: torch.dtype, target: torch.dtype) -> Any:
        return pytree.tree_map(
            lambda x: x.to(target) if isinstance(x, torch.Tensor) and x.dtype == source else x, values
        )

    up = cast(args, low, torch.float32), cast(dict(kwargs), low, torch.float32)
    return cast(func(*up[0], **up[1]), torch.float32, low)


def _wrapped(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any, on_gpu: bool) -> Any:
    """Results as tensors of the device; what was changed in place is the argument itself."""
    written: dict[Any, Any] = {}
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            for item in value if isinstance(value, list | tuple) else [value]:
                if isinstance(item, Cuda) and item.shape != item.inner.shape:
                    raise NotImplementedError(f"{func} changes the shape of a tensor in place")
            written |= dict.fromkeys(argument.alias_info.before_set, value)

    def one(value: Any, returned: Any) -> Any:
        if returned.alias_info is not None and returned.alias_info.is_write:
            return written[next(iter(returned.alias_info.before_set))]
        return pytree.tree_map(lambda t: Cuda(t) if on_gpu and type(t) is torch.Tensor else t, value)

    returns = func._schema.returns
    if len(returns) == 1:
        return one(out, returns[0])
    return out if out is None else type(out)(one(x, r) for x, r in zip(out, returns, strict=True))


# --- what Python asks torch.cuda -----------------------------------------------------------------------

_GPU = SimpleNamespace(name="pretend GPU", total_memory=2**37, major=9, minor=0, multi_processor_count=132)
_ANSWERS: dict[str, Any] = {
    "is_available": True,
    "is_initialized": True,
    "device_count": 1,
    "current_device": 0,
    "get_device_properties": _GPU,
    "get_device_name": _GPU.name,
    "get_device_capability": (9, 0),
    "is_bf16_supported": True,
    **dict.fromkeys(["_lazy_init", "manual_seed", "manual_seed_all", "empty_cache", "synchronize"]),
    **dict.fromkeys(["init", "reset_peak_memory_stats"]),
    **dict.fromkeys(
        ["max_memory_allocated", "max_memory_reserved", "memory_allocated", "memory_reserved"], 0
    ),
}
for _name, _value in _ANSWERS.items():
    setattr(torch.cuda, _name, lambda *_, _value=_value, **__: _value)


def _set_device(device: Any) -> None:
    torch.cuda._utils._get_device_index(device)  # refuses what CUDA does


torch.cuda.set_device = _set_device
torch.Tensor.pin_memory = lambda self, *_: self
_optimizer._foreach_supported_types.append(Cuda)  # optimisers take the paths of tensors on the GPU
