"""Parts of `benchmarks.gpu_suite`, and what can be read from a GPU's program without a GPU."""
