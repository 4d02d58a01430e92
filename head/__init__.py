"""Heads are trained on cached features, in seconds.

Reading order: ``specs`` (what is trained), ``splits`` (on which rows), ``network`` (the head as a torch module),
``fit`` (the training loop), ``metrics`` (what it is worth), ``run`` (the run folder), ``plots`` and ``report`` (the
page), ``train`` (all of it together), ``cli`` (the command ``xhead``).
"""
