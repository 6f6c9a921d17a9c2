"""How many examples Hypothesis draws: a few for each change, many in `make test-long`; the same ones at every run."""

from hypothesis import HealthCheck, settings

SHORT = settings(
    max_examples=200,
    deadline=None,  # a busy machine takes its time
    derandomize=True,  # a run that fails fails again; what is new is looked for by benchmarks.fuzz
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
LONG = settings(SHORT, max_examples=2500)
