"""A ledger: what was put in is there again, also after a crash, and never under other circumstances."""

import pytest

from foveate.bench.grid.ledger import Ledger, identity
from foveate.errors import UnsupportedError

SETTING = {"model": "a", "batch": 4}


def test_pieces_come_back(tmp_path):
    path = tmp_path / "deep" / "run.ledger.jsonl"
    with Ledger(path, SETTING) as ledger:
        ledger.put("one", {"said": ["yes"]})
        ledger.put("two", [1, 2])
    with Ledger(path, SETTING) as again:
        assert "one" in again and again["two"] == [1, 2] and len(again) == 2


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_line_that_was_being_written_is_dropped(tmp_path, cut):
    path = tmp_path / "ledger"
    with Ledger(path, SETTING) as ledger:
        ledger.put("one", {"said": ["yes"]})
        ledger.put("two", {"said": ["no", "perhaps"]})
    path.write_bytes(path.read_bytes()[:-cut])
    with Ledger(path, SETTING) as again:
        assert "one" in again and "two" not in again
        again.put("two", 2)
    with Ledger(path, SETTING) as third:
        assert third["two"] == 2 and third["one"] == {"said": ["yes"]}


def test_a_run_that_died_before_its_first_line_begins_anew(tmp_path):
    path = tmp_path / "ledger"
    path.write_text('{"setting": {"mod')
    with Ledger(path, SETTING) as ledger:
        ledger.put("one", 1)
    assert len(Ledger(path, SETTING)) == 1


def test_another_setting_is_refused_and_named(tmp_path):
    path = tmp_path / "ledger"
    Ledger(path, SETTING).close()
    with pytest.raises(UnsupportedError, match="batch: 4 then, 8 now"):
        Ledger(path, SETTING | {"batch": 8})
    with pytest.raises(UnsupportedError, match="more: None then, 1 now"):
        Ledger(path, SETTING | {"more": 1})


@pytest.mark.parametrize("text", ["no JSON\n", "[]\n", '{"name": "x", "value": 1}\n'])
def test_another_file_is_refused_and_left_alone(tmp_path, text):
    path = tmp_path / "notes.txt"
    path.write_text(text)
    with pytest.raises(UnsupportedError, match="not a ledger"):
        Ledger(path, SETTING)
    assert path.read_text() == text


def test_without_a_file_pieces_stay_in_memory():
    with Ledger(None, SETTING) as ledger:
        ledger.put("one", 1)
        assert ledger["one"] == 1


def test_identity_tells_settings_apart_and_not_their_order():
    assert identity({"a": 1, "b": 2}) == identity({"b": 2, "a": 1}) != identity({"a": 1, "b": 3})
