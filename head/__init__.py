"""Heads are trained on cached features, in seconds.

Reading order: ``specs`` (what is trained), ``splits`` (on which rows), ``pooling`` (and which of their features),
``cache_rows`` (copied from the file), ``rows`` (in memory or on the disk), ``network`` (the head as a torch module),
``adam``, ``loss``, ``history`` and ``fit`` (the training loop), ``ensemble`` (several heads as one), ``predictions``,
``calibration``, ``metrics``, ``intervals``, ``operating`` and ``assess`` (what it is worth), ``audited`` (what is known
of the data), ``run`` (the run folder) and ``run_writing``, ``plots``, ``mistakes`` and ``report`` (the page), ``train``
(all of it together), ``worker`` (a second process for the slow imports).

What else can be done with heads, each on its own:

- ``crossval`` trains one per fold, in ``crossval_training``, with finished ones in a folder of ``kept`` results;
  ``out_of_fold`` is what they say, ``crossval_table`` and ``crossval_report`` write it, ``crossval_baselines`` tests
  scikit-learn's classifiers on the same folds.
- ``evaluate`` tests one on other images, for which ``backbone`` finds the weights; ``classifier`` is the head for
  scikit-learn.
- ``sweep`` trains many: ``sweep_space`` and ``sweep_optuna`` (which), ``sweep_ranking`` (the best of them),
  ``sweep_results`` (its folder); ``batched`` trains them at once, in ``batched_blocks``:
  ``batched_stack``, ``batched_layers``, ``batched_loss``, ``batched_masks``, ``batched_adam`` and ``batched_program``
  (many heads as one), ``batched_training`` (their loop); ``fused``, ``fused_step``, ``fused_kernels``, ``fused_random``
  and ``fused_vectors`` are its steps compiled by numba.
- ``compare`` holds runs against each other: ``compare_chance`` (whether a difference means anything),
  ``compare_baselines`` (scikit-learn's classifiers), ``compare_table``, ``compare_terminal`` and
  ``compare_page``.
- ``tracking`` tells others of trainings: ``tracking_mlflow`` and ``tracking_tensorboard``.

The command ``xhead`` starts in ``cli``, with ``text`` (how figures are written) and ``cli_options`` (what commands
share); ``cli_train``, ``cli_sweep``, ``cli_crossval``, ``cli_eval`` and ``cli_compare`` are one command each.
"""
