"""Site `decoder`: visual tokens leave between the layers of the language model."""
