"""Which class is the positive one, the finding that score, sensitivity and alerts are about.

It is given, marked in the manifest, or known from names that say "nothing was found". It is never guessed: were health
taken for the finding, every figure and every alert would be about healthy people, and the ill ones would be missed. So
where nothing says which class it is, training is refused.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from schemas.errors import DatasetError
from schemas.modelcard import BINARY

NEGATIVE_WORDS = frozenset(
    "absence absent benign clear control controls healthy neg negative negatives nofinding nofindings none normal "
    "normals nothing unaffected uninfected unremarkable well".split()
)
"""Names of the class in which nothing was found, in small letters; several may stand together, and with `_FILLERS`."""

NEGATIVE_PHRASES = frozenset(("disease free", "no", "within normal limits", "wnl"))
"""The same, as the whole name."""

NEGATIVE_STARTS = ("no", "not", "without", "negative for", "absence of", "free of")
"""Before the name of a finding, these make a name of the class without it: ``no pneumonia``."""

NEGATIVE_ENDS = ("negative", "neg", "absent")
"""The same behind it: ``covid-negative``."""

FINDINGS = frozenset(
    "abnormal abnormalities abnormality atelectasis cancer cardiomegaly consolidation covid covid19 disease diseased "
    "edema effusion emphysema fibrosis finding findings hernia ill illness infected infection infiltrate infiltration "
    "lesion lesions malignancy malignant mass ncov nodule nodules oedema opacities opacity pathological pathology "
    "pleuraleffusion pleuralthickening pneumonia pneumothorax sarscov2 sick tb tuberculosis tumor tumors tumour tumours"
    "".split()
)
"""What a name can deny, written without spaces. Not every word will do: whoever is "not fit" is ill, and "non-specific"
begins the name of a finding."""

_FILLERS = frozenset(
    "case cases chest class cxr film films group image images lung lungs patient patients radiograph radiographs ray "
    "rays scan scans subject subjects x xray xrays".split()
)
"""Say nothing beside a negative word: ``normal chest x-ray``."""

_COLUMN = "the manifest's column 'positive'"


@dataclass(frozen=True)
class ClassFacts:
    """What the data say of one class.

    Parameters
    ----------
    name : str
        The class's name.
    written : str
        Its label as it is written; an integer's name may be its finding.
    findings : frozenset of str
        Of its images, where the manifest gives any.
    marks : frozenset of bool
        What the manifest's column ``positive`` says in the lines of its images.
    """

    name: str
    written: str
    findings: frozenset[str] = frozenset()
    marks: frozenset[bool] = frozenset()


class Positive(NamedTuple):
    """The positive class.

    Parameters
    ----------
    label : str
        Its name.
    known_by : str
        How it is known, as a part of a sentence: ``"'normal' is the negative class"``.
    """

    label: str
    known_by: str


# --- names ------------------------------------------------------------------------------------------------------------


def is_negative(name: str) -> bool:
    """Tell whether a class's name says that nothing was found.

    What is denied must be a finding that is known: of "fit" and "not fit" it is the second that is ill.

    Parameters
    ----------
    name : str
        Of the class. Capitals do not matter, and any run of spaces and punctuation counts as one space.

    Returns
    -------
    bool
        False where the name does not say so for sure.
    """
    text = _normalise(name)
    kept = _keep_words(text)
    if text in NEGATIVE_PHRASES or (kept and all(word in NEGATIVE_WORDS for word in kept)):
        return True
    return any(map(_is_finding, _denied(text)))


def _denied(text: str) -> Iterator[str]:
    """Give what a name denies, if it denies anything."""
    for start in (*(f"{word} " for word in NEGATIVE_STARTS), "non"):
        if text.startswith(start):
            yield text.removeprefix(start)
    for end in NEGATIVE_ENDS:
        if text.endswith(f" {end}"):
            yield text.removesuffix(end)


def _is_finding(text: str) -> bool:
    words = _keep_words(text)
    return "".join(words) in FINDINGS or (bool(words) and all(word in FINDINGS for word in words))


def _normalise(name: str) -> str:
    """Write a name in small letters with single spaces; a number in front, which only sorts folders, is left out."""
    text = re.sub(r"[\W_]+", " ", name.casefold()).strip()
    return re.sub(r"^(\d+ )+(?=.)", "", text)


def _keep_words(text: str) -> list[str]:
    return [word for word in text.split() if word not in _FILLERS and not word.isdecimal()]


def _quote(names: Iterable[str], joint: str = "and") -> str:
    *first, last = map(repr, names)
    return f"{', '.join(first)} {joint} {last}" if first else last


# --- the choice -------------------------------------------------------------------------------------------------------


def choose_positive(classes: Sequence[ClassFacts], given: str | None, *, yes_or_no: bool, place: str) -> Positive:
    """Find out which class is the positive one.

    Parameters
    ----------
    classes : sequence of ClassFacts
        Those that are trained on, at least two.
    given : str, optional
        The name that the user gives. It counts more than anything that the data say.
    yes_or_no : bool
        Whether the data's labels are the integers 0 and 1, of which 1 is positive by convention.
    place : str
        Where the data are, for messages.

    Returns
    -------
    Positive
        Its name, and how it is known.

    Raises
    ------
    DatasetError
        The one that is given is none of the classes, the data contradict themselves, or nothing says which it is.
    """
    if given is not None:
        return _take_given(classes, given, place)
    if (marked := _read_marks(classes, place)) is not None:
        return marked
    if yes_or_no:
        _check_integers(classes, place)
    negatives = [one for one in classes if _is_known_negative(one)]
    rest = [one for one in classes if one not in negatives]
    if len(rest) == 1:
        are = "is the negative class" if len(negatives) == 1 else "are the negative classes"
        return Positive(rest[0].name, f"{_quote(one.name for one in negatives)} {are}")
    if yes_or_no and rest:
        return Positive(_class_of(classes, 1).name, "of the labels 0 and 1, 1 is positive")
    raise DatasetError(_word_refusal(classes, rest, place))


def describe_choice(label: str, how: str) -> str:
    """Say how a class was chosen, with a warning where its name says that nothing was found."""
    return f"{how}, though its name is that of a negative class" if is_negative(label) else how


def _take_given(classes: Sequence[ClassFacts], given: str, place: str) -> Positive:
    names = [one.name for one in classes]
    if given not in names:
        msg = f"--positive is {given!r}, which is no class of {place}: found {_quote(names)}, wanted one of them"
        raise DatasetError(msg)
    return Positive(given, describe_choice(given, "given with --positive"))


def _read_marks(classes: Sequence[ClassFacts], place: str) -> Positive | None:
    """Take the class that the manifest's column marks; None where it does not say which."""
    for one in classes:
        if len(one.marks) > 1:
            msg = (
                f"{place} contradicts itself: label {one.written!r} has both 1 and 0 in the column positive; wanted "
                "the same in each of its lines, or nothing"
            )
            raise DatasetError(msg)
    yes = [one.name for one in classes if True in one.marks]
    open_ = [one.name for one in classes if False not in one.marks]
    if len(yes) > 1 or not open_:
        found = f"for {_quote(yes)}" if yes else "for no class"
        msg = (
            f"{place} has 1 in the column positive {found}, wanted it for one of "
            f"{_quote(one.name for one in classes)}; or name that one with --positive"
        )
        raise DatasetError(msg)
    chosen = yes or (open_ if len(open_) == 1 else [])
    return Positive(chosen[0], describe_choice(chosen[0], f"{_COLUMN} says so")) if chosen else None


def _is_known_negative(one: ClassFacts) -> bool:
    return False in one.marks or is_negative(one.name)


def _class_of(classes: Sequence[ClassFacts], value: int) -> ClassFacts:
    return next(one for one in classes if int(one.written) == value)


def _check_integers(classes: Sequence[ClassFacts], place: str) -> None:
    """Refuse findings that say the contrary of 1 for ill and 0 for healthy."""
    zero, one = _class_of(classes, 0), _class_of(classes, 1)
    if wrong := sorted(finding for finding in one.findings if is_negative(finding)):
        msg = (
            f"label 1 of {place} has the finding {_quote(wrong)}, which says that nothing was found, so it is not "
            f"known whether 1 is positive; name the class that score and alerts are about with --positive: "
            f"{_quote((zero.name, one.name), 'or')}"
        )
        raise DatasetError(msg)


def _word_refusal(classes: Sequence[ClassFacts], rest: Sequence[ClassFacts], place: str) -> str:
    names = [one.name for one in classes]
    if not rest:
        why = f"{'both' if len(names) == BINARY else 'all'} names say that nothing was found"
    elif len(rest) == len(names) == BINARY:
        why = "neither is a name like 'normal' or 'no finding'"
    else:
        why = f"it may be {_quote((one.name for one in rest), 'or')}"
    return (
        f"cannot tell which class of {place} is positive, the finding that score and alerts are about: found "
        f"{_quote(names)}, and {why}; name it with --positive LABEL, or in {_COLUMN}"
    )
