"""Between people's text and a model's tokens: spelling, chat templates, and who wrote what.

In: texts, chats, a model folder's small files. Out: strings to encode, bytes of tokens. The ids
themselves are `tinyllm.tokenizer`'s.
"""
