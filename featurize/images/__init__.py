"""Image bytes to pixels of the network's input size. Imports no other room."""
