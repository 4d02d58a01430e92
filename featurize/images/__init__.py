"""From bytes to pixels of the network's size. Imports no other room."""
