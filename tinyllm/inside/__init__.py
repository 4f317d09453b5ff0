"""Looking inside a forward pass: hooks, replay of a past step, lens, explanations, saved traces.

    points.py      every hook point, a row each          formulas.py        how each number is made
    hooks.py       a user's functions at these points    breakage.py        a wrong formula there
    forwards.py    a session's forwards, run and rerun   rerun.py           what a step shows
    replay.py      one token's forward, recorded         causal.py          parts taken out in turn
    explain.py     one number as its formula             explain_choice.py  and what the sampler did
    lab.py         classic mistakes, found               trace_file.py      what outlives a session

In: a readable `Model`, tokens, and a cache of what came before. Out: arrays by name, formulas with
their values, pictures, records. Nothing here decides what is generated. Hooks and breakages change
what a forward computes, and only the forward that they are given to.
"""
