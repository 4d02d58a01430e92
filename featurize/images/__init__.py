"""Image bytes to pixels of the network's input size. Of other rooms, it imports only ``system``."""
