"""Packaging of slmkit. CHANGELOG.md says which versions the tests ran with."""

from pathlib import Path

from setuptools import find_packages, setup

# The upper bound of torch is exact on purpose: without it pip may fetch a CUDA build newer than any that was tested.
REQUIRED = [
    "torch>=2.11,<=2.13.0",
    "deepspeed>=0.19.4,<=0.19.8",  # 0.17.6 to 0.19.3 gave wrong gradients under ZeRO-2 when a submodule ran twice
    "transformers>=5.17,<5.24",
    "tokenizers>=0.23,<0.24",
    "safetensors>=0.8,<0.9",
    "webdataset>=0.2.111,<1.1",
    "soundfile>=0.13,<0.15",
    "soxr>=1.0,<1.2",
    "numpy>=2.0,<2.5",
    "av>=16,<19",  # audio that libsndfile does not read whole
    "scipy>=1.13,<2",
    "pydantic>=2.10,<3",
    "pyyaml>=6,<7",
    "jinja2>=3.1,<4",
    "fsspec>=2024.6",
    "filelock>=3.16,<5",
    "tensorboard>=2.20,<2.22",
    "matplotlib>=3.9,<4",
    "pillow>=11,<14",
    "tqdm>=4.66,<5",
    "packaging>=24,<27",
    "ninja",  # DeepSpeed compiles a small operator at its first start
]
EVAL = ["jiwer>=4,<5", "pystoi>=0.4,<0.5", "pesq>=0.0.4,<0.1"]  # pesq is built with a C compiler
SERVE = ["fastapi>=0.120,<1", "uvicorn>=0.34,<1", "sse-starlette>=2.2,<5", "prometheus-client>=0.21,<1"]
EXTRAS = {
    "flash": ["flash-attn>=2.7,<3"],
    "serve": SERVE,
    "eval": EVAL,
    "parquet": ["pyarrow>=17,<27"],  # only to read Hugging Face data sets
    "dev": [
        "pytest>=8,<10",
        "pytest-xdist>=3.6,<4",
        "hypothesis>=6.100,<7",
        "pyarrow>=17,<27",
        *SERVE,
        *EVAL,
        "httpx>=0.27,<1",
        "openai>=1.60,<4",
        "ruff>=0.17,<0.18",
        "mypy>=2,<3",
        "types-PyYAML",
        "types-tqdm",
    ],
}

setup(
    name="slmkit",
    version="0.4.0",
    description="Train speech language models on codec codes with DeepSpeed, from audio files to a model that speaks",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    packages=find_packages(include=["slmkit", "slmkit.*"]),
    package_data={"slmkit.infer": ["product.c"]},
    python_requires=">=3.11",
    install_requires=REQUIRED,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["slmkit = slmkit.cli.main:main"]},
)
