"""``xfeat audit``: can figures measured on this data be believed? ``run`` is where to start reading."""
