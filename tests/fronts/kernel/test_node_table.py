"""Is a node known by one number for as long as the kernel holds it, and no longer?"""

from __future__ import annotations

import gc
import sys
from weakref import ref

import pytest

from overlayfs_demo.fronts.kernel import node_table, wire
from overlayfs_demo.fronts.kernel.node_table import NodeTable
from overlayfs_demo.overlay.node import DirNode, FileNode, Node
from tests.overlay.conftest import Make


@pytest.fixture
def nodes(overlaid: Make) -> list[Node]:
    """The root, a file, another, and a directory."""
    view = overlaid({"a": "1", "b": "2", "d/": None})
    return [view.node(path) for path in ("", "a", "b", "d")]


@pytest.fixture
def table(nodes: list[Node]) -> NodeTable:
    root = nodes[0]
    assert isinstance(root, DirNode)
    return NodeTable(root)


def known(table: NodeTable, nodeid: int) -> bool:
    try:
        table.node(nodeid)
    except KeyError:
        return False
    return True


def test_root_has_its_number_from_the_beginning(table: NodeTable, nodes: list[Node]) -> None:
    assert table.node(wire.ROOT_ID) is nodes[0]
    assert table.id_of(nodes[0]) == wire.ROOT_ID
    assert len(table) == 1


def test_same_node_has_the_same_number(table: NodeTable, nodes: list[Node]) -> None:
    _, a, b, _ = nodes
    first, second, third = table.remember([a, b, a])
    assert first == third != second
    assert table.remember([b, a]) == [second, first]


def test_root_is_remembered_by_its_number(table: NodeTable, nodes: list[Node]) -> None:
    assert table.remember(nodes[:1]) == [wire.ROOT_ID]


def test_node_is_found_by_its_number_and_the_number_by_the_node(table: NodeTable, nodes: list[Node]) -> None:
    for nodeid, node in zip(table.remember(nodes), nodes, strict=True):
        assert table.node(nodeid) is node
        assert table.id_of(node) == nodeid


def test_node_that_was_never_told_has_no_number(table: NodeTable, nodes: list[Node]) -> None:
    assert table.id_of(nodes[1]) is None
    assert not known(table, wire.ROOT_ID + 1)


def test_node_is_kept_until_all_lookups_are_taken_back(table: NodeTable, nodes: list[Node]) -> None:
    _, a, b, _ = nodes
    nodeid, _, _, other = table.remember([a, a, a, b])
    table.forget(nodeid, 2)
    assert table.node(nodeid) is a
    table.forget(nodeid, 1)
    assert not known(table, nodeid)
    assert table.id_of(a) is None
    assert table.node(other) is b


def test_lookups_of_several_calls_add_up(table: NodeTable, nodes: list[Node]) -> None:
    a = nodes[1]
    (nodeid,) = table.remember([a])
    table.remember([a])
    table.forget(nodeid, 1)
    assert table.id_of(a) == nodeid
    table.forget(nodeid, 1)
    assert table.id_of(a) is None


def test_number_is_never_used_again(table: NodeTable, nodes: list[Node]) -> None:
    _, a, b, d = nodes
    (first,) = table.remember([a])
    table.forget(first, 1)
    again = table.remember([b, a, d])
    assert first not in again
    assert len(set(again)) == 3
    assert not known(table, first)


@pytest.mark.parametrize("lookups", [1, 2, 1000])
def test_root_is_never_dropped(table: NodeTable, nodes: list[Node], lookups: int) -> None:
    table.forget(wire.ROOT_ID, lookups)
    assert table.node(wire.ROOT_ID) is nodes[0]
    assert table.id_of(nodes[0]) == wire.ROOT_ID


def test_number_of_nodes_is_that_of_the_held_ones(table: NodeTable, nodes: list[Node]) -> None:
    ids = table.remember(nodes[1:])
    table.remember(nodes[1:2])
    assert len(table) == 4
    table.forget(ids[1], 1)
    assert len(table) == 3


def test_table_holds_a_node_and_lets_it_go_when_it_is_forgotten(overlaid: Make) -> None:
    view = overlaid({"a": "1"})
    table = NodeTable(view.overlay.root)
    (nodeid,) = table.remember([view.node("a")])
    assert view.overlay.root.children.get(b"a") is table.node(nodeid)
    table.forget(nodeid, 1)
    assert view.overlay.root.children.get(b"a") is None


def test_directory_has_one_stream_for_all_who_read_it(table: NodeTable, nodes: list[Node]) -> None:
    (nodeid,) = table.remember(nodes[3:])
    assert table.stream(nodeid) is table.stream(nodeid)
    assert table.stream(nodeid) is not table.stream(wire.ROOT_ID)


def test_stream_of_an_unknown_number_is_an_error(table: NodeTable) -> None:
    with pytest.raises(KeyError):
        table.stream(wire.ROOT_ID + 1)


def test_stream_goes_with_its_node(table: NodeTable, nodes: list[Node]) -> None:
    (before,) = table.remember(nodes[3:])
    stream = table.stream(before)
    table.forget(before, 1)
    (after,) = table.remember(nodes[3:])
    assert table.stream(after) is not stream


def test_data_of_a_file_is_stored_once(table: NodeTable, nodes: list[Node]) -> None:
    first, second = table.remember(nodes[1:3])
    assert [table.first_store(first), table.first_store(first), table.first_store(second)] == [True, False, True]


def test_data_is_stored_again_when_the_kernel_had_forgotten_the_file(table: NodeTable, nodes: list[Node]) -> None:
    a = nodes[1]
    assert isinstance(a, FileNode)
    (before,) = table.remember([a])
    table.first_store(before)
    table.forget(before, 1)
    (after,) = table.remember([a])
    assert table.first_store(after)


def test_nothing_is_left_of_a_tree_that_was_forgotten(overlaid: Make) -> None:
    """Whatever happened to its names: two of one file, one that was moved, one that was removed, one replaced."""
    view = overlaid({"d/sub/f": "1", "d/g": "2", "d/h": "3", "d/i": "4"})
    view.link("d/g", "d/sub/again")
    overlay = view.overlay
    table = NodeTable(overlay.root, overlay.prune)
    paths = ("d", "d/sub", "d/sub/f", "d/g", "d/sub/again", "d/h", "d/i")
    ids = table.remember([view.node(path) for path in paths])
    view.rename("d/h", "d/sub/h")
    view.unlink("d/sub/f")
    view.rename("d/g", "d/i")
    gone = [ref(table.node(nodeid)) for nodeid in ids]
    for nodeid in ids:
        table.forget(nodeid, 1)
    gc.collect()
    assert [node() for node in gone] == [None] * len(ids)
    assert len(table) == 1 and overlay.root.children.known() == []


def test_held_node_is_found_under_its_new_name_and_not_under_the_old(overlaid: Make) -> None:
    view = overlaid({"a": "1", "b": "2"})
    table, children = NodeTable(view.overlay.root), view.overlay.root.children
    table.remember([view.node("a"), view.node("b")])
    a, b = children.get(b"a"), children.get(b"b")
    view.rename("a", "c")
    view.rename("b", "a")
    assert [children.get(name) for name in (b"a", b"b", b"c")] == [b, None, a]
    assert set(children.known()) == {a, b}


def test_memory_of_the_table_is_given_back(overlaid: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_table, "_FEW", 16)
    view = overlaid({f"f{number}": "" for number in range(200)})
    table = NodeTable(view.overlay.root)
    ids = table.remember([view.node(f"f{number}") for number in range(200)])
    size = sys.getsizeof(table._nodes)
    for nodeid in ids[1:]:
        table.forget(nodeid, 1)
    assert sys.getsizeof(table._nodes) < size / 4
    assert table.node(ids[0]) is view.node("f0")
    assert not known(table, ids[1])
