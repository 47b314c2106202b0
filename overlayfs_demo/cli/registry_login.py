"""The verbs `login` and `logout`, which change docker's file of credentials."""

from __future__ import annotations

import argparse
import getpass
import sys
from typing import TYPE_CHECKING

from overlayfs_demo.cli.command import Verbs, new_verb
from overlayfs_demo.cli.extras import needing
from overlayfs_demo.cli.registry import add_plain_http
from overlayfs_demo.errors import UsageError, printable
from overlayfs_demo.ui.console import PROGRAM, note, put

if TYPE_CHECKING:
    from overlayfs_demo.registry.credentials import Credentials, DockerConfig


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add the verbs of this module."""
    example = f"{PROGRAM} login -u me\n{PROGRAM} login -u me --password-stdin localhost:5000 < password"
    verb = new_verb(verbs, "login", example, _login)
    _add_server(verb)
    verb.add_argument("--username", "-u", metavar="USER")
    verb.add_argument("--password", "-p", help="other users of this machine can see it; better answer the question")
    verb.add_argument("--password-stdin", action="store_true", help="read the password from standard input")
    add_plain_http(verb)
    verb = new_verb(verbs, "logout", f"{PROGRAM} logout localhost:5000", _logout)
    _add_server(verb)


def _add_server(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("server", nargs="?", default="docker.io", metavar="SERVER", help="default: docker.io, Docker Hub")


def _login(arguments: argparse.Namespace) -> int:
    with needing("registry", "registries need"):
        from overlayfs_demo.registry import login
        from overlayfs_demo.registry.credentials import DockerConfig, config_path
        from overlayfs_demo.registry.session import Ways
    domain = login.server_domain(arguments.server)
    config = DockerConfig(config_path())
    credentials = _credentials(arguments, config, domain)
    login.check(domain, credentials, Ways(arguments.plain_http))
    config.keep(domain, credentials)
    if not config.helper_for(domain):
        note(f"WARNING! Your password is stored unencrypted in {printable(str(config_path()))}")
    put("Login Succeeded\n")
    return 0


def _credentials(arguments: argparse.Namespace, config: DockerConfig, domain: str) -> Credentials:
    """Return the user and password that are given, kept, or typed, in this order. Raises UsageError."""
    from overlayfs_demo.registry.credentials import Credentials

    if arguments.password_stdin:
        if arguments.password is not None:
            raise UsageError("--password and --password-stdin exclude each other", "give one of them")
        if not arguments.username:
            raise UsageError("--password-stdin needs --username", "add -u USER")
        return Credentials(arguments.username, _one_line(sys.stdin.readline()))
    if arguments.password is not None:
        note("WARNING! Using --password is insecure. Use --password-stdin.")
    kept = config.find(domain)
    if kept is not None and arguments.username in (None, kept.user) and arguments.password is None:
        note("Authenticating with existing credentials...")
        return kept
    if not sys.stdin.isatty() and None in (arguments.username, arguments.password):
        raise UsageError("there is no terminal to ask for a user and password", "use -u USER --password-stdin")
    user = arguments.username or _one_line(input("Username: "))
    if not user or ":" in user:
        raise UsageError("a user name is not empty and has no colon", "give another one")
    password = arguments.password if arguments.password is not None else getpass.getpass("Password: ")
    if not password:
        raise UsageError("the password is empty", "type it, or use --password-stdin")
    return Credentials(user, password)


def _one_line(text: str) -> str:
    return text.rstrip("\r\n")


def _logout(arguments: argparse.Namespace) -> int:
    with needing("registry", "registries need"):
        from overlayfs_demo.registry import login
        from overlayfs_demo.registry.credentials import DockerConfig, config_path
    domain = login.server_domain(arguments.server)
    if DockerConfig(config_path()).forget(domain):
        put(f"Removing login credentials for {domain}\n")
    else:
        put(f"Not logged in to {domain}\n")
    return 0
