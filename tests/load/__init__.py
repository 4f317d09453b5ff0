"""Load, soak and fault scripts: they talk to a running server over real sockets.

    python -m tests.load                    throughput and latencies; --help for peers and mixes
    python -m tests.load.overhead           the server beside the engine called directly
    python -m tests.load.soak --minutes 20  floods, disconnects and broken bodies, with memory
    python -m tests.load.turns              the second turn of a conversation beside a cold start
    python -m tests.load.stall              what a 4,000-token prompt does to other streams

Each has a short version in the test-suite (tests/test_load.py).
"""
