"""What a site asks of a model before a method is planned there."""
