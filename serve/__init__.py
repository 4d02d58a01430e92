"""A model file answers: on the command line, over HTTP and on a page. Runs where torch is not installed.

Reading order: ``results`` (what an answer is), ``session`` (the model file in onnxruntime), ``predictor`` (image files
to answers; the library), ``spec`` (limits of a server), ``batching`` (images of many requests in common batches),
``uploads`` (what comes in), ``metrics``, ``security``, ``site`` (the page), ``protocol`` (Open Inference Protocol),
``app`` (all routes together), ``server`` (the process), ``cli`` (the command ``xserve``).
"""
