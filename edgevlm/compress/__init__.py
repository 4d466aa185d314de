"""Token reduction, one file per method.

A method file has `SOURCE`, `SUMMARY`, `FORMULA`, `STATIC`, `DIFFERS` and a class for each site
where it works:

    tokens   Method          `plan`: how many tokens are kept; called with features, gives the kept
                             tokens and their positions
    vision   EncoderMethod   `plan`: how many tokens are left after each layer of the encoder;
                             called with a layer's tokens, gives fewer, and what became of each
    decoder  DecoderMethod   `plan`: how many visual tokens each layer of the language model sees;
                             called with a look at a layer, says which stay
"""
