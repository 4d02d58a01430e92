"""Heads are trained on cached features, in seconds.

Reading order: ``specs`` (what is trained), ``splits`` (on which rows), ``network`` (the head as a torch module),
``adam``, ``loss`` and ``fit`` (the training loop), ``predictions``, ``calibration``, ``metrics``, ``operating`` and
``assess`` (what it is worth), ``audited`` (what is known of the data), ``run`` (the run folder), ``plots`` and
``report`` (the page), ``train`` (all of it together), ``worker`` (a second process for the slow imports).
``crossval`` and ``evaluate`` test heads in other ways, ``classifier`` is the head for scikit-learn, ``sweep`` trains
many at once. The command ``xhead`` starts in ``cli``.
"""
