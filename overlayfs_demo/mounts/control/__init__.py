"""How a view's daemon is asked, and tells what happens, over a unix socket.

It may import what `mounts` may. Begin with `client`, which holds both ends; `event_queue` keeps events for one
watcher.
"""
