"""``xfeat audit``: can the figures of a model trained on this data be believed? Start at :mod:`.run`."""
