"""What people read: words, tables, colours.

It may import values of the layers below (`events`, `overlay`, `images`), and asks no daemon and no store. Begin with
`wording` for sentences and sizes, `docker_tables` for columns, `terminal` for colours and progress.
"""
