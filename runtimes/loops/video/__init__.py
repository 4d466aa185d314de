"""Videos that a diffusion model makes: noise to begin with, tiles, files."""
