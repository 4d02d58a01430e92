"""Images go through a frozen EfficientNet once; their features are kept in ``features.h5``.

Reading order:

- what is wanted: ``specs`` (what is computed), ``dataset`` (which images), ``sources`` (where their bytes come from:
  a folder or an archive);
- pixels: ``images``, ``plain_png`` and ``dicom`` (from bytes to pixels), ``preprocess`` (to the network's size),
  ``views`` (augmented ones), ``reading`` and ``reading_processes`` (many files, ahead of the network); on a GPU, if
  that is asked for: ``plain_jpeg`` (which files), ``decoding`` and ``decoder_difference`` (in batches, and how far
  off), ``torch_jpeg`` and ``pillow_resize``;
- the network: ``backbones`` and ``weights`` (which one), ``network`` and ``engines`` (running it), ``cores`` and
  ``cuda`` (on what);
- the result: ``cache`` (the finished file), ``columns`` (what it says of each image), ``cache_writing``, ``versions``
  (of the libraries that made it), ``shards`` (of a run that is not finished), ``known`` (finding both again),
  ``atomic`` (files appear whole or not at all), ``locks`` (one process at a time), ``replace`` (what ``--force`` may
  overwrite);
- a run: ``request`` (from options to a spec), ``inference`` (batches on their way through the network), ``compute``
  (the part that costs time), ``extract`` (all of it together);
- other commands: ``groups`` (which images belong together), ``split`` and ``split_files`` (class folders to train,
  valid and test), ``audit`` (whether figures can be believed);
- the command ``xfeat``: ``cli`` and ``cli_data``, on ``console`` (how all four commands talk) and ``errors``.

Nothing is imported here, so that ``xfeat --help`` answers at once.
"""
