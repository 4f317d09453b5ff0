"""What may be asked and what is answered: the words that clients and server share.

In: the bytes of a body. Out: a valid request, or an `ApiError` that names the field. Also the
shapes of answers, the two dialects, and the OpenAPI document, which is made from all of it.
"""
