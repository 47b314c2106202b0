"""Mounted views: options, checks, the daemon, and the registry of what is mounted.

It may import `fronts` and everything below them, and does not know the store. Begin with `mount`; `options` reads
option lines and `option_table` has the options, `registry` finds views, and `control` talks to their daemons.
"""
