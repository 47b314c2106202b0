"""Images as values, and the formats that they are stored in: archives, layer tars, configs, recipes.

It may import `linux` and `overlay` (a layer is a directory of the engine's), and knows nothing of stores and mounts.
Begin with `model`, then `formats` for what an archive holds and `unpack` for how a layer tar becomes a directory.
"""
