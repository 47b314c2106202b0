"""The Dockerfile instructions that change an image's settings and make no layer, for `commit --change`.

The rules are those of BuildKit's frontend/dockerfile/instructions/parse.go, and of moby builder/dockerfile: which
instructions `docker commit` accepts (builder.go, validCommitCommands; we accept STOPSIGNAL too) and what they do
(dispatchers.go).
"""

from __future__ import annotations

import json
import posixpath
import re
import signal
from collections.abc import Callable, Mapping, Sequence

from overlayfs_demo.errors import UsageError, printable
from overlayfs_demo.images.dockerfile_words import expand, split

Settings = dict[str, object]

_INSTRUCTION = re.compile(r"\s*([A-Za-z]+)(?:\s+(.*))?\s*", re.DOTALL)
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?", re.IGNORECASE)
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h))+")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_SHELL = ("/bin/sh", "-c")
_TIMES = {"--interval": "Interval", "--timeout": "Timeout", "--start-period": "StartPeriod"}


def changed(config: Mapping[str, object], instructions: Sequence[str]) -> Settings:
    """Return an image's settings (its config's `config`) after these instructions. Raises UsageError.

    As in a Dockerfile, an ENTRYPOINT drops the CMD of the image, unless a CMD came with it before. A CMD that is empty
    leaves that of the image (moby daemon/commit.go, merge).
    """
    settings: Settings = dict(config)
    seen: set[str] = set()
    for text in instructions:
        name, rest = _cut(text)
        try:
            _INSTRUCTIONS[name](settings, rest)
        except UsageError as error:
            raise UsageError(f"--change '{printable(text)}': {error.problem}", error.remedy) from None
        if name == "ENTRYPOINT" and "CMD" not in seen:
            settings.pop("Cmd", None)
        seen.add(name)
    if not settings.get("Cmd") and not settings.get("Entrypoint") and "Cmd" in config:
        settings["Cmd"] = config["Cmd"]
    return settings


def _object(settings: Mapping[str, object], key: str) -> dict[str, object]:
    value = settings.get(key)
    return dict(value) if isinstance(value, dict) else {}


def _cut(text: str) -> tuple[str, str]:
    match = _INSTRUCTION.fullmatch(text)
    name = match[1].upper() if match else ""
    if match is None or name not in _INSTRUCTIONS:
        raise UsageError(
            f"--change '{printable(text)}' is not an instruction that commit can follow",
            f"use one of {', '.join(_INSTRUCTIONS)}",
        )
    rest = (match[2] or "").strip()
    if not rest and name not in ("CMD", "ENTRYPOINT"):
        raise UsageError(f"--change '{printable(text)}': {name} needs an argument", f"write {_EXAMPLES[name]}")
    return name, rest


# --- the parts of instructions ---------------------------------------------------------------------


def _json_words(text: str) -> list[str] | None:
    """Return the words of the JSON form, ["a", "b"]; None if this is not that form, which makes it the shell form."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, list) and all(isinstance(word, str) for word in found) else None


def _command(settings: Settings, text: str) -> list[str]:
    words = _json_words(text)
    if words is not None:
        return words
    shell = settings.get("Shell")
    # Without an argument, only the shell is left.
    return [*(shell if isinstance(shell, list) and shell else _SHELL), *filter(None, (text,))]


def _texts(settings: Mapping[str, object], key: str) -> list[str]:
    value = settings.get(key)
    return list(value) if isinstance(value, list) else []


def _variables(settings: Settings) -> dict[str, str]:
    return dict(text.partition("=")[::2] for text in _texts(settings, "Env"))


def _pairs(settings: Settings, text: str, name: str) -> list[tuple[str, str]]:
    """Return the NAME=VALUE pairs of ENV and LABEL; their old form is NAME, blanks, and one value to the end."""
    variables = _variables(settings)
    words = split(text)
    if "=" not in words[0]:
        value = text[len(words[0]) :].strip()
        if not value:
            raise UsageError(f"{name} needs NAME=VALUE", f"write {_EXAMPLES[name]}")
        return [(expand(words[0], variables), expand(value, variables))]
    found = []
    for word in words:
        key, has_value, value = word.partition("=")
        if not has_value or not key:
            raise UsageError(f"'{printable(word)}' is not NAME=VALUE", "put quotes around a value with blanks")
        found.append((expand(key, variables), expand(value, variables)))
    return found


def _list(settings: Settings, text: str) -> list[str]:
    words = _json_words(text)
    return [expand(word, _variables(settings)) for word in (split(text) if words is None else words)]


def _whole(settings: Settings, text: str) -> str:
    """Return the one argument of an instruction, which is the whole line, blanks included."""
    return expand(text, _variables(settings))


def _union(settings: Settings, key: str, names: Sequence[str]) -> None:
    settings[key] = _object(settings, key) | {name: {} for name in names}


# --- instructions ----------------------------------------------------------------------------------


def _cmd(settings: Settings, text: str) -> None:
    settings["Cmd"] = _command(settings, text)


def _entrypoint(settings: Settings, text: str) -> None:
    settings["Entrypoint"] = _command(settings, text)


def _env(settings: Settings, text: str) -> None:
    # All values of one instruction see the variables as they were before it.
    for name, value in _pairs(settings, text, "ENV"):
        row = f"{name}={value}"
        rows = _texts(settings, "Env")
        places = [place for place, old in enumerate(rows) if old.partition("=")[0] == name]
        if places:
            rows[places[0]] = row
        else:
            rows.append(row)
        settings["Env"] = rows


def _label(settings: Settings, text: str) -> None:
    settings["Labels"] = _object(settings, "Labels") | dict(_pairs(settings, text, "LABEL"))


def _expose(settings: Settings, text: str) -> None:
    ports = []
    for word in _list(settings, text):
        match = _PORT.fullmatch(word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if match is None or not first <= last <= 65535:
            raise UsageError(f"'{printable(word)}' is not a port", "write PORT, PORT/udp or FIRST-LAST")
        ports += [f"{port}/{(match[3] or 'tcp').lower()}" for port in range(first, last + 1)]
    _union(settings, "ExposedPorts", ports)


def _volume(settings: Settings, text: str) -> None:
    paths = _list(settings, text)
    if not all(path.strip() for path in paths):
        raise UsageError("VOLUME needs paths that are not empty", f"write {_EXAMPLES['VOLUME']}")
    _union(settings, "Volumes", paths)


def _workdir(settings: Settings, text: str) -> None:
    path = _whole(settings, text)
    if not path.startswith("/"):
        path = posixpath.normpath(posixpath.join("/", str(settings.get("WorkingDir") or ""), path))
    settings["WorkingDir"] = path


def _user(settings: Settings, text: str) -> None:
    settings["User"] = _whole(settings, text)


def _stopsignal(settings: Settings, text: str) -> None:
    word = _whole(settings, text)
    name = word.upper().removeprefix("SIG")
    if not (word.isdigit() and 1 <= int(word) <= signal.SIGRTMAX) and f"SIG{name}" not in signal.Signals.__members__:
        raise UsageError(f"'{printable(word)}' is not a signal", f"write {_EXAMPLES['STOPSIGNAL']}")
    settings["StopSignal"] = word


def _onbuild(settings: Settings, text: str) -> None:
    first = text.split()[0].upper()
    if first in ("ONBUILD", "FROM", "MAINTAINER"):
        raise UsageError(f"{first} is not allowed after ONBUILD", f"write {_EXAMPLES['ONBUILD']}")
    settings["OnBuild"] = [*_texts(settings, "OnBuild"), text]


def _healthcheck(settings: Settings, text: str) -> None:
    if text.upper() == "NONE":
        settings["Healthcheck"] = {"Test": ["NONE"]}
        return
    check: Settings = {}
    while text.startswith("--"):
        word, _, text = text.partition(" ")
        text = text.lstrip()
        flag, _, value = word.partition("=")
        if flag in _TIMES:
            check[_TIMES[flag]] = _nanoseconds(value)
        elif flag == "--retries" and value.isdigit():
            check["Retries"] = int(value)
        else:
            raise UsageError(
                f"'{printable(word)}' is not an option of HEALTHCHECK", f"write {_EXAMPLES['HEALTHCHECK']}"
            )
    kind, _, command = text.partition(" ")
    if kind.upper() != "CMD" or not command.strip():
        raise UsageError("HEALTHCHECK needs NONE or CMD", f"write {_EXAMPLES['HEALTHCHECK']}")
    words = _json_words(command.strip())
    check["Test"] = ["CMD-SHELL", command.strip()] if words is None else ["CMD", *words]
    settings["Healthcheck"] = check


def _nanoseconds(text: str) -> int:
    if not _DURATION.fullmatch(text):
        raise UsageError(f"'{printable(text)}' is not a duration", "write a number with a unit, as in 1m30s")
    return round(sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text)))


_INSTRUCTIONS: Mapping[str, Callable[[Settings, str], None]] = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "HEALTHCHECK": _healthcheck,
    "LABEL": _label,
    "ONBUILD": _onbuild,
    "STOPSIGNAL": _stopsignal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}
_EXAMPLES = {
    "CMD": 'CMD ["sh"]',
    "ENTRYPOINT": 'ENTRYPOINT ["/app"]',
    "ENV": "ENV NAME=value",
    "EXPOSE": "EXPOSE 80/tcp",
    "HEALTHCHECK": "HEALTHCHECK --interval=30s CMD test -f /ready",
    "LABEL": "LABEL name=value",
    "ONBUILD": "ONBUILD RUN make",
    "STOPSIGNAL": "STOPSIGNAL SIGTERM",
    "USER": "USER nobody",
    "VOLUME": "VOLUME /data",
    "WORKDIR": "WORKDIR /app",
}
