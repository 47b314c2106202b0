"""The lists that docker's `--format` shapes: their placeholders, the headers of their columns, and `--format raw`.

From docker/cli: cli/command/formatter (image.go, container.go, disk_usage.go) and
cli/command/image/formatter_history.go.
"""

from __future__ import annotations

from overlayfs_demo.ui.docker_format import Listing, label_header

IMAGES = Listing(
    {
        "Containers": "CONTAINERS",
        "CreatedAt": "CREATED AT",
        "CreatedSince": "CREATED",
        "Digest": "DIGEST",
        "ID": "IMAGE ID",
        "Repository": "REPOSITORY",
        "SharedSize": "SHARED SIZE",
        "Size": "SIZE",
        "Tag": "TAG",
        "UniqueSize": "UNIQUE SIZE",
        "VirtualSize": "SIZE",
    },
    "repository: {{.Repository}}\ntag: {{.Tag}}\nimage_id: {{.ID}}\ncreated_at: {{.CreatedAt}}\n"
    "virtual_size: {{.Size}}\n",
    "image_id: {{.ID}}",
)

HISTORY = Listing(
    {
        "Comment": "COMMENT",
        "CreatedAt": "CREATED AT",
        "CreatedBy": "CREATED BY",
        "CreatedSince": "CREATED",
        "ID": "IMAGE",
        "Size": "SIZE",
    }
)

# `history --layers`, which docker does not have.
HISTORY_WITH_LAYERS = Listing(
    {
        **HISTORY.headers,
        "Added": "ADDED",
        "ChainID": "CHAIN ID",
        "Changed": "CHANGED",
        "Deleted": "DELETED",
        "DiffID": "DIFF ID",
        "Whiteouts": "WHITEOUTS",
    }
)

CONTAINERS = Listing(
    {
        "Command": "COMMAND",
        "CreatedAt": "CREATED AT",
        "ID": "CONTAINER ID",
        "Image": "IMAGE",
        "Label": label_header,
        "Labels": "LABELS",
        "LocalVolumes": "LOCAL VOLUMES",
        "Mounts": "MOUNTS",
        "Names": "NAMES",
        "Networks": "NETWORKS",
        "Platform": "PLATFORM",
        "Ports": "PORTS",
        "RunningFor": "CREATED",
        "Size": "SIZE",
        "State": "STATE",
        "Status": "STATUS",
    },
    "container_id: {{.ID}}\nimage: {{.Image}}\ncommand: {{.Command}}\ncreated_at: {{.CreatedAt}}\nstate: {{.State}}\n"
    "status: {{.Status}}\nnames: {{.Names}}\nlabels: {{.Labels}}\nports: {{.Ports}}\n",
    "container_id: {{.ID}}",
)

DISK_USAGE = Listing(
    {"Active": "ACTIVE", "Reclaimable": "RECLAIMABLE", "Size": "SIZE", "TotalCount": "TOTAL", "Type": "TYPE"},
    "type: {{.Type}}\ntotal: {{.TotalCount}}\nactive: {{.Active}}\nsize: {{.Size}}\nreclaimable: {{.Reclaimable}}\n",
)
