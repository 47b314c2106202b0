"""A benchmark of our views against the kernel's overlayfs, fuse-overlayfs, and a loopback in C as FUSE's limit.

To add a row, write what it does into the module of its kind (`operations`, `data`, `trees`, `layers`, `programs`,
`costs`), and enter it with its targets in the table of `rows`. `peers` says how each peer mounts, `inputs` makes the
layers that all of them share, `view` mounts them, `measure` runs the rounds, and `report`, `picture` and `targets` read
the results.

Every measurement has its own mount, upper and work directory, and every row checks its results, so that a broken mount
cannot look fast. The peers take turns within a round, in an order that changes from round to round, so that the noise
of the machine affects all of them equally.
"""
