"""Decoder layers whose state does not grow: each token changes it, and none can be taken back.

Such a layer is told how many rows of a call belong to the sequence (`LayerCall.count`): rows that
fill a call up have outputs that nobody reads, and must leave no trace in the state.

A target may write the new state over the old one, so a graph reads the old one before it makes the
new one: every reader is an ancestor of it (`trace.check_states`).
"""
