"""A folder of weights becomes an ONNX graph: knows nothing of requests."""
