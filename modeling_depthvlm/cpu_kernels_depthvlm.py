# Copyright 2026 The DepthVLM authors. Licensed under the Apache License, Version 2.0.
"""Composed linear layers for inference on a CPU: the same functions at a fraction of the cost.

Without this file, `UpsampledConv2d` is `F.interpolate` and a convolution, and `DPTDepthHead` runs the two layers one
after the other.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

ENABLED = True  # the switch: False runs every layer unchanged

_STRIP = 64  # side in pixels of a tile: few pixels are computed twice at the seams, and it fits in the cache
# Elements of an upsampled map computed at once. CUDA's kernel takes fewer than 2^31: 21 images of 1024x768.
_AT_ONCE = 2**27


class UpsampledConv2d(nn.Conv2d):
    """3x3 convolution of its bilinearly upsampled input (corners aligned)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:  # type: ignore[override]
        """Map `(N, in, h, w)` to `(N, out, *size)`."""
        return convolve_upsampled(x, self, size)


def convolve_upsampled(x: Tensor, conv: nn.Conv2d, size: tuple[int, int]) -> Tensor:
    """Return `conv(F.interpolate(x, size, mode="bilinear", align_corners=True))`.

    Both are linear, so each of the nine taps of `conv` can mix the channels before the upsampling, where there are a
    quarter of the pixels or fewer; then the nine maps are interpolated and summed, along rows and then along columns,
    as products with narrow band matrices. In float32 on a CPU that takes a third of the time and memory. Elsewhere the
    two layers run unchanged, a few images at a time: in half precision the partial sums would be rounded. The upsampled
    map, the largest of a depth head, is not kept for the backward pass but recomputed there.

    Args:
        x: `(N, C, h, w)`.
        conv: `nn.Conv2d(C, out, 3, padding=1)`.
        size: `(H, W)`, at least `(h, w)`.

    Returns:
        `(N, out, H, W)`, channels last in memory.
    """
    height, width = size
    may_band = x.dtype == conv.weight.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type)
    if not (may_band and x.device.type == "cpu" and may_compose(conv.weight)):

        def as_they_stand(images: Tensor) -> Tensor:
            upsampled = F.interpolate(images, size=size, mode="bilinear", align_corners=True)
            return F.conv2d(upsampled, conv.weight, conv.bias, padding=1)

        if is_traced():
            return as_they_stand(x)
        parts = x.split(max(1, _AT_ONCE // (x.shape[1] * height * width)))
        made = [recomputed(as_they_stand, part) for part in parts]
        return made[0] if len(made) == 1 else torch.cat(made)
    count, _, h, w = x.shape
    channels = conv.out_channels
    rows, columns = _bands(h, height), _bands(w, width)
    # For each row of taps, from the input's channels to (column of taps, output channel).
    taps = [conv.weight[:, :, dy].permute(1, 2, 0).flatten(1) for dy in range(3)]
    out = x.new_empty(count, height, width, channels)
    strips = [(top, min(top + _STRIP, height)) for top in range(0, height, _STRIP)]
    reaches = [_reach(top, bottom, h, height) for top, bottom in strips]
    deepest = max(last - first for first, last in reaches)
    buffer = x.new_empty(3 * deepest * w, 3 * channels)  # shared by all strips: allocation costs as much as the sums
    for image, pixels in zip(x.permute(0, 2, 3, 1), out, strict=True):
        for (top, bottom), (first, last) in zip(strips, reaches, strict=True):
            depth = last - first
            mixed = buffer[: 3 * depth * w].view(3, depth * w, 3 * channels)
            for dy in range(3):
                torch.mm(image[first:last].reshape(depth * w, -1), taps[dy], out=mixed[dy])
            band = rows[:, top:bottom, first:last].transpose(0, 1).flatten(1)
            strip = (band @ mixed.view(3 * depth, -1)).view(bottom - top, 3 * w, channels)
            for left in range(0, width, _STRIP):
                right = min(left + _STRIP, width)
                start, end = _reach(left, right, w, width)
                band = columns[:, left:right, start:end].permute(1, 2, 0).flatten(1)
                torch.matmul(band, strip[:, 3 * start : 3 * end], out=pixels[top:bottom, left:right])
    if conv.bias is not None:
        out += conv.bias
    return out.permute(0, 3, 1, 2)


def recomputed(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return `function(x)`; activations that its last layer needs for the backward pass are recomputed from `x`."""
    if not torch.is_grad_enabled() or is_traced():  # a compiler decides itself what to keep
        return function(x)
    return checkpoint(function, x, use_reentrant=False, preserve_rng_state=False)


@lru_cache(maxsize=8)  # enough for two image sizes; a large one takes 20 MB
def _bands(length: int, upsampled: int) -> Tensor:
    """Return `(3, upsampled, length)`: the weights of each pixel on the map for each tap; beyond the edge, zeros."""
    identity = torch.eye(length, dtype=torch.float32, device="cpu")
    weights = F.interpolate(identity[None], size=upsampled, mode="linear", align_corners=True)[0].T
    padded = F.pad(weights, (0, 0, 1, 1))
    return torch.stack([padded[tap : tap + upsampled] for tap in range(3)])


def _reach(start: int, end: int, length: int, upsampled: int) -> tuple[int, int]:
    """Return the range of map pixels that the upsampled pixels `start` to `end` read, with a margin of one."""
    scale = (length - 1) / max(upsampled - 1, 1)
    return max(int((start - 1) * scale) - 1, 0), min(int(end * scale) + 3, length)


def is_traced() -> bool:
    """Return whether a compiler or an exporter is tracing."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


class ComposedConvolution:
    """`conv(up(x))` for a transposed convolution whose stride is its kernel size k, and a 3x3 convolution without bias.

    Both are linear, so together they are one transposed convolution with a kernel of k + 2. On a token grid it needs
    (k + 2)^2 products a token and channel pair, where the 3x3 convolution on the upsampled map needs 9 k^2. Composing
    the kernel costs about as much as it saves on two images of 15x20 tokens, so it is cached until one of the two
    weights changes. For inference only: gradients pass through the two original layers.

    Args:
        up: `nn.ConvTranspose2d(c, c, k, stride=k)`.
        conv: `nn.Conv2d(c, out, 3, padding=1, bias=False)`.
    """

    def __init__(self, up: nn.ConvTranspose2d, conv: nn.Conv2d):
        self.up, self.conv = up, conv
        self.made_of: tuple[Any, ...] = ()
        self.kernel = self.bias = torch.empty(0)

    def __call__(self, x: Tensor) -> Tensor:
        """Map `(N, c, h, w)` to `(N, out, k h, k w)`."""
        weights: tuple[Any, ...] = (self.up.weight, self.up.bias, self.conv.weight)
        made_of = tuple((w, w._version, w.data_ptr()) for w in weights)
        if not _same(made_of, self.made_of):
            self._compose()
            self.made_of = made_of
        kernel, bias = self.kernel.to(x.dtype), self.bias.to(x.dtype)
        inner = bias[:, 1, 1]
        y = F.conv_transpose2d(x, kernel, inner.contiguous(), stride=self.up.stride, padding=1)
        # Beyond the map `conv` sees zeros, not the bias of `up`, so the bias contributes differently at edges and
        # corners.
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
    """Return whether these are the same tensors, unmodified since."""
    return len(one) == len(other) and all(a[0] is b[0] and a[1:] == b[1:] for a, b in zip(one, other, strict=True))


def may_compose(*weights: Tensor) -> bool:
    """Return whether layers can be composed now: no gradients, no tracing, and plain weights that stay in place.

    Only on a CPU: on a GPU the many small kernels for the edges cost as much as the products save.
    """
    return (
        ENABLED
        and all(w.device.type == "cpu" and type(w.data) is Tensor and not w.is_inference() for w in weights)
        and not (torch.is_grad_enabled() or is_traced())
        # Sharded weights exist only during a layer's call.
        and not (torch.distributed.is_available() and torch.distributed.is_initialized())
    )
