"""Attacks on a running server, in small: each with a polite client beside it.

    pytest -q -m attacks

The whole server with the real weights. The polite client asks for `/health` all the time, and what
is held is that it never waits long, that memory comes back, and that the attack gets its 4xx. The
limits here are wide, since a test machine may be crowded; the figures of a quiet one are printed.
"""
