"""The arithmetic. `reference` defines what is right; the compiled modules are held to it.

To read the compiled path, in this order:

    layout.py          how weights, activations and the KV cache lie in memory, and why
    formats.py         f32, bf16, 8 bits, 4 bits: a record each; quantize.py packs and rounds
    jit.py             every kernel as plain loops; jit_attention.py those over the cache
    simd.py            the hot ones again in vectors; simd_attention.py
    vectors.py         sixteen lanes as numba values, bundles.py several of them; emit.py: as LLVM
    processor.py       kinds of processor, and all that differs by kind
    dispatch.py        picks the kernels
    once.py            a kernel optimised once, as a whole, by LLVM
    team.py            a team of threads;  threads.py  how it walks through regions of work
    timeline.py        what each thread of a team did when, measured
    arrays.py          all arrays of a forward pass by name
    forward.py         the whole forward pass, region by region (regions.py); attention.py its
                       hardest part;  parts.py, part_kernels.py  what families add
    experts.py         a layer's MLP where it is experts
    paged.py           the KV cache in pages;  packed.py  weights kept in the kernels' layout
    build.py           how all of it is compiled;  cache.py  where it is kept
    plain_rows.py      a checkpoint's float32 matrices as they lie, for texts looked at
    blas.py            how many threads numpy's own products take beside all this

And how a server calls it, without any of what compiles it:

    machine_code.py    machine code from disk, or else the compiler
    words.py           arguments as C has them;  object_code.py  an object file, linked
    entry.py           the compiler's side: a kernel with an entry for such calls
    apart.py           its largest parts, compiled by another process (beside.py)
    drawing.py         the sampler's kernels, called so;  plain_linear.py  and one product
    ahead.py           both before the first request, by a process of their own

`python -m tinyllm.measure.kernel` shows one of them beside the reference.
"""
