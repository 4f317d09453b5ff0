"""Around all requests: the app and its routes, the models behind it, and who keeps the accounts.

In: connections, settings and models. Out: a server that listens, with sessions, metrics and logs.
It hands each request down through `contract`, `prompt` and `answer`, and they know nothing of it.
"""
