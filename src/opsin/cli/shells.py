"""The shells' side of completion: the script for each, and how what is offered gets onto its command line.

Click's own classes know neither names with spaces, commas or colons in bash and fish, nor names that go on
without a space, nor `--option=value` in zsh and fish; these scripts do.
"""

import os
import re
import shlex
from typing import Any

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
)

from opsin.cli.completion import VARIABLE

# bash itself splits words at colons; so the whole line is split here, and what stands before the last colon
# is cut off what bash inserts
BASH = """\
%(complete_func)s() {
    local kind value
    COMPREPLY=()
    while IFS=, read -r kind value; do
        case $kind in
            plain) COMPREPLY+=("$value") ;;
            unfinished) COMPREPLY+=("$value"); compopt -o nospace ;;
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
        esac
    done < <(env COMP_LINE="${COMP_LINE:0:COMP_POINT}" COMP_WORDBREAKS="$COMP_WORDBREAKS" \\
        %(complete_var)s=bash_complete "$1" 2>/dev/null)
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""
ZSH = """\
#compdef %(prog_name)s

%(complete_func)s() {
    local -a plain described unfinished response
    local kind value about
    (( ! $+commands[%(prog_name)s] )) && return 1
    response=("${(@f)$(env COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT-1)) \\
        %(complete_var)s=zsh_complete %(prog_name)s 2>/dev/null)}")
    compset -P 1 '--*='
    for kind value about in $response; do
        case $kind in
            plain) if [[ $about == _ ]]; then plain+=("$value"); else described+=("$value:$about"); fi ;;
            unfinished) unfinished+=("$value") ;;
            dir) _path_files -/ ;;
            file) _path_files -f ;;
        esac
    done
    (( $#described )) && _describe -V unsorted described -U -i "$IPREFIX"
    (( $#plain )) && compadd -U -i "$IPREFIX" -V unsorted -a plain
    (( $#unfinished )) && compadd -U -i "$IPREFIX" -S '' -V unsorted -a unfinished
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""
FISH = """\
function %(complete_func)s
    set -l option (commandline -t | string match -r -- '^--[^=]+=')
    for line in (env COMP_WORDS=(commandline -cp) COMP_CWORD=(commandline -t) \\
            %(complete_var)s=fish_complete %(prog_name)s 2>/dev/null)
        set -l part (string split -m 1 , -- $line)
        switch $part[1]
            case dir
                __fish_complete_directories $part[2] | string replace -r -- '^' "$option"
            case file
                __fish_complete_path $part[2] | string replace -r -- '^' "$option"
            case '*'
                echo "$option$part[2]"
        end
    end
end

complete --no-files --command %(prog_name)s --arguments '(%(complete_func)s)'
"""
ASSIGNMENT = re.compile(r"\w+=")
SAFE = re.compile(r"([^\w@%+=:,./-])")  # bash takes every other character for itself


@add_completion_class
class Bash(BashComplete):
    """Completion in bash, from 4.4 on."""

    source_template = BASH
    quote = ""  # the quotation mark that is open at the cursor
    cut = 0  # characters of the last word that bash takes for words of their own

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the last one, without the command's name, and the last one."""
        line, breaks = os.environ["COMP_LINE"], os.environ.get("COMP_WORDBREAKS", "")
        words, incomplete, self.quote = split_line(line)
        while words and ASSIGNMENT.match(words[0]):  # variables for this command only
            words.pop(0)
        option, equals, value = incomplete.partition("=")
        typed = value if equals and option.startswith("-") else incomplete
        if self.quote:
            quoted = line[line.rindex(self.quote) + 1 :]
            self.cut = len(typed) - len(quoted) if typed.endswith(quoted) else 0
        else:
            self.cut = 1 + max(typed.rfind(mark) if mark in breaks else -1 for mark in ":=@")
        return words[1:], incomplete

    def format_completion(self, item: CompletionItem[Any]) -> str:
        """The value as it stands on a command line of bash: with quotes, and without what bash cuts off."""
        value = item.value[self.cut :]
        if self.quote == '"':
            value = re.sub(r'([\\"$`])', r"\\\1", value)
        elif self.quote == "'":
            value = value.replace("'", r"'\''")
        else:
            value = SAFE.sub(r"\\\1", value)
        return f"{item.type},{value}"


@add_completion_class
class Zsh(ZshComplete):
    """Completion in zsh."""

    source_template = ZSH


@add_completion_class
class Fish(FishComplete):
    """Completion in fish, which adds no space behind a colon or a slash."""

    source_template = FISH


SHELLS: dict[str, type[ShellComplete]] = {"bash": Bash, "zsh": Zsh, "fish": Fish}


def split_line(line: str) -> tuple[list[str], str, str]:
    """The words of a command line, the last one, which is not finished, and the quotation mark open in it."""
    lexer = shlex.shlex(f"{line}|", posix=True)  # the mark makes a word of the last one, even if it is empty
    lexer.whitespace_split, lexer.commenters = True, ""
    words: list[str] = []
    quote = ""
    try:
        words.extend(lexer)
    except ValueError:  # no closing quotation mark
        words.append(lexer.token)
        quote = lexer.state or ""  # type: ignore[attr-defined]  # which typeshed lacks
    *before, last = words
    return before, last.removesuffix("|"), quote


def script(command: click.Command, shell: str) -> str:
    """The script that a shell reads once to complete the words of this command."""
    return SHELLS[shell](command, {}, "opsin", VARIABLE).source()
