"""Many requests, one model: continuous batching over one thread that owns the weights.

In: a `Request` (prompt ids, how to sample, when to end), submitted from any thread. Out: events
(`Started`, `Token` …, `Finished`, `Done`), told to the request's listener step by step. All of
`types` crosses that line; the rest is inside. A step's way: `scheduler` plans it, `caches` give it
memory, `forward` runs the model, `sampling` draws, `engine` tells.
"""
