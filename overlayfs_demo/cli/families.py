"""All verbs: the groups of the overview, the modules in each, and the line that says what each verb does.

A module of this folder adds its verbs in its function `add_verbs`. It is imported only for one of them, so it imports
what all of them need, and no other verb waits for that.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType

# In the order of the overview: by group, by module and by verb.
FAMILIES: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "Learn": {
        "tour": {"tour": "walk through the classic overlay experiments"},
        "lab": {"lab": "solve a task in a shell and have the result checked"},
        "lecture": {"lecture": "show a shell and the layers that it changes, in one terminal"},
        "sample": {"sample": "write a small image to try everything on"},
    },
    "Views": {
        "views": {"mount": "mount a stack of layers as one tree"},
        "umount": {"umount": "unmount a view"},
        "restart": {"restart": "let another daemon serve a view, which stays mounted"},
        "watch": {"watch": "report every change in a view as it happens"},
        "which": {"which": "show what each layer says about a path in a view or an image"},
        "explain": {"explain": "show what a command would change in a view, without doing it"},
        "web": {"serve": "show a mounted view (live) or an image in a browser"},
    },
    "Images": {
        "image_load": {"load": "load images from an archive", "import": "create an image from a tar of a file tree"},
        "image_lists": {
            "images": "list images",
            "history": "show the steps that made an image",
            "layers": "list every stored layer and the images that use it",
        },
        "image_names": {
            "tag": "give an image another name",
            "rmi": "remove image names, and images left without a name",
            "prune": "remove unused images and layers",
        },
        "save": {"save": "write images to an archive"},
        "registry": {"pull": "download an image from a registry", "push": "upload an image to a registry"},
        "registry_login": {
            "login": "keep a user and password for a registry, as docker does",
            "logout": "forget the user and password for a registry",
        },
        "inspect": {"inspect": "show all details of images and containers, as docker does"},
        "disk_usage": {"df": "show how much space images use and share"},
        "fsck": {"fsck": "check the store, a container or an upper, and repair damage"},
        "groups": {
            "image": "docker's group of verbs for images",
            "system": "docker's group of verbs for the whole store",
        },
    },
    "Containers": {
        "container_run": {
            "run": "run a command in a new container",
            "exec": "run a command in a container",
            "shell": "run a shell or a command with a container as its root",
        },
        "container_create": {"create": "create a container from an image, and mount it"},
        "container_list": {"ps": "list containers"},
        "diff": {"diff": "show what a container changed, or how two images differ"},
        "containers": {
            "commit": "create an image from a container",
            "export": "write a container's file tree to a tar archive",
            "stop": "unmount containers and keep their changes",
            "start": "mount containers again",
            "rename": "give a container another name",
            "rm": "remove containers and their changes",
        },
        "container_cp": {"cp": "copy files between a container and this machine"},
        "groups": {"container": "docker's group of verbs for containers"},
    },
    "Analysis": {
        "browse": {"browse": "walk through the layers of an image or a view in the terminal"},
        "analysis": {
            "analyze": "show where an image's bytes went",
            "ghosts": "list files that were deleted but still ship",
        },
        "web": {"report": "write the page of an image as one file, which opens anywhere"},
    },
    "Help": {
        "help": {"help": "list the commands, or show the options of one"},
        "manual": {"manual": "print the manual page or a document"},
        "completion": {"completion": "print the completion script for a shell"},
        "version": {"version": "print the version"},
    },
}

MODULE_OF: Mapping[str, str] = {
    verb: module for families in FAMILIES.values() for module, verbs in families.items() for verb in verbs
}
SUMMARIES: Mapping[str, str] = {
    verb: summary for families in FAMILIES.values() for verbs in families.values() for verb, summary in verbs.items()
}


def family(module: str) -> ModuleType:
    """Import a module of verbs, with all that they need, and return it.

    What an import makes stays as long as the process, so the garbage collector, which would find nothing there, neither
    runs meanwhile nor looks at it later.
    """
    name = f"overlayfs_demo.cli.{module}"
    if name in sys.modules:
        return sys.modules[name]
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return import_module(name)
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
