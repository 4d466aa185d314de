"""Site `input`: which frames of a video are shown to the encoder; on the host, without torch."""
