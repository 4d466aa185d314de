"""What `peers.py` measures: a file for each peer, with the same names in each.

    PACKAGES   what pip installs into an environment of its own; empty is the driver's environment
    CHECK      a module that is there once they are
    SETTINGS   environment variables for pip
    VARIANTS   name of each form -> class of its precision: fp32, int8 or int4
    SAYS       what each form is, for the page
    prepare    make the files of a form, once; what is there stays
    open       a form in memory, ready to run

Files that begin with `_` are shared. Nothing heavy is imported before `prepare` or `open` needs it,
so the driver reads the names of every file in its own environment.
"""
