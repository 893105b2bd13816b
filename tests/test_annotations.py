import hashlib

import pytest

from lungmill.annotations import Nodule, nodules_of, read_annotations
from lungmill.errors import LungmillError
from lungmill.identity import patient_id

HEADER = "seriesuid,coordX,coordY,coordZ,diameter_mm\n"
UID = "1.3.6.1.4.1.14519.5.2.1.6279.6001.100225287222365663678666836860"


def write(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "annotations.csv"
    path.write_text(text, encoding=encoding)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_luna16_lines(tmp_path, encoding):
    # The first two lines of LUNA16's annotations.csv.
    text = (
        HEADER
        + f"{UID},-128.6994211,-175.3192718,-298.3875064,5.651470635\n{UID},103.7836509,-211.9251487,-227.12125,4.2\n"
    )
    nodules = read_annotations(write(tmp_path, text, encoding))
    assert nodules == [
        Nodule(UID, (-298.3875064, -175.3192718, -128.6994211), 5.651470635),
        Nodule(UID, (-227.12125, -211.9251487, 103.7836509), 4.2),
    ]


def test_other_columns_and_order_and_patient_wins(tmp_path):
    text = "diameter_mm, coordZ,note,coordY,coordX,patient,seriesuid\n4,3,x,2,1,anna,1.2\n5,3,,2,1,,1.2\n\n"
    assert read_annotations(write(tmp_path, text)) == [Nodule("anna", (3, 2, 1), 4), Nodule("1.2", (3, 2, 1), 5)]


def test_no_nodules_is_a_valid_file(tmp_path):
    assert read_annotations(write(tmp_path, HEADER)) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seriesuid,coordX,coordZ,diameter_mm\n", "no column coordY:"),
        ("name,coordX,coordY,coordZ\n", r"no column seriesuid \(or patient\), diameter_mm:"),
        ("", "no column"),
        (HEADER + "a,1,2,3,4\nb,1,2,three,4\n", "line 3, column coordZ: 'three' is not a number"),
        (HEADER + "a,1,2,3\n", "line 2, column diameter_mm: '' is not a number"),
        (HEADER + "a,nan,2,3,4\n", "line 2, column coordX: 'nan' is not a number"),
        (HEADER + "a,1,2,3,-4\n", "line 2, column diameter_mm: -4 is not above 0"),
        (HEADER + ",1,2,3,4\n", "line 2: neither patient nor seriesuid"),
    ],
)
def test_a_wrong_file_is_one_line_that_says_where(tmp_path, text, words):
    path = write(tmp_path, text)
    with pytest.raises(LungmillError, match=words) as caught:
        read_annotations(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_file_and_a_binary_one(tmp_path):
    with pytest.raises(LungmillError, match=r"none\.csv cannot be read"):
        read_annotations(tmp_path / "none.csv")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(LungmillError, match="not a CSV file in UTF-8"):
        read_annotations(tmp_path / "b.csv")


def test_nodules_are_found_by_name_by_raw_name_and_by_series():
    here = (0.0, 0.0, 0.0)
    annotations = [Nodule("anna", here, 1), Nodule(UID, here, 2), Nodule("bert", here, 3), Nodule("Anna B.", here, 4)]
    series = hashlib.sha256(UID.encode()).hexdigest()[:16]
    assert [n.diameter_mm for n in nodules_of(annotations, "anna", series)] == [1, 2]
    assert [n.diameter_mm for n in nodules_of(annotations, "anna")] == [1]
    assert [n.diameter_mm for n in nodules_of(annotations, patient_id("Anna B."))] == [4]
    assert nodules_of(annotations, "carl", "0" * 16) == []
