"""The guided tour and the labs: experiments that really run, and whose results are checked on the disk.

It may import `mounts` and `store`, and everything below them; it knows only the commands that it types. Begin with
`experiment` and `lab`; the texts are in `experiments` and `labs`, which run on a `stage`.
"""
