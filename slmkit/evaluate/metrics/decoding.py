"""Whether the model ended its speech itself, and how fast it was decoded."""

from slmkit.evaluate.metrics import Metric, Scores, measures, single
from slmkit.evaluate.spoken import Spoken


@measures(
    Metric(
        name="success",
        label="success",
        unit="%",
        better="higher",
        digits=1,
        order=10,
        note="The model ended its speech itself; no speech, or far too little for the text, is no success.",
    )
)
def success(spoken: Spoken) -> Scores:
    return {"success": single(spoken.record.reason == "end" and spoken.record.frames > 0 and not spoken.record.warning)}


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
