"""What a CUDA device needs besides the bytes of tensors: blocks, workspaces and the context."""

from __future__ import annotations

from typing import NamedTuple

import torch

# The caching allocator hands out multiples of this (kMinBlockSize in c10/cuda).
_BLOCK_BYTES = 512
# What torch gives cuBLAS unless CUBLAS_WORKSPACE_CONFIG says otherwise, ":4096:2:16:8", on most
# devices; 32 MiB on Hopper (aten/src/ATen/cuda/CublasHandlePool.cpp).
_USUAL_WORKSPACE_BYTES = 4096 * 1024 * 2 + 16 * 1024 * 8
# It depends on device, driver and kernels that are loaded.
_USUAL_CONTEXT_BYTES = 500_000_000


def round_to_blocks(nbytes: int) -> int:
    """The bytes that the caching allocator counts for a tensor's storage.

    A block of more than 1 MiB may stay up to 1 MiB larger than that, where the rest of a segment
    is too small to be split off.

    Example:
        >>> round_to_blocks(0), round_to_blocks(1), round_to_blocks(512), round_to_blocks(513)
        (0, 512, 512, 1024)
    """
    return -(-nbytes // _BLOCK_BYTES) * _BLOCK_BYTES


class CudaMargin(NamedTuple):
    """What comes on top of tensors.

    Attributes:
        workspace_bytes: that cuBLAS keeps.
        context_bytes: of the process on the device; where it is measured, with what other processes
            use there.
        measured: whether that is so here, or what is usual.
    """

    workspace_bytes: int
    context_bytes: int
    measured: bool


def find_margin(device: torch.device) -> CudaMargin:
    """Measure what comes on top of tensors, or take what is usual where there is no such device.

    Example:
        >>> margin = find_margin(torch.device("cuda"))
        >>> margin.measured == torch.cuda.is_available()
        True
    """
    if not torch.cuda.is_available():
        return CudaMargin(_USUAL_WORKSPACE_BYTES, _USUAL_CONTEXT_BYTES, measured=False)
    before = torch.cuda.memory_allocated(device)
    square = torch.ones(64, 64, device=device)
    product = square @ square
    torch.cuda.synchronize(device)
    del square, product
    # A process that has multiplied before has its workspace already.
    workspace = torch.cuda.memory_allocated(device) - before or _USUAL_WORKSPACE_BYTES
    free, total = torch.cuda.mem_get_info(device)
    context = total - free - torch.cuda.memory_reserved(device)
    return CudaMargin(workspace, context, measured=True)
