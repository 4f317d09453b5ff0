"""Looking inside a forward pass: hooks, replay of a past step, lens, explanations, saved traces.

In: a readable `Model`, tokens, and a cache of what came before. Out: arrays by name, formulas with
their values, pictures, records. Nothing here decides what is generated; `lab` alone changes what
a forward computes, and says so.
"""
