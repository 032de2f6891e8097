"""Installation; the only place for the project's metadata."""

from pathlib import Path

from setuptools import find_packages, setup

DATASETS = ["datasets>=4"]
SWEEP = ["optuna>=4", "submitit>=1.5.4"]
DEVICE = ["pyzmq>=25", "smbus2>=0.4"]
DOCS = ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.26", "nbconvert>=7.16", "ipykernel>=6.29"]
TRACK = ["tensorboard>=2.16.2", "wandb>=0.18", "mlflow>=2.16"]
TEST = [
    "build>=1.2",
    "mypy>=1.14",
    "pytest>=8",
    "pytest-xdist>=3.5",
    "hypothesis>=6",
    "ruff>=0.6",
    "scikit-image>=0.22",
    "setuptools>=77",
    "timm>=1.0",
    *DATASETS,
    *DEVICE,
    *SWEEP,
    TRACK[0],
]

setup(
    name="simsfl",
    version="0.2.0",
    description="Single-process simulator of split federated self-supervised learning (MocoSFL)",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="the simsfl contributors",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    keywords="split learning, federated learning, self-supervised learning, MocoSFL, vmap",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["simsfl*"]),
        "simsfl.kernels",
        "simsfl.hw_profile",
        *(f"simsfl.hw_profile.{name}" for name in find_packages("hw_profile")),
    ],
    package_data={
        "simsfl": ["py.typed"],
        "simsfl.cli.report": ["template/*"],
        "simsfl.fleet": ["devices/*", "devices/*/*"],
        "simsfl.setup": ["experts/*"],
    },
    package_dir={"simsfl.kernels": "kernels", "simsfl.hw_profile": "hw_profile"},
    entry_points={"console_scripts": ["simsfl = simsfl.cli.main:main"]},
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "numpy>=1.26",
        "rich>=14.3",
        "safetensors>=0.4.4",  # earlier ones write metadata alone in a broken header
        "matplotlib>=3.8",
        "plotly>=6.1",  # charts of report.html
        "jinja2>=3.1",  # pages for a browser
        "scipy>=1.11",  # torchvision reads SVHN with it
        "torchmetrics>=1.5",  # SSIM, PSNR, total variation
        'tomli>=2; python_version < "3.11"',  # fleet files
    ],
    extras_require={
        "datasets": DATASETS,  # hf:NAME
        "device": DEVICE,  # devices that take part; INA219 and INA226
        "docs": DOCS,  # mkdocs build, and the notebooks
        "sweep": SWEEP,  # simsfl sweep --search, --launcher submitit
        "track": TRACK,  # --track, simsfl track
        "test": TEST,
        "dev": [*TEST, "pre-commit>=3"],
    },
)
