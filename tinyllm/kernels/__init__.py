"""The arithmetic. `reference` defines what is right; the compiled modules are held to it."""
