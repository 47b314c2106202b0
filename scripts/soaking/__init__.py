"""A soak test: a view is used in many ways at a time for long, and its daemon must not grow.

`load` are the processes that use the view, `served` is the daemon with its figures, `figures` says whether they level
off, and `main` is the command line.
"""
