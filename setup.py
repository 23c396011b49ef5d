"""Packaging of slmkit. CHANGELOG.md says which versions the tests ran with."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
# Recipes, DeepSpeed settings and Slurm scripts: an installed slmkit has copies of them below slmkit/assets/.
ASSETS = (
    *("launch/*.yaml", "launch/recipes/*.yaml", "launch/studies/*.yaml", "launch/*.sbatch"),
    *("ds_configs/*.json", "tokenize_jobs/*.yaml", "tokenize_jobs/*.sbatch"),
)

# The upper bound of torch is exact on purpose: without it pip may fetch a CUDA build newer than any that was tested.
REQUIRED = [
    "torch>=2.11,<=2.13.0",
    "deepspeed>=0.19.4,<=0.19.8",  # 0.17.6 to 0.19.3 gave wrong gradients under ZeRO-2 when a submodule ran twice
    "transformers>=5.17,<5.25",
    "tokenizers>=0.23,<0.24",
    "huggingface_hub>=1.31,<3",
    "safetensors>=0.8,<0.9",
    "webdataset>=0.2.111,<1.1",
    "soundfile>=0.13,<0.15",
    "soxr>=1.0,<1.2",
    "numpy>=2.0,<2.5",
    "av>=16,<19",  # audio that libsndfile does not read whole; MP3, Opus and AAC
    "scipy>=1.15,<2",
    "pydantic>=2.10,<3",
    "pyyaml>=6,<7",
    "jinja2>=3.1,<4",
    "sentencex>=1.0.32,<2",
    "fsspec>=2024.6",
    "filelock>=3.16,<5",
    "tensorboard>=2.20,<2.22",
    "matplotlib>=3.9,<4",
    "pillow>=11,<14",
    "tqdm>=4.66,<5",
    "packaging>=24,<27",
    "ninja",  # DeepSpeed compiles a small operator at its first start
]
MEASURE = [  # of the two packages of networks, the networks alone are used
    "speechmos>=0.0.1.1,<0.1",
    "silero-vad>=6.2.3,<7",
    "onnxruntime>=1.20,<2",
]
EVAL = [
    "jiwer>=4,<5",
    "pystoi>=0.4,<0.5",
    "pesq>=0.0.4,<0.1",  # built with a C compiler
    *MEASURE,
]
SERVE = ["fastapi>=0.160,<1", "uvicorn>=0.50,<1", "sse-starlette>=3,<4", "prometheus-client>=0.22,<1"]
TEXT = ["voxnorm>=0.5,<0.6", "num2words>=0.5.14,<0.6"]
EXTRAS = {
    "flash": ["flash-attn>=2.7,<3"],
    "flash4": ["flash-attn-4>=4.0.0b1,<5"],  # Hopper and later
    "liger": ["liger-kernel>=0.5,<1"],
    "serve": SERVE,
    "eval": EVAL,
    "measure": MEASURE,
    "text": TEXT,  # numbers and abbreviations as English words
    "parquet": ["pyarrow>=17,<27"],  # only to read Hugging Face data sets
    "dev": [
        "pytest>=8,<10",
        "pytest-xdist>=3.6,<4",
        "hypothesis>=6.100,<7",
        "pyarrow>=17,<27",
        *SERVE,
        *EVAL,
        *TEXT,
        "httpx>=0.27,<1",
        "openai>=1.60,<4",
        "ruff>=0.17,<0.18",
        "mypy>=2,<3",
        "types-PyYAML",
        "types-tqdm",
    ],
}


class BuildWithAssets(build_py):
    """Puts the assets into the package. A checkout installed with --editable uses them where they are."""

    def assets(self):
        return [path.relative_to(ROOT).as_posix() for pattern in ASSETS for path in sorted(ROOT.glob(pattern))]

    def built(self):
        return {f"{self.build_lib}/slmkit/assets/{path}": path for path in self.assets()}

    def run(self):
        super().run()
        if not self.editable_mode:
            for target, path in self.built().items():
                Path(target).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / path, target)

    def get_outputs(self, include_bytecode=True):
        return [*super().get_outputs(include_bytecode), *({} if self.editable_mode else self.built())]

    def get_source_files(self):  # what a source distribution holds
        return [*super().get_source_files(), *self.assets()]


setup(
    name="slmkit",
    version="0.5.0",
    description="Train speech language models on codec codes with DeepSpeed, from audio files to a model that speaks",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="the slmkit developers",
    maintainer="the slmkit developers",
    project_urls={"Paper": "https://arxiv.org/abs/2506.12537"},
    license="MIT",
    license_files=["LICENSE"],
    keywords=["speech", "language model", "text to speech", "codec", "DeepSpeed"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Multimedia :: Sound/Audio :: Speech",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=find_packages(include=["slmkit", "slmkit.*"]),
    package_data={"": ["*.c", "*.json", "*.html", "*.css", "*.js", "templates/*", "static/*"]},
    python_requires=">=3.11",
    install_requires=REQUIRED,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["slmkit = slmkit.__main__:command"]},
    cmdclass={"build_py": BuildWithAssets},
)
