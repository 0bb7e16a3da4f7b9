"""EfficientNet-Lite0: what it is made of, and its weights of ImageNet."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lowdim.data import assets

_STAGES = (  # kernel, stride, expansion, channels, blocks
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
_STEM, _TOP = 32, 1280


class SameConv(nn.Conv2d):
    """A convolution whose output is as large as its input over the stride, rounded up; odd padding goes to the end."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [samples, channels, height, width]."""
        sides: list[int] = []
        for size, kernel, stride in zip(reversed(x.shape[2:]), self.kernel_size, self.stride, strict=True):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            sides += [total // 2, total - total // 2]
        return nn.functional.conv2d(
            nn.functional.pad(x, sides), self.weight, self.bias, self.stride, 0, self.dilation, self.groups
        )


def _layer(inside: int, outside: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = SameConv(inside, outside, kernel, stride, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outside, eps=1e-3, momentum=0.01))


class Bottleneck(nn.Module):
    """Widen by 1x1, convolve each channel by itself, narrow by 1x1; a shortcut where the shape stays."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inside * expansion
        self.widen = _layer(inside, wide) if expansion > 1 else None
        self.depthwise = _layer(wide, wide, kernel, stride, groups=wide)
        self.narrow = _layer(wide, outside)
        self.shortcut = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        """Map [samples, inside, height, width]."""
        inner = x if self.widen is None else nn.functional.relu6(self.widen(x))
        found: Tensor = self.narrow(nn.functional.relu6(self.depthwise(inner)))
        return found + x if self.shortcut else found


class EfficientNetLite0(nn.Module):
    """Features of pictures: EfficientNet-B0 without squeezing, with ReLU6 throughout, and without its classifier.

    Papers: "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", 2019, arXiv 1905.11946; the
    variant is its authors' for phones, 2020.

    Attributes:
        width: features of a picture.
    """

    width = _TOP

    def __init__(self) -> None:
        super().__init__()
        self.stem = _layer(3, _STEM, 3, 2)
        made, inside = list[nn.Module](), _STEM
        for kernel, stride, expansion, channels, blocks in _STAGES:
            for number in range(blocks):
                made.append(Bottleneck(inside, channels, kernel, stride if number == 0 else 1, expansion))
                inside = channels
        self.blocks = nn.Sequential(*made)
        self.top = _layer(inside, _TOP)

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures [samples, 3, height, width], (v - 127) / 128 of v in [0, 255], to features [samples, 1280]."""
        x = nn.functional.relu6(self.stem(x))
        x = nn.functional.relu6(self.top(self.blocks(x)))
        return x.mean((2, 3))


def efficientnet_lite0() -> EfficientNetLite0:
    """Return the network with its weights of ImageNet, in evaluation mode, fetching them on first use."""
    stored = torch.load(assets.path("efficientnet-lite0"), map_location="cpu", weights_only=True)
    net = EfficientNetLite0()
    names = {own: theirs for own, theirs in _names(net) if theirs in stored}
    net.load_state_dict({own: stored[theirs] for own, theirs in names.items()})
    return net.eval()


def _names(net: EfficientNetLite0) -> Iterator[tuple[str, str]]:
    """Yield each name of a state and what the file calls it."""
    layers = {"stem": ("_conv_stem", "_bn0"), "top": ("_conv_head", "_bn1")}
    for number, block in enumerate(net.blocks):
        here, there = f"blocks.{number}", f"_blocks.{number}"
        if getattr(block, "widen", None) is not None:
            layers[f"{here}.widen"] = (f"{there}._expand_conv", f"{there}._bn0")
        layers[f"{here}.depthwise"] = (f"{there}._depthwise_conv", f"{there}._bn1")
        layers[f"{here}.narrow"] = (f"{there}._project_conv", f"{there}._bn2")
    for own, (convolution, norm) in layers.items():
        yield f"{own}.0.weight", f"{convolution}.weight"
        for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            yield f"{own}.1.{key}", f"{norm}.{key}"
