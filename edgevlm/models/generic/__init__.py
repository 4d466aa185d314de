"""The path of model types without a family file: `family` has a family's names."""
