"""Creates insight.safetensors: what InsightFace's own package finds in synthetic images, for tests/insight_test.lua.

Needs numpy 1.26, onnx, onnxruntime, opencv-python-headless 4.9.0.80 and scikit-image from PyPI, and the unpacked source of
insightface 0.7.3:

    python tests/golden/insight.py tests/golden/insight.safetensors insightface-0.7.3/insightface TWINS

TWINS: a folder with det_nano.onnx and lmk_nano.onnx, small networks of the layers of det_10g.onnx and 2d106det.onnx, whose bytes
are kept. Pictures are made by the rule of `picture`.

PICTURE.det, .kps    the faces, best first: x1 y1 x2 y2 score, five points
PICTURE.points       the 106 points of each
PICTURE.chosen       which one LatentSync takes, from 0, and the three points that it aligns by
ties.N.anchors       of drawn maps: grid, row, score, 4 distances, 10 offsets of each anchor that counts; scores often are equal
ties.N.det           what is kept
linear.HxW.HxW       a picture resized by cv2.resize
warp.N.matrix, .cut  a picture warped by cv2.warpAffine
"""

import importlib
import json
import os
import struct
import sys
import types

# With AVX-512, numpy sorts equal scores in a different order; without it, short lists keep their
# order.
os.environ["NPY_DISABLE_CPU_FEATURES"] = "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR"
import cv2
import numpy as np
import onnxruntime

out, package, twins = sys.argv[1:4]
assert cv2.__version__.startswith("4.9."), cv2.__version__
onnxruntime.set_default_logger_severity(4)

# The package's own modules, without the imports of the rest.
for name in ("insightface", "insightface.model_zoo", "insightface.utils", "insightface.data"):
    module = types.ModuleType(name)
    module.__path__ = [package + name[len("insightface"):].replace(".", "/")]
    sys.modules[name] = module
sys.modules["insightface.data"].get_object = None
sys.modules["insightface.utils"].transform = None
sys.modules["insightface.utils"].face_align = importlib.import_module("insightface.utils.face_align")
RetinaFace = importlib.import_module("insightface.model_zoo.retinaface").RetinaFace
Landmark = importlib.import_module("insightface.model_zoo.landmark").Landmark

stored = {}
random = np.random.RandomState(1247)


def picture(height, width, seed):
    """Two waves of triangles in each channel, in whole numbers."""
    y, x, c = np.mgrid[:height, :width, :3].astype(np.int64)
    a = np.abs((x * (3 + seed) + y * 2 + c * 90 + seed * 37) % 510 - 255)
    b = np.abs((y * (5 - seed % 3) - x + c * 60 + 70000) % 510 - 255)
    return ((a * 2 + b) // 3).astype(np.uint8)


class Face(dict):
    def __init__(self, bbox):
        super().__init__()
        self.bbox = bbox


def chosen(det, points):
    """LatentSync's face and its three points."""
    best, most = -1, 0
    for i, row in enumerate(det):
        box = row[:4].astype(np.int_).tolist()
        w, h = box[2] - box[0], box[3] - box[1]
        if w < 50 or h < 80 or w / h > 1.5 or w / h < 0.2 or row[4] < 0.5:
            continue
        if w * h > most:
            best, most = i, w * h
    if best < 0:
        return np.full(7, -1)
    lmk = np.round(points[best]).astype(np.int_)
    means = [lmk[k].mean(0) for k in ([43, 48, 49, 51, 50], list(range(101, 106)), [74, 77, 83, 86])]
    return np.concatenate([[best], np.round(np.array(means)).reshape(-1)])


detector = RetinaFace(f"{twins}/det_nano.onnx")
detector.prepare(-1, input_size=(512, 512), det_thresh=0.5)
landmark = Landmark(f"{twins}/lmk_nano.onnx")
landmark.prepare(-1)
for name in ("det_nano", "lmk_nano"):
    stored[name] = np.fromfile(f"{twins}/{name}.onnx", np.uint8)

for height, width, seed in ((600, 340, 1), (360, 640, 2), (203, 151, 4), (512, 512, 3)):
    frame = picture(height, width, seed)
    det, kps = detector.detect(frame)
    points = np.stack([landmark.get(frame, Face(row[:4])) for row in det]) if len(det) else np.zeros((0, 106, 2), np.float32)
    name = f"{height}x{width}.{seed}"
    stored[f"{name}.det"], stored[f"{name}.kps"], stored[f"{name}.points"] = det, kps, points
    stored[f"{name}.chosen"] = chosen(det, points).astype(np.int32)
    print(name, len(det), stored[f"{name}.chosen"])


class Drawn:
    """Answers as a session does, with maps in which few anchors count."""

    def __init__(self, anchors):
        self.maps = [np.zeros(((512 // s) ** 2 * 2, n), np.float32) for n in (1, 4, 10) for s in (8, 16, 32)]
        for a in anchors:
            for m, first, n in ((0, 2, 1), (1, 3, 4), (2, 7, 10)):
                self.maps[m * 3 + int(a[0])][int(a[1])] = a[first:first + n]

    def run(self, names, feed):
        return self.maps


for k in range(12):
    anchors = []
    for _ in range(random.randint(2, 17)):  # not more, because numpy's order of equal elements is unspecified for longer lists
        grid = random.randint(3)
        row = random.randint((512 // (8, 16, 32)[grid]) ** 2 * 2)
        size = 220 / (8, 16, 32)[grid]
        anchors.append([grid, row, random.randint(6, 10) / 12] + list(random.uniform(0.2, 1, 4) * size) +
                       list(random.uniform(-1, 1, 10) * size))
    anchors = np.unique(np.array(anchors, np.float32), axis=0)
    _, first = np.unique(anchors[:, :2], axis=0, return_index=True)
    anchors = anchors[np.sort(first)]
    detector.session = Drawn(anchors)
    det, _ = detector.detect(np.zeros((411, 733, 3), np.uint8))
    stored[f"ties.{k}.anchors"], stored[f"ties.{k}.det"] = anchors, det
    print("ties", k, len(anchors), len(det))

for (h, w), (nh, nw) in (((61, 47), (33, 20)), ((30, 44), (15, 22)), ((19, 37), (40, 61)), ((90, 21), (14, 50))):
    stored[f"linear.{h}x{w}.{nh}x{nw}"] = cv2.resize(picture(h, w, 1), (nw, nh))
for k in range(4):
    s, a = random.uniform(0.3, 3), random.uniform(-1, 1) * (k % 2)
    c, d = s * np.cos(a), s * np.sin(a)
    matrix = np.array([[c, -d, random.uniform(-9, 20)], [d, c, random.uniform(-9, 20)]])
    stored[f"warp.{k}.matrix"] = matrix.reshape(-1)
    stored[f"warp.{k}.cut"] = cv2.warpAffine(picture(41, 53, 2), matrix, (40, 40), borderValue=0.0)

TYPES = {"float32": "F32", "float64": "F64", "uint8": "U8", "int32": "I32"}
header, place, body = {}, 0, []
# The widest types first, so that every tensor is aligned.
for name in sorted(stored, key=lambda n: (-stored[n].dtype.itemsize, n)):
    data = np.ascontiguousarray(stored[name])
    header[name] = {"dtype": TYPES[str(data.dtype)], "shape": list(data.shape), "data_offsets": [place, place + data.nbytes]}
    place += data.nbytes
    body.append(data.tobytes())
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
with open(out, "wb") as file:
    file.write(struct.pack("<Q", len(text)) + text + b"".join(body))
