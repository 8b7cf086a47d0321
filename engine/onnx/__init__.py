"""ONNX files made and judged: export of checkpoints, quantization, agreement with what they were made of.

    export      a checkpoint to ONNX through optimum
    quantizing  an ONNX model to a smaller one through ONNX Runtime's tools
    folder      the files of a model's folder, and how a graph is written
    probe       what a graph answers to the probe text
    scoring     perplexity and speed of a decoder

Running for clients is `lathe.engine.worker.backends.onnx`, whose session this shares. Invariant: no code of a
checkpoint ever runs, and nothing is published that does not agree with its source.
"""
