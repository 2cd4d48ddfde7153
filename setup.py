"""Installs the package `diffews` and the command of the same name."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (here / "diffews" / "__init__.py").read_text())[1]

setup(
    name="diffews",
    version=version,
    description="Few-shot segmentation with a Stable Diffusion UNet in one step (DiffewS)",
    long_description=(here / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="BSD-2-Clause",
    python_requires=">=3.11",
    packages=find_packages(include=["diffews", "diffews.*"]),
    package_data={"diffews": ["py.typed"], "diffews.data": ["splits/*", "splits/*/*"]},
    entry_points={"console_scripts": ["diffews = diffews.cli.main:main"]},
    extras_require={
        "lora": ["peft>=0.18"],  # lora=
        "8bit": ["bitsandbytes>=0.45"],  # optimizer=adamw8bit
        "tensorboard": ["tensorboard"],  # tracker=tensorboard
        "sbd": ["scipy>=1.11"],  # prepare benchmark=pascal5i
        # export format=onnx; to run what it writes, onnxruntime is enough
        "onnx": ["onnx>=1.18", "onnxscript>=0.5", "onnxruntime>=1.22"],
        "heif": ["pillow-heif>=0.18"],  # HEIC and HEIF pictures of segment, folder, coco_json
        "app": ["gradio>=6,<7"],  # app
    },
    # the least versions are those that tests/test_lowest.py has run the goldens with
    install_requires=[
        "torch>=2.6",
        "diffusers>=0.42,<0.43",
        "transformers>=5.0",
        "accelerate>=1.2",
        "omegaconf>=2.3",
        "pycocotools>=2.0.7",
        "opencv-python-headless>=4.8.0.74",
        "numpy>=1.26",
        "pillow>=13.0",
        "safetensors>=0.8",
        "tqdm>=4.65",
    ],
)
