"""The guided tour and the labs: experiments that really run, and are checked on the disk.

It may import `mounts` and `store`, and whatever is below them; it knows no command but those that it types. Begin with
`experiment` and `lab`; the texts are in `experiments` and `labs`, and `stage` is where they run.
"""
