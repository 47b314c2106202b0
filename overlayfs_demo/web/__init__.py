"""The page: a view or an image in a browser, live (`serve`) or as one file (`report`).

It may import everything but the command line. Begin with `app`, which answers requests, and `model`, which says what is
on the page; `subject` knows who is asked about a path.
"""
