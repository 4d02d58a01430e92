"""INT8 and half precision; ``quantize`` is where to start reading. May import model, build and parity."""
