"""What the layers of an image hold, hide and waste.

It may import `linux`, `overlay` and `images`, and it reads layer directories without mounting them. Begin with `waste`:
its `analyse` walks all layers side by side (`layer_walk`) and keeps the books (`accounts`).
"""
