"""Presets of checkpoints with random weights, a file a family; `shared` has what several use.

A file is named as transformers names the model, and has

    PRESETS: dict[str, dict]                   sizes by name; `dtype` float32 says a tiny one
    tokenizer(preset) -> Tokenizer             trained on the spot
    config(preset, tokenizer) -> dict          config.json
    files(preset, config) -> dict              every other file: JSON as a dict, text as a str

and, where the family's weights ask for them,

    GAINS, STDS, CONSTANTS                     beside those of `shared.weights`
    published(name) -> str                     a tensor's name in the published files
"""
