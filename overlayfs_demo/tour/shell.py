"""A shell whose prompt says where one is, such as `lab whiteout$`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

# How each shell is told, after the person's own settings, which may change the prompt and the path.
_BASH = """[ -r ~/.bashrc ] && . ~/.bashrc
unset PROMPT_COMMAND
PATH={programs}:$PATH
PS1={prompt}
"""
_ZSH = """ZDOTDIR={zdotdir}
[ -r "$ZDOTDIR/.zshrc" ] && . "$ZDOTDIR/.zshrc"
precmd_functions=()
PATH={programs}:$PATH
RPROMPT=
PROMPT={prompt}
"""
_FISH = "function fish_prompt; echo -n {prompt}; end; set -gx PATH {programs} $PATH"


@dataclass(frozen=True, slots=True)
class Shell:
    """The words that start a shell, and the variables that it needs besides others."""

    words: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


def scripted() -> Shell:
    """Return the shell that reads commands from stdin and shows no prompt."""
    return Shell(("sh",))


def prompting(name: str, programs: Path) -> Shell:
    """Return the user's shell, with the prompt `NAME$`, which finds the commands in `programs` first.

    The shell's settings are written into that directory. Raises OSError.
    """
    shell, prompt = os.environ.get("SHELL") or "sh", f"{name}$ "
    words = {"prompt": shlex.quote(prompt), "programs": shlex.quote(str(programs))}
    match os.path.basename(shell):
        case "bash":
            settings = programs / "bashrc"
            settings.write_text(_BASH.format(**words))
            return Shell((shell, "--rcfile", str(settings), "-i"))
        case "zsh":
            theirs = os.environ.get("ZDOTDIR") or os.path.expanduser("~")
            (programs / ".zshrc").write_text(_ZSH.format(zdotdir=shlex.quote(theirs), **words))
            return Shell((shell,), {"ZDOTDIR": str(programs)})
        case "fish":
            return Shell((shell, "-C", _FISH.format(**words)))
        case _:
            return Shell((shell,), {"PS1": prompt})
