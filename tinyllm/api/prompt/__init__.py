"""From a valid request to a plan: the prompt, how it is sampled, and what the answer must fit.

In: a request of the `contract`, and the model that it names. Out: a `Plan`, all that is settled
before the first token. Images are fetched here, templates rendered, and whether a tool is called
is decided.
"""
