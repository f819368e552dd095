"""`python -m gpu_align` is `gpu-align`."""

from gpu_align._cli import main

main()
