"""What docs/families.md says: `records` are measured, `plans` and `types` asked on the spot."""
