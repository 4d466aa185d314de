"""Token reduction: a folder for each site, a file for each method that works there.

    tokens   between encoder and language model: N features become K visual tokens
    vision   inside the encoder: tokens merge between its layers
    decoder  inside the language model: visual tokens leave between its layers

A method file has `SOURCE`, `SUMMARY`, `FORMULA`, `STATIC`, `DIFFERS` and a class `Method`, whose
contract is in `shared/contract.py`. A method that works at two sites is two files of one name.
"""
