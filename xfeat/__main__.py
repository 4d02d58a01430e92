"""``python -m xfeat`` is the command ``xfeat``."""

import sys

# Python has put the current folder first. This package is found already, and no module there is ours.
if not sys.flags.safe_path:
    del sys.path[0]

from xfeat.featurize.cli import main

main()
