"""The networks whose latencies on Jetsons are published, untrained, to count what each of their kernels does.

Only shapes matter: the weights are random. Each is written down from its paper; the comment has the multiply-adds that
the paper, or the implementation that was timed, states at that size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def cbr(
    a: int, b: int, k: int = 3, s: int = 1, g: int = 1, act: Callable[[], nn.Module] | None = nn.ReLU
) -> nn.Sequential:
    """Convolution, batch normalisation, activation."""
    layers: list[nn.Module] = [nn.Conv2d(a, b, k, s, k // 2, groups=g, bias=False), nn.BatchNorm2d(b)]
    return nn.Sequential(*layers, *([act()] if act else []))


class Sum(nn.Module):
    """Branches added up, then an activation."""

    def __init__(self, *branches: nn.Module, act: Callable[[], nn.Module] = nn.Identity) -> None:
        super().__init__()
        self.branches, self.act = nn.ModuleList(branches), act()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(sum(branch(x) for branch in self.branches))


class Cat(nn.Module):
    """Branches side by side in the channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def head(channels: int, classes: int = 1000) -> list[nn.Module]:
    """Average pooling and a linear layer."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]


def resnet(counts: tuple[int, ...], bottleneck: bool) -> nn.Module:
    """He et al., arXiv 1512.03385."""
    layers: list[nn.Module] = [cbr(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    c = 64
    for i, count in enumerate(counts):
        width = 64 * 2**i
        out = width * (4 if bottleneck else 1)
        for j in range(count):
            s = 2 if j == 0 and i else 1
            body = (
                nn.Sequential(cbr(c, width, 1), cbr(width, width, 3, s), cbr(width, out, 1, act=None))
                if bottleneck
                else nn.Sequential(cbr(c, width, 3, s), cbr(width, out, 3, act=None))
            )
            short = nn.Identity() if c == out and s == 1 else cbr(c, out, 1, s, act=None)
            layers.append(Sum(body, short, act=nn.ReLU))
            c = out
    return nn.Sequential(*layers, *head(c))


def vgg16() -> nn.Module:
    """Simonyan and Zisserman, arXiv 1409.1556."""
    layers: list[nn.Module] = []
    c = 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(c, width, 3, padding=1), nn.ReLU()]
            c = width
        layers.append(nn.MaxPool2d(2))
    fc = [nn.Flatten(), nn.Linear(25088, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1000)]
    return nn.Sequential(*layers, *fc)


def squeezenet() -> nn.Module:
    """SqueezeNet 1.1, Iandola et al., arXiv 1602.07360."""

    def fire(a: int, s: int, e: int) -> nn.Module:
        squeeze = nn.Sequential(nn.Conv2d(a, s, 1), nn.ReLU())
        one = nn.Sequential(nn.Conv2d(s, e, 1), nn.ReLU())
        three = nn.Sequential(nn.Conv2d(s, e, 3, padding=1), nn.ReLU())
        return nn.Sequential(squeeze, Cat(one, three))

    pool = lambda: nn.MaxPool2d(3, 2, ceil_mode=True)  # noqa: E731
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, 2), nn.ReLU(), pool(), fire(64, 16, 64), fire(128, 16, 64), pool(), fire(128, 32, 128),
        fire(256, 32, 128), pool(), fire(256, 48, 192), fire(384, 48, 192), fire(384, 64, 256), fire(512, 64, 256),
        nn.Conv2d(512, 1000, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


def densenet121() -> nn.Module:
    """Huang et al., arXiv 1608.06993."""

    def pre(a: int, b: int, k: int) -> nn.Sequential:
        return nn.Sequential(nn.BatchNorm2d(a), nn.ReLU(), nn.Conv2d(a, b, k, padding=k // 2, bias=False))

    layers: list[nn.Module] = [cbr(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    c = 64
    for i, count in enumerate((6, 12, 24, 16)):
        for _ in range(count):
            layers.append(Cat(nn.Identity(), nn.Sequential(pre(c, 128, 1), pre(128, 32, 3))))
            c += 32
        if i < 3:
            layers += [pre(c, c // 2, 1), nn.AvgPool2d(2)]
            c //= 2
    return nn.Sequential(*layers, nn.BatchNorm2d(c), nn.ReLU(), *head(c))


def inverted(a: int, b: int, k: int, s: int, t: int, act: Callable[[], nn.Module] = nn.ReLU6) -> nn.Module:
    """An inverted residual block (Sandler et al., arXiv 1801.04381, figure 3)."""
    hidden = a * t
    body = nn.Sequential(
        *([cbr(a, hidden, 1, act=act)] if t > 1 else []),
        cbr(hidden, hidden, k, s, hidden, act),
        cbr(hidden, b, 1, act=None),
    )
    return Sum(nn.Identity(), body) if a == b and s == 1 else body


def mobilenet_v2() -> nn.Module:
    """Sandler et al., arXiv 1801.04381, table 2."""
    layers: list[nn.Module] = [cbr(3, 32, 3, 2, act=nn.ReLU6)]
    c = 32
    for t, out, n, s in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for i in range(n):
            layers.append(inverted(c, out, 3, s if i == 0 else 1, t))
            c = out
    return nn.Sequential(*layers, cbr(c, 1280, 1, act=nn.ReLU6), *head(1280))


def mnasnet() -> nn.Module:
    """MnasNet-B1, Tan et al., arXiv 1807.11626."""
    layers: list[nn.Module] = [cbr(3, 32, 3, 2), cbr(32, 32, 3, 1, 32), cbr(32, 16, 1, act=None)]
    c = 16
    for t, out, n, s, k in (
        (3, 24, 3, 2, 3),
        (3, 40, 3, 2, 5),
        (6, 80, 3, 2, 5),
        (6, 96, 2, 1, 3),
        (6, 192, 4, 2, 5),
        (6, 320, 1, 1, 3),
    ):
        for i in range(n):
            layers.append(inverted(c, out, k, s if i == 0 else 1, t, nn.ReLU))
            c = out
    return nn.Sequential(*layers, cbr(c, 1280, 1), *head(1280))


class Shuffle(nn.Module):
    """A ShuffleNet V2 unit (Ma et al., arXiv 1807.11164, figure 3)."""

    def __init__(self, a: int, b: int, s: int) -> None:
        super().__init__()
        h, self.s = b // 2, s
        self.left = nn.Sequential(cbr(a, a, 3, s, a, None), cbr(a, h, 1)) if s > 1 else nn.Identity()
        c = a if s > 1 else h
        self.right = nn.Sequential(cbr(c, h, 1), cbr(h, h, 3, s, h, None), cbr(h, h, 1))

    def forward(self, x: Tensor) -> Tensor:
        a, b = (x, x) if self.s > 1 else x.chunk(2, 1)
        y = torch.cat([self.left(a), self.right(b)], 1)
        n, c, h, w = y.shape
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def shufflenet_v2() -> nn.Module:
    """Ma et al., arXiv 1807.11164, table 5, 1x."""
    layers: list[nn.Module] = [cbr(3, 24, 3, 2), nn.MaxPool2d(3, 2, 1)]
    c = 24
    for out, n in ((116, 4), (232, 8), (464, 4)):
        for i in range(n):
            layers.append(Shuffle(c, out, 2 if i == 0 else 1))
            c = out
    return nn.Sequential(*layers, cbr(c, 1024, 1), *head(1024))


class LiteAttention(nn.Module):
    """Multi-scale linear attention (Cai et al., EfficientViT, arXiv 2205.14756), heads of 16 (B1) or 32 channels."""

    def __init__(self, c: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.qkv = nn.Conv2d(c, 3 * c, 1, bias=False)
        self.wide = nn.Sequential(
            nn.Conv2d(3 * c, 3 * c, 5, padding=2, groups=3 * c, bias=False),
            nn.Conv2d(3 * c, 3 * c, 1, groups=3 * c // dim, bias=False),
        )
        self.project = cbr(2 * c, c, 1, act=None)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        qkv = self.qkv(x)
        qkv = torch.cat([qkv, self.wide(qkv)], 1).view(n, -1, 3 * self.dim, h * w).transpose(2, 3)
        q, k, v = qkv.split(self.dim, 3)
        q, k = q.relu(), k.relu()
        v = nn.functional.pad(v, (0, 1), value=1.0)
        out = q @ (k.transpose(2, 3) @ v)
        out = out[..., :-1] / (out[..., -1:] + 1e-6)
        return x + self.project(out.transpose(2, 3).reshape(n, -1, h, w))


def efficientvit(widths: tuple[int, ...], depths: tuple[int, ...], head_widths: tuple[int, int], dim: int) -> nn.Module:
    """Cai et al., arXiv 2205.14756: MBConv stages, then stages of attention and MBConv."""
    act = nn.Hardswish

    def ds(c: int) -> nn.Module:
        return Sum(nn.Identity(), nn.Sequential(cbr(c, c, 3, 1, c, act), cbr(c, c, 1, act=None)))

    def mb(a: int, b: int, s: int) -> nn.Module:
        body = nn.Sequential(cbr(a, 4 * a, 1, act=act), cbr(4 * a, 4 * a, 3, s, 4 * a, act), cbr(4 * a, b, 1, act=None))
        return Sum(nn.Identity(), body) if a == b and s == 1 else body

    layers: list[nn.Module] = [cbr(3, widths[0], 3, 2, act=act), *(ds(widths[0]) for _ in range(depths[0]))]
    c = widths[0]
    for i in (1, 2):
        for j in range(depths[i]):
            layers.append(mb(c, widths[i], 2 if j == 0 else 1))
            c = widths[i]
    for i in (3, 4):
        layers.append(mb(c, widths[i], 2))
        c = widths[i]
        for _ in range(depths[i]):
            layers += [LiteAttention(c, dim), mb(c, c, 1)]
    a, b = head_widths
    return nn.Sequential(
        *layers,
        cbr(c, a, 1, act=act),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(a, b),
        nn.LayerNorm(b),
        act(),
        nn.Linear(b, 1000),
    )


class Split(nn.Module):
    """A cross-stage partial block: half passes, half goes through the bodies one after the other, all are kept."""

    def __init__(self, a: int, b: int, hidden: int, bodies: list[nn.Module]) -> None:
        super().__init__()
        self.enter, self.bodies = cbr(a, 2 * hidden, 1, act=nn.SiLU), nn.ModuleList(bodies)
        self.leave = cbr((2 + len(bodies)) * hidden, b, 1, act=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.enter(x).chunk(2, 1))
        for body in self.bodies:
            parts.append(body(parts[-1]))
        return self.leave(torch.cat(parts, 1))


def _bottleneck(c: int, e: float, residual: bool) -> nn.Module:
    body = nn.Sequential(cbr(c, int(c * e), 3, act=nn.SiLU), cbr(int(c * e), c, 3, act=nn.SiLU))
    return Sum(nn.Identity(), body) if residual else body


class _C3k(nn.Module):
    def __init__(self, c: int, residual: bool) -> None:
        super().__init__()
        h = c // 2
        self.a, self.b, self.c = cbr(c, h, 1, act=nn.SiLU), cbr(c, h, 1, act=nn.SiLU), cbr(c, c, 1, act=nn.SiLU)
        self.m = nn.Sequential(*(_bottleneck(h, 1.0, residual) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.cat([self.m(self.a(x)), self.b(x)], 1))


class _SPPF(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.a, self.b, self.pool = cbr(c, c // 2, 1, act=nn.SiLU), cbr(2 * c, c, 1, act=nn.SiLU), nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.a(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        return self.b(torch.cat(parts, 1))


class _Attention(nn.Module):
    """YOLO11's position-sensitive attention."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.heads = max(c // 64, 1)
        self.qkv, self.pe, self.project = cbr(c, 2 * c, 1, act=None), cbr(c, c, 3, 1, c, None), cbr(c, c, 1, act=None)
        self.ffn = nn.Sequential(cbr(c, 2 * c, 1, act=nn.SiLU), cbr(2 * c, c, 1, act=None))

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        d = c // self.heads
        q, k, v = self.qkv(x).view(n, self.heads, 2 * d, h * w).split([d // 2, d // 2, d], 2)
        attention = ((q.transpose(2, 3) @ k) * d**-0.5).softmax(3)
        y = (v @ attention.transpose(2, 3)).view(n, c, h, w) + self.pe(v.reshape(n, c, h, w))
        x = x + self.project(y)
        return x + self.ffn(x)


class _PSA(nn.Module):
    def __init__(self, c: int, count: int) -> None:
        super().__init__()
        h = c // 2
        self.a, self.b = cbr(c, c, 1, act=nn.SiLU), cbr(c, c, 1, act=nn.SiLU)
        self.m = nn.Sequential(*(_Attention(h) for _ in range(count)))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x).chunk(2, 1)
        return self.b(torch.cat([a, self.m(b)], 1))


class Yolo(nn.Module):
    """YOLOv8 or YOLO11 of Ultralytics, from its configuration files: depth and width multiples, highest width."""

    def __init__(self, version: int, depth: float, width: float, highest: int, c3k: bool = False) -> None:
        super().__init__()
        w = lambda c: int(-(-min(c, highest) * width // 8) * 8)  # noqa: E731
        n = lambda k: max(round(k * depth), 1)  # noqa: E731
        silu = nn.SiLU
        eleven = version == 11

        def block(a: int, b: int, k: int, deep: bool, residual: bool, e: float = 0.5) -> nn.Module:
            hidden = int(b * (e if eleven else 0.5))
            if eleven and (deep or c3k):
                return Split(a, b, hidden, [_C3k(hidden, residual) for _ in range(n(k))])
            inner = 0.5 if eleven else 1.0
            return Split(a, b, hidden, [_bottleneck(hidden, inner, residual) for _ in range(n(k))])

        k1, k2 = (2, 2) if eleven else (3, 6)
        c2, c3 = (w(256), w(512)) if eleven else (w(128), w(256))
        e1 = 0.25
        self.p3 = nn.Sequential(
            cbr(3, w(64), 3, 2, act=silu), cbr(w(64), w(128), 3, 2, act=silu), block(w(128), c2, k1, False, True, e1),
            cbr(c2, w(256), 3, 2, act=silu), block(w(256), c3, k2, False, True, e1),
        )  # fmt: skip
        self.p4 = nn.Sequential(cbr(c3, w(512), 3, 2, act=silu), block(w(512), w(512), k2, True, True))
        tail: list[nn.Module] = [
            cbr(w(512), w(1024), 3, 2, act=silu),
            block(w(1024), w(1024), k1, True, True),
            _SPPF(w(1024)),
        ]
        if eleven:
            tail.append(_PSA(w(1024), n(2)))
        self.p5 = nn.Sequential(*tail)
        self.up = nn.Upsample(scale_factor=2)
        k = 2 if eleven else 3
        self.n4 = block(w(1024) + w(512), w(512), k, False, False)
        self.n3 = block(w(512) + c3, w(256), k, False, False)
        self.d4 = cbr(w(256), w(256), 3, 2, act=silu)
        self.m4 = block(w(256) + w(512), w(512), k, False, False)
        self.d5 = cbr(w(512), w(512), 3, 2, act=silu)
        self.m5 = block(w(512) + w(1024), w(1024), k, True, False)
        widths = (w(256), w(512), w(1024))
        boxes, classes = max(16, widths[0] // 4, 64), max(widths[0], 80)
        self.boxes = nn.ModuleList(
            nn.Sequential(cbr(c, boxes, act=silu), cbr(boxes, boxes, act=silu), nn.Conv2d(boxes, 64, 1)) for c in widths
        )
        if eleven:
            sep = lambda a, b: nn.Sequential(cbr(a, a, 3, 1, a, silu), cbr(a, b, 1, act=silu))  # noqa: E731
            self.classes = nn.ModuleList(
                nn.Sequential(sep(c, classes), sep(classes, classes), nn.Conv2d(classes, 80, 1)) for c in widths
            )
        else:
            self.classes = nn.ModuleList(
                nn.Sequential(cbr(c, classes, act=silu), cbr(classes, classes, act=silu), nn.Conv2d(classes, 80, 1))
                for c in widths
            )

    def forward(self, x: Tensor) -> Tensor:
        p3 = self.p3(x)
        p4 = self.p4(p3)
        p5 = self.p5(p4)
        n4 = self.n4(torch.cat([self.up(p5), p4], 1))
        n3 = self.n3(torch.cat([self.up(n4), p3], 1))
        m4 = self.m4(torch.cat([self.d4(n3), n4], 1))
        m5 = self.m5(torch.cat([self.d5(m4), p5], 1))
        out = []
        for level, box, label in zip((n3, m4, m5), self.boxes, self.classes, strict=True):
            out.append(torch.cat([box(level), label(level).sigmoid()], 1).flatten(2))
        return torch.cat(out, 2)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, float]] = {
    # name: (build, size, GFLOP at 2 a multiply-add, as published)
    "resnet18": (lambda: resnet((2, 2, 2, 2), False), 224, 3.64),
    "resnet34": (lambda: resnet((3, 4, 6, 3), False), 224, 7.34),
    "resnet50": (lambda: resnet((3, 4, 6, 3), True), 224, 8.2),
    "resnet101": (lambda: resnet((3, 4, 23, 3), True), 224, 15.6),
    "vgg16": (vgg16, 224, 31.0),
    "squeezenet1_1": (squeezenet, 224, 0.70),
    "densenet121": (densenet121, 224, 5.7),
    "mobilenet_v2": (mobilenet_v2, 224, 0.60),
    "mnasnet1_0": (mnasnet, 224, 0.63),
    "shufflenet_v2": (shufflenet_v2, 224, 0.29),
    "efficientvit_b1": (lambda: efficientvit((16, 32, 64, 128, 256), (1, 2, 3, 3, 4), (1536, 1600), 16), 224, 1.04),
    "efficientvit_b2": (lambda: efficientvit((24, 48, 96, 192, 384), (1, 3, 4, 4, 6), (2304, 2560), 32), 224, 3.2),
    "efficientvit_b3": (lambda: efficientvit((32, 64, 128, 256, 512), (1, 4, 6, 6, 9), (2304, 2560), 32), 224, 8.0),
    "yolov8n": (lambda: Yolo(8, 1 / 3, 0.25, 1024), 640, 8.7),
    "yolo11n": (lambda: Yolo(11, 0.5, 0.25, 1024), 640, 6.5),
    "yolo11s": (lambda: Yolo(11, 0.5, 0.5, 1024), 640, 21.5),
    "yolo11m": (lambda: Yolo(11, 0.5, 1.0, 512, True), 640, 68.0),
    "yolo11x": (lambda: Yolo(11, 1.0, 1.5, 512, True), 640, 194.9),
}
