"""The Open Inference Protocol, version 2: what clients of KServe and Triton speak."""
