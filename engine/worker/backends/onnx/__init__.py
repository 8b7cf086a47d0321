"""ONNX models through ONNX Runtime: decoders with their past in our own decode loop, encoders for vectors."""
