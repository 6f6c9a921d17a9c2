"""Draws the pictures of docs/architecture.md as SVG: ``python docs/pictures/draw.py``.

The files are in git; a test holds that they are what this program draws. Units are pixels, texts are DejaVu Sans or
whatever sans-serif font the reader has.
"""

from dataclasses import dataclass, field
from html import escape
from pathlib import Path

_FILLS = {
    "topic": ("#dbe9f6", "#3b6ea5"),
    "code": ("#ffffff", "#555555"),
    "stored": ("#e5f2e0", "#4f7f3f"),
    "outside": ("#fdf3d8", "#a98a2b"),
    "none": ("#f4f4f4", "#dddddd"),
}
_FONT = "'DejaVu Sans', Verdana, Arial, sans-serif"
_MONO = "'DejaVu Sans Mono', Consolas, monospace"
_ROOM = "#7a2f7a"

Point = tuple[float, float]


@dataclass
class Picture:
    """One SVG file.

    Parameters
    ----------
    width, height : int
        In pixels.
    title, text : str
        For who cannot see it: its name, and what it shows.
    """

    width: int
    height: int
    title: str
    text: str
    parts: list[str] = field(default_factory=list)

    def write(self, x: float, y: float, text: str, *, size: int = 12, style: str = "", anchor: str = "start") -> None:
        """Add a line of text; ``y`` is its base line."""
        family = _MONO if style == "room" else _FONT
        color = {"room": _ROOM, "quiet": "#666666"}.get(style, "#222222")
        weight = ' font-weight="bold"' if style == "bold" else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-family="{family}" font-size="{size}" fill="{color}" '
            f'text-anchor="{anchor}"{weight}>{escape(text)}</text>'
        )

    def area(self, x: float, y: float, width: float, height: float, name: str) -> None:
        """Add a frame around boxes."""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="10" fill="#fafafa" '
            'stroke="#999999" stroke-dasharray="5 4"/>'
        )
        self.write(x + 12, y + 20, name, style="bold", size=13)

    def box(
        self, place: tuple[float, float, float, float], title: str, *lines: str, kind: str = "code", room: str = ""
    ) -> None:
        """Add a box at (x, y, width, height) with a title, lines, and the room it is in."""
        x, y, width, height = place
        fill, stroke = _FILLS[kind]
        radius = 14 if kind == "topic" else 3
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius}" fill="{fill}" '
            f'stroke="{stroke}" stroke-width="1.3"/>'
        )
        middle = x + width / 2
        texts = [(title, 13, "bold"), *((line, 11, "") for line in lines), *([(room, 11, "room")] if room else [])]
        top = y + (height - 16 * len(texts)) / 2 + 12
        for number, (text, size, style) in enumerate(texts):
            self.write(middle, top + 16 * number, text, size=size, style=style, anchor="middle")

    def arrow(self, *points: Point, dashed: bool = False) -> None:
        """Add an arrow along points."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        dash = ' stroke-dasharray="4 4"' if dashed else ""
        color = "#888888" if dashed else "#333333"
        head = "quiet" if dashed else "head"
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"{dash} '
            f'marker-end="url(#{head})"/>'
        )

    def to_svg(self) -> str:
        """Give the file."""
        heads = "".join(
            f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" '
            f'orient="auto"><path d="M0,0 L10,5 L0,10 z" fill="{color}"/></marker>'
            for name, color in (("head", "#333333"), ("quiet", "#888888"))
        )
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height}" '
                f'viewBox="0 0 {self.width} {self.height}" role="img" aria-labelledby="title text">',
                f'<title id="title">{escape(self.title)}</title>',
                f'<desc id="text">{escape(self.text)}</desc>',
                f"<defs>{heads}</defs>",
                f'<rect width="{self.width}" height="{self.height}" fill="#ffffff"/>',
                *self.parts,
                "</svg>\n",
            ]
        )


def _legend(picture: Picture, y: float, kinds: dict[str, str]) -> None:
    x = 20.0
    for kind, name in kinds.items():
        fill, stroke = _FILLS[kind]
        picture.parts.append(
            f'<rect x="{x:g}" y="{y - 11:g}" width="18" height="14" rx="3" fill="{fill}" stroke="{stroke}"/>'
        )
        picture.write(x + 25, y, name, size=11)
        x += 45 + 7.5 * len(name)
    picture.write(x, y, "room", size=11, style="room")
    picture.write(x + 36, y, "where the code is", size=11)


def _draw_what_goes_in(p: Picture) -> None:
    p.box((20, 78, 84, 44), "device", "DICOM, HTTP", kind="outside")
    p.box((112, 78, 108, 44), "xray publish", "files", kind="outside")
    p.box((20, 144, 150, 66), "Intake", "one way in; spool", room="streaming/gateway")
    p.arrow((62, 122), (62, 144))
    p.arrow((95, 210), (95, 230))
    p.arrow((196, 122), (196, 230))
    p.box((20, 230, 200, 66), "xray.images", "the file's bytes, and headers", kind="topic")
    p.box((20, 340, 200, 66), "canary", "own test image, own topics", room="streaming/score")
    p.box((20, 460, 200, 82), "champion", "models/<version>, loaded", "between two micro-batches", kind="stored")
    p.box((20, 632, 200, 66), "deadletters list, redrive", "the original bytes again", room="streaming/deadletters")
    p.arrow((220, 263), (248, 263), (248, 139), (300, 139))
    p.arrow((220, 373), (262, 373), (262, 159), (300, 159))
    p.arrow((220, 501), (284, 501), dashed=True)


def draw_image_way() -> Picture:
    """Draw an image's way from a device to the tables."""
    p = Picture(
        1240,
        750,
        "An image's way",
        "Devices store to the gateway, which publishes to xray.images what it has de-identified, or keeps it in its "
        "spool; programs publish there themselves. The query SCORE decodes, featurizes, classifies, decides and "
        "routes each image to xray.predictions and xray.features, or to xray.deadletters. The program ARCHIVE reads "
        "these topics, drops what a Delta table has already, and appends the rest with its place in one commit. The "
        "account compares topics, SCORE's checkpoint and tables. Dead letters can be published again.",
    )
    p.area(284, 78, 312, 560, "SCORE, one Spark query")
    p.area(890, 280, 330, 430, "ARCHIVE, a program of its own")
    p.box(
        (20, 20, 846, 46),
        "run_stream: start checks, the model that serves, a supervisor of SCORE, metrics",
        room="streaming/run",
    )
    p.box((890, 20, 330, 46), "run_archive: lock, turns, health, metrics", room="streaming/archive")
    p.arrow((866, 43), (890, 43), dashed=True)
    _draw_what_goes_in(p)
    # SCORE
    ways = [
        ("decode_rows, decode_image", "bytes to pixels, or a reason", "streaming/score, sparkdl/image"),
        ("DeepImageFeaturizer's network", "pixels to features, in the same worker", "sparkdl/engine"),
        ("LogisticRegressionModel", "features to probabilities (Spark's own)", ""),
        ("add_decision", "label, score, flags", "streaming/score"),
        ("write_answers", "each image: one outcome", "streaming/score"),
    ]
    for number, (title, line, room) in enumerate(ways):
        y = 110 + 104 * number
        p.box((300, y, 280, 74), title, line, room=room)
        if number:
            p.arrow((440, y - 30), (440, y))
    # What comes out
    topics = [
        ("xray.predictions", "one event an image"),
        ("xray.features", "its vector"),
        ("xray.deadletters", "bytes, reason"),
    ]
    for number, (title, line) in enumerate(topics):
        y = 330 + 100 * number
        p.box((650, y, 190, 60), title, line, kind="topic")
        p.arrow((580, 560), (622, 560), (622, y + 30), (650, y + 30))
        p.arrow((840, y + 30), (872, y + 30), (872, 349), (904, 349))
    p.box((650, 110, 190, 86), "alerts, consumers", "xray watch", kind="outside", room="streaming/results")
    p.arrow((720, 330), (720, 196))
    p.arrow((745, 590), (745, 665), (220, 665), dashed=True)
    p.arrow((20, 665), (8, 665), (8, 263), (20, 263), dashed=True)
    # ARCHIVE
    steps = [
        ("OutcomeReader", "from the table's places on", ""),
        ("read_row", "a record to a row", ""),
        ("drop_known", "ids of the table's", "dates near it"),
        ("append_rows", "rows and places:", "one commit, or none"),
    ]
    for number, (title, line, more) in enumerate(steps):
        y = 316 + 92 * number
        p.box((904, y, 164, 66), title, *filter(None, (line, more)))
        if number:
            p.arrow((986, y - 26), (986, y))
    for number, name in enumerate(("predictions", "features", "dead_letters")):
        y = 444 + 66 * number
        p.box((1098, y, 110, 50), name, "Delta table", kind="stored")
        p.arrow((1068, 633), (1083, 633), (1083, y + 25), (1098, y + 25))
    p.box((1098, 648, 110, 50), "Upkeep", "between appends")
    p.arrow((1153, 648), (1153, 626))
    p.arrow((1125, 444), (1125, 349), (1068, 349), dashed=True)
    p.write(1076, 341, "places", size=11, style="quiet")
    # The account
    p.box(
        (904, 110, 302, 86),
        "audit_stream",
        "each consumed image: one outcome?",
        "each outcome: one row?",
        room="streaming/account",
    )
    p.write(904, 216, "reads xray.images, SCORE's checkpoint, the", size=11, style="quiet")
    p.write(904, 231, "outcome topics, and the tables with their places", size=11, style="quiet")
    p.arrow((1180, 444), (1180, 240), dashed=True)
    p.arrow((800, 330), (800, 290), (872, 290), (872, 153), (904, 153), dashed=True)
    _legend(
        p, 732, {"topic": "Kafka topic", "code": "code", "stored": "kept on a disk", "outside": "outside, or a command"}
    )
    return p


def draw_training() -> Picture:
    """Draw which set each number of a training run is chosen on, and which it is measured on."""
    p = Picture(
        1240,
        880,
        "A training run",
        "Files are examined, copies are found, and patients are split into a train side and a held-out side. All that "
        "is chosen is chosen on the train side: the classifier and the detector on all of it, settings, calibration, "
        "threshold and abstain band on predictions out of fold. The figures are measured on the held-out side and "
        "on external sets. Probes and leave-one-source-out are measured on all images.",
    )
    steps = [
        ("read_dataset", "files, labels, patients", "training/data"),
        ("examine", "which decode, and how", "training/features"),
        ("find_duplicates", "copies of a picture", "training/data"),
        ("split_dataset", "patients 70 to 30", "training/data"),
        ("compute_features", "each image once, kept", "training/features"),
    ]
    for number, (title, line, room) in enumerate(steps):
        x = 20 + 244 * number
        p.box((x, 20, 214, 74), title, line, room=room)
        if number:
            p.arrow((x - 30, 57), (x, 57))
    # The sets
    left, first, width, gap = 20, 300, 176, 10
    sets = [
        ("train side", "all of it, 70 %"),
        ("train side", "out of fold: 5 folds"),
        ("held-out side", "30 %, other patients"),
        ("external set", "without copies"),
        ("all images", "both sides"),
    ]
    top = 140
    for number, (name, line) in enumerate(sets):
        p.box((first + (width + gap) * number, top, width, 50), name, line, kind="outside")
    p.write(left, top + 22, "what", style="bold", size=13)
    p.write(left, top + 40, "option and room", size=11, style="quiet")
    chosen, measured = "stored", "topic"
    rows: list[tuple[str, str, dict[int, tuple[str, str, str]]]] = [
        (
            "Ranges of an int8 network",
            "--precision int8, training/features",
            {0: (chosen, "measured on up to", "300 images")},
        ),
        ("Network and classifier settings", "--tune, training/model", {1: (chosen, "highest AUROC", "is chosen")}),
        ("Classifier's coefficients", "training/model", {0: (chosen, "fitted", "")}),
        ("Calibration", "--calibrate, training/model", {1: (chosen, "fitted", "")}),
        (
            "Threshold",
            "--sensitivity, else 0.5, training/model",
            {1: (chosen, "highest one that", "reaches it")},
        ),
        ("Abstain band", "--abstain, training/model", {1: (chosen, "share nearest to", "the threshold")}),
        (
            "Detector of unlike images",
            "training/model, sparkdl/engine",
            {0: (chosen, "references, and a", "quantile as limit")},
        ),
        (
            "Figures of the report",
            "training/evidence, training/figures",
            {2: (measured, "all of them, with", "intervals"), 3: (measured, "the same", "")},
        ),
        ("What abstaining costs, unlike share", "training/model", {2: (measured, "measured", "")}),
        ("Comparison with the champion", "training/evidence", {2: (measured, "both models, the", "same images")}),
        (
            "Leave one source out",
            "training/evidence",
            {4: (measured, "fitted without it,", "measured on it")},
        ),
        (
            "Probes, and so the verdict",
            "training/evidence",
            {2: (measured, "the model's AUROC", "beside them"), 4: (measured, "probes, by", "cross-validation")},
        ),
        ("Promoted or refused", "training/lifecycle", {2: (measured, "from the comparison", "of above")}),
    ]
    rows_top, height = top + 62, 44
    for number, (what, where, cells) in enumerate(rows):
        y = rows_top + (height + 4) * number
        p.write(left, y + 18, what, size=12, style="bold")
        p.write(left, y + 34, where, size=11, style="quiet")
        for column in range(len(sets)):
            kind, one, two = cells.get(column, ("none", "", ""))
            x = first + (width + gap) * column
            fill, stroke = _FILLS[kind]
            p.parts.append(
                f'<rect x="{x:g}" y="{y:g}" width="{width}" height="{height}" rx="3" fill="{fill}" stroke="{stroke}"/>'
            )
            lines = [line for line in (one, two) if line]
            for place, line in enumerate(lines):
                base = y + height / 2 + 4 + 15 * (place - (len(lines) - 1) / 2)
                p.write(x + width / 2, base, line, size=11, anchor="middle")
    end = rows_top + (height + 4) * len(rows)
    fill, stroke = _FILLS[chosen]
    p.parts.append(f'<rect x="20" y="{end + 9:g}" width="18" height="14" rx="3" fill="{fill}" stroke="{stroke}"/>')
    p.write(45, end + 20, "chosen on this set, and kept in the model", size=11)
    fill, stroke = _FILLS[measured]
    p.parts.append(f'<rect x="330" y="{end + 9:g}" width="18" height="14" rx="3" fill="{fill}" stroke="{stroke}"/>')
    p.write(355, end + 20, "measured on this set; nothing of the model is chosen by it", size=11)
    return p


def draw_model_folder() -> Picture:
    """Draw what is in a saved model's folder, who writes and who reads it."""
    p = Picture(
        1240,
        640,
        "A saved model's folder",
        "The folder models/<version> holds the card xray_model.json, the optional novelty.npz, and a Spark "
        "PipelineModel of two stages. The card holds the hash of all other files but checksum files. Aliases and "
        "reports lie outside.",
    )
    columns = ((20, "file"), (440, "content"), (690, "written by"), (900, "read by"), (1130, "in the hash"))
    for x, name in columns:
        p.write(x, 34, name, style="bold", size=13)
    rows = [
        ("outside", 0, "models/", "", "", "", ""),
        ("outside", 1, "champion, challenger", "one version each", "schemas/registry.py", "the running stream", "no"),
        ("outside", 1, "history.jsonl", "every move of an alias", "schemas/registry.py", "models show, rollback", "no"),
        ("code", 1, "<version>/", "one model, never changed", "save_model", "serve_model", ""),
        ("topic", 2, "xray_model.json", "the card, with the hash", "write_card", "read_card", "holds it"),
        ("stored", 2, "novelty.npz", "references; optional", "store_decision", "serve_model", "yes"),
        ("stored", 2, "metadata/part-00000...", "class, names of stages", "write_pipeline", "check_stages", "yes"),
        ("code", 2, "stages/", "", "", "", ""),
        ("code", 3, "0_DeepImageFeaturizer_.../", "", "", "", ""),
        ("stored", 4, "metadata/part-00000...", "class, parameters", "write_pipeline", "read_pipeline", "yes"),
        (
            "stored",
            4,
            "network/network.json",
            "shapes, files' SHA-256",
            "Network.to_files",
            "Network.from_files",
            "yes",
        ),
        (
            "stored",
            4,
            "network/network.xml, .bin",
            "graph and weights",
            "Network.to_files",
            "Network.from_files",
            "yes",
        ),
        ("code", 3, "1_LogisticRegression_.../", "", "", "", ""),
        ("stored", 4, "metadata/part-00000...", "class, parameters", "write_pipeline", "read_pipeline", "yes"),
        (
            "stored",
            4,
            "data/part-00000....parquet",
            "coefficients, intercepts",
            "write_pipeline",
            "read_pipeline",
            "yes",
        ),
        ("none", 2, ".*.crc", "Hadoop's checksums, if any", "Spark", "Spark", "no"),
        ("outside", 0, "reports/<version>/", "", "", "", ""),
        ("outside", 1, "report.html, .md, .json", "figures, verdict", "write_report", "decide, a person", "no"),
        ("outside", 1, "training_images.txt", "SHA-256 of train images", "write_images", "the next training", "no"),
    ]
    for number, (kind, depth, name, *cells) in enumerate(rows):
        y = 48 + 29 * number
        fill, stroke = _FILLS[kind]
        x = 20 + 26 * depth
        p.parts.append(f'<rect x="{x}" y="{y}" width="{1220 - x}" height="25" rx="3" fill="{fill}" stroke="{stroke}"/>')
        p.write(x + 8, y + 17, name, style="bold", size=12)
        for (left, _), cell in zip(columns[1:], cells, strict=True):
            if cell:
                p.write(left, y + 17, cell, size=11)
    for x, kind, name in (
        (20, "stored", "data, in the hash"),
        (200, "topic", "the card, which holds the hash"),
        (470, "outside", "outside the model's folder"),
    ):
        fill, stroke = _FILLS[kind]
        p.parts.append(f'<rect x="{x}" y="609" width="18" height="14" rx="3" fill="{fill}" stroke="{stroke}"/>')
        p.write(x + 25, 620, name, size=11)
    return p


PICTURES = {"image-way": draw_image_way, "training": draw_training, "model-folder": draw_model_folder}

if __name__ == "__main__":
    for stem, draw in PICTURES.items():
        Path(__file__).with_name(f"{stem}.svg").write_text(draw().to_svg(), encoding="utf-8")
