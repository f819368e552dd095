"""Device kernels, installed as ``gpu_align.kernels``.

The folder keeps device code (Triton, CUDA C++) and the launchers that check, allocate and launch;
policy and loops stay in ``gpu_align``. Importing this package compiles nothing.
"""
