"""Heads are trained on cached features, in seconds.

Reading order: ``specs`` (what is trained), ``data`` (on which rows), ``training`` (one head), ``evaluation`` (what it
is worth), ``runs`` (its folder), ``reports`` (its page), ``train`` (all of it together). What else can be done, each on
its own: ``crossval``, ``evaluate`` (on other images), ``classifier`` (for scikit-learn), ``batched`` and ``sweep``
(many heads), ``compare`` (runs), ``tracking`` (others are told). The command ``xhead`` is ``cli``.
"""
