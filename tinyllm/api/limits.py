"""What bounds what: the API's limits that no flag sets, with their units and reasons."""

from __future__ import annotations

MiB = 1 << 20

# -- connections and bodies ------------------------------------------------------------------

MAX_CONNECTIONS = 2048  # open at once; fewer where the system lets us have fewer descriptors
MAX_BODIES = 256 * MiB  # of bodies that are being read, or whose requests are being planned
