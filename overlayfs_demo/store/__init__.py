"""The store of a host: images, layers stored once, and containers.

It may import `images`, and `mounts` because a container is mounted. Begin with `store` and the values in `stored`;
`load`, `save`, `commit` and `remove` change what is in it. `containers` mounts an image with an upper on top, and
`container` reads what is known of a container, without any mount code.
"""
