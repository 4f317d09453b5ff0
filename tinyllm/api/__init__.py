"""The chat-completions contract in two dialects over HTTP, in the rooms of a request's way.


    house → contract → prompt → answer → house
    routes  valid?     plan     engine   bytes

`constraints` is what `prompt` and `answer` share: what may come next in an answer. Imports go from
right to left only: `house` knows them all, `contract` and `constraints` know nothing of the rest.
"""
