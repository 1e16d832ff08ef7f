"""A GPU is played on a machine without one: "cuda" tensors have shapes and types and no values, the host's tensors are
real. Waits of the host for the device, tensors on a wrong device, operations, bytes and memory are seen and counted.

torch's FakeTensorMode does most of it. What it lacks where torch finds no GPU is added here:

* The backward pass. Autograd asks CUDA for a stream of the device and ends in an error. So C++ is told that these
  tensors are on the meta device, which has no streams, and Python that they are on "cuda".
* Autocast, which by that no longer knows them: its casts are written once more, in Python, over the same lists of
  operations (ATen/autocast_mode.h).
* The choice of an attention kernel, which asks the GPU for its age: fused attention is taken for granted.
* Inference mode, in which composite operations arrive whole, ``tensor.to`` among them: they are taken apart first.
"""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.library import Library
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
DEVICE_OF = torch.ops.prim.device.default
CUDA, META = torch.device("cuda", 0), torch.device("meta")
ALLOCATED = 512  # bytes, of which torch's allocator hands out multiples
HOME = str(Path(__file__).resolve().parents[1] / "vta_sam")

# Lists of ATen/autocast_mode.h
LOWER = """_convolution _convolution.deprecated conv1d conv2d conv3d conv_transpose1d conv_transpose2d.input
    conv_transpose3d.input convolution prelu addmm addmv addr matmul einsum mm mv linear addbmm baddbmm bmm""".split()
SINGLE = """acos asin cosh exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow.Tensor_Scalar pow.Tensor_Tensor
    pow.Scalar softplus layer_norm native_layer_norm rms_norm group_norm frobenius_norm.dim cosine_similarity nll_loss
    kl_div l1_loss smooth_l1_loss huber_loss mse_loss binary_cross_entropy_with_logits dist cdist logsumexp
    upsample_nearest1d upsample_nearest2d upsample_linear1d upsample_bilinear2d prod prod.dim_int softmax.int
    log_softmax.int cumprod cumsum linalg_vector_norm sum sum.dim_IntList norm.Scalar norm.ScalarOpt_dim""".split()


@dataclass
class Counts:
    """What was seen.

    Attributes:
        waits: a line of source and an operation for each time that the host waits for the device.
        casts: a line of source for each weight that autocast casts.
        flops: floating point operations, a multiplication and an addition being two.
        moved_bytes: read and written by every operation that is no view.
        alive_bytes: of the device's memory, now.
        peak_bytes: the most so far.
    """

    waits: list[str] = field(default_factory=list)
    casts: list[str] = field(default_factory=list)
    flops: int = 0
    moved_bytes: int = 0
    alive_bytes: int = 0
    peak_bytes: int = 0


class PlayedGPU(FakeTensorMode):
    """Inside, "cuda" is a played device. ``counts`` says what happened on it; :meth:`fresh` begins anew.

    A wait is a value that the host reads, an event that it waits for, or a copy between host and device that blocks,
    because it is asked to or because the host's memory is not pinned. A boolean index, a tensor of a wrong device and
    an operation whose result has a size that depends on values raise torch's own errors.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.counts = Counts()
        self._pinned: set[int] = set()  # storages, as below
        self._known: set[int] = set()
        self._casts: dict[int, tuple[Tensor, Tensor]] = {}

    @classmethod
    @contextmanager
    def played(cls) -> Iterator["PlayedGPU"]:
        """Inside, "cuda" is played. (torch enters the mode itself again with every operation, so this is apart.)"""
        asked = FakeTensor.__dict__["__torch_dispatch__"]

        def told(kind: type, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return META if func is DEVICE_OF else asked.__get__(None, kind)(func, types, args, kwargs)

        gpu = cls()
        with gpu, mock.patch.object(FakeTensor, "__torch_dispatch__", classmethod(told)), \
                mock.patch.object(F, "scaled_dot_product_attention", gpu._attention), \
                mock.patch.object(Tensor, "pin_memory", lambda tensor, *_: gpu._pin(tensor)), \
                mock.patch.object(Tensor, "is_pinned", lambda tensor, *_: gpu._is_pinned(tensor)), \
                mock.patch.object(Tensor, "record_stream", lambda *_: None), \
                mock.patch.multiple(torch.cuda, Stream=mock.MagicMock(), Event=lambda: _Event(gpu),
                                    stream=lambda _: nullcontext(), current_stream=mock.MagicMock()), \
                mock.patch.object(torch.nn.Module, "to", _move), gpu._own_autocast():
            yield gpu

    def fresh(self) -> Counts:
        """Counts from here on, with what is alive now."""
        self.counts = Counts(alive_bytes=self.counts.alive_bytes, peak_bytes=self.counts.alive_bytes)
        return self.counts

    @contextmanager
    def autocast(self, dtype: torch.dtype = torch.bfloat16) -> Iterator[None]:
        """torch.autocast("cuda", dtype), which refuses where there is no GPU."""
        before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", dtype)
        try:
            yield
        finally:
            torch.set_autocast_enabled("cuda", before[0])
            torch.set_autocast_dtype("cuda", before[1])
            self._casts.clear()

    # ------------------------------------------------------------------ every operation

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is DEVICE_OF:
            return META
        kwargs = dict(kwargs or {})
        if torch.is_inference_mode_enabled() and func._can_decompose():
            with self:
                return func.decompose(*args, **kwargs)
        device = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        if device == META:  # which C++ believes these tensors to be on
            device = kwargs["device"] = CUDA
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        played = any(isinstance(tensor, FakeTensor) for tensor in tensors)
        if not played and (device is None or device.type == "cpu"):
            return func(*args, **kwargs)  # of the host, for real
        done, result = self._between(func, args, kwargs, device)
        if not done:
            result = super().__torch_dispatch__(func, types, args, kwargs)
        self._count(func, args, kwargs, tensors, result)
        return result

    def _between(self, func: Any, args: Any, kwargs: dict[str, Any], device: torch.device | None) -> tuple[bool, Any]:
        """What passes between host and device ⇒ (whether it is done by this, its result)."""
        name, first = func.overloadpacket, args[0] if args and isinstance(args[0], Tensor) else None
        if name is aten._local_scalar_dense:
            self._wait(func)
            return True, {torch.bool: True}.get(first.dtype, 1.0 if first.is_floating_point() else 1)
        if name in (aten.equal, aten.is_nonzero):
            self._wait(func)
            return True, True
        if name in (aten.nonzero, aten.masked_select, aten._unique2):
            self._wait(func)  # and torch raises DynamicOutputShapeException
        elif name in (aten._to_copy, aten.copy_):
            source, target = (args[1], first.device) if name is aten.copy_ else (first, device or first.device)
            if source.device.type == "cuda" and target.type == "cpu":
                if not (name is aten.copy_ and len(args) > 2 and args[2] and self._is_pinned(first)):
                    self._wait(func)
                shape = first.shape if name is aten.copy_ else source.shape
                return True, first.zero_() if name is aten.copy_ else torch.zeros(
                    shape, dtype=kwargs.get("dtype") or source.dtype)
            if source.device.type == "cpu" and target.type == "cuda":
                unblocked = kwargs.get("non_blocking", False) or (name is aten.copy_ and len(args) > 2 and args[2])
                if not unblocked or not self._is_pinned(source):
                    self._wait(func)
            elif name is aten._to_copy and source.device == target and kwargs.get("dtype") in (None, source.dtype) \
                    and kwargs.get("memory_format") is None:
                return True, aten.alias.default(source)  # a move to where it is already
        elif name in (aten.index, aten.index_put, aten.index_put_) and first is not None and first.is_cpu is False:
            for index in args[1]:
                if index is not None and not isinstance(index, FakeTensor):
                    self._wait(func)  # the index is sent to the device first
        return False, None

    def _wait(self, func: Any) -> None:
        self.counts.waits.append(f"{_place()} {func}")

    def _count(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor], result: Any) -> None:
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, FakeTensor)]
        counted = flop_registry.get(func.overloadpacket)
        if counted is not None:
            self.counts.flops += counted(*args, **kwargs, out_val=result)
        if not func.is_view:
            self.counts.moved_bytes += sum(each.numel() * each.element_size() for each in (*tensors, *made)
                                           if isinstance(each, FakeTensor))
        for tensor in made:
            if tensor.fake_device.type != "cuda":
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._known:
                continue
            size = math.ceil(storage.nbytes() / ALLOCATED) * ALLOCATED
            self._known.add(key)
            self.counts.alive_bytes += size
            self.counts.peak_bytes = max(self.counts.peak_bytes, self.counts.alive_bytes)
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.counts.alive_bytes -= size

    def _pin(self, tensor: Tensor) -> Tensor:
        pinned = tensor.clone()
        storage = pinned.untyped_storage()
        self._pinned.add(storage._cdata)
        weakref.finalize(storage, self._pinned.discard, storage._cdata)
        return pinned

    def _is_pinned(self, tensor: Tensor) -> bool:
        return not isinstance(tensor, FakeTensor) and tensor.untyped_storage()._cdata in self._pinned

    # ------------------------------------------------------------------ autocast and attention

    @contextmanager
    def _own_autocast(self) -> Iterator[None]:
        kernels = Library("aten", "IMPL")
        for names, dtype_of in ((LOWER, lambda: torch.get_autocast_dtype("cuda")), (SINGLE, lambda: torch.float32)):
            for name in names:
                packet, _, overload = name.partition(".")
                func = getattr(getattr(aten, packet), overload or "default")
                kernels.impl(func, self._casting(func, dtype_of), "AutocastCUDA", allow_override=True)
        try:
            yield
        finally:
            kernels._destroy()

    def _casting(self, func: Any, dtype_of: Callable[[], torch.dtype]) -> Callable:
        keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)

        def kernel(*args: Any, **kwargs: Any) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(keys):
                args, kwargs = tree_map(lambda leaf: self._cast(leaf, dtype_of()), (args, kwargs))
                return func(*args, **kwargs)

        return kernel

    def _cast(self, leaf: Any, dtype: torch.dtype) -> Any:
        """Weights are cast once within an autocast, and kept until its end, as torch's does."""
        if not isinstance(leaf, FakeTensor) or leaf.dtype not in (torch.float32, torch.bfloat16, torch.float16) or \
                leaf.dtype == dtype:
            return leaf
        if isinstance(leaf, torch.nn.Parameter):
            self.counts.casts.append(_place())
        if not (leaf.requires_grad and leaf.is_leaf and dtype != torch.float32 and torch.is_grad_enabled()):
            return leaf.to(dtype)
        if id(leaf) not in self._casts:
            self._casts[id(leaf)] = leaf, leaf.to(dtype)
        return self._casts[id(leaf)][1]

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
                   dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, **ignored: Any
                   ) -> Tensor:
        """F.scaled_dot_product_attention by the kernels that torch takes on a GPU."""
        if not isinstance(query, FakeTensor):
            return torch._C._nn.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal,
                                                             scale=scale)
        if torch.is_autocast_enabled("cuda"):
            query, key, value = (self._cast(each, torch.get_autocast_dtype("cuda")) for each in (query, key, value))
        if attn_mask is None and query.dtype != torch.float32:
            return aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -math.inf)
            attn_mask = attn_mask.to(query.dtype).expand(*query.shape[:3], key.shape[2])
        return aten._scaled_dot_product_efficient_attention(query, key, value, attn_mask, torch.is_grad_enabled(),
                                                            dropout_p, is_causal, scale=scale)[0]


def _place() -> str:
    """The line of the package that is under work."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(HOME):
            return f"vta_sam{frame.f_code.co_filename[len(HOME):]}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside of vta_sam"


@dataclass
class _Event:
    gpu: PlayedGPU

    def record(self, stream: Any) -> None:
        pass

    def synchronize(self) -> None:
        self.gpu._wait("event")


def _move(module: torch.nn.Module, device: Any) -> torch.nn.Module:
    """Module.to(device). torch's exchanges the content of parameters, which between real and played ones it can't."""
    moved: dict[int, Tensor] = {}
    for part in module.modules():
        for name, tensor in part._parameters.items():
            if tensor is not None:
                if id(tensor) not in moved:
                    moved[id(tensor)] = torch.nn.Parameter(tensor.detach().to(device), tensor.requires_grad)
                part._parameters[name] = moved[id(tensor)]  # type: ignore[assignment]
        for name, tensor in part._buffers.items():
            if tensor is not None:
                part._buffers[name] = tensor.to(device)
    return module
