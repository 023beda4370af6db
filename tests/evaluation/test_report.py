"""report.html: complete, escaped, without network."""

import base64
import io
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from common.dataset.slices import read_set
from common.errors import UserError
from common.evaluation.figures import save_picture
from common.evaluation.report import write_report
from common.evaluation.score_run import score_run
from common.files import read_csv, read_json, write_csv, write_json

SIZE = 16
EVIL = '<script>alert("1")&lt;'  # a case's name is part of a file's, so without a slash
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell")


class Page(HTMLParser):
    """The tags, the addresses that are asked for, and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [v for k, v in attributes if k in ("src", "href", "srcset", "data")]

    def handle_data(self, data):
        self.text.append(data.strip())


@pytest.fixture
def scored(tmp_path):
    """A scored run over three patients: one found, one missed, one without class; its data set."""
    data, run = tmp_path / "data", tmp_path / "stage" / "runs" / "a"
    spleen, grey = np.zeros((SIZE, SIZE), np.uint8), np.full((SIZE, SIZE), 90, np.uint8)
    spleen[4:9, 4:9] = 255
    rows, cases = (
        [],
        {
            "found": (spleen, spleen),
            EVIL: (spleen, spleen * 0),
            "none": (spleen * 0,) * 2,
        },
    )
    for case, (truth, mask) in cases.items():
        for index in range(2):
            name = f"{case}_{index:03d}.png"
            save_picture(data / "images" / name, grey)
            save_picture(data / "masks" / name, truth)
            save_picture(run / "predictions" / name, mask)
            foreground = int((truth > 0).sum())
            rows.append({"case": case, "slice": index, "foreground": foreground, "source": ""})
    write_csv(data / "manifest.csv", rows)
    geometry = {"shape": [16, 16, 2], "affine": np.diag([1, 1, 4, 1]).tolist()}
    geometry["spacing"] = [1, 1, 4]
    about = {"size": SIZE, "classes": ["<i>spleen"], "cases": dict.fromkeys(cases, geometry)}
    write_json(data / "dataset.json", about)
    done = {"subset": "test", "weights": "best", "cases": [*cases], "parameters": 5, "epoch": 1}
    write_json(run / "inference.json", {**done, "latency_ms": 2.0, "classes": ["<i>spleen"]})
    made = {"config": {"lr": 0.1, "name": "<b>bold"}, "environment": {"torch": "2"}}
    write_json(run / "config.json", made)
    save_picture(run / "curves.png", grey)
    score_run(run, read_set(data))
    return run, read_set(data)


def test_one_page_holds_it_all_and_asks_for_nothing(scored):
    write_report(*scored, ("gain <over> S1: +1.0",))
    page = Page((scored[0] / "report.html").read_text(encoding="utf-8"))
    assert not {"script", "link", "iframe", "object", "b", "i"} & {*page.tags}
    assert len(page.addresses) == page.tags.count("img") == 2 + 3  # dots, curves, a slice each
    for address in page.addresses:
        kind, content = address.split(",", 1)
        assert kind == "data:image/png;base64"
        Image.open(io.BytesIO(base64.b64decode(content))).verify()
    for words in ("gain <over> S1: +1.0", EVIL, "<b>bold", "HD95 mm", "Dice", "0.1"):
        assert words in page.text
    assert any("<i>spleen" in words for words in page.text)


def test_a_run_that_has_lost_its_curves_and_settings_has_a_page_too(scored):
    for name in ("curves.png", "config.json"):
        (scored[0] / name).unlink()
    write_report(*scored)
    page = Page((scored[0] / "report.html").read_text(encoding="utf-8"))
    assert "Worst first" in page.text and "Training" not in page.text


def test_the_slice_with_the_largest_class_and_the_one_with_most_errors_are_shown(scored):
    run, data = scored
    spleen = np.zeros((SIZE, SIZE), np.uint8)
    spleen[2:14, 2:14] = 255
    save_picture(data.folder / "masks" / "found_001.png", spleen)
    save_picture(run / "predictions" / "found_001.png", spleen)
    rows = [
        row | {"foreground": 144} if row["slice"] == "1" else row
        for row in read_csv(data.folder / "manifest.csv")
    ]
    write_csv(data.folder / "manifest.csv", rows)
    save_picture(run / "predictions" / "found_000.png", spleen)
    data = read_set(data.folder)
    score_run(run, data)
    write_report(run, data)
    captions = [t for t in Page((run / "report.html").read_text()).text if t.startswith("found_")]
    assert "found_001: the largest class" in captions[0]
    assert "found_000: the most wrong pixels (119)" in captions[1]


def test_the_worst_patient_comes_first_and_one_without_class_last(scored):
    write_report(*scored)
    page = Page((scored[0] / "report.html").read_text(encoding="utf-8"))
    order = [t for t in page.text if t in ("found", EVIL, "none")]
    assert order == [EVIL, "found", "none"]
    titles = [t for t in page.text if ": Dice " in t]
    assert titles == [f"{EVIL}: Dice 0.000", "found: Dice 1.000", "none: Dice -"]
    write_report(*scored, worst=1)
    page = Page((scored[0] / "report.html").read_text(encoding="utf-8"))
    assert [t for t in page.text if ": Dice " in t] == [f"{EVIL}: Dice 0.000"]


def test_a_browser_draws_it(scored, tmp_path):
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    write_report(*scored)
    target = tmp_path / "page.png"
    flags = ("--headless", "--no-sandbox", "--disable-gpu", f"--screenshot={target}")
    page = (scored[0] / "report.html").as_uri()
    subprocess.run([browser, *flags, "--window-size=900,1600", page], check=True, timeout=120)
    assert np.asarray(Image.open(target).convert("L")).std() > 5


def test_scores_on_volumes_have_distances_in_mm(scored):
    result = score_run(*scored)
    found, missed, none = (result["cases"][case] for case in ("found", EVIL, "none"))
    assert found["hd95_mm"] == 0 and found["nsd_1mm"] == 1
    assert missed["hd95_mm"] == pytest.approx(np.sqrt(16**2 + 16**2 + 8**2))
    assert none["hd95_mm"] is None
    for name in ("masks", "images"):  # a volume that is not whole has none
        (scored[1].folder / name / "found_001.png").unlink()
    (scored[0] / "predictions/found_001.png").unlink()
    manifest = scored[1].folder / "manifest.csv"
    write_csv(
        manifest, [r for r in read_csv(manifest) if (r["case"], r["slice"]) != ("found", "1")]
    )
    part = score_run(scored[0], read_set(scored[1].folder))
    assert part["cases"]["found"]["hd95_mm"] is None and "hd95_mm" not in part["per_patient"]
    about = read_json(scored[1].folder / "dataset.json")
    about["cases"]["found"] = {}
    write_json(scored[1].folder / "dataset.json", about)
    with pytest.raises(UserError, match="geometry of found is broken"):
        score_run(scored[0], read_set(scored[1].folder))
    assert result["per_patient"]["hd95_mm"]["n"] == 2
    assert result["per_patient"]["hd95_mm"]["undefined"] == 1
