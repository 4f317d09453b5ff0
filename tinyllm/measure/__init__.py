"""Measuring: speed beside a peer and beside the machine's limits, and what a weight format costs.

Measuring is no arithmetic of the model: nothing that computes imports this room.
"""
