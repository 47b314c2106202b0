"""What a command would do to a view: it runs for real, on a scratch view, in a sandbox.

It may import `mounts`, `fronts` and all that is below them. Begin with `dry_run`; `sandbox` builds the walls around
the command.
"""
