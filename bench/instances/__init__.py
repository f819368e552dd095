"""An open benchmark of alignment: sixteen pairs of small networks, and the best known of each.

Looking at instances and checking answers needs NumPy and safetensors only. `bench.instances.make`
trained the networks, `bench.instances.solve` has the searches of gpu-align.
"""
