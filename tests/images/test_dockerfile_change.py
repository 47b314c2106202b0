"""Do the instructions of `commit --change` change an image's settings as `docker commit` does?"""

from __future__ import annotations

import pytest

from overlayfs_demo.errors import UsageError
from overlayfs_demo.images.dockerfile_change import changed
from overlayfs_demo.images.dockerfile_words import expand, split

BASE = {"Env": ["PATH=/bin", "A=1"], "Cmd": ["old"], "WorkingDir": "/app", "Labels": {"a": "1"}}


@pytest.mark.parametrize(
    ("instruction", "key", "value"),
    [
        ('CMD ["a", "b c"]', "Cmd", ["a", "b c"]),
        ("cmd a b  c", "Cmd", ["/bin/sh", "-c", "a b  c"]),
        ("CMD ['a']", "Cmd", ["/bin/sh", "-c", "['a']"]),
        ("CMD []", "Cmd", ["old"]),
        ("CMD", "Cmd", ["/bin/sh", "-c"]),
        ("ENTRYPOINT /run $A", "Entrypoint", ["/bin/sh", "-c", "/run $A"]),
        ("ENV A=2 B=$A C='$A' D=\"x $A\"", "Env", ["PATH=/bin", "A=2", "B=1", "C=$A", "D=x 1"]),
        ("ENV B some words", "Env", ["PATH=/bin", "A=1", "B=some words"]),
        ("ENV PATH=$PATH:/x", "Env", ["PATH=/bin:/x", "A=1"]),
        ("ENV B=${N:-none} C=${A:+set} D=\\$A", "Env", ["PATH=/bin", "A=1", "B=none", "C=set", "D=$A"]),
        (
            "EXPOSE 80 53/UDP 8000-8002",
            "ExposedPorts",
            {f"{port}": {} for port in ("80/tcp", "53/udp", "8000/tcp", "8001/tcp", "8002/tcp")},
        ),
        ("LABEL a=2 'b c'=\"d e\"", "Labels", {"a": "2", "b c": "d e"}),
        ("ONBUILD RUN make", "OnBuild", ["RUN make"]),
        ("STOPSIGNAL SIGQUIT", "StopSignal", "SIGQUIT"),
        ("STOPSIGNAL 9", "StopSignal", "9"),
        ("USER bob:users", "User", "bob:users"),
        ('VOLUME ["/a b", "/c"]', "Volumes", {"/a b": {}, "/c": {}}),
        ("VOLUME /a /b", "Volumes", {"/a": {}, "/b": {}}),
        ("WORKDIR sub/../lib", "WorkingDir", "/app/lib"),
        ("WORKDIR /a b/", "WorkingDir", "/a b/"),
        ("HEALTHCHECK NONE", "Healthcheck", {"Test": ["NONE"]}),
        (
            'HEALTHCHECK --interval=1m30s --retries=3 CMD ["a"]',
            "Healthcheck",
            {"Interval": 90 * 10**9, "Retries": 3, "Test": ["CMD", "a"]},
        ),
        ("HEALTHCHECK CMD test -f /x", "Healthcheck", {"Test": ["CMD-SHELL", "test -f /x"]}),
    ],
)
def test_one_instruction(instruction: str, key: str, value: object) -> None:
    before = {name: list(held) if isinstance(held, list) else held for name, held in BASE.items()}
    assert changed(before, [instruction])[key] == value
    assert before == BASE


def test_an_entrypoint_drops_the_command_of_the_base_but_not_one_that_came_with_it() -> None:
    assert "Cmd" not in changed(BASE, ["ENTRYPOINT /x"])
    assert changed(BASE, ["CMD a", "ENTRYPOINT /x"])["Cmd"] == ["/bin/sh", "-c", "a"]
    assert changed(BASE, ["ENTRYPOINT /x", "CMD a"])["Cmd"] == ["/bin/sh", "-c", "a"]


def test_instructions_build_on_each_other_and_on_the_shell_of_the_image() -> None:
    done = changed({**BASE, "Shell": ["/bin/bash", "-c"]}, ["ENV A=2", "ENV B=$A", "WORKDIR x", "WORKDIR y", "CMD z"])
    assert done["Env"] == ["PATH=/bin", "A=2", "B=2"]
    assert (done["WorkingDir"], done["Cmd"]) == ("/app/x/y", ["/bin/bash", "-c", "z"])


@pytest.mark.parametrize(
    ("instruction", "problem"),
    [
        ("", "is not an instruction"),
        ("RUN make", "is not an instruction that commit can follow"),
        ("USER", "USER needs an argument"),
        ("ENV A", "ENV needs NAME=VALUE"),
        ("ENV A=1 B", "'B' is not NAME=VALUE"),
        ("ENV A='x", "cannot be read"),
        ("ENV A=${B", "cannot be read"),
        ("ENV A=${}", "cannot be read"),
        ("EXPOSE x", "'x' is not a port"),
        ("EXPOSE 90-80", "'90-80' is not a port"),
        ("EXPOSE 70000", "'70000' is not a port"),
        ("STOPSIGNAL SIGNOTHING", "is not a signal"),
        ("ONBUILD ONBUILD RUN x", "not allowed after ONBUILD"),
        ("HEALTHCHECK x", "needs NONE or CMD"),
        ("HEALTHCHECK --interval=x CMD y", "'x' is not a duration"),
        ("HEALTHCHECK --often CMD y", "'--often' is not an option"),
    ],
)
def test_a_wrong_instruction_is_named(instruction: str, problem: str) -> None:
    with pytest.raises(UsageError) as raised:
        changed(BASE, [instruction])
    assert problem in str(raised.value) and f"'{instruction}'" in str(raised.value)


def test_words_keep_their_quotes_until_they_are_expanded() -> None:
    words = split("a='b c' d\\ e \"f 'g\" 'h\\'")
    assert words == ["a='b c'", "d\\ e", '"f \'g"', "'h\\'"]
    assert [expand(word, {}) for word in words] == ["a=b c", "d e", "f 'g", "h\\"]
    assert expand('"a\\$b\\c"', {"b": "x"}) == "a$b\\c"
    assert expand("$1$-$", {"1": "one"}) == "one$-$"
