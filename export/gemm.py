"""What the machine can do at best: plain float32 products at a model's shapes, and all of its layers', in ONNX Runtime.

The first are of one matrix again and again, which then lies in the cache; the second go through all weights in turn, as
a run must.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import numpy as np
import onnxruntime as ort
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor, nn
from tqdm import tqdm

from export.rivals import Answer, Pixels, Rival, constant, session
from export.to_onnx import OPSET, trace
from models.backbone import reads_prefix_only
from models.checkpoint import at_size
from models.pruned_vit import PrunedViT

PRODUCTS = "products"


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
        alone = ort.InferenceSession(product.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for rows in (64, 256, 1024):
            x = rng.standard_normal((rows, inner)).astype(np.float32)
            for _ in range(20):
                start = time.perf_counter()
                alone.run(None, {"x": x})
                best = max(best, 2e-9 * rows * inner * outer / (time.perf_counter() - start))
    return best


class LayerProducts(nn.Module):
    """The products of a dense model's layers with their weights, and nothing else: tokens (B, N, C) -> (1, anything).

    A layer's products read the same rows, fc2 those of fc1; a row of each is given, so that none is left out.
    """

    def __init__(self, model: PrunedViT) -> None:
        super().__init__()
        self.vit = model.vit
        self.shape = model.vit.num_prefix_tokens + model.patches, model.vit.embed_dim  # of an image's tokens

    def forward(self, tokens: Tensor) -> Tensor:
        every, given = tokens.flatten(0, 1), []
        for block in self.vit.blocks:
            rows = every
            if self._reads_prefix(block):  # queries and all that follows of the prefix alone, as in the dense graph
                rows = tokens[:, : self.vit.num_prefix_tokens].flatten(0, 1)
                query, key_value = block.attn.qkv.weight.split([rows.shape[1], 2 * rows.shape[1]])
                given += [F.linear(rows, query)[:1], F.linear(every, key_value)[:1]]
            else:
                given.append(block.attn.qkv(rows)[:1])
            given += [block.attn.proj(rows)[:1], block.mlp.fc2(block.mlp.fc1(rows))[:1]]
        return torch.cat(given, 1)

    def macs(self) -> int:
        """MACs of one image at the model's input size."""
        (tokens, width), total = self.shape, 0
        for block in self.vit.blocks:
            rows = self.vit.num_prefix_tokens if self._reads_prefix(block) else tokens
            total += 2 * tokens * width**2 + 2 * rows * width * (width + block.mlp.fc1.out_features)
        return total

    def _reads_prefix(self, block: nn.Module) -> bool:
        return block is self.vit.blocks[-1] and reads_prefix_only(self.vit)


def layer_products(model: PrunedViT, sizes_px: Sequence[int], threads: int) -> Iterator[Rival]:
    """What the products of the dense model's layers take alone, at each input size: a bound for float32 here."""
    for size_px in tqdm(sizes_px, desc="exporting products", leave=False):
        products = LayerProducts(at_size(model, size_px)).eval()
        graph = trace(products, (torch.zeros(3, *products.shape),), (("tokens",), ("rows",)))
        run = _on_any_tokens(session(graph.SerializeToString(), threads), products.shape)
        yield Rival(PRODUCTS, "ONNX Runtime, products alone", size_px, constant(products.macs()), run)


def _on_any_tokens(made: ort.InferenceSession, shape: tuple[int, int]) -> Callable[[Pixels], Answer]:
    """Runs on as many tokens as the images have, whatever they show."""

    @cache
    def tokens(images: int) -> NDArray[np.float32]:
        return np.random.default_rng(0).standard_normal((images, *shape), np.float32)

    return lambda images: Answer(made.run(None, {"tokens": tokens(len(images))})[0])
