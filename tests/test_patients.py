import pytest

from lungmill.errors import ConfigError
from lungmill.patients import find_patients


def test_sub_folders_are_patients_and_nothing_else(tmp_path):
    for name in ("b", "a x", ".hidden"):
        (tmp_path / name).mkdir()
    (tmp_path / "LICENSE").touch()
    (tmp_path / "c").symlink_to(tmp_path / "b")
    found = find_patients(tmp_path)
    assert {patient.name: patient.dicom for patient in found.values()} == {
        name: str(tmp_path / name) for name in ("a x", "b", "c")
    }
    assert list(found) == sorted(found) and all(" " not in key for key in found)


def test_table_with_and_without_a_root(tmp_path, monkeypatch):
    (tmp_path / "scans" / "one").mkdir(parents=True)
    table = tmp_path / "patients.tsv"
    table.write_text("patient\tdicom\tseries_uid\tsplit\tlabel\nP1\tone\t1.2.3\ttest\tcancer\n")
    patient = find_patients(tmp_path / "scans", table)["P1"]
    assert (patient.dicom, patient.series_uid, patient.split, patient.label) == (
        str(tmp_path / "scans" / "one"), "1.2.3", "test", "cancer",
    )  # fmt: skip
    monkeypatch.chdir(tmp_path / "scans")
    assert find_patients(None, table)["P1"].dicom == "one"


def test_excluded_patients_are_left_out(tmp_path):
    for name in ("a", "b", "12"):
        (tmp_path / name).mkdir()
    assert set(find_patients(tmp_path, exclude=["a", 12])) == {"b"}
    with pytest.raises(ConfigError, match="no patient is left"):
        find_patients(tmp_path, exclude=["a", "b", "12"])


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "no rows"),
        ("patient\tdicom\n", "no rows"),
        ("patient\tdicom\tspilt\nx\t.\ttest\n", "did you mean 'split'"),
        ("patient\tdicom\tsplit\nx\t.\ttesting\n", "line 2 has split 'testing'"),
        ("patient\tdicom\n\t.\n", "line 2 lacks patient"),
        ("patient\tdicom\nx\t\n", "line 2 lacks dicom"),
    ],
)
def test_errors_in_a_table_name_the_place(tmp_path, monkeypatch, text, words):
    monkeypatch.chdir(tmp_path)
    table = tmp_path / "patients.tsv"
    table.write_text(text)
    with pytest.raises(ConfigError, match=words) as error:
        find_patients(None, table)
    assert "patients.tsv" in str(error.value) and "\n" not in str(error.value)
