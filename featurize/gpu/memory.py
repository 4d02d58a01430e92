"""Recognises the errors by which libraries say that GPU memory is full. They have no type in common, only texts."""

from __future__ import annotations

import re

# Sources: the strings of libtorch_cuda.so, libc10_cuda.so (torch 2.14), libcudnn_graph.so (cuDNN 9.24) and
# libonnxruntime_providers_cuda.so (1.31). tests/featurize/gpu/test_memory.py has whole messages.
_OUT_OF_MEMORY = re.compile(
    r"out of memory|cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY"  # CUDA, and torch's allocator
    r"|_ALLOC(ATION)?_FAILED"  # cuBLAS, cuDNN, cuSOLVER
    r"|(GET|FIND) was unable to find an engine"  # torch: none of cuDNN's plans got its workspace
    r"|_STATUS_(NOT_INITIALIZED|INTERNAL_ERROR)\b.*cu(blas|dnn)\w*Create\("  # a handle got none
    r"|Failed to allocate memory for requested buffer|Available memory of \d+ is smaller than",  # onnxruntime's arena
    re.DOTALL,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether GPU memory ran out, in torch, in onnxruntime or in a library below them."""
    return _OUT_OF_MEMORY.search(str(error)) is not None
