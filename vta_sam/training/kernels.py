"""Which of torch's attention kernels training runs on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def attention_kernels(device: str) -> Iterator[None]:
    """Inside, scaled_dot_product_attention runs as training is fastest on "cuda" or "cpu".

    On a CPU the fused kernel saves memory that a few hundred tokens don't need, and its backward pass is slower than
    plain products of matrices (``benchmarks/step.py`` times both). The plain form sums bf16 in fp32.
    """
    with sdpa_kernel(SDPBackend.MATH) if device == "cpu" else nullcontext():
        yield
