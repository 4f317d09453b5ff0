"""Client libraries and tools, unmodified, against a server of ours; see `run.py`."""
