"""``xfeat doctor``: what this machine and this installation can do, and how to repair what they cannot."""
