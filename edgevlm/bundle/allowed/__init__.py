"""What the files of a bundle may contain, beside the manifest."""
