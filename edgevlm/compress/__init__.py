"""Token reduction: a folder for each site, a file for each method that works there.

    input    before the encoder: which frames of a video it sees; on the host, without torch
    vision   inside the encoder: tokens merge between its layers
    tokens   between encoder and language model: N features become K visual tokens
    decoder  inside the language model: visual tokens leave between its layers

A method file has `SOURCE`, `SUMMARY`, `FORMULA`, `STATIC`, `DIFFERS` and a class `Method`, whose
contract is in `shared/contract.py`, that of site `input` in `runtimes/loops/images/picking.py`. A
method that works at two sites is two files of one name.
"""
