"""The check of uppers and of the store: finds damage, explains it, and mends it.

It may import `store`, `mounts` (options, and which uppers are in use), `images` and the engine, but nothing of the
command line. Begin with `finding`: a check yields findings, and `mend` repairs them. `upper_check` looks at an upper
and its work directory (`marks`, `data_marks`, `work_check`, `index_check`), and `store_check` at a store
(`layer_check`, `container_check`). `subject` says what a word means, and `claim` keeps others away meanwhile.
"""
