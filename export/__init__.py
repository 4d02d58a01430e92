"""A run becomes one ONNX file that says what the training said.

Reading order: ``metadata`` (what the file says of itself; no torch), ``outputs`` (what it gives), ``specs``; the model:
``dense_head``, ``distance``, ``fused`` (all of it as one torch module), ``resize_graph``, ``onnx_file`` (writing it),
``opset``; ``onnx_session`` (opening it, on a CPU or a GPU), ``bound_session`` (running it on a GPU); the proof:
``thinning`` (how many images), ``steps`` (how far it is), ``parity``, ``certificate``, ``ingredients`` (what an export
needs of a run), ``together`` (putting the files in place), ``export`` (all of it in a row), ``verify``; what can be
done with a file: ``model_file``, ``listing`` (which files a command line means), ``overlay``, ``bench``, ``triton``
(for NVIDIA's server, and KServe); fewer bits, where ``quantize`` is the story to start at: ``worth``, ``gate``,
``half_precision``, ``int8``, ``graph``, ``equalise``, ``stem``, ``rounding``, ``error_feedback``, ``first_matrix``,
``qdq``, ``float_layers``;
``cli_options``, ``cli`` (the command ``xexport``), ``cli_bench``, ``cli_quantize``, ``cli_triton``.
"""
