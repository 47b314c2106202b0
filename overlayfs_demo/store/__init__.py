"""The store of a host: images, layers stored once, and containers.

It may import `images`, and `mounts` because a container is mounted. Begin with `store`; `load`, `save`, `commit` and
`remove` change what is in it, and `containers` puts an upper on an image.
"""
