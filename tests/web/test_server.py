"""Does `serve` answer those who may ask, tell at once what happens, and end when it should?"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from overlayfs_demo.mounts import registry
from overlayfs_demo.store.store import Store
from overlayfs_demo.web.serve import browsable
from tests.conftest import wait_until
from tests.images.builders import WHITEOUT
from tests.places import ROOT, Place, fails, run
from tests.web.conftest import MakeImage
from tests.web.serving import Server, serving


@pytest.fixture
def server(mounted: Place) -> Iterator[Server]:
    """The page of a view that is mounted by each front."""
    with serving(mounted.view / "d") as running:
        yield running


@pytest.fixture
def still(store: Store, image: MakeImage) -> Iterator[Server]:
    """The page of an image."""
    image({"a": "old\n", "b": "1"}, {"a": "new\n", "b": WHITEOUT})
    with serving("test:1", "--store", store.root) as running:
        yield running


# --- what it says ----------------------------------------------------------------------------------


def test_the_page_of_an_image_has_its_layers_waste_and_history(still: Server) -> None:
    page = still.get("/")
    assert page.status == 200 and "text/html" in page.headers["content-type"]
    for part in ("test:1", 'id="box-2"', 'id="box-1"', 'class="treemap"', "make layer 2"):
        assert part in page.text
    assert still.get("/tree?path=/").rows["b"]["hidden_by"] == "2"
    assert "+new" in still.get("/file?path=/a").text
    assert '"/a"' in still.get("/search?words=A").text
    assert still.get("/page.js").text.startswith('"use strict"')
    assert still.get("/events").status == still.get("/upper").status == 404


def test_the_page_of_a_view_has_its_upper_and_lowers(server: Server, mounted: Place) -> None:
    page = server.get("/").text
    for part in (str(mounted.view), 'id="box-upper"', 'id="box-2"', 'id="box-1"', "Empty: nothing has been changed."):
        assert part in page
    story = server.get("/file?path=/motd").text
    assert "-below" in story and "+hello" in story


def test_a_whiteout_is_told_with_its_layers_and_paths(server: Server, mounted: Place) -> None:
    with server.events() as messages:
        assert next(messages) == ("attached", {})
        subprocess.run(["rm", mounted.view / "motd"], check=True)
        kind, told = next(messages)
    assert kind == "change"
    [sentence] = told["sentences"]
    assert "created whiteout for /motd, hiding the one in layer 2 (top)" in sentence["text"]
    assert (told["layers"], told["paths"], told["directories"]) == (["2", "upper"], ["/motd"], ["/"])
    upper = server.get("/upper").text
    assert 'data-whiteouts="1"' in upper and "mark-deleted" in upper
    row = server.get("/tree?path=/").rows["motd"]
    assert (row["layer"], row["hidden_by"]) == ("2", "upper")


def test_many_writes_are_few_sentences(server: Server, mounted: Place) -> None:
    with server.events() as messages:
        next(messages)
        run("dd", "if=/dev/zero", f"of={mounted.view / 'big'}", "bs=4096", "count=500")
        sentences: list[str] = []
        (mounted.view / "last").mkdir()
        while not sentences or "/last" not in sentences[-1]:
            sentences += [one["text"] for one in next(messages)[1]["sentences"]]
    assert 3 <= len(sentences) < 50


def test_the_upper_tells_copies_from_new_files_and_marks(server: Server, mounted: Place) -> None:
    with (mounted.view / "motd").open("a") as file:
        file.write("more\n")
    (mounted.view / "new").write_text("12")
    (mounted.view / "d" / "deep").unlink()
    upper = server.get("/upper").text
    for what in ("copied up, 11B", "new file, 2B", "directory, copied up", "whiteout"):
        assert f'<span class="what">{what}</span>' in upper


def test_a_renamed_directorys_files_are_read_where_they_lie(server: Server, mounted: Place) -> None:
    (mounted.view / "d").rename(mounted.view / "e")
    assert server.get("/tree?path=/e").rows["deep"]["layer"] == "1"
    assert ">deep\n</pre>" in server.get("/file?path=/e/deep").text


def test_a_name_of_any_bytes_is_found_again(server: Server, mounted: Place) -> None:
    name = b"\xff\n+&%<b>"
    Path(os.fsdecode(os.path.join(os.fsencode(mounted.view), name))).write_text("its text\n")
    key = server.get("/tree?path=/").rows[r"\xff\n+&%<b>"]["key"]
    story = server.get(f"/file?path={key}").text
    assert "its text" in story and "<b>" not in story


def test_a_fifo_keeps_nobody_waiting(server: Server, mounted: Place) -> None:
    os.mkfifo(mounted.view / "fifo")
    assert "a device, fifo or socket" in server.get("/file?path=/fifo").text


# --- whom it answers -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/../etc/passwd", "/%2e%2e/etc/passwd", "/d/../../etc", "/a%00b"])
def test_no_path_leads_out(still: Server, path: str) -> None:
    for place in ("file", "tree"):
        answer = still.get(f"/{place}?path={path}")
        assert answer.status == 400 and "root:" not in answer.text


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("/file?path=/nothing", 404),
        ("/tree?path=/a", 404),
        ("/file", 400),
        ("/../../etc/passwd", 404),
        ("/static/page.js", 404),
        ("/page.html", 404),
    ],
)
def test_what_is_not_there_is_not_found(still: Server, address: str, status: int) -> None:
    assert still.get(address).status == status


def test_nothing_is_told_to_whoever_does_not_show_the_token(server: Server) -> None:
    for address in (
        "/",
        "/page.js",
        "/page.css",
        "/tree?path=/",
        "/file?path=/motd",
        "/search?words=m",
        "/upper",
        "/events",
        "/nothing",
    ):
        for cookie in (
            "",
            "overlayfs-demo-1=x",
            f"overlayfs-demo-{server.port}=",
            f"{server.cookie()[:-1]}",
            f"{server.cookie()}x",
            f"other={server.token}",
            "\xff;=;",
        ):
            answer = server.get(address, Cookie=cookie)
            assert answer.status == 403 and "hello" not in answer.text
            assert "'overlayfs-demo serve' printed" in answer.text
            assert server.token not in answer.text and "set-cookie" not in answer.headers


def test_the_address_that_is_printed_gives_a_cookie_and_leads_to_the_page(still: Server) -> None:
    assert len(still.token) >= 32
    answer = still.get(f"/?token={still.token}", Cookie="")
    assert (answer.status, answer.headers["location"]) == (303, "/")
    cookie, *attributes = [part.strip() for part in answer.headers["set-cookie"].split(";")]
    assert cookie == still.cookie()
    assert {one.lower() for one in attributes} == {"httponly", "samesite=strict", "path=/"}
    assert answer.headers["referrer-policy"] == "no-referrer" and answer.headers["cache-control"] == "no-store"
    assert "test:1" in still.get("/", Cookie=cookie).text


@pytest.mark.parametrize("query", ["", "token", "token=", "token=wrong", "token=%ff", "other=TOKEN", "token=TOKENx"])
def test_another_token_in_the_address_opens_nothing(still: Server, query: str) -> None:
    answer = still.get("/?" + query.replace("TOKEN", still.token), Cookie="")
    assert answer.status == 403 and "set-cookie" not in answer.headers


def test_the_token_leads_to_the_page_alone(still: Server) -> None:
    for path in ("//evil.example/", "/tree", "/events"):
        assert still.get(f"{path}?token={still.token}", Cookie="").status == 403


def test_the_token_is_another_one_each_time(store: Store, still: Server) -> None:
    with serving("test:1", "--store", store.root) as another:
        assert another.token != still.token
        assert another.get("/", Cookie=f"overlayfs-demo-{another.port}={still.token}").status == 403


def test_servers_of_one_host_do_not_overwrite_each_others_cookies(store: Store, still: Server) -> None:
    """A browser has one jar for all ports of a host: RFC 6265, section 8.5."""
    with serving("test:1", "--store", store.root) as another:
        names = {
            one.get(f"/?token={one.token}", Cookie="").headers["set-cookie"].partition("=")[0]
            for one in (still, another)
        }
        assert len(names) == 2
        for one in (still, another):
            assert one.get("/", Cookie=f"{still.cookie()}; {another.cookie()}").status == 200


def test_a_cookie_of_the_same_name_from_somebody_else_shuts_nobody_out(still: Server) -> None:
    forged = f"overlayfs-demo-{still.port}=forged"
    for cookie in (f"{forged}; {still.cookie()}", f"{still.cookie()};{forged}"):
        assert still.get("/", Cookie=cookie).status == 200


def test_a_forwarded_port_has_a_cookie_of_its_own(still: Server) -> None:
    """In a browser outside a virtual machine, of which several may forward the same port."""
    answer = still.get(f"/?token={still.token}", Cookie="", Host="127.0.0.1:2200")
    cookie = answer.headers["set-cookie"].partition(";")[0]
    assert cookie == f"overlayfs-demo-2200={still.token}"
    assert still.get("/", Cookie=cookie, Host="127.0.0.1:2200").status == 200


def test_the_token_is_printed_once_and_never_logged(still: Server) -> None:
    for path in (f"/?token={still.token}", f"/tree?path=/nothing&token={still.token}"):
        still.get(path)
    still.process.send_signal(signal.SIGTERM)
    status, said = still.ends()
    assert status == 143 and still.token not in said


def test_a_classroom_may_go_without_a_token_and_is_warned(store: Store, image: MakeImage) -> None:
    image({"a": "1"})
    with serving("test:1", "--store", store.root, "--no-token") as server:
        assert urlsplit(server.address).query == ""
        assert server.get("/", Cookie="").status == 200
        assert server.process.stderr is not None
        assert "warning: without a token, anyone who reaches this port" in server.process.stderr.readline()


@pytest.mark.parametrize(("host", "shown"), [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("::1", "::1")])
def test_an_address_is_printed_that_a_browser_here_can_open(host: str, shown: str) -> None:
    assert urlsplit(f"http://{browsable(host)}:80/").hostname == shown


def test_another_name_for_this_machine_is_refused(still: Server) -> None:
    for host, status in (("evil.example", 400), (f"evil.example:{still.port}", 400), (f"localhost:{still.port}", 200)):
        answer = still.get("/", Host=host)
        assert answer.status == status
        assert ("test:1" in answer.text) == (status == 200)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nothing_can_be_changed(still: Server, method: str) -> None:
    for address in ("/", "/file?path=/a", "/tree?path=/", "/upper"):
        assert still.get(address, method).status == 405


def test_every_answer_has_the_headers_that_keep_scripts_out(still: Server) -> None:
    asked = [(address, still.cookie()) for address in ("/", "/page.css", "/file?path=/a", "/nothing")]
    for address, cookie in [*asked, ("/", ""), (f"/?token={still.token}", "")]:
        headers = still.get(address, Cookie=cookie).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
        assert headers["referrer-policy"] == "no-referrer"


def test_only_this_machine_is_listened_to(still: Server) -> None:
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    assert f"0100007F:{still.port:04X}" in listening and f"00000000:{still.port:04X}" not in listening


def test_a_page_that_is_closed_lets_go_of_the_daemon(server: Server, mounted: Place) -> None:
    name = Path(registry.socket_path(str(mounted.view))).name

    def connections() -> int:
        """How many sockets of the daemon are connected (03): the server's own, which waits for the end, and pages'."""
        rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
        return sum(row[5] == "03" and row[-1].endswith(name) for row in rows)

    wait_until(lambda: connections() == 1, "the server's own")
    with server.events() as messages:
        next(messages)
        assert connections() == 2
    closed = time.monotonic()
    wait_until(lambda: connections() == 1, "the end of the connection")
    assert time.monotonic() - closed < 5


# --- how it ends -----------------------------------------------------------------------------------


def test_it_ends_when_the_view_is_unmounted_and_says_so(server: Server, mounted: Place) -> None:
    with server.events() as messages:
        next(messages)
        assert mounted.umount().returncode == 0
        assert list(messages) == [("ended", {"why": "the view was unmounted"})]
    status, said = server.ends()
    assert status == 0 and said.endswith("was unmounted\n")


def test_a_page_is_told_that_the_daemon_died(server: Server, mounted: Place) -> None:
    record = registry.find_record(str(mounted.view))
    assert record is not None
    with server.events() as messages:
        next(messages)
        os.kill(record.pid, signal.SIGKILL)
        assert list(messages) == [("ended", {"why": "its daemon died"})]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_though_a_page_is_open(
    server: Server, mounted: Place, number: signal.Signals, status: int
) -> None:
    with server.events() as messages:
        next(messages)
        server.process.send_signal(number)
        code, said = server.ends()
    assert code == status and said.count("\n") == 1
    assert mounted.is_mounted() and (mounted.view / "motd").read_text() == "hello\n"


def test_a_port_that_is_taken_is_named(store: Store, image: MakeImage) -> None:
    image({"a": "1"})
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("overlayfs-demo", "serve", "--store", store.root, "test:1", "--port", str(port))
    fails(done, f"port {port}", "Address already in use", "choose another --port")


def test_what_is_neither_view_nor_image_is_named(place: Place) -> None:
    for path in (place / "top", "top"):
        done = run("overlayfs-demo", "serve", "--store", place / "store", path, cwd=place.base)
        fails(done, "is not in a view")
    fails(run("overlayfs-demo", "serve", "--store", place / "store", "nothing"), "no image nothing:latest", "no view")


def test_an_image_may_have_the_name_of_a_directory(store: Store, image: MakeImage, tmp_path: Path) -> None:
    image({"a": "1"})
    (tmp_path / "test:1").mkdir()
    with chdir(tmp_path), serving("test:1", "--store", store.root) as server:
        assert "make layer 1" in server.get("/").text


def test_a_port_is_a_number(place: Place) -> None:
    done = run("overlayfs-demo", "serve", "--port", "70000", place.view)
    assert done.returncode == 2 and "0 to 65535" in done.stderr


def without(*libraries: str) -> str:
    """A script that is the command line where these libraries are not installed."""
    return (
        f"import sys; sys.modules.update(dict.fromkeys({libraries}))\n"
        "from overlayfs_demo.cli.main import main; sys.exit(main())"
    )


@pytest.mark.parametrize(
    ("verb", "library"), [("report", "jinja2"), ("report", "squarify"), ("serve", "starlette"), ("serve", "uvicorn")]
)
def test_a_verb_whose_library_is_missing_says_how_to_install_it(
    verb: str, library: str, store: Store, image: MakeImage, tmp_path: Path
) -> None:
    image({"a": "1"})
    options = ["-o", tmp_path / "page.html"] if verb == "report" else ["--port", "0"]
    done = run(sys.executable, "-c", without(library), verb, "--store", store.root, "test:1", *options)
    fails(done, f"the page needs the Python package {library}: pip install 'overlayfs-demo[web]'")
    assert len(done.stderr.splitlines()) == 1


def test_the_core_needs_no_library_of_the_page(store: Store, image: MakeImage) -> None:
    image({"a": "1"})
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["web"]
    script = without(*(re.split("[><=]", needed)[0] for needed in extra))
    for words in (("--help",), ("analyze", "--store", store.root, "test:1"), ("manual",)):
        done = run(sys.executable, "-c", script, *words)
        assert (done.returncode, done.stderr) == (0, "")


# --- report ----------------------------------------------------------------------------------------


def test_report_writes_one_file(store: Store, image: MakeImage, tmp_path: Path) -> None:
    image({"a": "old\n"}, {"a": "new\n"})
    done = run("overlayfs-demo", "report", "--store", store.root, "test:1", "-o", tmp_path / "page.html")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "make layer 2" in (tmp_path / "page.html").read_text()
    assert not [one for one in tmp_path.iterdir() if "unfinished" in one.name]


def test_a_report_that_cannot_be_written_is_named(store: Store, image: MakeImage, tmp_path: Path) -> None:
    image({"a": "1"})
    done = run("overlayfs-demo", "report", "--store", store.root, "test:1", "-o", tmp_path / "no" / "page.html")
    fails(done, "page.html", "No such file")
