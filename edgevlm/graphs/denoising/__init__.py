"""Diffusion models as static modules."""
