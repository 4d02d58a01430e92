"""A run becomes one ONNX file that says what the training said.

Reading order: ``specs``, ``model`` (the file), ``build`` (making it), ``parity`` (the proof), ``export`` (all of it
in a row), ``publish`` (putting the files in place), ``verify``; what can be done with a file: ``explain``, ``bench``,
``triton`` (for NVIDIA's server, and KServe), ``quantization`` (fewer bits); ``cli`` (the command ``xexport``).
"""
