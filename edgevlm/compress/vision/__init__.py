"""Site `vision`: tokens merge between the layers of the encoder."""
