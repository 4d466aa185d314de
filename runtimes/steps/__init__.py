"""The host's work between calls of a denoiser, in numpy: samplers, and rules that spare calls."""
