"""Stand-ins for the networks that measure, in a module that workers can load without torch: the peak for DNSMOS, the
share of loud samples for that of speech."""

import numpy as np

from slmkit.errors import BadSample


class Peak:
    NETWORK = ("", __file__)

    @staticmethod
    def load():
        return Peak()

    def score(self, wave, sample_rate):
        if len(wave) < sample_rate / 10:
            raise BadSample("too_short", "no peak", got=f"{len(wave)} samples")
        return round(float(np.abs(wave).max()) * 5, 2) if wave.max() < 0.95 else float("nan")


class Loud:
    NETWORK = ("", __file__)

    @staticmethod
    def load():
        return Loud()

    def score(self, wave, sample_rate):
        return float((np.abs(wave) > 0.1).mean())


STAND_INS = {"speech_share": Loud, "dnsmos": Peak}
