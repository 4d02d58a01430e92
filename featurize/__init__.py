"""Images go through a frozen EfficientNet once; their features are kept in ``features.h5``.

Reading order: ``errors``, ``specs`` (what is computed), ``console`` (how all four commands talk); ``system`` (the
machine), ``datasets`` (which images), ``images`` (their pixels), ``backbones`` and ``engines`` (the network, and
running it), ``cache`` (the finished file), ``pipeline`` (a run), ``cluster`` (a run on many machines), ``audit``
(whether figures can be believed), ``cli`` (the command ``xfeat``).

Nothing is imported here, so that ``xfeat --help`` answers at once.
"""
