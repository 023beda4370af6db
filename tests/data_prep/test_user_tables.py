"""Tables of patients as Excel and others save them."""

import pytest
from small_pairs import make, some

from common.errors import UserError
from data_prep.patients import COLUMNS
from data_prep.user_tables import read_table

ROWS = [("a.png", "A"), ("b.png", "A"), ("c.png", "\u5f20"), ("d.png", "\xf6")]


def text(head, separator=",", end="\r\n"):
    return "".join(separator.join(row) + end for row in (head, *ROWS))


@pytest.mark.parametrize(
    "content",
    [
        text(("file", "patient")).encode("utf-8-sig"),
        text(("file", "patient"), ";").encode(),
        text(("file", "patient"), "\t").encode(),
        text(("file", "patient"), "\t").encode("utf-16"),
        ("sep=;\r\n" + text(("file", "patient"), ";")).encode(),
        text((" Filename ", " PATIENT"), ", ").encode(),
        text(("Image", "Patient"), end="\r").encode(),
        text(("name", "patient"), ";", ";;\r\n").encode() + b";;;\r\n\r\n",
        text(('"file"', '"patient"'), ", ").encode(),
    ],
)
def test_the_forms_of_a_table(tmp_path, content):
    (tmp_path / "who.csv").write_bytes(content)
    found = read_table(tmp_path / "who.csv", COLUMNS)
    assert [(row["file"], row["patient"]) for row in found] == ROWS


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (text(("file", "patient"))[:-4].encode("utf-16-le"), "no column|not UTF-8"),
        ("file;patient\na;J\xf6rg\n".encode("cp1252"), "not UTF-8 .* cp1252 .line 2.; save it as"),
        (b"PK\x03\x04\x14\0", 'a workbook or an archive, not a CSV; save it as "CSV UTF-8"'),
        (b"a.png,A\n", "no column file or filename or image or name .*; found: a.png, a"),
        (b"File,patient_id\n", "no column patient in its first line; found: file, patient_id"),
        (b"file,File,patient\n", "two columns file"),
        (b"file,patient\na.png,Doe, John\nb.png\n", r"(?s)line 2 does not .*\n.*line 3 does not"),
        (b"", "found: nothing"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, content, words):
    (tmp_path / "who.csv").write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_table(tmp_path / "who.csv", COLUMNS)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("a.png;A\nb.png;\nc.png; \n", r"(?s)no patient for 3 images.*b.png.*c.png.*d.png"),
        (
            "a.png;A\na;B\nb.png;A\nx/b.png;C\n",
            "lists a under A and under B; b under A and under C",
        ),
        (";A\n", "names no file for A"),
    ],
)
def test_rows_that_are_missing_empty_or_contradict_are_named(tmp_path, rows, words):
    some(tmp_path, ["a", "b", "c", "d"])
    (tmp_path / "who.csv").write_text("File;Patient\n" + rows)
    with pytest.raises(UserError, match=words):
        make(tmp_path, patient_csv=tmp_path / "who.csv")
