"""The control socket of a view's daemon: questions about the view, and a stream of its events.

It may import what `mounts` may. Begin with `protocol`, which lists the messages; `server` is the daemon's end,
`client` the watcher's, and `event_queue` keeps events for one watcher. `titles` names layers as the client knows them.
"""
