"""What the worker costs, measured on the running stack. `benchmarks/run` measures all of it."""
