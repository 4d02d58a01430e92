"""A model file answers: on the command line, over HTTP and on a page. Runs where torch is not installed.

Reading order: ``results`` (what an answer is), ``session`` (the model file in onnxruntime), ``buckets`` (sizes of
batches), ``predictor`` (image files to answers; the library; ``export.listing`` finds the files for it), ``heatmap``
(where the network looked, as a picture); then the server: ``spec`` (limits), ``batching`` (images of many requests in
common batches), ``models`` (by name, exchanged in service), ``intake`` and ``uploads`` (what comes in), ``facts`` (what
is told of a model), ``service`` (how a request gets its answers), ``tensors`` and ``protocol`` (Open Inference
Protocol), ``app`` (all routes together), ``schema`` (how they are described), ``access``, ``security``,
``request_log``, ``metrics``, ``site_files`` and ``site`` (the page), ``preview`` (pictures that a browser cannot show),
``slow_clients``, ``server`` (the process); then the page without a server: ``offline_runtime`` (onnxruntime-web),
``offline`` (a static site); ``settings``, ``cli_options``, ``cli_page`` and ``cli`` (the command ``xserve``).
"""
