"""Whether the model ended its speech itself, and how fast it was decoded.

A reading that lasts less than a quarter of what the corpus takes for the sentence is no success: it cannot hold it.
"""

from slmkit.evaluate.metrics import Metric, Scores, measures, single
from slmkit.evaluate.spoken import Spoken

SHORTEST_SHARE = 0.25  # of the corpus's own frames for the sentence


@measures(
    Metric(
        name="success",
        label="success",
        unit="%",
        better="higher",
        digits=1,
        order=10,
        note="The model ended its speech itself, and it is long enough for the sentence.",
    )
)
def success(spoken: Spoken) -> Scores:
    record = spoken.record
    is_long = record.frames > 0 and not record.warning
    if is_long and not record.question:
        is_long = record.frames >= SHORTEST_SHARE * spoken.truths.codes(record.number).shape[1]
    return {"success": single(record.reason == "end" and is_long)}


@measures(
    Metric(
        name="steps_per_sec",
        label="steps/s",
        better="higher",
        digits=0,
        order=100,
        is_timed=True,
        note="Positions decoded in a second, all slots together.",
    ),
    Metric(
        name="frames_per_step",
        label="frames/step",
        digits=2,
        order=101,
        note="Codec frames per position decoded, text included.",
    ),
    Metric(
        name="real_time_factor",
        label="RTF",
        better="lower",
        order=102,
        is_timed=True,
        note="Real-time factor: seconds of decoding for a second of speech, without the codec.",
    ),
)
def speed(spoken: Spoken) -> Scores:
    record = spoken.record
    if record.steps is None or record.engine_sec is None:  # copy synthesis decodes nothing
        return {}
    return {
        "steps_per_sec": (record.steps, record.engine_sec),
        "frames_per_step": (record.frames, record.steps),
        "real_time_factor": (record.engine_sec, spoken.seconds),
    }
