"""ISLAND 2, the service: numpy, ONNX Runtime and FastAPI. It loads no torch and imports no other room."""
