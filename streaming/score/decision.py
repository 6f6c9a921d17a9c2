"""The last stage of SCORE: what the classifier's numbers mean in words, written into the predictions.

Everything here is Spark SQL, so the JVM does it without asking Python. A micro-batch is planned anew each time, at a
cost that grows with the number of expressions: what needs no classifier is in `streaming.score.outcomes`.
"""

import math

from pyspark.ml.functions import vector_to_array
from pyspark.sql import Column, DataFrame
from pyspark.sql.functions import (
    array,
    array_max,
    array_min,
    coalesce,
    col,
    concat,
    expr,
    lit,
    map_from_arrays,
    raise_error,
    struct,
    substring,
    to_json,
    when,
)

from schemas import envelope
from schemas.errors import Reason
from schemas.modelcard import Flag, ModelCard, Remark
from sparkdl.image.limits import RENDERING_VERSION
from sparkdl.transformers.featurizer import NOVEL_COLUMN
from streaming.score.scoring import NO_FEATURES

NO_ANSWER_MARK = "XRAY_NO_FEATURES"
"""What a micro-batch raises that meets an image that the classifier has no answer for."""

_WHOLE = 2**31 - 1
"""As many characters as there are."""


def add_decision(frame: DataFrame, card: ModelCard) -> DataFrame:
    """Add what the model says in words.

    Parameters
    ----------
    frame : DataFrame
        With ``probability`` and, where the model tells images unlike its training images, `NOVEL_COLUMN`.
    card : ModelCard
        Names the classes and holds the threshold and the abstain band.

    Returns
    -------
    DataFrame
        With ``probabilities`` (array of double in the order of ``card.labels``), ``score``, ``label_name`` and
        ``flags`` (array of `Flag`; null where the model flags nothing).
    """
    names = array(*[lit(label) for label in card.labels])
    score = col("probabilities")[card.labels.index(card.positive_label)]
    framed = frame.withColumn("probabilities", vector_to_array(col("probability"))).withColumn("score", score)
    return framed.withColumns({"label_name": _name_label(names, card), "flags": _raise_flag(card)})


def _name_label(names: Column, card: ModelCard) -> Column:
    """Decide, but not on an image unlike those that the model knows: whatever it says of that one means nothing."""
    if card.novelty is None:
        return _decide_label(names, card)
    return when(col(NOVEL_COLUMN), lit(Flag.UNLIKE_TRAINING.value)).otherwise(_decide_label(names, card))


def _raise_flag(card: ModelCard) -> Column:
    """Give the one flag that counts, if any: an image that is not judged cannot be uncertain as well."""
    if not card.flags:
        return lit(None).cast("array<string>")
    unlike = lit(False) if card.novelty is None else col(NOVEL_COLUMN)
    score = col("score")
    near = lit(False) if card.abstain is None else (score >= card.abstain.low) & (score < card.abstain.high)
    raised = when(unlike, array(lit(Flag.UNLIKE_TRAINING.value))).when(near, array(lit(Flag.UNCERTAIN.value)))
    return raised.otherwise(array().cast("array<string>"))


def _decide_label(names: Column, card: ModelCard) -> Column:
    most_probable = names[expr("array_position(probabilities, array_max(probabilities)) - 1").cast("int")]
    if card.threshold is None:
        return most_probable
    negative = next(label for label in card.labels if label != card.positive_label)
    return when(col("score") >= card.threshold, lit(card.positive_label)).otherwise(lit(negative))


def refuse_unanswered(decided: DataFrame, deadletters_topic: str, *, refusals: bool) -> DataFrame:
    """Make dead letters of predictions that the classifier has no numbers for, instead of an answer made from nothing.

    A dead letter holds the original bytes, which are left behind after decoding. So without them the micro-batch fails,
    with `NO_ANSWER_MARK`, and is done again with them.

    Parameters
    ----------
    decided : DataFrame
        Columns of `streaming.score.scoring.SCORED_DDL` and of `add_decision`.
    deadletters_topic : str
        Where dead letters go; a canary without an answer is noticed where it is waited for.
    refusals : bool
        Whether every prediction brings its ``refusal``.

    Returns
    -------
    DataFrame
        The same columns; a refused prediction has no ``head`` any more, and its features are left out.
    """
    probabilities = col("probabilities")
    # To Spark NaN is more than infinity.
    finite = coalesce((array_max(probabilities) < math.inf) & (array_min(probabilities) > -math.inf), lit(False))
    finite |= col("topic") == deadletters_topic  # those were never asked about
    if not refusals:
        failure = raise_error(lit(f"{NO_ANSWER_MARK}: {NO_FEATURES}")).cast("boolean")
        # Not counted: a canary, or the features of an image whose prediction fails.
        return decided.where(when(finite, True).when(col("image").isNull(), False).otherwise(failure))
    image = col("image").withField("reason", lit(Reason.NO_FEATURES.value))
    changed = {
        "topic": lit(deadletters_topic),
        "value": col("refusal.value"),
        "headers": col("refusal.headers"),
        "head": lit(None).cast("string"),
        "image": image,
    }
    kept = decided.where(finite | col("refusal").isNotNull())
    return kept.withColumns({name: when(finite, col(name)).otherwise(value) for name, value in changed.items()})


def write_answers(decided: DataFrame, card: ModelCard) -> DataFrame:
    """Complete the predictions' values; all others have theirs.

    Parameters
    ----------
    decided : DataFrame
        Columns of `streaming.score.scoring.SCORED_DDL` and of `add_decision`.
    card : ModelCard
        What the predictions say of the decision.
    """
    names = array(*[lit(label) for label in card.labels])
    answer = to_json(
        struct(
            col("label_name").alias("label"),
            map_from_arrays(names, col("probabilities")).alias("probabilities"),
            lit(card.positive_label).alias("positive_label"),
            lit(card.threshold).cast("double").alias("threshold"),
            lit(card.operating_point).alias("operating_point"),
            # Null, and so left out, where the model checks nothing: its messages are what they were before flags.
            col("flags"),
            # Likewise where there is nothing to remark.
            _list_remarks(card).alias("remarks"),
            lit(envelope.DISCLAIMER).alias("disclaimer"),
        )
    )
    whole = concat(col("head"), lit(","), substring(answer, 2, _WHOLE)).cast("binary")
    return decided.withColumn("value", when(col("head").isNotNull(), whole).otherwise(col("value")))


def _list_remarks(card: ModelCard) -> Column:
    if card.rendering_version == RENDERING_VERSION:
        return lit(None).cast("array<string>")
    return array(lit(Remark.OLD_RENDERING.value))
