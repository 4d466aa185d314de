"""What a bundle can be, a file a kind.

A kind has, for everyone who handles its bundles:

    HOST        the dataclass of the constants that the program around the graphs needs
    STAGES      its stages in the order in which blocks are listed, each a `Stage`
    spans       (host) -> how far the spans of a stage's blocks reach, by stage
    functions   (host, block) -> names of the functions that a block has
    signature   (host, block, function) -> tensors, caches and chaining of a function
    passes      (plan) -> the orders in which a loop runs functions, by name
    check       (plan) -> refuses constants that do not fit each other or their files
    LOOP        module of edgevlm/runtimes/loops that runs such a bundle
    ANSWER      type of its answers, a file of edgevlm/profiling/answers
    turn_bytes  (host) -> bytes that a turn allocates beside its blocks, for a memory budget
    outline     (host) -> the numbers of the host that parity relies on
    facts       (plan) -> what `plan`, `export` and `inspect` say of such a bundle, by JSON key

`signature` is used to write a plan and to check a manifest, so a tensor's name stands in one place.
Numpy alone; neither torch nor any engine.
"""
