"""Questions with known answers, a file a dataset: `edgevlm evaluate --dataset NAME[:PATH]`.

A dataset module has `SUMMARY` (one line), `PATH` (what PATH must be, or None if it takes none) and
`examples(path, frames, limit)`, which yields `evaluation.examples.Example`s in a fixed order.
`ENDINGS`, if it has one, are the endings of files that it reads without `NAME:`.
"""
