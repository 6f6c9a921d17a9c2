"""Which class is the positive one: the harm is health taken for the finding.

Sensitivity, predictive values, alerts and the stream's score would then be about healthy people, and ill ones would be
missed by a model whose figures look good. So each way to know the class is tested here, and that nothing is guessed.
"""

from itertools import permutations
from pathlib import Path

import pytest

from schemas.errors import DatasetError
from training.data.dataset import Dataset, read_dataset
from training.data.positive import (
    FINDINGS,
    NEGATIVE_ENDS,
    NEGATIVE_PHRASES,
    NEGATIVE_STARTS,
    NEGATIVE_WORDS,
    is_negative,
)

# The negative class, and the positive one.
PAIRS = [
    ("No Finding", "Effusion"),
    ("healthy", "covid"),
    ("control", "abnormal"),
    ("non-covid", "covid"),
    ("normal", "opacities"),
    ("NORMAL", "COVID19"),
    ("Normal", "Abnormal"),
    ("negative", "positive"),
    ("Neg", "Pos"),
    ("no", "yes"),
    ("absent", "present"),
    ("none", "atelectasis"),
    ("clear", "consolidation"),
    ("benign", "a mass"),
    ("unremarkable", "cardiomegaly"),
    ("Controls", "Cases of TB"),
    ("uninfected", "infected"),
    ("well", "ill"),
    ("no_finding", "Cardiomegaly"),
    ("no-findings", "Edema"),
    ("NoFinding", "Fracture"),
    ("No Pneumonia", "Pneumonia"),
    ("not covid", "covid"),
    ("without effusion", "effusion"),
    ("negative for pneumonia", "Indeterminate appearance"),
    ("covid-negative", "covid-positive"),
    ("COVID Negative", "COVID"),
    ("tb_neg", "tb"),
    ("pneumothorax absent", "pneumothorax"),
    ("Non_COVID", "COVID-19"),
    ("NonCovid", "Covid"),
    ("noncovid", "covid 19"),
    ("non-tuberculosis", "Tuberculosis"),
    ("non-finding", "finding"),
    ("normal chest x-ray", "lesion"),
    ("Normal_Lung", "Covid_Lung"),
    ("healthy controls", "asthma"),
    ("0_normal", "1_pneumonia"),
    ("01 no finding", "00 effusion"),
    ("within normal limits", "unclear"),
    # These begin or end like a negative name, and are none.
    ("normal", "not normal"),
    ("healthy", "non-healthy"),
    ("healthy", "unhealthy"),
    ("negative", "non-negative"),
    ("clear", "not clear"),
    ("normal", "nodule"),
    ("normal", "nonspecific interstitial pneumonia"),
    ("normal", "non-specific interstitial pneumonia"),
    ("normal", "non-small cell lung cancer"),
    ("normal", "non-displaced fracture"),
    ("normal", "gram-negative pneumonia"),
    ("normal", "gram negative"),
    ("normal", "smear-negative"),
    ("normal", "benign nodule"),
    ("normal", "notable scar"),
    ("normal", "a"),
    ("normal", "Zebra"),
]

# Neither name says that nothing was found, or both do.
UNKNOWN = [
    ("a", "b"),
    ("covid", "pneumonia"),
    ("bacterial", "viral"),
    ("non-small cell lung cancer", "small cell lung cancer"),
    ("nonspecific", "specific"),
    ("non-displaced", "fracture"),
    ("gram-negative", "gram-positive"),
    ("no 1", "no 2"),
    ("sain", "malade"),
    ("normal", "healthy"),
    ("No Finding", "non-covid"),
    ("negative", "covid-negative"),
    # Whoever is denied what is good is ill; of words that nobody has listed it is not known which are.
    ("fit", "not fit"),
    ("ok", "not ok"),
    ("alive", "not alive"),
    ("survived", "not survived"),
    ("recovered", "non-recovered"),
    ("stable", "no longer stable"),
    ("sano", "no sano"),
    ("sain", "non sain"),
    ("breathing", "breathing absent"),
    ("asthma", "non asthma"),
    ("sputum smear negative", "sputum smear positive"),
    ("false neg", "true pos"),
    ("tb smear negative", "tb smear positive"),
]


def _folders(folder: Path, *labels: str) -> Path:
    for place, label in enumerate(labels):
        (folder / label).mkdir(parents=True)
        (folder / label / f"{place}.png").touch()
    return folder


def _manifest(folder: Path, *lines: str) -> Path:
    """Columns file (made up), label, finding and positive."""
    for place in range(len(lines)):
        (folder / f"{place}.png").touch()
    path = folder / "list.csv"
    rows = [f"{place}.png,{line}" for place, line in enumerate(lines)]
    path.write_text("\n".join(["file,label,finding,positive", *rows]) + "\n", encoding="utf-8")
    return path


def _known(dataset: Dataset) -> tuple[str, str]:
    assert dataset.positive == dataset.labels[-1]
    return dataset.positive, dataset.positive_known_by


# --- two classes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("negative", "positive"), PAIRS, ids=" or ".join)
def test_the_finding_is_positive_and_never_health(tmp_path: Path, negative: str, positive: str) -> None:
    wanted = (positive, f"{negative!r} is the negative class")
    assert _known(read_dataset(_folders(tmp_path / "folders", negative, positive))) == wanted
    for lines in permutations((negative, positive)):
        dataset = read_dataset(_manifest(tmp_path, *(f"{label},," for label in lines)))
        assert (_known(dataset), dataset.labels) == (wanted, (negative, positive))
        assert [dataset.labels[sample.label] for sample in dataset.samples] == list(lines)


@pytest.mark.parametrize("names", UNKNOWN, ids=" or ".join)
def test_where_the_names_do_not_tell_nothing_is_guessed(tmp_path: Path, names: tuple[str, str]) -> None:
    for number, labels in enumerate(permutations(names)):
        source = _folders(tmp_path / str(number), *labels)
        with pytest.raises(DatasetError, match="cannot tell which class") as caught:
            read_dataset(source)
        message = str(caught.value)
        assert "\n" not in message
        assert all(
            part in message for part in (*map(repr, names), "--positive LABEL", "column 'positive'", str(source))
        )
        for label in labels:
            assert read_dataset(source, positive=label).positive == label


def test_a_refusal_says_why_it_is_not_known(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="found 'a' and 'b', and neither is a name like 'normal' or 'no finding'"):
        read_dataset(_folders(tmp_path / "neither", "a", "b"))
    with pytest.raises(DatasetError, match="found 'healthy' and 'normal', and both names say that nothing was found"):
        read_dataset(_folders(tmp_path / "both", "normal", "healthy"))


# --- given ------------------------------------------------------------------------------------------------------------


def test_the_class_that_is_given_is_positive_whatever_the_data_say(tmp_path: Path) -> None:
    lines = ("normal,,0", "covid,,1", "flu,,")
    for name in ("covid", "flu"):
        dataset = read_dataset(_manifest(tmp_path, *lines), positive=name)
        assert _known(dataset) == (name, "given with --positive")
    assert dataset.labels == ("normal", "covid", "flu")
    two = read_dataset(_manifest(tmp_path, *lines), classes=["flu", "covid"], positive="flu")
    assert two.labels == ("covid", "flu")


def test_a_negative_name_that_is_given_is_taken_with_a_warning(tmp_path: Path) -> None:
    found = _known(read_dataset(_folders(tmp_path, "normal", "covid"), positive="normal"))
    assert found == ("normal", "given with --positive, though its name is that of a negative class")


@pytest.mark.parametrize("given", ["flu", "Covid", "1", ""])
def test_a_class_that_is_not_there_cannot_be_given(tmp_path: Path, given: str) -> None:
    manifest = _manifest(tmp_path, "0,normal,", "1,covid,", "2,flu,")
    with pytest.raises(
        DatasetError, match=f"--positive is '{given}', .*: found 'normal' and 'covid', wanted one of th"
    ):
        read_dataset(manifest, classes=["normal", "covid"], positive=given)


# --- the manifest -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        ("a,,1", "b,,0"),
        ("a,,1", "b,,"),
        ("a,,", "b,,0"),  # the only one left
        ("a,,YES", "b,,No"),
        ("a,,True", "b,,FALSE", "b,,", "a,,1"),
        ("a,,1", "normal,,0", "c,,"),
        ("a,,", "normal,,0", "c,,0"),
        ("a,,1", "0,,"),
    ],
)
def test_the_manifest_says_which_class_is_positive(tmp_path: Path, lines: tuple[str, ...]) -> None:
    assert _known(read_dataset(_manifest(tmp_path, *lines))) == ("a", "the manifest's column 'positive' says so")


def test_the_manifest_counts_more_than_integers_and_names(tmp_path: Path) -> None:
    dataset = read_dataset(_manifest(tmp_path, "0,,1", "1,,0"))
    assert (dataset.labels, dataset.positive_known_by) == (("1", "0"), "the manifest's column 'positive' says so")
    dataset = read_dataset(_manifest(tmp_path, "0,covid,1", "1,normal,0"))
    assert dataset.labels == ("normal", "covid")
    dataset = read_dataset(_manifest(tmp_path, "normal,,1", "covid,,0"))
    warning = "the manifest's column 'positive' says so, though its name is that of a negative class"
    assert _known(dataset) == ("normal", warning)


def test_a_class_marked_0_is_known_as_negative_beside_those_known_by_name(tmp_path: Path) -> None:
    found = _known(read_dataset(_manifest(tmp_path, "covid,,", "normal,,", "old scar,,0")))
    assert found == ("covid", "'normal' and 'old scar' are the negative classes")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (("a,,1", "b,,1"), "has 1 in the column positive for 'a' and 'b', wanted it for one of 'a' and 'b'"),
        (("a,,0", "b,,0"), "has 1 in the column positive for no class, wanted it for one of 'a' and 'b'"),
        (("a,,1", "b,,0", "a,,0"), "contradicts itself: label 'a' has both 1 and 0 in the column positive"),
        (("a,,1", "b,,perhaps"), r"list\.csv, line 3: positive is 'perhaps', wanted 1 for the finding"),
        (("normal,,1", "covid,,1", "flu,,1"), "has 1 in the column positive for 'normal', 'covid' and 'flu'"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(tmp_path: Path, lines: tuple[str, ...], words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        read_dataset(_manifest(tmp_path, *lines))


def test_marks_of_classes_that_are_left_out_do_not_count(tmp_path: Path) -> None:
    manifest = _manifest(tmp_path, "a,,1", "b,,0", "c,,1", "c,,0")
    assert read_dataset(manifest, classes=["a", "b"]).positive == "a"
    with pytest.raises(DatasetError, match="label 'c' has both"):
        read_dataset(manifest, classes=["a", "c"])
    with pytest.raises(DatasetError, match="cannot tell"):
        read_dataset(_manifest(tmp_path, "a,,1", "b,,", "c,,"), classes=["b", "c"])


# --- integers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "positive", "known_by"),
    [
        (("0,,", "1,,"), "1", "of the labels 0 and 1, 1 is positive"),
        (("0,flu,", "1,covid,"), "covid", "of the labels 0 and 1, 1 is positive"),
        (("0,normal,", "1,covid,"), "covid", "'normal' is the negative class"),
        (("0,normal,", "1,covid,", "1,flu,"), "1", "of the labels 0 and 1, 1 is positive"),
        (("7,normal,", "3,covid,"), "covid", "'normal' is the negative class"),  # other integers say nothing
    ],
)
def test_integers_say_it_by_convention_or_by_their_findings(
    tmp_path: Path, lines: tuple[str, ...], positive: str, known_by: str
) -> None:
    for order in permutations(lines):
        assert _known(read_dataset(_manifest(tmp_path, *order))) == (positive, known_by)


@pytest.mark.parametrize(
    "lines",
    [
        ("0,covid,", "1,normal,"),
        ("0,,", "1,No Finding,"),
        ("0,covid,", "1,healthy,", "1,,"),
        ("0,covid,", "1,non-covid,"),
        ("0,covid,", "0,flu,", "1,normal,", "1,no finding,"),
    ],
)
def test_a_finding_that_contradicts_the_integer_is_refused(tmp_path: Path, lines: tuple[str, ...]) -> None:
    with pytest.raises(DatasetError, match=r"label 1 of .* has the finding .* which says that nothing was.*--positive"):
        read_dataset(_manifest(tmp_path, *lines))


@pytest.mark.parametrize("lines", [("1,,", "2,,"), ("-1,,", "1,,"), ("0,,", "2,,"), ("1,flu,", "2,covid,")])
def test_other_integers_say_nothing(tmp_path: Path, lines: tuple[str, ...]) -> None:
    with pytest.raises(DatasetError, match=r"cannot tell which class .*--positive LABEL"):
        read_dataset(_manifest(tmp_path, *lines))


def test_0_and_1_of_more_integers_are_numbers_of_classes(tmp_path: Path) -> None:
    manifest = _manifest(tmp_path, "0,,", "1,,", "2,,")
    with pytest.raises(DatasetError, match="cannot tell"):
        read_dataset(manifest, classes=["0", "1"])
    assert read_dataset(manifest, classes=["0", "1"], positive="0").labels == ("1", "0")


# --- three and more ---------------------------------------------------------------------------------------------------


def test_of_more_classes_one_is_known_only_beside_negative_ones(tmp_path: Path) -> None:
    dataset = read_dataset(_folders(tmp_path / "known", "covid", "healthy", "no finding"))
    assert dataset.labels == ("healthy", "no finding", "covid")
    assert dataset.positive_known_by == "'healthy' and 'no finding' are the negative classes"
    several = _folders(tmp_path / "several", "bacterial", "normal", "viral")
    with pytest.raises(
        DatasetError, match="found 'normal', 'bacterial' and 'viral', and it may be 'bacterial' or 'vir"
    ):
        read_dataset(several)
    assert read_dataset(several, positive="bacterial").labels == ("normal", "viral", "bacterial")
    with pytest.raises(DatasetError, match="all names say that nothing was found"):
        read_dataset(_folders(tmp_path / "none", "healthy", "normal", "no finding"))
    assert read_dataset(several, classes=["normal", "viral"]).positive == "viral"


# --- names ------------------------------------------------------------------------------------------------------------


def test_every_word_of_the_lists_is_understood_however_it_is_written() -> None:
    for name in (*NEGATIVE_WORDS, *NEGATIVE_PHRASES):
        for text in (name, name.upper(), name.title(), name.replace(" ", "_"), f" {name}."):
            assert is_negative(text), text
    for finding in FINDINGS:
        assert not is_negative(finding), finding
        for joint in (" ", "-", "_", ""):
            assert is_negative(f"non{joint}{finding}"), finding
        assert all(is_negative(f"{start} {finding}") for start in NEGATIVE_STARTS), finding
        assert all(is_negative(f"{finding}-{end}") for end in NEGATIVE_ENDS), finding


@pytest.mark.parametrize("name", ["", "-", "x", "non", "non-", "not", "without", "chest", "12", "no 2"])
def test_what_says_nothing_is_not_negative(name: str) -> None:
    assert not is_negative(name)
