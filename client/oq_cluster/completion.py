"""Completion of commands and options, made from the command line's own definition."""

from __future__ import annotations

import argparse
from typing import Final

SHELLS: Final = ("bash", "zsh")
_BASH: Final = """\
_oq_cluster() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" command="" words
    for words in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "$words" in {commands}) command="$words"; break;; esac
    done
    case "$command" in
{cases}
        *) words="{top}";;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _oq_cluster oq-cluster"""
# zsh runs bash's by this, which comes with it.
_ZSH: Final = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script for a shell."""
    subs = subcommands(parser)
    cases = "\n".join(f'        {name}) words="{" ".join(_words(sub))}";;' for name, sub in subs.items())
    text = _BASH.format(commands="|".join(subs), cases=cases, top=" ".join([*subs, *_words(parser)]))
    return (_ZSH if shell == "zsh" else "") + text


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parser of each command, by its name."""
    (action,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(action.choices)


def _words(parser: argparse.ArgumentParser) -> list[str]:
    """The options and fixed choices of a command."""
    words = [option for action in parser._actions for option in action.option_strings if option[:2] == "--"]
    choices = [
        str(choice)
        for action in parser._actions
        if action.choices and not isinstance(action, argparse._SubParsersAction)
        for choice in action.choices
    ]
    return [*choices, *words]
