"""The same dense ONNX model behind other servers, measured by the same harness in the same run.

`dense.py` is what they all share: same decoding, same runtime, same threads. Each `*_app.py` is one server with dynamic
batching at its best documented setting; they run in an environment of their own and import nothing else from here.
"""
