"""ISLAND 2, the service: numpy, ONNX Runtime and FastAPI. It imports no other room, and no torch unless TorchScript is
what it is told to serve from.
"""

import os

# ONNX Runtime reports how it is used to its makers unless told not to, before it is first imported. A service that
# answers and asks nobody does not.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
