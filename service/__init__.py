"""ISLAND 2, the service: numpy, ONNX Runtime and FastAPI. It loads no torch and imports no other room."""

import os

# ONNX Runtime reports how it is used to its makers unless told not to, before it is first imported. A service that
# answers and asks nobody does not.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
