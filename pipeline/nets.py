"""ONNX nets that are made, not downloaded: stand-ins for the demo, the tests and benchmarks.

All have the interface of the MDX separation nets: `input` and `output`, float32
[batch, 4, 3072, 256]: real and imaginary part of two channels, frequency, time. The same
arguments give the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

CHANNELS, FREQUENCIES, FRAMES = 4, 3072, 256
OPSET = 13
IR_VERSION = 8  # what opset 13 shipped with, so that old and new runtimes read it
SIDE = 3  # of the TFC's convolution kernels
SCALE = 2  # the U-Net's factor between two levels, in frequency and in time

Weights = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a TFC-TDF v2 net; the default is that of UVR-MDX-NET-Inst_HQ_3."""

    blocks: int = 11
    convs: int = 3  # convolutions of one TFC
    growth: int = 48  # channels that each level adds
    bottleneck: int = 8  # factor by which a TDF narrows the frequencies
    gain: float = 0.05  # of the last convolution: makes a random net about as loud as its input


HQ_3 = Shape()
TINY = Shape(blocks=3, convs=1, growth=4, bottleneck=64, gain=40.0)


def passthrough(path: Path) -> None:
    """Writes a net that finds no music: the instrumental is silence, the vocals are the mix."""
    shape = helper.make_node("Shape", ["input"], ["shape"])
    silence = helper.make_node("ConstantOfShape", ["shape"], ["output"])  # zeros, if not told
    _write(path, [shape, silence], [])


def identity(path: Path) -> None:
    """Writes a net that returns its input: everything is music."""
    _write(path, [helper.make_node("Identity", ["input"], ["output"])], [])


def random_mdx(path: Path, seed: int = 0, *, tiny: bool = False) -> int:
    """Writes a TFC-TDF v2 net with random weights; returns how many parameters it has.

    The architecture is that of KUIELab-MDX-Net (Kim et al., 2021): a U-Net whose blocks are TFC
    (convolutions over time and frequency) plus TDF (two dense layers over frequency), levels
    joined by multiplication, each convolution followed by a batch normalisation (folded into it
    here) and ReLU. It costs what HQ_3 costs; `tiny` is one that tests can run often.
    """
    net = _Net(np.random.default_rng(seed))
    _unet(net, TINY if tiny else HQ_3)
    _write(path, net.nodes, net.weights)
    return sum(int(np.prod(weight.dims)) for weight in net.weights)


@dataclass(slots=True)
class _Net:
    """A graph under construction; each method appends a layer and returns its output's name."""

    random: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)

    def op(self, kind: str, *inputs: str, name: str = "", **attributes: object) -> str:
        name = name or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def weight(self, values: Weights) -> str:
        name = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def drawn(self, *shape: int, fan_in: int, gain: float = 1.0) -> str:
        # He et al., 2015: the size of the activations is kept through a ReLU.
        values = self.random.standard_normal(shape, dtype=np.float32)
        return self.weight(values * np.float32(gain * np.sqrt(2 / fan_in)))

    def conv(self, x: str, c_in: int, c_out: int, side: int, stride: int = 1) -> str:
        kernel = self.drawn(c_out, c_in, side, side, fan_in=c_in * side * side)
        bias = self.drawn(c_out, fan_in=2, gain=0.1)
        pad = (side - 1) // 2 if stride == 1 else 0
        return self.op("Conv", x, kernel, bias, pads=[pad] * 4, strides=[stride] * 2)

    def deconv(self, x: str, c_in: int, c_out: int) -> str:
        kernel = self.drawn(c_in, c_out, SCALE, SCALE, fan_in=c_in)
        bias = self.drawn(c_out, fan_in=2, gain=0.1)
        return self.op("ConvTranspose", x, kernel, bias, strides=[SCALE] * 2)

    def relu(self, x: str) -> str:
        return self.op("Relu", x)

    def first(self, c_out: int) -> str:
        # The levels multiply, so the net is a polynomial of its input: with the bias stronger
        # than the input it neither explodes nor sinks into (slow) denormal numbers.
        kernel = self.drawn(c_out, CHANNELS, 1, 1, fan_in=CHANNELS, gain=0.02)
        bias = self.drawn(c_out, fan_in=2)
        return self.op("Conv", "input", kernel, bias)

    def dense(self, x: str, f_in: int, f_out: int, channels: int) -> str:
        y = self.op("MatMul", x, self.drawn(f_in, f_out, fan_in=f_in, gain=0.7))
        scale, mean = np.ones(channels, np.float32), np.zeros(channels, np.float32)
        norm = [self.weight(values) for values in (scale, mean, mean, scale)]
        return self.relu(self.op("BatchNormalization", y, *norm))

    def block(self, x: str, channels: int, frequencies: int, shape: Shape) -> str:
        for _ in range(shape.convs):
            x = self.relu(self.conv(x, channels, channels, SIDE))
        narrow = frequencies // shape.bottleneck
        y = self.dense(x, frequencies, narrow, channels)
        y = self.dense(y, narrow, frequencies, channels)
        return self.op("Add", x, y)


def _unet(net: _Net, shape: Shape) -> None:
    levels = shape.blocks // 2
    c, f = shape.growth, FREQUENCIES
    x = net.relu(net.first(c))
    x = net.op("Transpose", x, perm=[0, 1, 3, 2])  # frequency last, where the TDF works
    skips = []
    for _ in range(levels):
        x = net.block(x, c, f, shape)
        skips.append(x)
        x = net.relu(net.conv(x, c, c + shape.growth, SCALE, stride=SCALE))
        c, f = c + shape.growth, f // SCALE
    x = net.block(x, c, f, shape)
    for skip in reversed(skips):
        x = net.relu(net.deconv(x, c, c - shape.growth))
        c, f = c - shape.growth, f * SCALE
        x = net.block(net.op("Mul", x, skip), c, f, shape)
    x = net.op("Transpose", x, perm=[0, 1, 3, 2])
    kernel = net.drawn(CHANNELS, c, 1, 1, fan_in=c, gain=shape.gain)
    net.op("Conv", x, kernel, name="output")


def _write(path: Path, nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto]) -> None:
    shape = ["batch", CHANNELS, FREQUENCIES, FRAMES]
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name in ("input", "output")
    ]
    graph = helper.make_graph(nodes, "mdx", ends[:1], ends[1:], weights)
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="emiliad",
    )
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))
