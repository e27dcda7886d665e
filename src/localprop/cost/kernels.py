"""Where PyTorch's fake kernels differ from the real ones in the bytes of their outputs.

A fake kernel says which shape, dtype and layout the output of an operation has. For a few
operations it says something else than the kernel of the CPU does. Outputs are corrected here, by
operation and not by module, before anything else sees them. One refuses what the CPU's computes,
and is replaced.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

_ATEN = torch.ops.aten
_PAGE_BYTES, _LINE_BYTES, _ALIASING = 4096, 64, 256


def run_operation(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Run an operation on fakes; the output is as its real kernel makes it."""
    replaced = _REPLACED.get(func)
    if replaced is not None and args[0].device.type == "cpu":
        return replaced(*args, **kwargs)
    return correct_output(func, func(*args, **kwargs), args, kwargs)


def correct_output(func: Any, output: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The output that an operation's real kernel makes, as a fake.

    Args:
        func: the operation, as TorchDispatchMode gives it.
        output: what its fake kernel has returned.
        args: of the operation, fakes, too.
        kwargs: likewise.

    Example:
        >>> import torch
        >>> from torch._subclasses.fake_tensor import FakeTensorMode
        >>> fold, mode = torch.ops.aten.col2im.default, FakeTensorMode()
        >>> arguments = ([4, 4], [3, 3], [1, 1], [1, 1], [1, 1])
        >>> with mode:
        ...     columns = torch.empty(1, 9, 16)
        ...     image = fold(columns, *arguments)
        ...     corrected = correct_output(fold, image, (columns, *arguments), {})
        >>> image.untyped_storage().nbytes(), corrected.untyped_storage().nbytes()
        (64, 576)
    """
    correct = _CORRECTIONS.get(func)
    # Other devices have other kernels, which were not compared.
    if correct is None or args[0].device.type != "cpu":
        return output
    return correct(output, *args, **kwargs)


def _correct_batch_norm(output: tuple[Tensor, ...], features: Tensor, *_: Any) -> Any:
    """The fake output has the strides of the input, whatever they are. The real one is contiguous
    or channels last: behind a transposition, what follows needs a copy in one case and none in the
    other.
    """
    normed, *statistics = output
    return _like_kernel(normed, features), *statistics


def _correct_batch_norm_backward(
    output: tuple[Tensor, ...], gradient: Tensor, features: Tensor, *more: Any
) -> Any:
    """As for the forward; and the fake kernel makes gradients that nobody has asked for."""
    asked = more[-1]
    of_features, *others = output
    made = (_like_kernel(of_features, features), *others)
    return tuple(each if wanted else None for each, wanted in zip(made, asked, strict=True))


def _like_kernel(tensor: Tensor, features: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=suggest_memory_format(features))


def _correct_loss(output: Tensor, features: Tensor, targets: Tensor, *_: Any) -> Tensor:
    """The real kernel writes its mean or sum to the beginning of the storage that has held the
    losses of all elements.
    """
    if output.ndim:
        return output
    return output.new_empty(max(features.numel(), targets.numel())).resize_(())


def _correct_fold(output: Tensor, columns: Tensor, *_: Any) -> Tensor:
    """The real kernel makes its output as large as its input, and then resizes it."""
    return torch.empty_like(columns).resize_(output.shape)


def _correct_clone(output: Tensor, tensor: Tensor, **_: Any) -> Tensor:
    """The fake clone of a sparse tensor has no indices and values."""
    if tensor.layout is not torch.sparse_coo:
        return output
    indices, values = tensor._indices().clone(), tensor._values().clone()
    return torch.sparse_coo_tensor(
        indices,
        values,
        tensor.shape,
        check_invariants=False,
        is_coalesced=tensor.is_coalesced(),
    )


def _correct_lstm(output: tuple[Tensor, ...], features: Tensor, weight: Tensor, *more: Any) -> Any:
    """The real kernel returns the workspace of oneDNN for the backward, several times as large as
    the output, unless gradients are switched off. The fake one is always empty.
    """
    *results, workspace = output
    if torch.is_grad_enabled():
        (steps, samples, inputs), hidden = features.shape, more[-6]
        nbytes = count_lstm_workspace(steps, samples, inputs, hidden, features.itemsize)
        workspace = workspace.new_empty(nbytes)
    return *results, workspace


def count_lstm_workspace(steps: int, samples: int, inputs: int, hidden: int, itemsize: int) -> int:
    """The bytes that oneDNN keeps of one layer and direction of an LSTM for its backward.

    It holds the gates and the hidden output of each step, and for 2 x (steps + 1) states the
    hidden state, the cell state and three gradients. Rows begin at cache lines, parts at pages.

    Args:
        steps: the length of the sequence.
        samples: of the batch.
        inputs: features of each step.
        hidden: of the state.
        itemsize: bytes of an element.

    Example:
        >>> count_lstm_workspace(steps=16, samples=16, inputs=64, hidden=64, itemsize=4)
        1040384

    Source: oneDNN 3, `set_workspace_sizes` and `set_offsets` in src/cpu/rnn/rnn_utils.
    """
    wide, accumulated = max(inputs, hidden), 4  # gradients add up in float32
    outputs, states = steps * samples, 2 * (steps + 1) * samples
    parts = (
        outputs * _row_bytes(4 * hidden, itemsize),
        outputs * _row_bytes(hidden, itemsize),
        states * _row_bytes(wide, itemsize),
        states * hidden * accumulated,
        *(2 * [states * _row_bytes(wide, accumulated)]),
        states * hidden * accumulated,
    )
    return sum(math.ceil(part / _PAGE_BYTES) * _PAGE_BYTES for part in parts)


def _row_bytes(length: int, itemsize: int) -> int:
    line = _LINE_BYTES // itemsize
    padded = math.ceil(length / line) * line
    return itemsize * (padded + line if padded % _ALIASING == 0 else padded)


def _multiply_groups(
    one: Tensor, other: Tensor, ends: Tensor | None = None, bias: object = None, dtype: Any = None
) -> Tensor:
    """The product of matrices by groups, as in mixtures of experts: rows up to the first of `ends`
    belong to the first group, and so on. The fake kernel wants bfloat16, as CUDA's does.
    """
    groups = one.shape[:-2] or other.shape[:-2] or (0 if ends is None else ends.numel(),)
    # Where groups are rows or columns of one factor and matrices of the other, they are the former.
    shape = (*(groups if one.ndim == other.ndim else ()), one.shape[-2], other.shape[-1])
    return one.new_empty(shape, dtype=dtype)


_REPLACED: dict[Any, Callable[..., Any]] = {_ATEN._grouped_mm.default: _multiply_groups}
_CORRECTIONS: dict[Any, Callable[..., Any]] = {
    _ATEN.binary_cross_entropy.default: _correct_loss,
    _ATEN.mse_loss.default: _correct_loss,
    _ATEN.smooth_l1_loss.default: _correct_loss,
    _ATEN.soft_margin_loss.default: _correct_loss,
    _ATEN.clone.default: _correct_clone,
    _ATEN.col2im.default: _correct_fold,
    _ATEN.native_batch_norm.default: _correct_batch_norm,
    _ATEN.native_batch_norm_backward.default: _correct_batch_norm_backward,
    _ATEN.mkldnn_rnn_layer.default: _correct_lstm,
}
