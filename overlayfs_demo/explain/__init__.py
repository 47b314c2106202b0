"""Dry runs, which show what a command would do to a view: it really runs, in a sandbox, on a trial view.

It may import `mounts`, `fronts` and everything below them. Begin with `dry_run`; `sandbox` isolates the command.
"""
