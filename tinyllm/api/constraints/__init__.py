"""What may come next in an answer: thinking budgets, grammars, calls of tools, stop strings.

In: what a request demands of its answer, and each token that was drawn. Out: masks and forced
tokens for the sampler. Both sides of the engine use it, the plan before and the reader after, and
it knows neither.
"""
