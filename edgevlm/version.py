"""The version of this package; pyproject.toml and bundles take it from here."""

VERSION = "0.1.0"
