# Copyright 2026 The DepthVLM authors. Licensed under the Apache License, Version 2.0.
"""A transposed convolution and the 3x3 convolution after it, as one: the same function at a fraction of the cost."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ComposedConvolution:
    """
    `conv(up(x))` for a transposed convolution `up` whose stride is its kernel size k, and a 3x3 convolution `conv`
    without bias.

    Both are linear, so together they are one transposed convolution with a kernel of k + 2. On a token grid it needs
    (k + 2)^2 products a token and channel pair, where the 3x3 convolution on the upsampled map needs 9 k^2. Making that
    kernel costs about as much as it saves on two images of 15x20 tokens, so it is kept for as long as the two weights
    stay as they are. For inference alone: gradients go through the two layers as they stand.

    Args:
        up: `nn.ConvTranspose2d(c, c, k, stride=k)`.
        conv: `nn.Conv2d(c, out, 3, padding=1, bias=False)`.
    """

    def __init__(self, up: nn.ConvTranspose2d, conv: nn.Conv2d):
        self.up, self.conv = up, conv
        self.made_of: tuple[Any, ...] = ()
        self.kernel = self.bias = torch.empty(0)

    def __call__(self, x: Tensor) -> Tensor:
        """`(N, c, h, w)` to `(N, out, k h, k w)`."""
        weights: tuple[Any, ...] = (self.up.weight, self.up.bias, self.conv.weight)
        made_of = tuple((w, w._version, w.data_ptr()) for w in weights)
        if not _same(made_of, self.made_of):
            self._compose()
            self.made_of = made_of
        kernel, bias = self.kernel.to(x.dtype), self.bias.to(x.dtype)
        inner = bias[:, 1, 1]
        y = F.conv_transpose2d(x, kernel, inner.contiguous(), stride=self.up.stride, padding=1)
        # Beyond the map `conv` sees zeros and not the bias of `up`: its share is another at edges and corners.
        edge = bias - inner[:, None, None]
        for row, tap in ((0, 0), (-1, 2)):
            y[:, :, row] += edge[:, tap, 1, None]
            y[:, :, :, row] += edge[:, 1, tap, None]
        for row, i in ((0, 0), (-1, 2)):
            for column, j in ((0, 0), (-1, 2)):
                y[:, :, row, column] += edge[:, i, j] - edge[:, i, 1] - edge[:, 1, j]
        return y

    @torch.no_grad()
    def _compose(self) -> None:
        assert self.up.bias is not None
        dtype = torch.promote_types(self.up.weight.dtype, torch.float32)  # rounded once, not twice
        up, bias, conv = (w.to(dtype) for w in (self.up.weight, self.up.bias, self.conv.weight))
        with torch.autocast(up.device.type, enabled=False):
            self.kernel = F.conv2d(up, conv, padding=2).to(self.up.weight.dtype)
            self.bias = F.conv2d(bias[None, :, None, None].expand(1, -1, 3, 3), conv, padding=1)[0]


def _same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Whether these are the very same weights, never written to since."""
    return len(one) == len(other) and all(a[0] is b[0] and a[1:] == b[1:] for a, b in zip(one, other, strict=True))


def may_compose(*weights: Tensor) -> bool:
    """
    Whether weights can be taken together now: no gradients, no tracing, and plain tensors that stay in place. On a CPU:
    on a GPU the edges' many small kernels cost what the products save.
    """
    return all(w.device.type == "cpu" for w in weights) and not (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or (torch.distributed.is_available() and torch.distributed.is_initialized())  # sharded weights come and go
        or any(w.is_inference() or type(w.data) is not Tensor for w in weights)
    )
