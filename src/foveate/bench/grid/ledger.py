"""What a run has measured so far, in a file that only grows: a line of JSON per finished piece.

A run that was killed goes on where it stopped, and one that is asked for more measures only that. The first line says under
which circumstances the pieces were measured; pieces from others would not be comparable, and are refused.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, TextIO

from ...errors import UnsupportedError


def identity(setting: dict[str, Any]) -> str:
    """A fingerprint of plain data: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(setting, sort_keys=True).encode()).hexdigest()[:16]


class Ledger:
    """Pieces by name, on disk as soon as they are there.

    Args:
        path: the file; None keeps everything in memory.
        setting: plain data on which every piece depends.

    Raises:
        UnsupportedError: if the file was begun under another setting, or is something else.
    """

    def __init__(self, path: Path | None, setting: dict[str, Any]) -> None:
        self.path, self.setting = path, json.loads(json.dumps(setting))
        self._pieces: dict[str, Any] = {}
        self._file: TextIO | None = None
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = self._read(path) if path.exists() else 0
        self._file = open(path, "a")  # noqa: SIM115 - open as long as the run lasts
        self._file.truncate(whole)  # a line that was being written when the run was killed
        if not whole:
            self._write({"setting": self.setting})

    def __contains__(self, name: str) -> bool:
        return name in self._pieces

    def __getitem__(self, name: str) -> Any:
        return self._pieces[name]

    def __len__(self) -> int:
        return len(self._pieces)

    def put(self, name: str, value: Any) -> None:
        """Add a piece of plain data."""
        self._pieces[name] = value
        self._write({"name": name, "value": value})

    def close(self) -> None:
        """Close the file; the pieces stay readable."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def _read(self, path: Path) -> int:
        """Take what the file holds; how many of its bytes are whole lines."""
        whole = 0
        for raw in path.read_bytes().splitlines(keepends=True):
            if not raw.endswith(b"\n"):
                break
            try:
                line = json.loads(raw)
                name, value = (line["name"], line["value"]) if whole else ("", line["setting"])
            except (ValueError, TypeError, KeyError) as error:
                raise UnsupportedError(f"{path} is not a ledger of this bench", hint="another --results") from error
            if whole:
                self._pieces[name] = value
            else:
                self._compare(path, value)
            whole += len(raw)
        return whole

    def _compare(self, path: Path, found: dict[str, Any]) -> None:
        names = [name for name in {**found, **self.setting} if found.get(name) != self.setting.get(name)]
        if names:
            apart = "; ".join(f"{n}: {found.get(n)!r} then, {self.setting.get(n)!r} now" for n in names)
            raise UnsupportedError(
                f"what {path} holds was measured otherwise ({apart[:500]})",
                hint="another --results, or delete the ledger to measure anew",
            )
