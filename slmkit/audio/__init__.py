"""Audio files in, mono float waves out."""

TO_END = -1.0  # in place of a time in seconds: where the recording ends

# Names of files taken for audio, lower case. What a file is, its content decides (see `decoding`).
AUDIO_SUFFIXES = (
    *(".wav", ".wave", ".flac", ".aif", ".aiff", ".aifc", ".au", ".snd", ".sph", ".nist", ".caf", ".w64", ".rf64"),
    *(".mp3", ".ogg", ".oga", ".opus", ".spx", ".m4a", ".mp4", ".aac", ".3gp", ".webm", ".mka", ".wma", ".amr"),
    *(".m4b", ".mp2", ".weba", ".mkv", ".mov", ".asf", ".awb"),
)
