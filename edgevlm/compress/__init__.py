"""Token reduction, one file per method.

A method file has `SITE`, `SOURCE`, `SUMMARY`, `DIFFERS` and a class `Method` with `plan` (how many
tokens are kept) and `__call__` (features in, kept tokens and their positions out).
"""
