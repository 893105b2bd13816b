import ast
import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lungmill import reporting, segmentation, verdict
from lungmill.errors import LungmillError
from lungmill.files import write_json, write_tsv
from lungmill.report_words import LABELS
from lungmill.reporting import write_report

HOSTILE = "</script><img src=x onerror=alert(1)> \"q\" 'a' & Müller/3"
VOID = {"meta", "link", "br", "img", "input", "line", "path", "hr"}
COLUMNS = [
    *("patient", "name", "status", "reason", "detail", "warnings", "n_slices", "source_spacing_mm", "source_shape"),
    *("shape", "spacing_mm", "orientation", "transfer_syntax", "right_ml", "left_ml", "mask_status", "mask_flags"),
    *("dicom_mb", "volume_mb", "mask_mb", "zarr_mb", "bcolz_mb", "patches_mb"),
]
HEADER = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"


class Page(HTMLParser):
    """Checks that elements nest, and collects attributes and the text that a reader sees."""

    def __init__(self, html):
        super().__init__()
        self.open, self.attributes, self.text, self.scripts = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, key, value) for key, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, key, value) for key, value in attrs]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        (self.scripts if self.open and self.open[-1] in ("script", "style") else self.text).append(data)

    @property
    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text))


def accepted(patient, **more):
    return {
        "patient": patient,
        "status": "accepted",
        "n_slices": 40,
        "source_spacing_mm": [2.5, 0.7, 0.7],
        "source_shape": [40, 64, 64],
        "shape": [40, 32, 36],
        "spacing_mm": [4, 4, 4],
        "transfer_syntax": "1.2.840.10008.1.2.4.90",
        "right_ml": 2011.4,
        "left_ml": 1800.2,
        "mask_status": "ok",
        "dicom_mb": 80,
        "volume_mb": 60,
        "mask_mb": 30,
        "zarr_mb": 20,
        **more,
    }


def add_patient(results, patient, with_mask=True):
    volume = np.full((40, 32, 36), 40, np.int16)
    volume[8:32, 8:24, 6:15] = volume[8:32, 8:24, 20:30] = -850
    mask = (volume < -500).astype(np.uint8)
    mask[:, :, 18:] *= 2
    (results / "volumes").mkdir(parents=True, exist_ok=True)
    (results / "masks").mkdir(parents=True, exist_ok=True)
    np.save(results / "volumes" / f"{patient}.npy", volume)
    grid = {"shape": [40, 32, 36], "spacing_mm": [4.0, 4.0, 4.0], "origin_mm": [0.0, 0.0, 0.0]}
    counts = np.histogram(volume, bins=128, range=(-1024, 3072))[0].tolist()
    histogram = {"start_hu": -1024, "width_hu": 32, "counts": counts}
    write_json(results / "volumes" / f"{patient}.json", {**grid, "hu_histogram": histogram})
    if with_mask:
        np.save(results / "masks" / f"{patient}.npy", mask)
        flags = [{"code": "small_lung", "detail": "the left lung is 41 % smaller <b>"}]
        write_json(results / "masks" / f"{patient}.json", {**grid, "status": "ok", "flags": flags})


def add_benchmark(logs, rule, patient, text):
    (logs / rule).mkdir(parents=True, exist_ok=True)
    (logs / rule / f"{patient}.tsv").write_text(text)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    root = tmp_path_factory.mktemp("cohort")
    results, logs = root / "results", root / "logs"
    missing = "5 slices < 10 are missing at z = -102.5 mm"
    rows = [
        accepted("case-10", warnings=["gantry_tilt", "padding"], mask_flags=["small_lung"]),
        accepted("case-9", n_slices=7, dicom_mb=8.5),
        accepted("hostile-1a2b", name=HOSTILE, n_slices=300),
        {"patient": "bad", "status": "rejected", "reason": "missing_slices", "detail": missing},
        {"patient": "../../etc/passwd", "status": "rejected", "reason": "no_dicom", "detail": HOSTILE},
    ]
    write_tsv(results / "cohort.tsv", COLUMNS, rows)
    sets = [{"patient": "case-9", "split": "val", "label": 1}]
    write_tsv(results / "dataset.tsv", ["patient", "split", "label"], sets)
    add_patient(results, "case-10")
    add_patient(results, "case-9", with_mask=False)
    add_patient(results, "hostile-1a2b")
    verdict_of_one = {
        "status": "accepted",
        "warnings": [{"code": "gantry_tilt", "detail": "4.2 degrees"}],
        "candidates": [
            {"series": "ab12", "n_slices": 40, "chosen": True, "reason": None},
            {"series": HOSTILE, "n_slices": 2, "chosen": False, "reason": "too_few_slices"},
        ],
        "files": {"dicom": 42},
    }
    write_json(results / "index" / "case-10.json", verdict_of_one)
    number = "{}\t0:00:01\t{}\t1\t1\t1\t0\t0\t90\t{}\n"
    add_benchmark(logs, "index", "case-10", HEADER + number.format(1.5, 101.5, 0.9))
    add_benchmark(logs, "segment", "case-10", HEADER + number.format(2.5, "NA", "-"))
    add_benchmark(logs, "report", "case-10", HEADER + number.format(9, 9, 9))
    return root


def render(root, name="page.html", **more):
    results = root / "results"
    page = root / name
    write_report(page, results, cohort=results / "cohort.tsv", logs=root / "logs", title="T <1> & co", **more)
    return page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def html(cohort):
    return render(cohort)


@pytest.fixture
def copy(cohort, tmp_path):
    return shutil.copytree(cohort, tmp_path / "copy")


def timings(html):
    return json.loads(re.search(r'<script type="application/json" id="timings">(.*)</script>', html)[1])


def without_timings(html):
    return [line for line in html.splitlines() if 'id="timings"' not in line]


def test_page_is_well_formed_and_needs_nothing_else(html):
    page = Page(html)
    addresses = [value for _, key, value in page.attributes if key in ("src", "href", "srcset", "data", "action")]
    assert addresses and all(value.startswith(("data:", "#")) for value in addresses)
    styles_and_scripts = " ".join(page.scripts)
    assert not re.search(r"https?:|@import|url\(|fetch\(|XMLHttp|import\(", styles_and_scripts)
    ids = [value for _, key, value in page.attributes if key == "id"]
    assert len(ids) == len(set(ids))
    targets = [value[1:] for _, key, value in page.attributes if key == "href" and value.startswith("#")]
    assert len(targets) == 5 and set(targets) <= set(ids)
    assert "{{" not in html


def test_hostile_text_stays_text(html):
    page = Page(html)
    assert html.count("<img") == html.count('<img src="data:image/webp;base64,') == 3
    assert not any(key.startswith("on") for _, key, _ in page.attributes)
    assert page.words.count(HOSTILE) == 5  # name and detail, each in the table and a card, and a candidate
    assert "the left lung is 41 % smaller <b>" in page.words
    assert page.words.count("T <1> & co") == 2
    assert len(re.findall("</script>", html)) == 2


def test_a_patient_id_is_never_a_path_out_of_the_results(copy):
    (copy / "etc").mkdir()
    write_json(copy / "etc" / "passwd.json", {"candidates": [{"series": "leaked"}]})
    html = render(copy)
    assert "../../etc/passwd" in Page(html).words and "leaked" not in html


def test_every_patient_and_reason_is_there_in_words(html):
    words = Page(html).words
    for text in ("case-10", "case-9", "bad", "5 patients: 3 accepted", "2 rejected"):
        assert text in words
    assert words.count("Slices are missing") >= 3 and "5 slices < 10 are missing at z = -102.5 mm" in words
    assert "Tilted gantry 4.2 degrees" in words and "Padding replaced by air" in words and "Small lung" in words
    assert "Too few slices" in words  # why the other candidate was not taken
    assert "JPEG 2000, lossless" in words and "4.5 \N{MULTIPLICATION SIGN} smaller" in words
    assert "168 MB of DICOM became 270 MB of arrays, 60 MB as Zarr." in words
    assert "3,812 ml: right 2,011, left 1,800" in words
    for raw in ("missing_slices", "gantry_tilt", "small_lung", "too_few_slices", "no_dicom"):
        assert raw not in words


def test_every_code_of_a_verdict_has_words():
    assert set(verdict.REASONS) | set(verdict.WARNINGS) <= set(LABELS)


def test_every_flag_of_a_mask_has_words():
    """The flags are looked up in the source: the dicts that the modules write with a key "code"."""
    folder = Path(segmentation.__file__).parent
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in folder.glob("*.py")]
    items = [
        item
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Dict)
        for item in zip(node.keys, node.values, strict=True)
    ]
    flags = {value.value for key, value in items if isinstance(key, ast.Constant) and key.value == "code"}
    assert {"lung_volume", "no_trachea"} <= flags <= set(LABELS)


def test_a_code_that_only_the_table_knows_gets_a_sentence(html):
    words = Page(html).words
    assert "Padding replaced by air the header declares a padding value; taken as air" in words
    assert "Tilted gantry 4.2 degrees" in words and verdict.WARNINGS["gantry_tilt"] not in words


def test_pictures_have_the_size_they_claim(html):
    found = re.findall(r'<img src="data:image/webp;base64,([^"]+)" width="(\d+)" height="(\d+)" loading="lazy"', html)
    assert len(found) == 3
    for data, width, height in found:
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (int(width), int(height))


def test_same_inputs_give_the_same_bytes(cohort, html):
    assert render(cohort, "again.html") == html
    assert render(cohort, "threads.html", threads=3) == html


def test_times_stand_in_one_line_only(html, copy):
    add_benchmark(copy / "logs", "index", "case-10", HEADER + "77.7\t0\t888.8\t1\t1\t1\t0\t0\t9\t66.6\n")
    other = render(copy)
    assert other != html
    assert without_timings(other) == without_timings(html)
    assert len(html.splitlines()) - len(without_timings(html)) == 1


def test_no_name_ends_or_opens_a_script_in_the_line_of_times(copy):
    add_benchmark(copy / "logs", "<!--<script>", "case-10", HEADER + "1\t0\t8\t1\t1\t1\t0\t0\t9\t6\n")
    html = render(copy)
    line = re.search(r'id="timings">(.*)</script>', html)[1]
    assert not set("<>&") & set(line)
    assert "<!--<script>" in timings(html)["stages"][-1]


def test_timings_hold_what_snakemake_measured(html):
    found = timings(html)
    assert found["stages"] == ["Read and judge", "Segment lungs"]  # not the report itself
    assert found["patients"] == {"case-10": [[0, 1.5, 0.9, 101.5], [1, 2.5, None, None]]}


@pytest.mark.parametrize("text", ["", "\n", HEADER, "s\n", "rubbish", "a\tb\nc\td\n", HEADER + "-\t-\n", "\udcff\n1"])
def test_broken_benchmarks_are_left_out(copy, text):
    (copy / "logs" / "index" / "case-10.tsv").write_bytes(text.encode(errors="surrogateescape"))
    assert timings(render(copy))["patients"] == {"case-10": [[1, 2.5, None, None]]}


def test_without_logs_verdicts_volumes_and_columns(tmp_path):
    rows = [{"patient": "a", "status": "accepted"}, {"patient": "b", "status": "rejected"}]
    write_tsv(tmp_path / "results" / "cohort.tsv", ["patient", "status"], rows)
    html = render(tmp_path)
    assert "No resampled volume was found" in Page(html).words
    assert timings(html) == {"stages": [], "patients": {}}


def test_an_empty_cohort_is_a_page_too(tmp_path):
    write_tsv(tmp_path / "results" / "cohort.tsv", ["patient", "status"], [])
    assert "0 patients: 0 accepted, 0 rejected." in Page(render(tmp_path)).words


def test_many_cards_start_closed(tmp_path):
    rows = [{"patient": f"p{n}", "status": "rejected", "reason": "no_dicom"} for n in range(reporting.OPEN_CARDS + 1)]
    write_tsv(tmp_path / "results" / "cohort.tsv", ["patient", "status", "reason"], rows)
    assert ("details", "open", None) not in Page(render(tmp_path)).attributes
    write_tsv(tmp_path / "results" / "cohort.tsv", ["patient", "status", "reason"], rows[:-1])
    assert Page(render(tmp_path)).attributes.count(("details", "open", None)) == reporting.OPEN_CARDS


@pytest.mark.parametrize(
    ("file", "content"),
    [("masks/case-10.json", b"{"), ("volumes/case-10.npy", b"\x93NUMPY"), ("index/case-10.json", b"[1")],
)
def test_damaged_results_are_named(copy, file, content):
    (copy / "results" / file).write_bytes(content)
    with pytest.raises(LungmillError, match=re.escape(file)):
        render(copy, "new.html")
    assert not list(copy.glob("*new.html*"))


def test_a_mask_of_another_shape_is_named(copy):
    np.save(copy / "results" / "masks" / "case-10.npy", np.zeros((3, 3, 3), np.uint8))
    with pytest.raises(LungmillError, match="case-10: the mask's shape"):
        render(copy)


PROBE = """<script>
const order = () => [...document.querySelectorAll("#cohort tbody tr")].filter(row => !row.hidden)
  .map(row => row.querySelector("a").textContent.slice(0, 7)).join("|");
const heads = document.querySelectorAll("#cohort thead button"), found = [];
heads[0].click(); found.push(order());
heads[3].click(); found.push(order());
heads[3].click(); found.push(order(), heads[3].parentElement.getAttribute("aria-sort"));
const box = document.getElementById("filter");
box.value = "TILTED"; box.dispatchEvent(new Event("input")); found.push(order());
found.push(document.querySelector(".times:not([hidden]) table").textContent);
document.body.dataset.found = JSON.stringify(found);
</script></body>"""


def test_sorting_filtering_and_times_work_in_a_browser(html, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    page = tmp_path / "probe.html"
    page.write_text(html.replace("</body>", PROBE), encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = next(value for _, key, value in Page(done.stdout).attributes if key == "data-found")
    by_name, ascending, descending, sort, filtered, times = json.loads(found)
    assert by_name.index("case-9") < by_name.index("case-10")  # as people sort, not 1 before 9
    assert ascending.split("|")[:3] == ["case-9", "case-10", HOSTILE[:7]]
    assert descending.split("|")[:3] == [HOSTILE[:7], "case-10", "case-9"]
    assert set(ascending.split("|")[3:]) == set(descending.split("|")[3:]) == {"bad", "../../e"}  # empty cells last
    assert sort == "descending" and filtered == "case-10"
    assert "Read and judge" in times and "1.5 s" in times and "102 MB" in times
