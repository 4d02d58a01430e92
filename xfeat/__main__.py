"""``python -m xfeat`` is the command ``xfeat``."""

from xfeat.featurize.cli import main

main()
