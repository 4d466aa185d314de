"""Tokens of the frames of a clip in one graph of an encoder of single frames."""
