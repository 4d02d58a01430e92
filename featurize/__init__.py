"""Images go through a frozen EfficientNet once; their features are kept in ``features.h5``.

Reading order: ``specs`` (what is computed), ``dataset`` (which images), ``images`` and ``preprocess`` (pixels),
``backbones`` and ``weights`` (which network), ``network`` and ``engines`` (running it), ``shards`` and ``cache``
(keeping the result), ``extract`` (all of it together), ``cli`` (the command ``xfeat``).

Nothing is imported here, so that ``xfeat --help`` answers at once.
"""
