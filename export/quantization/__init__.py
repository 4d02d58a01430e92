"""INT8 and half precision; start reading in ``quantize``. May import model, build and parity."""
