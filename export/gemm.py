"""What the machine can do at best: the rate of plain float32 products at a model's shapes, in ONNX Runtime."""

from __future__ import annotations

import time

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from export.to_onnx import OPSET
from models.pruned_vit import PrunedViT


def gemm_gflops(model: PrunedViT, threads: int) -> float:
    """The best rate of a plain float32 product at the model's shapes, in ONNX Runtime, over numbers of rows."""
    width, hidden = model.vit.embed_dim, model.vit.blocks[0].mlp.fc1.out_features
    rng = np.random.default_rng(0)
    best = 0.0
    for inner, outer in ((width, hidden), (hidden, width), (width, 3 * width)):
        weight = helper.make_tensor(
            "w", TensorProto.FLOAT, (inner, outer), rng.standard_normal(inner * outer).astype(np.float32)
        )
        shapes = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", dim])
            for name, dim in (("x", inner), ("y", outer))
        ]
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", shapes[:1], shapes[1:], [weight]
        )
        product = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        session = ort.InferenceSession(product.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for rows in (64, 256, 1024):
            x = rng.standard_normal((rows, inner)).astype(np.float32)
            for _ in range(20):
                start = time.perf_counter()
                session.run(None, {"x": x})
                best = max(best, 2e-9 * rows * inner * outer / (time.perf_counter() - start))
    return best
