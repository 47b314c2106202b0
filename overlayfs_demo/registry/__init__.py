"""Registries: images are pulled into the store, and pushed from it (OCI distribution-spec 1.1).

It may import `images` and `store`: a pulled layer goes the same way as a layer of an archive. A registry is hostile
input: what it sends is counted and hashed while it arrives, and `wire` decides where it may send us. Begin with
`pull` and `push`; `client` speaks HTTP, `auth` and `credentials` say who we are, `download` and `upload` move blobs.
"""
