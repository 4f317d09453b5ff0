"""From a plan to an answer: the engine is asked, and its tokens become pieces, chunks and events.

In: a `Plan`. Out: the chunks of a stream, or their fold into one whole answer.
"""
