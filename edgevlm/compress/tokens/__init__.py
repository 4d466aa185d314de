"""Site `tokens`: N features of the encoder become K visual tokens before the language model."""
