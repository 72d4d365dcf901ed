"""Pictures of images: view pairs, neighbours, a map of features. Arrays in, PNG out; nothing here knows where from."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from moco_jax.config import ConfigError
from moco_jax.reports.curves import Picture, new_figure, png_of

if TYPE_CHECKING:
    import numpy as np

MANY = 20  # more labels than this are coloured by a scale, without a legend
NUMBERED = 12  # more classes than this are a picture of shares without numbers


def bands_of(text: str | None, channels: int) -> tuple[int, ...]:
    """The channels to show, from 0, of `--bands=3,2,1` (from 1): one as gray, three as red, green, blue.

    None: all of one or three channels; of two the first; of more the first three. Raises ConfigError for others.
    """
    if text is None:
        return (0, 1, 2) if channels >= 3 else (0,)
    try:
        chosen = tuple(int(part) - 1 for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--bands={text}: one or three numbers of channels, such as 3,2,1") from None
    if len(chosen) not in (1, 3) or not all(0 <= c < channels for c in chosen):
        raise ConfigError(f"--bands={text}: the images have channels 1 to {channels}; name one (gray) or three of them")
    return chosen


def words_of(bands: Sequence[int], channels: int) -> str:
    """What of the channels is seen, as a sentence; "" where it is all."""
    if len(bands) == channels and list(bands) == sorted(bands):
        return ""
    names = ", ".join(str(b + 1) for b in bands)
    return f" Of {channels} channels {names} {'is' if len(bands) == 1 else 'are'} shown (--bands)."


def view_pairs(pairs: "np.ndarray", bands: Sequence[int], label: str, step: int) -> Picture:
    """Rows (n, V, S, S, C) of 0..1: the query's view above the key's, or alone where keys are stored features."""
    n, count = pairs.shape[:2]
    figure = new_figure(max(1.0 * n, 2.5), 0.1 + 1.1 * count)
    panels = figure.subplots(count, n, squeeze=False)
    for row, name in enumerate(("query", "key")[:count]):
        for column in range(n):
            _image(panels[row][column], pairs[column, row], bands)
        panels[row][0].set_ylabel(name, fontsize="small")
    title = f"View pairs of the batch at step {step}"
    note = f"Each column is a row of the run's own next batch, as the step sees it.{words_of(bands, pairs.shape[-1])}"
    alt = f"{n} columns of two augmented images each: the query's view above the key's, of the same image or group."
    if count == 1:
        alt = f"{n} augmented images: the query's view, as keys are stored features."
    return Picture(f"views{label}", title, alt, note, png_of(figure))


def neighbours(found: Any, bands: Sequence[int], label: str) -> Picture:
    """`evaluation.samples.Neighbours`: a row for each image, its nearest to the right with their cosines."""
    count, nearest = found.similarity.shape
    figure = new_figure(0.9 * (1 + nearest) + 0.3, 1.1 * count)
    panels = figure.subplots(count, 1 + nearest, squeeze=False)
    for i in range(count):
        _image(panels[i][0], found.queries[i], bands, edge="0.2")
        for j in range(nearest):
            right = None if found.labels is None else bool(found.labels[i, 1 + j] == found.labels[i, 0])
            _image(
                panels[i][1 + j],
                found.found[i, j],
                bands,
                edge=(None if right is None else "#009e73" if right else "#d55e00"),
            )
            mark = {None: "", True: " =", False: " ≠"}[right]  # not by colour alone
            panels[i][1 + j].set_title(f"{found.similarity[i, j]:.2f}{mark}", fontsize=7, pad=2)
    alt = f"{count} images, each with its {nearest} nearest by cosine, {found.similarity.mean():.2f} on average."
    note = f"Images {found.where}."
    if found.labels is not None:
        same = float((found.labels[:, 1:] == found.labels[:, :1]).mean())
        alt += f" {same:.0%} of the neighbours have the label or group of their image."
        note += " = and a green edge: the label (or group) of the image on the left; ≠: another."
    return Picture(
        f"neighbours{label}", "Nearest neighbours", alt, note + words_of(bands, found.queries.shape[-1]), png_of(figure)
    )


def feature_map(points: "np.ndarray", marks: "np.ndarray | None", by: str, how: str, label: str, name: str) -> Picture:
    """Points (M, 2), coloured by marks (M,) integers where there are any."""
    import numpy as np

    figure = new_figure(5.6, 4.2)
    panel = figure.subplots()
    panel.set(xticks=[], yticks=[])
    ways = {"pca": "PCA", "tsne": "t-SNE"}
    coloured = "no labels or groups to colour by"
    if marks is None:
        panel.scatter(*points.T, s=9, color="#0072b2", linewidths=0)
    elif len(kinds := np.unique(marks)) > MANY:
        panel.scatter(*points.T, s=9, c=np.searchsorted(kinds, marks), cmap="hsv", linewidths=0)
        coloured = f"coloured by {by}, {len(kinds)} of them"
    else:
        for i, kind in enumerate(kinds.tolist()):
            colour = _hue(i, len(kinds))
            panel.scatter(*points[marks == kind].T, s=9, color=colour, linewidths=0, label=str(kind))
            panel.annotate(str(kind), np.median(points[marks == kind], axis=0), fontsize=9, weight="bold", ha="center")
        panel.legend(title=by, fontsize=7, markerscale=2, loc="center left", bbox_to_anchor=(1.0, 0.5))
        coloured = f"coloured by {by}, {len(kinds)} of them"
    alt = f"A map of {len(points)} images by {ways[how]} of their features, {coloured}."
    note = f"{len(points)} images of {name}; {ways[how]} of unit features, {coloured}."
    return Picture(f"map{label}", "Map of features", alt, note, png_of(figure))


def confusion(counts: "np.ndarray", classes: Sequence[str], name: str, label: str) -> Picture:
    """Counts (classes, classes), true by predicted, as shares of each true class; one without test images is blank."""
    import numpy as np

    held = counts.sum(1, keepdims=True)
    shares = np.where(held > 0, counts / np.maximum(held, 1), np.nan)
    side = 2.2 + 0.32 * min(len(classes), 24)
    figure = new_figure(side + 0.6, side)
    panel = figure.subplots()
    shown = panel.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(shown, ax=panel, label="share of the true class", shrink=0.8)
    panel.set(xlabel="predicted", ylabel="true")
    if len(classes) <= MANY:
        places = range(len(classes))
        panel.set_xticks(places, classes, rotation=90, fontsize=7)
        panel.set_yticks(places, classes, fontsize=7)
    if len(classes) <= NUMBERED:
        for i, j in np.argwhere(np.nan_to_num(shares) >= 0.005).tolist():
            ink = "white" if shares[i, j] > 0.5 else "black"
            panel.annotate(f"{100 * shares[i, j]:.0f}", (j, i), ha="center", va="center", fontsize=7, color=ink)
    wrong = np.where(np.eye(len(classes), dtype=bool), -1.0, np.nan_to_num(shares))
    i, j = divmod(int(wrong.argmax()), len(classes))
    worst = f"most often mistaken: {classes[i]} for {classes[j]}, {wrong[i, j]:.1%}"
    alt = f"Shares of each of {len(classes)} true classes by predicted class; {worst}."
    note = f"Per cent of the test images of each true class; {worst}."
    return Picture(f"confusion-{name}{label}", f"Confusion: {name}", alt, note, png_of(figure))


def _hue(i: int, count: int) -> Any:
    from matplotlib import colormaps

    return colormaps["tab10" if count <= 10 else "tab20"](i)


def _image(panel: Any, image: "np.ndarray", bands: Sequence[int], edge: str | None = None) -> None:
    shown = image[..., list(bands)]
    panel.imshow(shown[..., 0] if len(bands) == 1 else shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    panel.set(xticks=[], yticks=[])
    for spine in panel.spines.values():
        spine.set(visible=edge is not None, color=edge or "0", linewidth=1.5)
