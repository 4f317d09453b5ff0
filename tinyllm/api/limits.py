"""What bounds what: the API's limits that no flag sets, a line each, with its unit and its reason.

Flags are in `house/settings.py`, waits for peers in `house/clocks.py`. The engine bounds what it
keeps by bytes and pages (`engine/replay.py`, `engine/memory.py`), a template's work is bounded in
`text/bounds.py`, and a look's numbers in `inside/look.py`. The API's page shows all of these lines.
"""

from __future__ import annotations

KiB, MiB, GiB = 1 << 10, 1 << 20, 1 << 30

# -- connections and bodies

MAX_CONNECTIONS = 2048  # connections; fewer where the system gives us fewer descriptors
BACKLOG = 2048  # connections that the system keeps until we accept them
ACCEPTED_AT_ONCE = 8  # of those, before the ones without a place are closed: descriptors remain
SPARE_DESCRIPTORS = 64  # descriptors that aren't for connections: files, images, the access log
MAX_READ = 64 * KiB  # read from a connection at a time: in chunks of one byte 150 ms of work
COSTLY_READ = 0.01  # seconds of the event loop for one read; an image's 64 KiB take some 50 µs
REST_AFTER_READ = 4  # times as long as a costly read took is its connection left alone
MAX_BODIES = 256 * MiB  # of all bodies that are being read, or whose requests are being planned
MAX_BODY_TEXT = 4 * MiB  # of a body without its images: many contexts of text
BIG_BODY = 64 * KiB  # of a body; reading more than that leaves the event loop alone

# -- JSON, before it is parsed

MAX_DEPTH = 64  # levels of objects and lists
MAX_MARKS = 150_000  # commas and opening brackets of a document, which bound its values
MAX_CONTAINERS = 20_000  # objects and lists of a document
MAX_ENTRIES = 4096  # entries of one object or list; of numbers there may be more
MAX_INT = 2**63 - 1  # the largest whole number: a signed 64-bit integer's
MAX_INT_DIGITS = 19  # digits of a whole number
READ_TWICE = 1 * MiB  # letters of a broken document in which the fault's field is looked for

# -- what one request may ask for

MAX_PROMPT_LIST = 128  # prompts of a text completion
MAX_PROMPTS_TOGETHER = 65_536  # tokens of all its prompts: minutes of work, whoever waits for it
PROMPTS_AT_ONCE = 8  # prompts of one request that wait or run in the engine; the others follow
MAX_TOOLS = 128  # tools of a request, as OpenAI has it
MAX_FUNCTION_NAME = 64  # letters of a function's name, its namespace's included
MAX_STOPS = 4  # stop strings, as OpenAI has it
MAX_STOP_IDS = 64  # token ids that end an answer
MAX_TOP_LOGPROBS = 20  # likeliest tokens shown a position, as OpenAI has it
MAX_CALLS = 8  # parallel calls in one answer
MAX_NAMES_HEADER = 1000  # letters of a header that lists ignored or relaxed fields
MAX_QUOTED = 80  # letters of a caller's own words in an error
MAX_ERROR = 1000  # letters of an error's message
PAGE = 20  # items of a response's input in a list, as OpenAI has it
MAX_PAGE = 100  # items of such a list, if more are asked for

# -- looks inside

MAX_HEADS = 64  # heads of one layer, in a trace or a look
MAX_INSIDE = 128  # steps of a request, over all its choices, that a trace looks into
MAX_INSIDE_PROMPT = 4096  # prompt tokens, times n, that a trace looks into: 190 MB of KV caches
MAX_LOOK_TOKENS = 8192  # tokens of a text that is looked at; the context may be shorter
MAX_LOOK_CANDIDATES = 50  # likeliest tokens of a look
MAX_LOOK_PARTS = 16  # parts taken out of the model in one look, a forward of a token each
MAX_LOOK_DRAWN = 50  # logits to compare with in one look
LOOKS_TAKEN = 16  # looks under way, of all callers, each on a thread
LOOKS_AT_ONCE = 3  # of those: that fill a text at once, and as many that compute the rest
LONG_LOOK = 1024  # tokens of a text; looks beyond them leave one of those places to others
MAX_LOOK_ROWS = 64  # of an image that are told of in one look

# -- schemas and grammars

MAX_SCHEMA_BYTES = 256 * KiB  # of all the schemas in a request
MAX_SCHEMA_DEPTH = 48  # levels of a schema
GRAMMAR_SECONDS = 5.0  # seconds of a processor that a grammar may take to compile
GRAMMAR_MEMORY = 1 * GiB  # of address space that it may take meanwhile
GRAMMAR_PATIENCE = 60.0  # seconds until there must be an answer, however busy the machine is
LEAST_DEPTH = 12  # levels of a schema that the shortest text for it is sought in
LEAST_LETTERS = 4096  # letters of that text, about: no answer has room for more
LEAST_WORK = 500_000  # letters and steps of such texts for a schema: a quarter of a second
MAX_COUNTED = 32  # of those texts whose tokens are counted: the longest
MAX_STEPS = 200  # tokens of one try to find a way that closes an answer
MAX_ANSWER = 2048  # tokens of such a way from an answer's start: 0.3 s, on a thread beside it
MAX_TRIED = 12  # tokens whose ways are tried before one answer's token
MAX_SEARCH = 4 * MAX_STEPS  # tokens of all tries: a tenth of a second of the engine's thread
MAX_FAILED = 6  # searches of one answer that find no way

# -- making prompts

MAX_WAITING = 64  # requests of one caller that wait for one kind of preparation
MAX_REQUEST_TAIL = 64  # tokens of the user's last message by which a tool is chosen, from its end
MAX_REQUEST_LETTERS = 4096  # letters of the message that are tokenized for that
MAX_TOOL_FORMS = 16  # tools that are scored one by one; more are scored in so many groups
MAX_TOOL_NAMES = 120  # letters of a group's names; 16 long forms would keep others waiting
MAX_TOOL_WORDS = 300  # letters of a group's descriptions
MAX_LISTED_TOOLS = 16  # tools that a prompt lists; of more, only the likeliest are

# -- images

MAX_IMAGES = 8  # images of a request
MAX_IMAGE_BYTES = 10 * MiB  # of one image, encoded, sent or fetched
MAX_IMAGE_SIDE = 2048  # pixels of the longer side that are kept; the processors look at no more
MAX_IMAGE_URL = 4096  # letters of an address that is fetched
MAX_FETCHES = 8  # fetches at once; more wait their turn
FETCH_SECONDS = 5.0  # seconds from a host's name to the last byte of its image

# -- what is kept, and what waits to be read

MAX_EVENTS = 16_384  # events that a client who doesn't read may have us hold
MAX_LOG_LINES = 10_000  # lines of the access log that wait to be written; more are dropped
MAX_SESSIONS = 1024  # sessions remembered at once
KEPT_REQUESTS = 100  # newest requests of each session
MAX_RESPONSES = 256  # kept responses of a key
MAX_RESPONSE_BYTES = 16 * MiB  # of a key's kept responses, as JSON
KEPT_SECONDS = 24 * 3600.0  # seconds after which an unused session or response is forgotten
