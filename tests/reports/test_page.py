"""The report's pictures and page: what they show, what is missing, and that the page needs nothing from outside."""

import base64
import html.parser
import io
import re

import numpy as np
import pytest
from PIL import Image

from moco_jax.config import ConfigError
from moco_jax.evaluation.samples import Neighbours
from moco_jax.reports import curves, page, pictures, runs, table
from tests.reports import written

KEYS = {f"key_cosine_{p}": 1 - p / 200 for p in curves.SHARES} | {f"key_age_{p}": p / 10 for p in curves.SHARES}


def shown(tmp_path, label, *, loss=lambda step: 9.0 - step / 10, more=None, epochs=3):
    """A run of 30 steps with a log of every kind of number."""
    workdir = written.folder(tmp_path / label.replace("/", "-"), written.of(epochs))
    written.stretch(workdir, 0, 30, loss=loss)
    run = runs.read(workdir)
    steps = [s for s in run.series["loss"] if s > 1]
    series = run.series | {name: dict.fromkeys(steps, value) for name, value in (more or {}).items()}
    return curves.Shown(label, run._replace(series=series), {1: 0.06, 2: 0.045, 3: 0.015})


MORE = {"effective_rank": 7.0, "positive_similarity": 0.8, "negative_similarity": 0.1} | KEYS


def drawn(monkeypatch, *these):
    """{name: [(label, xs, ys) of each line]} of what is drawn, the pictures by name, and what is missing."""
    figures = []
    real = curves.png_of
    monkeypatch.setattr(curves, "png_of", lambda figure: (figures.append(figure), real(figure))[1])
    made, missing = curves.pictures(these)
    lines = [
        [(line.get_label(), list(line.get_xdata()), list(line.get_ydata())) for line in f.axes[0].lines]
        for f in figures
    ]
    return {p.name: drawn for p, drawn in zip(made, lines, strict=True)}, {p.name: p for p in made}, missing


def test_curves_hold_the_logs_numbers(tmp_path, monkeypatch):
    """By epoch, the first step's loss left out, chance as a line, kNN in percent, consistency by age."""
    lines, made, missing = drawn(monkeypatch, shown(tmp_path, "a", more=MORE))
    assert missing == {} and list(lines) == ["loss", "knn", "learning_rate", "rank", "similarity", "consistency"]
    (_, x, y), (label, _, chance) = lines["loss"]
    assert x == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0, 2.4, 2.8])
    assert y == pytest.approx([8.7, 8.35, 7.95, 7.55, 7.15, 6.75, 6.35])  # means of steps 2..4, 5..8, ...
    assert chance == pytest.approx([np.log(513)] * 2) and label == "chance: 6.24"
    assert lines["knn"][0][1:] == ([1, 2, 3], [50.0] * 3)
    assert lines["learning_rate"][0][1:] == ([1, 2, 3], [0.06, 0.045, 0.015])
    assert [line[0] for line in lines["similarity"]] == ["positive", "negative"]
    assert len(lines["consistency"]) == 5  # five moments of seven
    assert lines["consistency"][-1] == ("step 28", [0, 2.5, 5, 7.5, 10], [1, 0.875, 0.75, 0.625, 0.5])
    assert "from 8.7 to 6.35 at epoch 2.8" in made["loss"].alt
    assert all(Image.open(io.BytesIO(p.png)).size[0] > 500 for p in made.values())


def test_several_runs_share_a_panel_and_are_told_apart(tmp_path, monkeypatch):
    """A label and a colour for each, one line of chance where K is the same, the last consistency of each."""
    lines, made, _ = drawn(monkeypatch, shown(tmp_path, "a", more=MORE), shown(tmp_path, "b", loss=float, more=MORE))
    assert [line[0] for line in lines["loss"]] == ["a", "b", "chance: 6.24"]
    assert [line[0] for line in lines["consistency"]] == ["a, step 28", "b, step 28"]
    assert "a from 8.7 to 6.35" in made["loss"].alt and "b from 3" in made["loss"].alt


def test_runs_with_epochs_of_other_lengths_are_laid_along_steps(tmp_path, monkeypatch):
    """Three epochs of ten steps beside six of five: the same loss, the same places."""
    a = shown(tmp_path, "a", more=MORE)
    b = a._replace(label="b", run=a.run._replace(steps_per_epoch=5), rate=dict.fromkeys(range(1, 7), 0.01))
    lines, made, _ = drawn(monkeypatch, a, b)
    assert lines["loss"][0][1:] == lines["loss"][1][1:] and lines["loss"][0][1][-1] == 28
    assert [line[1] for line in lines["learning_rate"]] == [[10, 20, 30], [5, 10, 15, 20, 25, 30]]
    assert "at step 28" in made["loss"].alt


def test_what_the_log_lacks_is_missing_and_no_error(tmp_path, monkeypatch):
    """Loss and rate alone; a loss that was not finite leaves a gap."""
    run = shown(tmp_path, "a", loss=lambda step: np.nan if step == 20 else 1.0)
    run = run._replace(run=run.run._replace(series={"loss": run.run.series["loss"]}))
    lines, _, missing = drawn(monkeypatch, run)
    assert list(lines) == ["loss", "learning_rate"] and 2.0 not in lines["loss"][0][1]
    assert missing["kNN accuracy"] == "the log holds no number of it" and len(missing) == 4


@pytest.mark.parametrize(
    ("text", "channels", "bands"),
    [
        (None, 1, (0,)),
        (None, 2, (0,)),
        (None, 3, (0, 1, 2)),
        (None, 13, (0, 1, 2)),
        ("4,3,2", 13, (3, 2, 1)),
        ("2", 2, (1,)),
    ],
)
def test_bands(text, channels, bands):
    """From 1 on; one as gray, three as colours."""
    assert pictures.bands_of(text, channels) == bands


@pytest.mark.parametrize("text", ["0", "14", "1,2", "1,2,3,4", "red", ""])
def test_bands_that_are_not_there_are_refused(text):
    """In one line that says which there are."""
    with pytest.raises(ConfigError, match="--bands="):
        pictures.bands_of(text, 13)


def images_of(monkeypatch, make):
    """The arrays that a picture shows, in order, and the picture."""
    figures = []
    real = pictures.png_of
    monkeypatch.setattr(pictures, "png_of", lambda figure: (figures.append(figure), real(figure))[1])
    picture = make()
    return [a.get_images()[0].get_array() for a in figures[0].axes if a.get_images()], figures[0], picture


def test_views_show_the_chosen_bands_query_above_key(monkeypatch):
    """Three of four bands, in the order asked for."""
    pairs = np.random.default_rng(0).random((3, 2, 5, 5, 4))
    shown, _, picture = images_of(monkeypatch, lambda: pictures.view_pairs(pairs, (3, 1, 0), "-x", 9))
    np.testing.assert_array_equal(shown[0], pairs[0, 0][..., [3, 1, 0]])
    np.testing.assert_array_equal(shown[4], pairs[1, 1][..., [3, 1, 0]])
    assert picture.name == "views-x" and "Of 4 channels 4, 2, 1 are shown" in picture.note


def test_a_mechanism_of_one_view_shows_one(monkeypatch):
    """A memory bank's keys are stored features: there is no second view."""
    views = np.random.default_rng(0).random((3, 1, 5, 5, 3))
    shown, figure, picture = images_of(monkeypatch, lambda: pictures.view_pairs(views, (0, 1, 2), "", 9))
    np.testing.assert_array_equal(shown, views[:, 0])
    assert figure.axes[0].get_ylabel() == "query" and "3 augmented images" in picture.alt


def test_neighbours_say_by_sign_which_have_the_label(monkeypatch):
    """Not by colour alone; gray for one band."""
    rng = np.random.default_rng(0)
    labels = np.array([[1, 1, 2], [3, 3, 3]])
    found = Neighbours(rng.random((2, 5, 5, 1)), rng.random((2, 2, 5, 5, 1)), np.full((2, 2), 0.875), labels, "of a")
    shown, figure, picture = images_of(monkeypatch, lambda: pictures.neighbours(found, (0,), ""))
    np.testing.assert_array_equal(shown[2], found.found[0, 1, ..., 0])
    assert [a.get_title() for a in figure.axes] == ["", "0.88 =", "0.88 ≠", "", "0.88 =", "0.88 ="]
    assert "75% of the neighbours have the label" in picture.alt


@pytest.mark.parametrize(("kinds", "legend"), [(0, None), (3, 3), (30, None)])
def test_a_map_is_coloured_by_what_there_is(monkeypatch, kinds, legend):
    """Without marks plain, few with a legend, many by a scale."""
    points = np.random.default_rng(0).random((60, 2))
    marks = np.arange(60) % kinds if kinds else None
    _, figure, picture = images_of(monkeypatch, lambda: pictures.feature_map(points, marks, "group", "pca", "", "a"))
    found = figure.axes[0].get_legend()
    assert (None if found is None else len(found.get_texts())) == legend
    assert (f"coloured by group, {kinds} of them" if kinds else "no labels or groups") in picture.alt


class Seen(html.parser.HTMLParser):
    """Tags with their attributes, and whether what was opened was closed."""

    def __init__(self):
        super().__init__()
        self.tags, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_from_outside(tmp_path):
    """No link, script or address; every picture inside, equal to its file, with words; names are escaped."""
    both = [shown(tmp_path, "a<b>&", more=MORE), shown(tmp_path, "c", more=MORE, epochs=4)]
    made, missing = curves.pictures(both)
    out = tmp_path / "out" / "deep"
    paths = page.write(
        out, both, [page.Section("Curves", made, missing), page.Section("Images", [], {"Map": "no <data>"})]
    )
    assert paths[-1] == out / "report.html" and sorted(p.name for p in out.iterdir()) == sorted(p.name for p in paths)
    text = paths[-1].read_text()
    seen = Seen()
    seen.feed(text)
    assert seen.open == [] and not re.search(r"https?:|//|@import|url\(", re.sub(r"base64,[^\"]+", "", text))
    assert {"script", "link", "iframe"} & {tag for tag, _ in seen.tags} == set()
    found = [a for tag, a in seen.tags if tag == "img"]
    assert len(found) == len(made) == 6
    for image, picture in zip(found, made, strict=True):
        data = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
        assert data == (out / f"{picture.name}.png").read_bytes() and len(image["alt"]) > 30
    assert "a&lt;b&gt;&amp;" in text and "<b>&" not in text.replace("<b>&amp;", "")
    assert "Missing: Map: no &lt;data&gt;" in text and "prefers-color-scheme: dark" in text
    assert "<td>train.epochs</td><td>3</td><td>4</td>" in text  # what the configs differ in, and nothing else
    assert "data.split</td>" not in text


def test_a_verdict_is_shown_with_what_to_do(tmp_path):
    """In words, as a reader of the page needs it first."""
    text = page.page([shown(tmp_path, "a", more=MORE | {"uniformity": 0.0})], [])
    assert (
        '<div class="verdict trouble"><b>collapsed</b>' in text
        and "What to do: optimizer.learning_rate is 0.06" in text
    )


def test_confusion_is_shares_of_the_true_class():
    """Rows of counts as shares, the worst confusion in words, a class without test images blank."""
    counts = np.array([[8, 2, 0], [1, 1, 2], [0, 0, 0]])
    made = pictures.confusion(counts, ["cat", "dog", "fish"], "linear", "-a")
    assert (made.name, made.title) == ("confusion-linear-a", "Confusion: linear")
    assert "most often mistaken: dog for fish, 50.0%" in made.alt and "dog for fish" in made.note
    assert Image.open(io.BytesIO(made.png)).width > 100


def test_shares_of_a_confusion_are_drawn(monkeypatch):
    """The matrix that is shown, and its numbers where they are worth one."""
    figures = []
    monkeypatch.setattr(pictures, "png_of", lambda figure: figures.append(figure) or b"")
    pictures.confusion(np.array([[3, 1], [0, 0]]), ["a", "b"], "linear", "")
    panel = figures[0].axes[0]
    np.testing.assert_array_equal(panel.images[0].get_array().filled(np.nan), [[0.75, 0.25], [np.nan, np.nan]])
    assert [text.get_text() for text in panel.texts] == ["75", "25"]


def test_blocks_of_a_section_stand_above_its_pictures(tmp_path):
    """Text as a terminal shows it and a table, both safe."""
    made = table.Table(["kNN"], [("<me>", [table.Cell(0.5, None, None, "")])], "top-1", [])
    section = page.Section("Evaluations", [], {}, [page.words("linear", "a < b"), page.tabled("transfer", made)])
    text = page.page([shown(tmp_path, "a")], [section])
    assert "<h3>linear</h3><pre>a &lt; b</pre>" in text and "<th>&lt;me&gt;</th>" in text
    assert text.index("<h2>Evaluations</h2>") < text.index("<h3>linear</h3>")
