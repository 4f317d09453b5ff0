"""The arithmetic. `reference` defines what is right; the compiled modules are held to it.

To read the compiled path, in this order:

    layout.py     how weights and activations lie in memory, and why
    quantize.py   the formats: f32, bf16, 8 bits, 4 bits
    jit.py        every kernel as plain loops
    simd.py       the hot ones again in vectors; vectors.py makes vectors for numba
    threads.py    a team of threads that walks through regions of work together
    forward.py    the whole forward pass over these; dispatch.py picks the kernels
    paged.py      the KV cache in pages;  packed.py  weights kept in the kernels' layout
    build.py      how all of it is compiled and kept;  machine.py  the limits it is held to

`python -m tinyllm.measure.kernel` shows one of them beside the reference.
"""
