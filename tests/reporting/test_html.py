"""The report page: it shows every number, loads nothing and runs only its own script."""

from __future__ import annotations

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
import torch
from PIL import Image

from lpss_cli.checkpoints.loading import Checkpoint
from lpss_cli.reporting import html
from lpss_cli.reporting.histograms import ZoomedHistogram
from lpss_cli.reporting.html import figures
from lpss_cli.reporting.report import report

WEIGHT = torch.tensor([[0.0, 2.0, 0.0, -1.0], [0.0, 0.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.5]])
META = {
    "arch": "mlp:4-3",
    "method": "lpss",
    "primary_metric": "accuracy",
    "metrics": {"before": {"accuracy": 0.981}, "after": {"accuracy": 0.985}, "on": "test"},
    "weights": {"fc.weight": {"p": 1.2, "row_dim": 0}},
    "history": [{"epoch": e, "loss": 1 / e, "sparsity": 0.5, "seconds": 1.0} for e in (1, 2, 3)],
    "command": "lpss train --p '<1.2>'",
}


def checkpoint(meta=META, name="fc.weight", weight=WEIGHT, path="model.pt"):
    return Checkpoint(Path(path), {name: weight}, meta)


def page(*checkpoints):
    return html.render([(report(c), c.state_dict) for c in checkpoints])


class Checker(HTMLParser):
    """Collects tags, and checks that elements are closed in the right order."""

    VOID = frozenset({"meta", "link", "img"})

    def __init__(self):
        super().__init__()
        self.open, self.tags = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parse(text):
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    return checker.tags


def test_a_page_says_what_the_report_says():
    text = page(checkpoint())
    parse(text)
    for part in ("98.50 %", "was 98.10 %", "66.67 %", "8 of 12", "1 in 3", "3×4", "mlp:4-3"):
        assert part in text, part
    assert "lpss train --p &#39;&lt;1.2&gt;&#39;" in text


def test_a_page_needs_no_network_and_runs_only_its_own_script():
    tags = parse(page(checkpoint()))
    for tag, attributes in tags:
        for key in ("src", "href"):
            value = attributes.get(key) or "#"
            assert value.startswith(("#", "data:")), (tag, value)
        assert not any(key.startswith("on") for key in attributes)
    assert [tag for tag, _ in tags].count("script") == 1
    policy = next(a["content"] for t, a in tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'")


def test_texts_from_a_file_are_escaped():
    name = "<script>alert(1)</script>"
    meta = {
        **META,
        "arch": "<img src=x onerror=alert(1)>",
        "weights": {name: {"p": 1.2}},
    }
    text = page(checkpoint(meta, name), checkpoint(path="<b>.pt"))
    assert "alert(1)</script>" not in text
    assert [t for t, _ in parse(text)].count("script") == 1
    assert "<img src=x" not in text
    assert "<b>.pt" not in text


def test_options_are_written_in_words():
    meta = {"config": {"p": ["0.5", "1.2"], "off_sphere": [], "eta": None, "tune": True}}
    text = page(checkpoint(meta))
    assert "p 0.5 1.2, off sphere none, eta chosen, tune yes" in text
    assert ">error<" not in text  # nothing was predicted


def test_a_file_of_other_origin_has_a_page_too():
    text = page(checkpoint({}))
    parse(text)
    assert "How it was made" not in text
    assert "66.67 %" in text


def test_incomplete_histories_have_the_curves_that_are_possible():
    history = [{"loss": 2.0, "a": 1.0, "b": 1.0}, {"loss": 1.0, "a": None, "b": float("nan")}]
    text = page(checkpoint({**META, "history": history}))
    parse(text)
    assert "<figcaption>loss: 2 → 1</figcaption>" in text
    assert "<figcaption>a:" not in text
    assert "<figcaption>b:" not in text


def test_several_files_are_set_side_by_side():
    text = page(checkpoint(), checkpoint({}, path="other.pt"))
    parse(text)
    assert "Side by side" in text
    assert text.count("<article") == 2
    assert "Side by side" not in page(checkpoint())


def test_a_mask_is_drawn_weight_by_weight():
    uri, width, height = figures.mask_image(WEIGHT)
    assert (width, height) == (4, 3)
    picture = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    drawn = torch.from_numpy(np.array(picture.convert("L"))) > 0
    assert torch.equal(drawn, WEIGHT != 0)
    assert not figures.is_drawable((3,))
    assert not figures.is_drawable((3000, 2))
    assert not figures.is_drawable((0, 4))
    assert figures.mask_image(torch.ones(2, 3, 5, 5))[1:] == (75, 2)


def test_a_mask_too_large_to_draw_is_not_read():
    class Closed(dict):
        def __getitem__(self, name):
            raise AssertionError(name)

    weight = torch.zeros(3000, 2)
    with_zeros = Checkpoint(Path("model.pt"), {"fc.weight": weight}, META)
    assert "fc.weight" in html.render([(report(with_zeros), Closed(with_zeros.state_dict))])


def test_a_histogram_by_hand():
    picture = figures.histogram(ZoomedHistogram(-1.0, 1.0, (2, 0, 4, 1), (0.5, -1.0)))
    # The tallest bar has the full height of 120, the first half of it; one of four is empty.
    heights = re.findall(r'class="bar".*?height="([\d.]+)"', picture)
    assert heights == ["60.0", "120.0", "30.0"]
    marks = re.findall(r'class="mark" x1="([\d.]+)"', picture)
    assert marks == ["195.0", "0.0"]  # three quarters of 260, and the left end


def test_a_histogram_before_training_shares_the_axis():
    after, before = ZoomedHistogram(-1.0, 1.0, (1, 1)), ZoomedHistogram(-3.0, 1.0, (10, 40))
    picture = figures.histogram(after, before)
    # From -3 to 1 on 260: the bars begin in the middle, the outline at the left end.
    assert re.findall(r'class="bar" x="([\d.]+)"', picture) == ["130.0", "195.0"]
    assert 'points="0.0,120 0.0,90.0 130.0,90.0 130.0,0.0 260.0,0.0 260.0,120"' in picture
    assert ">-3</text>" in picture
    assert "2 weights from -1 to 1; 50 from -3 to 1 before" in picture
    began = {"fc.weight": {"low": -3.0, "high": 1.0, "counts": [10, 40]}}
    text = page(checkpoint({**META, "histograms": began}))
    parse(text)
    assert 'class="before"' in text
    assert "The outline is the layer before training" in text
    assert 'class="before"' not in page(checkpoint())
    far = torch.full((5, 8), 0.25)
    far[0, :2] = torch.tensor([40.0, -0.5])
    text = page(checkpoint(weight=far))
    parse(text)
    note = (
        "1 weight lies outside the histogram, at 40; so does the mean of the positive weights, 1.27"
    )
    assert f'<p class="remark">{note}</p>' in text
    assert "40 weights from -0.5 to 40<" in text


def test_curves_by_hand():
    picture = figures.curve("loss", [(1, 1.0), (2, 0.5), (3, 0.0)])
    assert 'points="0.0,0.0 130.0,60.0 260.0,120.0"' in picture
    # Epochs that were not measured leave a gap.
    picture = figures.curve("accuracy", [(0, 0.5), (3, 0.75), (4, 1.0)])
    assert 'points="0.0,120.0 195.0,60.0 260.0,0.0"' in picture
    assert ">epoch 0<" in picture


def test_the_curve_of_the_metric_begins_with_the_input():
    history = [{"epoch": e, "loss": 1 / e, "sparsity": 0.5} for e in range(1, 5)]
    history[1]["accuracy"], history[3]["accuracy"] = 0.96, 0.99
    text = page(checkpoint({**META, "history": history}))
    captions = re.findall("<figcaption>(.*?)</figcaption>", text)
    assert captions[:2] == ["accuracy: 98.10 → 99.00 %", "loss: 1 → 0.25"]
    assert not any(caption.startswith("sparsity") for caption in captions)  # it did not change
    assert "accuracy: 98.10 % in epoch 0, 99.00 % in epoch 4" in text


def test_agreement_by_hand():
    assert figures.agreement([]) is None
    picture = figures.agreement([("a&b", 0.5, 0.25)])
    assert 'cx="100.0" cy="150.0"' in picture
    assert "a&amp;b: predicted 0.500, measured 0.250" in picture


@pytest.mark.parametrize(
    ("fraction", "text"), [(0, "0.00 %"), (1, "100.00 %"), (0.9, "90.00 %"), (0.9967, "99.67 %")]
)
def test_percent(fraction, text):
    assert html.percent(fraction) == text


def test_almost_all_is_not_rounded_to_all():
    assert html.percent(0.999999) == "99.9999 %"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1066400, "1.066 MB"), (25 * 10**8, "2.5 GB")]
)
def test_size(count, text):
    assert html.size(count) == text


@pytest.fixture
def lpss(lpss):
    """The command line, in a directory with a checkpoint of one weight."""
    torch.save({"fc.weight": WEIGHT}, "model.pt")
    return lpss


def test_the_command_replaces_a_page_only_with_force(lpss):
    code, out, err = lpss("report", "model.pt", "--html", "r.html", "--json")
    assert code == 0
    assert json.loads(out)["zeros"] == 8
    assert "wrote r.html" in err
    before = Path("r.html").read_bytes()
    code, _, err = lpss("report", "model.pt", "--html", "r.html")
    assert (code, "already exists" in err, "--force" in err) == (2, True, True)
    assert Path("r.html").read_bytes() == before
    assert lpss("report", "model.pt", "--html", "r.html", "--force")[0] == 0
    code, _, err = lpss("report", "model.pt", "--html", "none/r.html")
    assert (code, "does not exist" in err) == (2, True)


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium to render with")
def test_a_browser_renders_and_sorts_it(tmp_path):
    began = {"b": {"low": -1.0, "high": 2.0, "counts": [3, 1]}}
    wide = checkpoint({"weights": {"a": {}, "b": {}}, "histograms": began}, "a", torch.ones(2, 2))
    wide.state_dict["b"] = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    text = page(wide)
    # A click on the title "kept", twice: then the smallest is first.
    click = "document.querySelectorAll('th button')[3].click();"
    errors = "window.onerror=(m)=>{document.title='ERROR '+m};"
    text = text.replace("<script>", f"<script>{errors}").replace(
        "</script>", f"{click}{click}</script>"
    )
    file = tmp_path / "r.html"
    file.write_text(text)
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
         "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", file.as_uri()],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "<title>ERROR" not in done.stdout
    names = re.findall(r'<td class="name">(\w)</td>', done.stdout)
    assert names == ["b", "a"]
    assert 'aria-sort="ascending"' in done.stdout
    assert done.stdout.count('<polyline class="before"') == 1
    assert "CONSOLE" not in done.stderr
