"""The command line: one module for each family of verbs.

It may import everything, and nothing imports it. Begin with `main`, which knows which module has which verb, then
`command`, which all verbs share.
"""
