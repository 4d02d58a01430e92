"""A run becomes one ONNX file that says what the training said.

Reading order: ``metadata`` (what the file says of itself; no torch), ``fused`` (backbone and head as one torch module),
``onnx_file`` (writing it), ``parity`` (proving it), ``export`` (all of it together), ``cli`` (the command ``xexport``).
"""
