"""What people read: words, tables, colours.

It may import values of the layers below (`errors`, `events`, `overlay`, `images`), and asks no daemon and no store.
Begin with `wording` for sentences, `text` for sizes and cutting, `table` for columns (`docker_tables` for
Docker's, `fitting` for what a narrow terminal shows of them), `terminal` for colours, prose and progress, and
`document` for Markdown.
"""
