"""ISLAND 1, the model: torch and timm. It knows no ONNX and no HTTP.

Letters used for dimensions, everywhere:
    B  images in a batch
    N  tokens of an image, prefix tokens (CLS, registers) first
    P  patch tokens of an image, N minus the prefix
    M  kept tokens of a whole batch, flattened; K kept tokens of one image, at most
    C  width    L  layers    h  heads    d  head dimension    H, W  pixels
"""
