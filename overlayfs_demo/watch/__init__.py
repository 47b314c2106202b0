"""The live picture of a view for a terminal.

It may import `mounts`, to ask daemons, `ui` and `errors`. Begin with `state`, which holds what has happened; `screen`
draws it and `loop` keeps it going. `trace` tells the same in sentences alone.
"""
