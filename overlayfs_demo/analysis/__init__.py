"""What the layers of an image hold, hide and waste.

It may import `linux`, `overlay` and `images`, and reads layer directories without mounting them. Begin with `waste`,
whose `analyse` walks all layers side by side (`layer_walk`) and keeps the books (`accounts`).
"""
