"""The browser of `browse`: an image or a mounted view in a terminal, layer by layer.

It may import what shows images and views, but not the page or `watch`. `subject` says which layers are shown and what
made them, `depths` asks the engine for a directory as of each layer, `census` adds up sizes in the background, and
`model` turns this into the lines of the tree. These four give plain values and know no terminal. Only the others,
`app`, `panes` and `help`, import Textual. Begin with `depths`.
"""
