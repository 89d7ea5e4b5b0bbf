"""The simple commands in a text for a POSIX shell or bash, found without running it.

Enough of the grammar for scripts that people write into pipelines: quotes, expansions, substitutions, lists, pipes,
redirections, here-documents, comments. What only running it can tell is marked: `SOME` stands for text that an
expansion gives, `MANY` for a word that becomes any number of words (`"$@"`, an array, an unquoted variable).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

SOME = "\ue000"
MANY = "\ue001"

_RESERVED = frozenset(
    ("if", "then", "elif", "else", "do", "while", "until", "!", "{", "}", "time", "fi", "done")
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9@*#?$!-]")
_HEREDOC = re.compile(r"-?[ \t]*(\\?[\w.]+|'[^'\n]*'|\"[^\"\n]*\")")


@dataclass(frozen=True, slots=True)
class Simple:
    """One simple command: the line on which its first word stands (from 1), and its words, unquoted."""

    line: int
    words: tuple[str, ...]


def simple_commands(text: str) -> list[Simple]:
    """Return the simple commands of a script, those in substitutions and subshells included, redirections left out."""
    return sorted(_Scanner(text).run(), key=lambda command: command.line)


@dataclass(slots=True)
class _Scanner:
    text: str
    at: int = 0
    found: list[Simple] = field(default_factory=list)
    heredocs: list[tuple[str, bool]] = field(default_factory=list)

    def run(self) -> list[Simple]:
        self._list("")
        return self.found

    def _list(self, closing: str) -> None:
        """Scan commands up to `closing` (which may be empty: the end of the text)."""
        text = self.text
        words: list[str] = []
        word: list[str] | None = None
        line, depth, to_file = 1, 0, False

        def end_word() -> None:
            nonlocal word, to_file, line
            if word is None:
                return
            if not to_file:
                words.append("".join(word))
            to_file, word = False, None

        def end_command() -> None:
            end_word()
            while words and words[0] in _RESERVED:
                del words[0]
            if words:
                self.found.append(Simple(line, tuple(words)))
            words.clear()

        while self.at < len(text):
            char = text[self.at]
            if closing and char == closing and depth == 0:
                break
            if char in " \t":
                end_word()
                self.at += 1
                continue
            if char in "\n;&|()":
                end_command()
                depth += {"(": 1, ")": -1 if depth else 0}.get(char, 0)
                self.at += 1
                if char == "\n":
                    self._skip_heredocs()
                continue
            if char == "#" and word is None:
                self.at = self._end_of_line()
                continue
            if char == "\\" and text.startswith("\\\n", self.at):
                self.at += 2
                continue
            if char in "<>":
                if word is not None and "".join(word).isdigit():
                    word = None
                end_word()
                to_file = self._redirection()
                continue
            if word is None:
                word = []
                if not words and not to_file:
                    line = text.count("\n", 0, self.at) + 1
            word.append(self._piece())
        end_command()

    def _piece(self) -> str:
        """Consume a piece of a word, and return what it stands for."""
        text, char = self.text, self.text[self.at]
        if char == "'":
            end = text.find("'", self.at + 1)
            end = len(text) if end < 0 else end
            piece = text[self.at + 1 : end]
            self.at = end + 1
            return piece
        if char == '"':
            return self._double_quoted()
        if char == "\\":
            self.at += 2
            return text[self.at - 1 : self.at]
        if char in "$`":
            return self._expansion(quoted=False)
        self.at += 1
        return char

    def _double_quoted(self) -> str:
        self.at += 1
        pieces = []
        while self.at < len(self.text) and self.text[self.at] != '"':
            char = self.text[self.at]
            if char in "$`":
                pieces.append(self._expansion(quoted=True))
            elif char == "\\":
                escaped = self.text[self.at + 1 : self.at + 2]
                pieces.append({"\n": ""}.get(escaped, escaped if escaped in '$`"\\' else "\\" + escaped))
                self.at += 2
            else:
                pieces.append(char)
                self.at += 1
        self.at += 1
        return "".join(pieces)

    def _expansion(self, *, quoted: bool) -> str:
        text = self.text
        given = SOME if quoted else MANY
        if text[self.at] == "`":
            self.at += 1
            self._list("`")
            self.at += 1
            return given
        if text.startswith("${{", self.at):  # replaced by GitHub before a shell sees it
            end = text.find("}}", self.at)
            self.at = len(text) if end < 0 else end + 2
            return SOME
        if text.startswith("$((", self.at):
            end = text.find("))", self.at)
            self.at = len(text) if end < 0 else end + 2
            return SOME
        if text.startswith("$(", self.at):
            self.at += 2
            self._list(")")
            self.at += 1
            return given
        if text.startswith("${", self.at):
            start, depth = self.at, 0
            while self.at < len(text):
                depth += {"{": 1, "}": -1}.get(text[self.at], 0)
                self.at += 1
                if depth == 0 and self.at > start + 1:
                    break
            inside = text[start : self.at]
            return MANY if "[@]" in inside or "[*]" in inside or inside == "${@}" else given
        name = _NAME.match(text, self.at + 1)
        if name is None:
            self.at += 1
            return "$"
        self.at = name.end()
        return MANY if name[0] == "@" else given

    def _redirection(self) -> bool:
        """Consume an operator; return whether the next word is its file."""
        text = self.text
        if text.startswith("<<<", self.at):
            self.at += 3
            return True
        if text.startswith("<<", self.at):
            match = _HEREDOC.match(text, self.at + 2)
            if match is None:
                self.at += 2
                return False
            self.heredocs.append((match[1].strip("'\"\\"), match[0].startswith("-")))
            self.at = match.end()
            return False
        if text.startswith(("<(", ">("), self.at):
            self.at += 2
            self._list(")")
            self.at += 1
            return False
        operator = re.compile(r"<>|>>|>\||[<>]&?").match(text, self.at)
        assert operator is not None
        self.at = operator.end()
        return True

    def _skip_heredocs(self) -> None:
        for delimiter, indented in self.heredocs:
            while self.at < len(self.text):
                end = self._end_of_line()
                line = self.text[self.at : end]
                self.at = end + 1
                if (line.lstrip("\t") if indented else line) == delimiter:
                    break
        self.heredocs.clear()

    def _end_of_line(self) -> int:
        end = self.text.find("\n", self.at)
        return len(self.text) if end < 0 else end
