"""The HTTP server: routes, limits, the inference protocol, the process. May import models and inference."""
